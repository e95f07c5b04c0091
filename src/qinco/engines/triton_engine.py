"""The Triton engine: encodes and decodes on NVIDIA GPUs by fused kernels, where they have been found right.

On first use of a device, an architecture, a precision and options, a sample is encoded by the kernels and by the torch
engine (`qinco.engines.triton.check`). Where they disagree, the kernels do not compile, or they spill registers, the
torch engine serves, and one warning says why; where torch is measured to be faster, it serves without one.

Triton comes with PyTorch's builds for CUDA; without it the engine says that it is missing. With TRITON_INTERPRET=1 the
kernels run in Triton's interpreter on the processor, which is how they are tested.

Shape suffixes: N vectors, D dimension, M steps.
"""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.engines.tensors import TensorModel
from qinco.maths.devices import CPU, device_type
from qinco.model.qinco import Qinco
from qinco.model.weights import Weights

if TYPE_CHECKING:
    from qinco.engines.triton.check import Verdict
    from qinco.engines.triton.ways import Way

name = "triton"

LEAST_CAPABILITY = 80  # the first with matrix instructions for bf16 and tf32
MAX_TABLE_BYTES = 1 << 30
_LOG = logging.getLogger(__name__)
_verdicts: "dict[tuple, Verdict]" = {}
_faults: dict[tuple[str, ModelConfig], str] = {}  # of devices and architectures that a warning has been given for
_judging = threading.Lock()


def supports(config: ModelConfig, device: str) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if device_type(device) != "cuda" and not (device == CPU and _interprets()):
        return f"it runs on NVIDIA GPUs, not on {device}"
    if device != CPU:
        if torch.version.hip or not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU"
        if (capability := capability_of(device)) < LEAST_CAPABILITY:
            return f"{device} has compute capability {capability / 10}, and {LEAST_CAPABILITY / 10} is needed"
    if not config.is_conditioned(config.num_steps - 1):
        return "the model has no network"
    width = 2 * config.dim + 2 * config.embed_dim + config.hidden_dim
    tables = 4 * config.num_steps * config.codebook_size * width
    if tables > MAX_TABLE_BYTES:
        return f"the model's tables take {tables:,} bytes, more than {MAX_TABLE_BYTES:,}"
    return _faults.get((device, config))


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def capability_of(device: str | torch.device) -> int:
    """A card's compute capability as two digits (90); the interpreter counts as the newest that there are cuts for."""
    if device_type(str(device)) != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def forget() -> None:
    """Forget what has been found out about devices and architectures: it is asked again on next use."""
    _verdicts.clear()
    _faults.clear()


def pack(weights: Weights, precision: str, device: str) -> "TritonTensors":
    return TritonTensors(Qinco.of(weights, device), precision)


def pack_tensors(model: Qinco, precision: str) -> "TritonTensors":
    """A model with its current weights, for validation and evaluation on the device."""
    return TritonTensors(model, precision)


def pack_tensors_quickly(model: Qinco, precision: str) -> TensorModel:
    """For weights that change after every batch: torch takes them as they are, here they would be rearranged."""
    return torch_engine.pack_tensors(model, precision)


class TritonTensors(TensorModel):
    """A model packed for the kernels, and the torch engine for where they are not to be used.

    Args:
        model: on the device.
        precision: "float32" or "bf16", of candidates and of products in decoding.
        ways: the ways of computing the network that are tried, instead of those for the model and the card; each is
            checked as they are.
    """

    def __init__(self, model: Qinco, precision: str, ways: "list[Way] | None" = None):
        from qinco.engines.triton import check, graphs, launches, search
        from qinco.engines.triton.packed import pack_steps
        from qinco.engines.triton.ways import ways_for

        super().__init__(model)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.ways = ways_for(model.config, self.dtype, capability_of(model.device)) if ways is None else ways
        self.check, self.launches, self.search, self.pack_steps = check, launches, search, pack_steps
        self.graphs = graphs.Graphs() if model.device.type == "cuda" else None
        self.torch = torch_engine.pack_tensors(model, precision)

    @cached_property
    def steps(self) -> list:
        return self.pack_steps(self.model.weights(), self.dtype, self.model.device)

    @cached_property
    def stacked(self) -> dict[str, Tensor]:
        return self.launches.stacked_steps(self.steps)

    def verdict(self, options: EncodeOptions | None) -> "Verdict":
        """The way that is taken to encode with these options, or to decode (None), judged on first use.

        Kernels that have failed one check are not used for anything else on that device and architecture.
        """
        search = options and (options.num_candidates, options.num_pairs, options.beam_width)
        key = str(self.model.device), self.model.config, self.dtype, search, tuple(self.ways)
        with _judging:
            if (fault := _faults.get(key[:2])) is not None:
                return self.check.Verdict(None, fault)
            if key not in _verdicts:
                _verdicts[key] = self._judge(options)
            return _verdicts[key]

    def _judge(self, options: EncodeOptions | None) -> "Verdict":
        config, device = self.model.config, self.model.device
        with self._on_device():
            found = self.check.judge(config, self.dtype, device, options, self.ways)
        if found.fault:
            _LOG.warning("the Triton engine is not used on %s, the torch engine is: %s", device, found.fault)
            _faults[str(device), config] = f"its kernels have failed their check: {found.fault}"
        elif found.seconds:
            _LOG.info("seconds of a tile on %s: %s; refused: %s", device, found.seconds, found.refused or "none")
        return found

    def _on_device(self) -> AbstractContextManager:
        device = self.model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    @torch.no_grad()
    def encode_tensors(self, x_ND, start_ND, options: EncodeOptions, num_steps: int | None = None):
        way = self.verdict(options).way if len(x_ND) else None
        if way is None:
            return self.torch.encode_tensors(x_ND, start_ND, options, num_steps)
        steps, tile = self.steps[:num_steps], self.search.tile_size(self.model.config, options, self.dtype.itemsize)

        def work(x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
            return self.search.encode(steps, way, options, x, start)

        with self._on_device():
            parts = zip(x_ND.contiguous().split(tile), start_ND.contiguous().split(tile), strict=True)
            done = [self._run((options, len(steps)), work, *part, tile) for part in parts]
        codes, reconstructions = zip(*done, strict=True)
        return torch.cat(codes), torch.cat(reconstructions)

    def _run(self, key, work: Callable, x_ND: Tensor, start_ND: Tensor, most: int) -> tuple[Tensor, Tensor]:
        if self.graphs is None:
            return work(x_ND, start_ND)
        return self.graphs.run(key, work, x_ND, start_ND, most)

    @torch.no_grad()
    def decode_tensors(self, codes_NM, start_ND):
        way = self.verdict(None).way if len(codes_NM) else None
        if way is None:
            return self.torch.decode_tensors(codes_NM, start_ND)
        tile = self.search.decoding_tile_size(self.model.config)
        with self._on_device():
            parts = zip(codes_NM.split(tile), start_ND.contiguous().split(tile), strict=True)
            done = [way.decode(self.steps, self.stacked, way.decode_plan, *part) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)
