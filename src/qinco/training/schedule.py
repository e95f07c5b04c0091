"""How many steps a run has, and the learning rate of each."""

import math
from dataclasses import dataclass

from qinco.training.options import TrainOptions

# Measured on short runs (500 to 2,000 steps), where 4e-3 leads to the lowest error, and published for a long one:
# 60 epochs of 10 million vectors in batches of 1,024.
_SHORT_RUN = (2_000, 4e-3)
_LONG_RUN = (586_000, 8e-4)


def fitted_lr(num_steps: int) -> float:
    """The highest learning rate for a run of so many optimizer steps: a power law through the two known points."""
    (short, high), (long, low) = _SHORT_RUN, _LONG_RUN
    slope = math.log(low / high) / math.log(long / short)
    return min(high, max(low, high * (max(num_steps, 1) / short) ** slope))


@dataclass(frozen=True)
class Plan:
    """What an epoch of `num_train` vectors amounts to."""

    epoch_vectors: int
    steps_per_epoch: int
    total_steps: int
    ramp_steps: int
    lr: float

    @classmethod
    def of(cls, options: TrainOptions, num_train: int) -> "Plan":
        vectors = min(options.epoch_size, num_train)
        per_epoch = max(1, round(vectors / (options.batch_size * options.grad_accumulate)))
        total = per_epoch * options.epochs
        ramp = min(round(options.ramp_epochs * per_epoch), total // 10)
        return cls(vectors, per_epoch, total, ramp, options.lr or fitted_lr(total))

    def rate(self, options: TrainOptions, step: int, reductions: int = 0) -> float:
        """The learning rate of optimizer step `step` (from 0), after so many reductions of a plateau schedule."""
        if step < self.ramp_steps:
            return self.lr * (step + 1) / (self.ramp_steps + 1)
        if options.schedule == "plateau":
            return self.lr * options.reduce_factor**reductions
        progress = (step - self.ramp_steps) / max(1, self.total_steps - 1 - self.ramp_steps)
        # A quarter of a cosine: it stays high for long and ends steeply.
        quarter = math.cos(min(progress, 1.0) * math.pi / 2)
        return self.lr * (options.lr_min_factor + (1 - options.lr_min_factor) * quarter)
