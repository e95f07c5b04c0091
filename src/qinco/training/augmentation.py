"""Training vectors that are moved towards near ones, so that few vectors are not learnt by heart.

Shape suffixes: N vectors, D dimension.
"""

import numpy as np

from qinco.config import ModelConfig

_NEAR = 3  # neighbours of which one is drawn
_USUAL_DIMS = 48  # that vectors of many dimensions fill about as well
# Shares per doubt, and the least one. With 4,500 vectors of text (M=4) 1 lowers the error by 2 % in 18 epochs, where it
# rises without after 7; with 18,000 of them .6 raises it by 2 % in 6 epochs (docs/log.md).
_SHARE_PER_DOUBT, _LEAST_SHARE = 5.0, 0.5


def fitted_mixing(num_train: int, config: ModelConfig) -> float:
    """How far to move vectors, as a share of the way to near ones: 1 for few vectors in many dimensions, 0 for many.

    A codeword is the mean of num_train / K vectors, and what it has by chance is in inverse proportion to them. In d
    dimensions K codewords lower the error to K^(-2/d) of it, which says how much codewords truly differ.
    """
    size = config.codebook_size
    within = 1 / (size ** (2 / min(config.dim, _USUAL_DIMS)) - 1)
    share = min(1.0, _SHARE_PER_DOUBT * within * size / num_train)
    return share if share >= _LEAST_SHARE else 0.0


def mixed(x_ND: np.ndarray, share: float, seed: tuple[int, ...]) -> np.ndarray:
    """Vectors, float32 (N, D), each moved by up to `share` of the way to one of the three nearest among them."""
    near = min(_NEAR, len(x_ND) - 1)
    if near < 1 or share == 0:
        return x_ND
    generator = np.random.default_rng(seed)
    y_ND = x_ND - x_ND.mean(0)
    y_ND /= max(float(np.abs(y_ND).max()), 1e-30)  # squares of very large values leave float32's range
    distances_NN = np.square(y_ND).sum(1) - 2 * (y_ND @ y_ND.T)
    np.fill_diagonal(distances_NN, np.inf)
    places_NJ = np.argpartition(distances_NN, near - 1)[:, :near]
    others_N = places_NJ[np.arange(len(x_ND)), generator.integers(near, size=len(x_ND))]
    shares_N1 = share * generator.random((len(x_ND), 1), np.float32)
    return x_ND + shares_N1 * (x_ND[others_N] - x_ND)
