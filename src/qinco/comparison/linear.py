"""Principal components with a random rotation, before a quantizer.

Shape suffixes: N vectors, D dimension, E kept dimensions.
"""

import numpy as np


class Components:
    """The leading `count` principal components of training vectors, randomly rotated so that all vary alike."""

    def __init__(self, x_ND: np.ndarray, count: int, seed: int = 0):
        self.mean_D = x_ND.mean(0, dtype=np.float64).astype(np.float32)
        centred_ND = x_ND - self.mean_D
        covariance_DD = (centred_ND.T @ centred_ND).astype(np.float64) / len(x_ND)
        axes_DE = np.linalg.eigh(covariance_DD)[1][:, ::-1][:, :count]
        self.axes_DE = (axes_DE @ random_rotation(count, seed)).astype(np.float32)

    @property
    def nbytes(self) -> int:
        return self.mean_D.nbytes + self.axes_DE.nbytes

    def apply(self, x_ND: np.ndarray) -> np.ndarray:
        """Vectors in the rotated components, float32 (N, E)."""
        return (x_ND - self.mean_D) @ self.axes_DE

    def reverse(self, y_NE: np.ndarray) -> np.ndarray:
        """Vectors in data space again, float32 (N, D), without what the other components held."""
        return y_NE @ self.axes_DE.T + self.mean_D


class Rotation:
    """A random rotation of all dimensions, after the mean of training vectors is subtracted if it `centres`."""

    def __init__(self, x_ND: np.ndarray, centres: bool, seed: int = 0):
        mean_D = x_ND.mean(0, dtype=np.float64).astype(np.float32)
        self.mean_D = mean_D if centres else np.zeros_like(mean_D)
        self.axes_DE = random_rotation(len(mean_D), seed).astype(np.float32)

    nbytes, apply, reverse = Components.nbytes, Components.apply, Components.reverse


class Plain:
    """Vectors as they are."""

    nbytes = 0

    def __init__(self, dim: int):
        self.mean_D = np.zeros(dim, np.float32)

    def apply(self, x_ND: np.ndarray) -> np.ndarray:
        return x_ND

    reverse = apply


Space = Components | Rotation | Plain


def random_rotation(dim: int, seed: int) -> np.ndarray:
    """An orthonormal matrix, float64 (dim, dim), of a normal one's QR decomposition."""
    drawn_EE = np.random.default_rng(seed).standard_normal((dim, dim))
    q_EE, r_EE = np.linalg.qr(drawn_EE)
    return q_EE * np.sign(np.diag(r_EE))


def make_space(name: str, dims: int, x_ND: np.ndarray) -> Space:
    """The space of a rival, fitted to training vectors."""
    if name == "plain":
        return Plain(x_ND.shape[1])
    return Components(x_ND, dims) if name == "components" else Rotation(x_ND, centres=name == "centred")
