"""How many steps a run has, the learning rate of each, and when the run is over."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from qinco.training.options import TrainOptions

# Steps and rate. The short end was measured on 500,000 vectors in all (one seed): with batches of 1,024 4e-3 and 6e-3
# end level, with 512 2.8e-3 and 4e-3, with 256 2e-3 is better than those: hence the square root of the batch. The long
# end is published: 60 epochs of 10 million vectors.
_SHORT_RUN, _LONG_RUN, _THEIR_BATCH = (2_000, 4e-3), (586_000, 8e-4), 1024
_ENOUGH_STEPS = 900  # below, smaller batches end lower: MSE 16,550, 16,095 and 15,811 with 1,024, 512 and 256 there
_BATCH_SIZES = (1024, 512, 256, 128)


def fitted_lr(num_steps: int, batch_size: int) -> float:
    """The highest learning rate for a run of so many optimizer steps: a power law through the two known points."""
    (short, high), (long, low) = _SHORT_RUN, _LONG_RUN
    slope = math.log(low / high) / math.log(long / short)
    rate = min(high, max(low, high * (max(num_steps, 1) / short) ** slope))
    return rate * min(1.0, batch_size / _THEIR_BATCH) ** 0.5


@dataclass(frozen=True)
class StepPlan:
    """How a run is cut into optimizer steps."""

    epoch_vectors: int
    batch_size: int  # vectors of all processes together
    steps_per_epoch: int
    total_steps: int
    ramp_steps: int  # of the linear ramp at the beginning
    lr: float  # the highest

    @classmethod
    def from_options(cls, options: TrainOptions, num_train: int) -> "StepPlan":
        """The plan of a run on `num_train` vectors; batch size and learning rate are fitted where none are given."""
        vectors = min(options.epoch_size, num_train)
        num_vectors = vectors * options.epochs // options.grad_accumulate
        enough = (size for size in _BATCH_SIZES if num_vectors / size >= _ENOUGH_STEPS)
        batch_size = options.batch_size or next(enough, _BATCH_SIZES[-1])
        vectors_per_step = batch_size * options.grad_accumulate
        per_epoch = max(1, round(vectors / vectors_per_step))
        total = per_epoch * options.epochs
        ramp = min(round(options.ramp_epochs * per_epoch), total // 10)
        return cls(vectors, batch_size, per_epoch, total, ramp, options.lr or fitted_lr(total, vectors_per_step))


class Schedule(ABC):
    """The learning rate of each step, from 0: a linear ramp to the plan's highest rate, and then `factor` of it."""

    STATE: tuple[str, ...] = ()  # attributes that a resumed run needs

    def __init__(self, options: TrainOptions, plan: StepPlan):
        self.options, self.plan = options, plan

    def rate(self, step: int) -> float:
        if step < self.plan.ramp_steps:
            return self.plan.lr * (step + 1) / (self.plan.ramp_steps + 1)
        return self.plan.lr * self.factor(step)

    @abstractmethod
    def factor(self, step: int) -> float:
        """The share of the highest rate that a step after the ramp has."""

    def observe(self, epoch: int, mse: float) -> None:  # noqa: B027 (a schedule need not listen)
        """Hear the validation error after an epoch; the first one is that of the start."""

    def is_over(self, epoch: int) -> bool:
        """Whether training ends after this epoch."""
        return False

    def state(self) -> dict:
        return {name: getattr(self, name) for name in self.STATE}

    def restore(self, state: dict) -> None:
        for name in self.STATE:
            setattr(self, name, state[name])


class CosineSchedule(Schedule):
    """A quarter of a cosine, which stays high for long and ends steeply, down to lr · lr_min_factor."""

    def factor(self, step: int) -> float:
        done = (step - self.plan.ramp_steps) / max(1, self.plan.total_steps - 1 - self.plan.ramp_steps)
        lowest = self.options.lr_min_factor
        return lowest + (1 - lowest) * math.cos(min(done, 1.0) * math.pi / 2)


class PlateauSchedule(Schedule):
    """A constant rate, reduced by reduce_factor after more than `patience` epochs without gain.

    `reference_mse` is the error of `best_epoch`, the last epoch that gained by more than the threshold.
    """

    STATE = ("best_epoch", "reference_mse", "reductions", "reduced_at")

    def __init__(self, options: TrainOptions, plan: StepPlan):
        super().__init__(options, plan)
        self.best_epoch = self.reductions = self.reduced_at = 0
        self.reference_mse = math.inf

    def factor(self, step: int) -> float:
        return self.options.reduce_factor**self.reductions

    def observe(self, epoch: int, mse: float) -> None:
        if self.reference_mse == math.inf or mse < self.reference_mse * (1 - self.options.threshold):
            self.best_epoch, self.reference_mse = epoch, mse
        elif epoch - max(self.best_epoch, self.reduced_at) > self.options.patience:
            self.reductions, self.reduced_at = self.reductions + 1, epoch

    def is_over(self, epoch: int) -> bool:
        return epoch - self.best_epoch >= self.options.stop_patience


SCHEDULES: dict[str, type[Schedule]] = {"cosine": CosineSchedule, "plateau": PlateauSchedule}
