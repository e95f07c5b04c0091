"""How many steps a run has, and the learning rate of each."""

import math
from dataclasses import dataclass

from qinco.training.options import TrainOptions

# The short end: on 500,000 vectors in all, 4e-3 and 6e-3 end level with batches of 1,024; with 512, 2.8e-3 and 4e-3 do;
# with 256, 2e-3 is the best of 2e-3, 2.8e-3 and 4e-3. Hence the square root of the batch. One seed each. The long end
# is published: 60 epochs of 10 million vectors.
_SHORT_RUN = (2_000, 4e-3)
_LONG_RUN = (586_000, 8e-4)
_THEIR_BATCH = 1024


def fitted_lr(num_steps: int, batch_size: int) -> float:
    """The highest learning rate for a run of so many optimizer steps: a power law through the two known points."""
    (short, high), (long, low) = _SHORT_RUN, _LONG_RUN
    slope = math.log(low / high) / math.log(long / short)
    rate = min(high, max(low, high * (max(num_steps, 1) / short) ** slope))
    return rate * min(1.0, batch_size / _THEIR_BATCH) ** 0.5


# Below so many steps smaller batches end at a lower error: 500,000 vectors in all, batches of 1,024, 512 and 256, each
# at the rate above: 16,550, 16,095 and 15,811 (one seed; the last with first codebooks fitted with a beam, which made
# no difference with 512).
_ENOUGH_STEPS = 900
_BATCH_SIZES = (1024, 512, 256, 128)


def fitted_batch_size(num_vectors: int) -> int:
    """The largest usual batch size that cuts all vectors of a run, epochs together, into enough optimizer steps."""
    return next((size for size in _BATCH_SIZES if num_vectors / size >= _ENOUGH_STEPS), _BATCH_SIZES[-1])


@dataclass(frozen=True)
class Plan:
    """What an epoch of `num_train` vectors amounts to."""

    epoch_vectors: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    ramp_steps: int
    lr: float

    @classmethod
    def of(cls, options: TrainOptions, num_train: int) -> "Plan":
        vectors = min(options.epoch_size, num_train)
        batch_size = options.batch_size or fitted_batch_size(vectors * options.epochs // options.grad_accumulate)
        per_epoch = max(1, round(vectors / (batch_size * options.grad_accumulate)))
        total = per_epoch * options.epochs
        ramp = min(round(options.ramp_epochs * per_epoch), total // 10)
        return cls(
            vectors,
            batch_size,
            per_epoch,
            total,
            ramp,
            options.lr or fitted_lr(total, batch_size * options.grad_accumulate),
        )

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
