"""A training step as a recording of a GPU: hundreds of launches become one.

Recorded is what needs nothing but the vectors: encoding, forward and backward. The optimizers run as before. A device
without recordings, and one whose recording fails or differs, does the same work launch by launch.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qinco.config import EncodeOptions
from qinco.engines.tensors import pack
from qinco.maths.recording import record
from qinco.model.qinco import Qinco
from qinco.training.codebooks import CodewordUse
from qinco.training.gradients import NativeGradients, TorchGradients

log = logging.getLogger(__name__)
Record = Callable[[Callable[[], None]], Callable[[], None]]
_TOLERANCE = 2e-2  # of the loss and of gradients: sums in another order, in bf16


@dataclass
class _Recording:
    """One size of batches: where a replay finds its vectors, and where it leaves what it computes."""

    replay: Callable[[], None]
    x_ND: Tensor
    start_ND: Tensor
    use: CodewordUse
    loss: Tensor
    gradients: list[Tensor | None]


class BatchWork:
    """Encodes a batch with a model as it is, and computes its loss and the gradients.

    Args:
        model: being trained.
        gradients: what computes them.
        precision: see `qinco.engines.tensors.pack`.
        record: makes a recording of a function, as `on_gpu` does; None: nothing is recorded.
    """

    def __init__(
        self, model: Qinco, gradients: TorchGradients | NativeGradients, precision: str, record: Record | None = None
    ):  # fmt: skip
        self.model, self.gradients, self.precision, self.record = model, gradients, precision, record
        self._parameters = list(model.parameters())
        self._seen: set[tuple[int, EncodeOptions]] = set()
        self._recordings: dict[tuple[int, EncodeOptions], _Recording] = {}

    def add(self, x_ND: Tensor, start_ND: Tensor, options: EncodeOptions, use: CodewordUse, scale: float) -> Tensor:
        """Add the gradients of `scale` times the loss to those of the parameters; the loss, () without a gradient.

        Vectors and their starts are normalised. `use` counts the codes.
        """
        packed = pack(self.model, options.engine, self.precision, is_for_one_batch=True)
        codes_NM, _ = packed.encode_tensors(x_ND, start_ND, options)
        return self.gradients.add(x_ND, start_ND, codes_NM, use, scale)

    def compute(self, x_ND: Tensor, start_ND: Tensor, options: EncodeOptions, use: CodewordUse, scale: float) -> Tensor:
        """`add` for a whole step: gradients become those of these vectors, by a recording where there is one."""
        key = len(x_ND), options
        if self.record is None or key not in self._seen:  # kernels are compiled in a first step
            self._seen.add(key)
            return self.add(x_ND, start_ND, options, use, scale)
        if key not in self._recordings:
            try:
                return self._recorded(key, x_ND, start_ND, use, scale)
            except (RuntimeError, ValueError) as error:  # what torch raises of a GPU, or WrongRecording
                self.record = None
                self._recordings.clear()
                log.warning("training steps are not recorded, which takes more launches: %s", str(error).split("\n")[0])
                self._drop_gradients()
                return self.add(x_ND, start_ND, options, use, scale)
        recording = self._recordings[key]
        recording.x_ND.copy_(x_ND)
        recording.start_ND.copy_(start_ND)
        found = self._replayed(recording)
        use.flat += recording.use.flat
        return found

    def _recorded(self, key, x_ND: Tensor, start_ND: Tensor, use: CodewordUse, scale: float) -> Tensor:
        """Compute a step launch by launch and by a new recording, which is kept; raises WrongRecording."""
        assert self.record is not None
        wanted_use = CodewordUse(self.model)
        wanted = self.add(x_ND, start_ND, key[1], wanted_use, scale)
        wanted_gradients = self._drop_gradients()
        own, own_use = (x_ND.clone(), start_ND.clone()), CodewordUse(self.model)
        loss = torch.zeros_like(wanted)

        def work() -> None:
            self._drop_gradients()  # so that new ones are made, and not added to
            own_use.flat.zero_()
            loss.copy_(self.add(*own, key[1], own_use, scale))

        replay = self.record(work)
        recording = _Recording(replay, *own, own_use, loss, self._drop_gradients())
        for tensor in (loss, own_use.flat, *recording.gradients):
            if tensor is not None:
                tensor.fill_(torch.nan)  # what a replay leaves alone is seen
        found, found_use = self._replayed(recording), own_use.flat
        pairs = [
            (found, wanted),
            (found_use, wanted_use.flat),
            *zip(recording.gradients, wanted_gradients, strict=True),
        ]
        if not all(_is_near(*pair) for pair in pairs):
            raise WrongRecording("a recorded step differs from one that is not")
        self._recordings[key] = recording
        use.flat += found_use
        return found

    def _replayed(self, recording: _Recording) -> Tensor:
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss.clone()

    def _drop_gradients(self) -> list[Tensor | None]:
        """The gradients, which parameters have no more."""
        found = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return found


class WrongRecording(ValueError):
    """A replay does not compute what was recorded."""


def _is_near(found: Tensor | None, wanted: Tensor | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return bool((found - wanted).norm() <= _TOLERANCE * wanted.norm())


def on_gpu(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A recording of a function on a GPU."""
    with torch.cuda.device(device):
        return record(work)[0]
