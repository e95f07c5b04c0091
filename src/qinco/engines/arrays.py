"""A step's weights rearranged for kernels that evaluate many candidates.

Two exact rearrangements beside the tables of `StepTables`: the contribution of a reconstruction to the first hidden
layer is one product (up · W_x), unless the stream is narrower than the vectors; and with projections the basis of the
residual stream is rotated so that the columns of the output projection are orthogonal, which makes a candidate's
distance a sum over the stream instead of a product.

Shape suffixes: D dimension, K codewords, E stream width, H hidden width.
"""

import numpy as np

from qinco.model.weights import StepWeights
from qinco.native.library import StepArrays


@np.errstate(over="ignore", invalid="ignore")  # of diverged training
def step_arrays(step: StepWeights, dtype: type = np.float64) -> StepArrays:
    """A step's arrays, computed in `dtype`."""
    if not step.conditioned:
        return StepArrays(step.codebook_KD)
    codebook_KD, stream_KE = step.codebook_KD.astype(dtype), step.embed(dtype)
    _, stream_x_ED = step.concat(dtype)
    arrays = {}
    if step.preselector_KD is not None:
        arrays["preselector"] = step.preselector_KD
    ranker = {}
    if step.ranker and step.ranker["offset"].any():  # it has been fitted
        ranker |= step.ranker
    up, down = ([weight.astype(dtype) for weight in weights] for weights in (step.up, step.down))
    if up:
        arrays["hidden_table"] = _float32(stream_KE @ up[0].T)
    if step.project_out_DE is not None:
        out_DE, basis_EE = orthogonal_outputs(step.project_out_DE.astype(dtype))
        stream_KE, stream_x_ED = stream_KE @ basis_EE, basis_EE.T @ stream_x_ED
        ranker |= {name: basis_EE.T @ ranker[name].astype(dtype) for name in ("map", "hidden_map") if ranker}
        up, down = [weight @ basis_EE for weight in up], [basis_EE.T @ weight for weight in down]
        arrays |= {"project_out": _float32(out_DE), "gram": _float32(np.square(out_DE).sum(0))}
        arrays["codeword_back"] = _float32(codebook_KD @ out_DE)
    if up:
        embed_dim, dim = stream_x_ED.shape
        arrays["hidden_x"] = _float32(up[0] if embed_dim < dim else up[0] @ stream_x_ED)
    arrays |= {f"rank_{name}": _float32(array) for name, array in ranker.items()}
    arrays |= {"up": tuple(map(_float32, up)), "down": tuple(map(_float32, down))}
    return StepArrays(step.codebook_KD, stream_table=_float32(stream_KE), stream_x=_float32(stream_x_ED), **arrays)


def orthogonal_outputs(out_DE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output projection in a basis of the stream that makes its columns orthogonal, and that basis (E, E)."""
    dim, width = out_DE.shape
    gram = out_DE.T @ out_DE if width <= dim else out_DE @ out_DE.T
    gram = gram.astype(np.float32).astype(gram.dtype)  # so that the order of summation does not change the basis
    if not np.isfinite(gram).all():  # diverged training: the results will show it
        return out_DE, np.eye(width)
    basis_EE = np.linalg.eigh(gram)[1]
    if width > dim:  # any rounding would change eigenvectors of the eigenvalue zero, but not what completes the others
        basis_EE = np.linalg.qr(out_DE.T @ basis_EE[:, ::-1], "complete")[0]
    out_DE = out_DE @ basis_EE
    out_DE[:, dim:] = 0  # but for rounding
    return out_DE, basis_EE


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)
