"""Whether the kernels are right on a device, and which way is the fastest: found out against torch on first use.

Shape suffixes: N vectors, D dimension, M steps.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.engines.triton import launches
from qinco.engines.triton.packed import pack_steps
from qinco.engines.triton.search import encode, tile_size
from qinco.engines.triton.ways import Way
from qinco.model.qinco import Qinco
from qinco.model.weights import Weights, random_weights

LEAST_SAME_CODES = 0.999  # of float32
MOST_ERROR = 0.01  # relative to the torch engine's, of bf16
MOST_APART = {torch.float32: 1e-4, torch.bfloat16: 0.02}  # decoded vectors, relative to their length
VECTORS, VECTORS_ON_PROCESSOR = 1024, 5  # of bf16, the error of 256 vectors differs by up to 0.3 % by chance
LISTS = 16  # of an IVF model: they are only where a search starts
MOST_TIMED = 1 << 14  # vectors of a tile that is timed
NOISE = 0.3  # of the tried vectors, so that wrong codes have several times the error of right ones


@dataclass(frozen=True)
class Verdict:
    """The way to take; None for torch, because of a `fault` of the kernels or because torch was the faster."""

    way: Way | None
    fault: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # a tile by each way, and by "torch"
    refused: dict[str, str] = field(default_factory=dict)  # ways and their faults, of which others had none


class Trial:
    """A model of an architecture and vectors to encode, and what the torch engine makes of them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device):
        if config.num_lists > LISTS:
            config = replace(config, num_lists=LISTS)
        self.config, self.dtype, self.device = config, dtype, device
        weights = _sample_weights(config)
        self.model = Qinco.of(weights, device)
        self.torch = torch_engine.TorchTensors(self.model, dtype)
        self.exact = torch_engine.TorchTensors(self.model, torch.float32)
        self.steps = pack_steps(weights, dtype, device)
        self.stacked = launches.stacked_steps(self.steps)
        generator = torch.Generator().manual_seed(1)
        count = VECTORS if device.type == "cuda" else VECTORS_ON_PROCESSOR
        codes_NM = torch.randint(config.codebook_size, (count, config.num_steps), generator=generator).to(device)
        lists_N = torch.arange(count, device=device) % max(1, config.num_lists)
        self.codes_NM, self.start_ND = codes_NM, self.model.initial_reconstruction(count, lists_N)
        decoded_ND = self.exact.decode_tensors(codes_NM, self.start_ND)
        noise_ND = torch.randn(decoded_ND.shape, generator=generator).to(device)
        self.x_ND = decoded_ND + NOISE * (decoded_ND.std() + 1e-6) * noise_ND

    def fault(self, way: Way, options: EncodeOptions | None) -> str | None:
        """What is wrong with a way of encoding with these options, or of decoding if there are none."""
        launches.SPILLED.clear()
        try:
            return (self._decoding_fault(way) if options is None else self._encoding_fault(way, options)) or _spills()
        except Exception as error:  # whatever a compiler or a driver may raise
            return _brief(error)

    def _decoding_fault(self, way: Way) -> str | None:
        found_ND = self._decode(way, self.codes_NM, self.start_ND)
        if not torch.equal(found_ND, self._decode(way, self.codes_NM, self.start_ND)):
            return "a second decoding gives other vectors"
        wanted_ND = self.torch.decode_tensors(self.codes_NM, self.start_ND)
        apart = float((found_ND - wanted_ND).norm() / wanted_ND.norm())
        if not apart <= MOST_APART[self.dtype]:  # nor if it is no number
            return f"decoded vectors are {apart:.2g} of their length from the torch engine's"
        return None

    def _decode(self, way: Way, codes_NM: Tensor, start_ND: Tensor) -> Tensor:
        return way.decode(self.steps, self.stacked, way.decode_plan, codes_NM, start_ND)

    def _encoding_fault(self, way: Way, options: EncodeOptions) -> str | None:
        found = [encode(self.steps, way, options, self.x_ND, self.start_ND) for _ in range(2)]
        (codes_NM, reached_ND), (again_NM, _) = found
        if not torch.equal(codes_NM, again_NM):
            return "a second encoding gives other codes"
        if not reached_ND.isfinite().all():
            return "reconstructions are no finite numbers"
        if int(codes_NM.min()) < 0 or int(codes_NM.max()) >= self.config.codebook_size:
            return "codes are out of range"
        wanted_NM, _ = self.torch.encode_tensors(self.x_ND, self.start_ND, options)
        if self.dtype is torch.float32:
            same = float((codes_NM == wanted_NM).float().mean())
            return None if same >= LEAST_SAME_CODES else f"only {same:.1%} of the codes are the torch engine's"
        ratio = self._error(codes_NM) / self._error(wanted_NM)
        return None if abs(ratio - 1) <= MOST_ERROR else f"the error is {ratio:.3f} times the torch engine's"

    def _error(self, codes_NM: Tensor) -> float:
        decoded_ND = self.exact.decode_tensors(codes_NM, self.start_ND)
        return float((decoded_ND - self.x_ND).double().square().sum())

    def seconds(self, options: EncodeOptions | None, ways: list[Way]) -> dict[str, float]:
        """Seconds of a tile by each way and by torch, on a card; without options, of decoding."""
        rows = MOST_TIMED
        if options is not None:
            rows = min(rows, tile_size(self.config, options, self.dtype.itemsize))
        times = -(-rows // len(self.x_ND))
        given = (values.repeat(times, 1)[:rows] for values in (self.x_ND, self.codes_NM, self.start_ND))
        x_ND, codes_NM, start_ND = given
        work: dict[str, Callable[[], object]] = {}
        for way in ways:
            if options is None:
                work[way.name] = partial(self._decode, way, codes_NM, start_ND)
            else:
                work[way.name] = partial(encode, self.steps, way, options, x_ND, start_ND)
        if options is None:
            work["torch"] = partial(self.torch.decode_tensors, codes_NM, start_ND)
        else:
            work["torch"] = partial(self.torch.encode_tensors, x_ND, start_ND, options)
        return {name: _median_seconds(run, self.device) for name, run in work.items()}


def judge(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, options: EncodeOptions | None, ways: list[Way]
) -> Verdict:
    """The fastest right way of encoding, or of decoding without options; none if all are wrong or torch is faster."""
    try:
        trial = Trial(config, dtype, device)
        faults = {way: trial.fault(way, options) for way in ways}
        right = [way for way, fault in faults.items() if fault is None]
        refused = {way.name: fault for way, fault in faults.items() if fault is not None}
        if not right:
            return Verdict(None, "; ".join(f"{name}: {fault}" for name, fault in refused.items()))
        if device.type != "cuda":  # an interpreter's times mean nothing
            return Verdict(right[0], refused=refused)
        seconds = trial.seconds(options, right)
    except Exception as error:  # such as too little memory for a trial: encoding goes on with torch
        return Verdict(None, _brief(error))
    fastest = min(seconds, key=lambda name: seconds[name])
    return Verdict(next((way for way in right if way.name == fastest), None), None, seconds, refused)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _sample_weights(config: ModelConfig) -> Weights:
    """Weights as after a training: codewords of falling size, a pre-selector near them, networks that matter."""
    weights = random_weights(config)
    noise = random_weights(config, 1).arrays
    for name, array in weights.arrays.items():
        if name.endswith(("codebook.weight", "preselector.weight")):
            number = name.split(".")[1]
            codebook = weights.arrays[f"steps.{number}.codebook.weight"]
            size = 2 * 0.8 ** int(number)
            weights.arrays[name] = array * size if name.endswith("codebook.weight") else codebook + 0.1 * noise[name]
    return weights


def _spills() -> str | None:
    return f"{', '.join(sorted(launches.SPILLED))} spills registers" if launches.SPILLED else None


def _median_seconds(work: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    work()
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
