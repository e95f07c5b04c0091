"""The native engine: rearranges a model's weights for the compiled kernels, and runs them.

Two exact rearrangements beside the tables of `StepTables`: the contribution of a reconstruction to the first hidden
layer is one product (up · W_x); and with projections the basis of the residual stream is rotated so that the columns of
the output projection are orthogonal, which makes a candidate's distance a sum over the stream instead of a product.

Shape suffixes: N vectors, D dimension, M steps, K codewords, E stream width, H hidden width.
"""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines.engine import TensorModel
from qinco.errors import ConfigError
from qinco.maths.devices import num_threads
from qinco.model.qinco import Qinco
from qinco.model.step import Step
from qinco.native.library import NativeModel, Sizes, StepArrays, is_available

name = "native"

MAX_TABLE_BYTES = 1 << 30
_MAX_PAIRS = 1 << 31  # hypotheses times codewords
_MAX_CROSSED = 1024  # codewords, up to which products of all pairs of two codebooks are kept


def supports(config: ModelConfig, device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device}"
    if not is_available():
        return "this installation has no compiled kernels"
    dim, stream, hidden = (-(-width // 64) * 64 for width in (config.dim, config.embed_dim, config.hidden_dim))
    tables = 4 * config.num_steps * config.codebook_size * (2 * dim + 2 * stream + hidden)
    if tables > MAX_TABLE_BYTES:
        return f"the model's tables take {tables:,} bytes, more than {MAX_TABLE_BYTES:,}"
    return None


class NativeTensors(TensorModel):
    """A model packed for the compiled kernels, which run in as many threads as torch."""

    def __init__(self, model: Qinco, dtype: torch.dtype, packed: NativeModel):
        super().__init__(model, dtype)
        self.packed = packed

    def encode_tensors(self, x_ND, start_ND, options: EncodeOptions, num_steps: int | None = None):
        size, beam = self.packed.sizes.codewords, options.beam_width
        if beam * size >= _MAX_PAIRS:
            raise ConfigError(f"B={beam} (beam_width) is too wide for K={size}: give less than {_MAX_PAIRS // size}")
        search = {"num_candidates": options.num_candidates, "num_pairs": options.num_pairs, "beam_width": beam}
        search |= {"num_steps": num_steps or self.packed.sizes.steps, "threads": num_threads()}
        codes_NM, reached_ND = self.packed.encode(x_ND.numpy(), start_ND.numpy(), **search)
        return torch.from_numpy(codes_NM.astype("int64")), torch.from_numpy(reached_ND)

    def decode_tensors(self, codes_NM, start_ND):
        decoded_ND = self.packed.decode(codes_NM.numpy(), start_ND.numpy(), threads=num_threads())
        return torch.from_numpy(decoded_ND)


@torch.no_grad()
def pack(model: Qinco, dtype: torch.dtype) -> NativeTensors:
    """Copy and rearrange the weights, for candidates in `dtype` (float32 or bfloat16)."""
    config = model.config
    sizes = Sizes(
        config.dim, config.embed_dim, config.hidden_dim, config.num_blocks, config.codebook_size, config.num_steps,
        config.codeword_skip, not config.starts_from_coarse, dtype is torch.bfloat16,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products and eigenvectors depend on the number of threads
    try:
        steps = [_arrays(step) for step in model.steps]
        if not model.steps[0].conditioned and config.codebook_size <= _MAX_CROSSED:
            for preselector in [step.preselector for step in model.steps[1:2] if step.preselector is not None]:
                cross_KK = model.steps[0].codebook.weight.double() @ preselector.weight.double().T
                steps[1] = replace(steps[1], first_cross=_numpy(cross_KK))
    finally:
        torch.set_num_threads(threads)
    return NativeTensors(model, dtype, NativeModel(sizes, steps))


def _arrays(step: Step) -> StepArrays:
    # In double precision: float32 products depend on memory alignment, and equal models must be packed equally.
    step = deepcopy(step).double()
    codebook_KD = step.codebook.weight
    if not step.conditioned:
        return StepArrays(_numpy(codebook_KD))
    stream_KE = step.embed(codebook_KD)
    stream_x_ED = step.concat.from_reconstruction(torch.eye(codebook_KD.shape[1], dtype=torch.float64)).T
    arrays = {}
    if step.preselector is not None:
        arrays["preselector"] = _numpy(step.preselector.weight)
    if step.blocks:
        up_HE = step.blocks[0].up.weight
        arrays |= {"hidden_table": _numpy(stream_KE @ up_HE.T), "hidden_x": _numpy(up_HE @ stream_x_ED)}
    up, down = [block.up.weight for block in step.blocks], [block.down.weight for block in step.blocks]
    if step.project_out is not None:
        out_DE, basis_EE = _orthogonal_outputs(step.project_out.weight)
        stream_KE, stream_x_ED = stream_KE @ basis_EE, basis_EE.T @ stream_x_ED
        up, down = [weight @ basis_EE for weight in up], [basis_EE.T @ weight for weight in down]
        arrays |= {"project_out": _numpy(out_DE), "gram": _numpy(out_DE.square().sum(0))}
        arrays["codeword_back"] = _numpy(codebook_KD @ out_DE)
    arrays |= {"up": tuple(map(_numpy, up)), "down": tuple(map(_numpy, down))}
    return StepArrays(_numpy(codebook_KD), stream_table=_numpy(stream_KE), stream_x=_numpy(stream_x_ED), **arrays)


def _orthogonal_outputs(out_DE: Tensor) -> tuple[Tensor, Tensor]:
    """The output projection in a basis of the stream that makes its columns orthogonal, and that basis (E, E)."""
    # Rounded, so that the order of summation does not change the basis.
    gram_EE = (out_DE.T @ out_DE).float().double()
    if not gram_EE.isfinite().all():  # diverged training: the results will show it
        return out_DE, torch.eye(len(gram_EE), dtype=torch.float64)
    basis_EE = torch.linalg.eigh(gram_EE)[1]
    return out_DE @ basis_EE, basis_EE


def _numpy(tensor: Tensor):
    return tensor.detach().float().numpy()
