"""The training loop: encode a batch with the model as it is, then pull its reconstructions towards the vectors.

`Training.run` yields reports. Between two reports the whole state can be saved (`tensors`, `progress`) and restored, so
that an interrupted run continues exactly.
"""

import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from qinco.config import EncodeOptions
from qinco.engines.engine import candidate_precision
from qinco.engines.tensors import pack
from qinco.errors import ConfigError
from qinco.interrupts import held_back, import_whole
from qinco.maths.assignment import assigner
from qinco.maths.devices import CPU, to_device
from qinco.model.qinco import Qinco
from qinco.training.augmentation import fitted_mixing, mixed
from qinco.training.batches import batches
from qinco.training.codebooks import CodewordUse, redraw_unused
from qinco.training.gradients import gradients_of
from qinco.training.optimizers import Optimizers
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.recording import BatchWork, on_gpu
from qinco.training.schedule import SCHEDULES, StepPlan
from qinco.vectors.rows import VectorSource, stratified_rows

_VECTORS_PER_CODEWORD = 16
_VALID_ROWS = 4096
_OFF_SHARE, _PACE_EPOCHS = 0.05, 3  # of the time that a run has; the last epochs, whose time says how fast it goes


@dataclass(frozen=True)
class StepReport:
    """After an optimizer step: steps done in the epoch, and the loss of the last batch (normalised space).

    `epochs` is None until it is known how many there will be.
    """

    epoch: int
    epochs: int | None
    step: int
    steps: int
    lr: float
    loss: float


@dataclass(frozen=True)
class EpochReport:
    """After an epoch (number 0 is the start): mean squared errors in data space, summed over dimensions.

    `epochs` is None until it is known how many there will be. `ending` says why it has changed, where it has.
    """

    epoch: int
    epochs: int | None
    mse: float
    mse_per_step: list[float]
    loss: float | None
    lr: float
    unused_codewords: int
    unused_share: float
    code_entropy: float
    seconds: float
    is_best: bool
    ending: str | None = None


@dataclass
class RunPosition:
    """Where a run is: plain values, kept in the state file beside those of the schedule.

    `unused` counts the codewords redrawn after an epoch that is to be validated; None while an epoch is under way.
    """

    epoch: int = 0
    step: int = 0
    best_mse: float = float("inf")
    loss_sum: float = 0.0
    seconds: float = 0.0
    unused: int | None = None


def narrow_options(options: EncodeOptions, is_late: bool) -> EncodeOptions:
    """The options that training batches are encoded with: as `options`, but at most C=4 B=2 or, late, C=16 B=4.

    Two thirds of five epochs with C=4 cost .1 to .4 % more error than C=16 throughout on SIFT and .2 % on sentence
    embeddings; encoding with it takes a third of the time.
    """
    if not options.preselects:
        return options
    given = {name: getattr(options, name) for name in ("num_pairs", "num_candidates", "beam_width")}
    early, late = (
        {"num_pairs": 4, "num_candidates": 2, "beam_width": 2},
        {"num_pairs": 16, "num_candidates": 4, "beam_width": 4},
    )
    limits = late if is_late else early
    return replace(options, **{name: min(value, limits[name]) for name, value in given.items() if value is not None})


class Training:
    """One run on a model, on its device, that has been initialized (`initialize_model`) or restored."""

    def __init__(
        self, model: Qinco, train: VectorSource, valid: VectorSource, options: TrainOptions,
        encode_options: EncodeOptions, processes: Processes,
    ):  # fmt: skip
        encode_options.check_model(model.config)
        self.model, self.options, self.encode_options, self.processes = model, options, encode_options, processes
        self.train_source, self.all_valid = train, valid
        self.precision = candidate_precision(options.precision, str(model.device), model.config)
        gradients = gradients_of(model, encode_options.engine, self.precision)
        record = partial(on_gpu, device=model.device) if model.device.type == "cuda" else None
        self.work = BatchWork(model, gradients, self.precision, record)
        self.parameters = list(model.parameters())
        for parameter in self.parameters:  # in backward, which is a single call, Python hears of Ctrl-C in hooks only
            parameter.register_hook(lambda gradient: None)
        import_whole("torch._dynamo")  # which optimizers do
        self.assigner = None
        self.mixing = fitted_mixing(len(train), model.config) if options.mixing is None else options.mixing
        self.begin(StepPlan.from_options(options, len(train)))

    def begin(self, plan: StepPlan) -> None:
        """Stand at the beginning of a plan, with the weights as they are."""
        self.plan, self.schedule = plan, SCHEDULES[self.options.schedule](self.options, plan)
        self.batch_encode_options = self._batch_options(is_late=False)
        count = len(self.all_valid)
        rows = plan.num_valid or count
        self.valid_source = self.all_valid.take(stratified_rows(count, rows)) if rows < count else self.all_valid
        size = plan.batch_size * self.options.grad_accumulate
        self.optimizers = Optimizers(self.model, self.options, plan.lr, self.precision, size)
        self.use, self.position = CodewordUse(self.model), RunPosition()
        # When an epoch was last reported, None where it was not seen as a whole, and how long the last ones took for
        # what they cost.
        self.reported_at: float | None = None
        self.paces: deque[float] = deque(maxlen=_PACE_EPOCHS)

    def _batch_options(self, is_late: bool) -> EncodeOptions:
        return narrow_options(self.encode_options, is_late) if self.options.narrow_beam else self.encode_options

    def batch_options_shares(self) -> dict[EncodeOptions, float]:
        """The options that batches are encoded with in the course of the run, and their shares of the steps."""
        late, shares = self.schedule.late_share(), {}
        for is_late, share in ((False, 1 - late), (True, late)):
            options = self._batch_options(is_late)
            shares[options] = shares.get(options, 0.0) + share
        return shares

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Optimizer steps within leave position, moments and counts as they were, and with rate 0 the weights."""
        kept = vars(self).copy()
        self.begin(self.plan)
        try:
            yield
        finally:
            vars(self).update(kept)
            self.optimizers.clear()

    def arrays(self) -> dict[str, np.ndarray]:
        """What a resumed run needs besides `progress`: weights, the optimizer's moments, codeword counts."""
        named = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        named |= {f"optimizer.{name}": tensor for name, tensor in self.optimizers.tensors().items()}
        return {name: tensor.cpu().numpy() for name, tensor in (named | {"use": self.use.flat}).items()}

    def progress(self) -> dict:
        position = {name: value for name, value in asdict(self.position).items() if value is not None}
        plan = {} if self.plan.seconds is None else {"plan": asdict(self.plan)}  # others follow from the options
        return position | self.schedule.state() | plan

    def restore(self, arrays: dict[str, np.ndarray], progress: dict) -> None:
        if "plan" in progress:
            self.begin(StepPlan(**progress["plan"]))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.position = RunPosition(**{field.name: progress[field.name] for field in fields(RunPosition)[:-1]})
        self.position.unused = progress.get("unused")
        self.reported_at = None if self.position.step else self.position.seconds
        self.schedule.restore(progress)
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        self.assigner = None
        moments = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
        self.optimizers.restore(moments)
        self.use.flat.copy_(tensors["use"])

    def run(self) -> Generator[StepReport | EpochReport, None, None]:
        """Train to the end; yields a report of the start, and one after every step and every epoch.

        A run that has so many seconds ends earlier or later than planned where epochs take another time than they were
        to.

        An interrupt (KeyboardInterrupt) leaves the state as it was after the last step, or before the validation that
        it ended. It is held back while a report of an epoch is worked on.
        """
        position, begun = self.position, time.monotonic() - self.position.seconds
        if position.step == 0 and position.best_mse == float("inf"):
            yield from self._report(None, begun)
        while position.unused is not None or not self.schedule.is_over(position.epoch):
            if position.unused is None:
                yield from self._epoch(position, begun)
                with held_back():
                    position.unused = self._redraw() if self._is_counted() else 0
                    position.epoch, position.step = position.epoch + 1, 0
            yield from self._report(position.loss_sum / self.plan.epoch_vectors, begun)

    def _is_counted(self) -> bool:
        """Whether there are so many counts that a codeword without any is rare, and not just missed by chance."""
        return bool(self.use.counts_MK[0].sum() >= _VECTORS_PER_CODEWORD * self.model.config.codebook_size)

    def _redraw(self) -> int:
        """Redraw unused codewords while there is training left for them; returns how many there were."""
        if self.position.epoch + 1 == self.schedule.epochs:
            return int((self.use.counts_MK == 0).sum())
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.position.epoch)
        return redraw_unused(self.model, self.use, self.options.redraw, generator)

    def _epoch(self, position: RunPosition, begun: float) -> Iterator[StepReport]:
        plan, options = self.plan, self.options
        count = plan.steps_per_epoch * options.grad_accumulate
        bounds = np.arange(count + 1) * plan.epoch_vectors // count
        first = position.step * options.grad_accumulate
        shuffled = options.rows_shuffled
        stream = batches(self.train_source, position.epoch, bounds, first, options.seed, rows_shuffled=shuffled)
        with closing(stream):
            while position.step < plan.steps_per_epoch:
                number = position.epoch * plan.steps_per_epoch + position.step
                lr = self.schedule.rate(number)
                self.batch_encode_options = self._batch_options(self.schedule.is_late(number))
                parts = [
                    mixed(next(stream), self.mixing, (options.seed, number, i)) for i in range(options.grad_accumulate)
                ]
                loss = self.optimizer_step(parts, lr)
                position.seconds = time.monotonic() - begun
                epochs = self.schedule.epochs
                yield StepReport(position.epoch + 1, epochs, position.step, plan.steps_per_epoch, lr, loss)

    def optimizer_step(self, parts: list[np.ndarray], lr: float) -> float:
        """One step on accumulated batches, float32 (n, D) of all processes together; returns the loss per vector."""
        total = torch.zeros((), device=self.model.device)
        compute = self.work.compute if len(parts) == 1 else self.work.add
        use, num_vectors, position = CodewordUse(self.model), sum(map(len, parts)), self.position
        self.optimizers.clear()
        for part in parts:
            x_ND = self.model.normalize(to_device(part[self.processes.share(len(part))], self.model.device))
            start_ND = self.initial_reconstructions(x_ND)
            total += compute(x_ND, start_ND, self.batch_encode_options, use, 1 / num_vectors)
        self.processes.sum_gradients(self.parameters)
        counts, loss = self.processes.sum(use.flat), float(self.processes.sum(total))
        if not math.isfinite(loss):
            raise ConfigError(
                f"training diverged: the loss is {loss} at epoch {position.epoch + 1}, step {position.step + 1}. "
                f"Give lr=null (None in Python), which fits it to the run, or if it was, less than {lr / 4:.2g}; and "
                "for the same output overwrite=true. The best codec so far is kept"
            )
        if self.options.grad_clip is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self.options.grad_clip)
        number = position.epoch * self.plan.steps_per_epoch + position.step
        decay = self.optimizers.weight_decay * self.schedule.decay_factor(number)
        with held_back():
            self.optimizers.step(lr, decay, number)
            self.use.flat += counts
            position.step, position.loss_sum = position.step + 1, position.loss_sum + loss * num_vectors
        return loss

    def initial_reconstructions(self, x_ND: Tensor) -> Tensor:
        """The reconstructions of normalised vectors before the first step: zeros, or coarse centroids: (N, D)."""
        if not self.model.config.starts_from_coarse:
            return self.model.initial_reconstruction(len(x_ND))
        device = str(self.model.device)
        if self.assigner is None:
            self.assigner = assigner(self.model.coarse_centroids.cpu().numpy(), device)
        lists_N = self.assigner(x_ND.numpy() if device == CPU else x_ND)
        return self.model.initial_reconstruction(len(x_ND), to_device(lists_N, device))

    def _report(self, loss: float | None, begun: float) -> Iterator[EpochReport]:
        """Validate, and yield the one report of an epoch that is over; without `loss`, of the start."""
        per_step, position = self.validate(), self.position
        mse, epoch, unused = per_step[-1], position.epoch, position.unused or 0
        with held_back():
            is_best = mse < position.best_mse
            ending = self.schedule.observe(epoch, mse, loss)
            position.best_mse = min(position.best_mse, mse)
            position.seconds = time.monotonic() - begun
            ending = self._keep_time() or ending
            lr = self.schedule.rate(max(0, epoch * self.plan.steps_per_epoch - 1))
            entropy, share = float("nan") if loss is None else self.use.entropy(), unused / self.use.counts_MK.numel()
            if position.unused is not None and self._is_counted():
                self.use = CodewordUse(self.model)
            position.unused, position.loss_sum = None, 0.0
            yield EpochReport(
                epoch, self.schedule.epochs, mse, per_step, loss, lr, unused, share, entropy, position.seconds, is_best,
                ending,
            )  # fmt: skip

    def _keep_time(self) -> str | None:
        """Move the end where epochs do not take as long as planned, so that the run takes the time that it has.

        It is not put off when the rate already falls to its end, which the last steps would have to climb back from.
        """
        position, limit, epochs = self.position, self.plan.seconds, self.schedule.epochs
        since, self.reported_at = self.reported_at, position.seconds
        if limit is None or epochs is None or since is None or position.epoch == epochs:
            return None
        cost = self.schedule.cost
        done, rest = cost(position.epoch - 1, position.epoch), cost(position.epoch, epochs)
        self.paces.append((position.seconds - since) / done)
        left, allowed = limit - position.seconds, _OFF_SHARE * limit
        late_by = rest * fmean(self.paces) - left
        is_late = self.schedule.is_late(position.epoch * self.plan.steps_per_epoch)
        may_go_on = self.plan.late_cost is not None and not is_late
        per_second, wanted = (epochs - position.epoch) / (late_by + left), epochs
        if late_by > allowed:
            wanted = position.epoch + max(1, int(left * per_second))
        elif may_go_on:  # with as much in reserve, for the rest varies
            wanted = max(epochs, position.epoch + int((left - allowed) * per_second))
        wanted = self.processes.from_main(wanted)
        if wanted == epochs:
            return None
        self.schedule.finish(position.epoch, wanted)
        return f"epochs take {'longer' if wanted < epochs else 'less time'} than planned"

    @torch.no_grad()
    def validate(self, source: VectorSource | None = None) -> list[float]:
        """Mean squared error of each prefix on validation vectors, in data space, summed over dimensions: (M,)."""
        source = self.valid_source if source is None else source
        packed = pack(self.model, self.encode_options.engine, self.precision)
        errors_M = torch.zeros(self.model.config.num_steps, dtype=torch.float64, device=self.model.device)
        mine = self.processes.share(len(source))
        for _, block in source.window(mine.start, mine.stop).blocks(_VALID_ROWS):
            x_ND = self.model.normalize(to_device(block, self.model.device))
            start_ND = self.initial_reconstructions(x_ND)
            codes_NM, _ = packed.encode_tensors(x_ND, start_ND, self.encode_options)
            for m, reached_ND in enumerate(self.model.reconstructions(codes_NM, start_ND)):
                errors_M[m] += (reached_ND - x_ND).square().sum()
        errors_M = self.processes.sum(errors_M) * self.model.scale.double() ** 2 / len(source)
        return self.processes.from_main(errors_M.tolist())  # so that all decide alike
