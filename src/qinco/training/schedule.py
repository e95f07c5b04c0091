"""How many steps a run has, the learning rate of each, and when the run is over."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from qinco.training.options import TrainOptions

# Steps and rate. The short end was measured on 500,000 vectors in all (one seed): with batches of 1,024 4e-3 and 6e-3
# end level, with 512 2.8e-3 and 4e-3, with 256 2e-3 is better than those: hence the square root of the batch. The long
# end is published: 60 epochs of 10 million vectors.
_SHORT_RUN, _LONG_RUN, _THEIR_BATCH = (2_000, 4e-3), (586_000, 8e-4), 1024
# Below so many steps, smaller batches of the same vectors end lower: MSE 16,550, 16,095 and 15,811 with 1,024, 512 and
# 256 at 900 steps of 1,024 (AdamW). In the same time they do not, for each step also costs as much as some 150 vectors:
# docs/log.md, "Batches of short runs".
_ENOUGH_STEPS, _ENOUGH_IN_TIME = 900, {1024: 300, 512: 100, 256: 100, 128: 0}
_BATCH_SIZES = tuple(_ENOUGH_IN_TIME)
# Of runs whose length nobody gave: the batch is that of so many epochs, and an epoch has so many steps, so that
# validation is neither rare nor dear.
_USUAL_EPOCHS, _STEPS_PER_EPOCH = 60, (100, 1000)
_MOST_RAMP_STEPS = 300
_COOLDOWN, _JUDGED_EPOCHS = 0.25, 8  # the share of a run, and the epochs before which a doubling is not judged
# Overfitting: the first epoch that is judged, and the relative gain of validation over that of the training loss. On
# 270,000 SIFT vectors this is 1.5 or more (5 runs), on 72,000 of text .6 to 1.7 (80 passes). On 28,800 of text it
# falls from 1.0 to .1: when the rate fell after 325 steps of 1,024, the run ended at .3201; after 520, where it is .5,
# at .3215; and after 780 the first epoch of the fall was the best, .3231, and the last .3262.
# With ten times the weight decay during the fall it ended at .3185 after 520 steps, and at .3216 after 780; with 18,000
# SIFT vectors (8 epochs of 90 steps, and 3 of the fall) at 20,075 instead of 20,983.
_OVERFIT_EPOCHS, _OVERFIT_SHARE, _OVERFIT_DECAY = 4, 0.5, 10.0


def fitted_lr(num_steps: int, batch_size: int) -> float:
    """The highest learning rate for a run of so many optimizer steps: a power law through the two known points."""
    (short, high), (long, low) = _SHORT_RUN, _LONG_RUN
    slope = math.log(low / high) / math.log(long / short)
    rate = min(high, max(low, high * (max(num_steps, 1) / short) ** slope))
    return rate * min(1.0, batch_size / _THEIR_BATCH) ** 0.5


_LATE_FACTOR, _SAMPLED_STEPS, _SAMPLED_EACH = 0.5, 200, 8  # of a run, and of each epoch


@dataclass(frozen=True)
class StepPlan:
    """How a run is cut into optimizer steps. An epoch of it may be a part of a pass over the vectors, or several."""

    epoch_vectors: int
    batch_size: int  # vectors of all processes together
    steps_per_epoch: int
    epochs: int  # at most
    ramp_steps: int  # of the linear ramp at the beginning
    lr: float  # the highest
    seconds: float | None = None  # the training should not take longer, start not included
    num_valid: int | None = None  # vectors to validate on; None: all that there are for it
    num_ranked: int | None = None  # vectors that rankers are fitted to in the end; None: the usual number
    late_cost: float | None = None  # of a late step, in early ones; None in states of older versions

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @classmethod
    def from_options(cls, options: TrainOptions, num_train: int) -> "StepPlan":
        """The plan of a run on `num_train` vectors; batch size and learning rate are fitted where none are given."""
        vectors, accumulate, epochs = min(options.epoch_size, num_train), options.grad_accumulate, options.epochs
        num_vectors = vectors * (_USUAL_EPOCHS if epochs is None else epochs) // accumulate
        batch_size = options.batch_size or fitted_batch(lambda size: num_vectors / size)
        per_step = batch_size * accumulate
        if epochs is None:
            fewest, most = _STEPS_PER_EPOCH
            vectors = min(options.epoch_size, max(fewest * per_step, min(most * per_step, num_train)))
        per_epoch = max(1, round(vectors / per_step))
        lr = options.lr or fitted_lr(0 if epochs is None else per_epoch * epochs, per_step)
        ramp = min(
            round(options.ramp_epochs * per_epoch), _MOST_RAMP_STEPS if epochs is None else per_epoch * epochs // 10
        )
        epochs = max(1, _LONG_RUN[0] // per_epoch) if epochs is None else epochs
        return cls(vectors, batch_size, per_epoch, epochs, ramp, lr)


def fitted_batch(num_steps: Callable[[int], float], is_timed: bool = False) -> int:
    """The largest batch of which a run has enough steps; `num_steps` says how many it has for a batch size.

    `is_timed`: what the run may take is a time, and not a number of vectors.
    """
    enough = _ENOUGH_IN_TIME if is_timed else dict.fromkeys(_BATCH_SIZES, _ENOUGH_STEPS)
    return next((size for size in _BATCH_SIZES if num_steps(size) >= enough[size]), _BATCH_SIZES[-1])


class Schedule(ABC):
    """The learning rate of each step, from 0: a linear ramp to the plan's highest rate, and then `factor` of it.

    `epochs` is how many there will be; None while nobody knows. `may_end_early` says whether validation decides it.
    """

    STATE: tuple[str, ...] = ()  # attributes that a resumed run needs
    ENDING: tuple[str, ...] = ("epochs",)  # and those that it needs when its end has been moved
    may_end_early = False

    def __init__(self, options: TrainOptions, plan: StepPlan):
        self.options, self.plan, self.end_moved = options, plan, False
        self.epochs: int | None = plan.epochs

    def rate(self, step: int) -> float:
        if step < self.plan.ramp_steps:
            return self.plan.lr * (step + 1) / (self.plan.ramp_steps + 1)
        return self.plan.lr * self.factor(step)

    @abstractmethod
    def factor(self, step: int) -> float:
        """The share of the highest rate that a step after the ramp has."""

    def is_late(self, step: int) -> bool:
        """Whether the rate has fallen below half of the highest, so that codes change little from step to step."""
        return step >= self.plan.ramp_steps and self.factor(step) < _LATE_FACTOR

    def decay_factor(self, step: int) -> float:
        """A factor on the weight decay of a step."""
        return 1.0

    def late_share(self) -> float:
        """The share of such steps in a whole run, as far as that is known."""
        total = self._last_step() + 1
        return sum(self.is_late(total * i // _SAMPLED_STEPS) for i in range(_SAMPLED_STEPS)) / _SAMPLED_STEPS

    def cost(self, first: int, last: int) -> float:
        """What epochs from `first` up to `last` take, in epochs of early steps."""
        steps, late_cost = self.plan.steps_per_epoch, self.plan.late_cost or 1.0
        number = _SAMPLED_EACH * (last - first)
        late = sum(self.is_late(int((first + (i + 0.5) / _SAMPLED_EACH) * steps)) for i in range(number))
        return (number + late * (late_cost - 1)) / _SAMPLED_EACH

    def observe(self, epoch: int, mse: float, loss: float | None) -> str | None:  # noqa: B027 (need not listen)
        """Hear the validation error after an epoch and its training loss, first those of the start, which has no loss.

        Says why the end is brought forward, if so.
        """

    def finish(self, epoch: int, epochs: int) -> None:
        """After `epoch` epochs, decide to end after `epochs`."""
        self.epochs, self.end_moved = epochs, True

    def is_over(self, epoch: int) -> bool:
        """Whether training ends after this epoch."""
        return self.epochs is not None and epoch >= self.epochs

    def state(self) -> dict:
        return {name: getattr(self, name) for name in self.STATE + (self.ENDING if self.end_moved else ())}

    def restore(self, state: dict) -> None:
        self.end_moved = "epochs" in state
        for name in self.STATE + (self.ENDING if self.end_moved else ()):
            setattr(self, name, state[name])

    def _last_step(self) -> int:
        return self.plan.steps_per_epoch * (self.epochs or self.plan.epochs) - 1


class CosineSchedule(Schedule):
    """A quarter of a cosine, which stays high for long and ends steeply, down to lr · lr_min_factor.

    `bend` is a step and the share of the cosine that is done there, from where the rest is spread over what is left.
    """

    ENDING = ("epochs", "bend")

    def __init__(self, options: TrainOptions, plan: StepPlan):
        super().__init__(options, plan)
        self.bend = [plan.ramp_steps, 0.0]

    def factor(self, step: int) -> float:
        lowest = self.options.lr_min_factor
        return lowest + (1 - lowest) * math.cos(min(self._share_done(step), 1.0) * math.pi / 2)

    def finish(self, epoch: int, epochs: int) -> None:
        step = max(epoch * self.plan.steps_per_epoch, self.plan.ramp_steps)
        self.bend = [step, self._share_done(step)]
        super().finish(epoch, epochs)

    def _share_done(self, step: int) -> float:
        begin, share = self.bend
        return share + (1 - share) * max(0, step - begin) / max(1, self._last_step() - begin)


class CooldownSchedule(Schedule):
    """A high rate, and then a straight fall to lr · lr_min_factor over the last quarter of the run.

    In as many steps it ends lower than the cosine: MSE 31,587 and 31,819 on SIFT (2,000 steps), .4110 and .4141 on text
    (3,000 steps; M=4, batches of 256, one seed, validation vectors).

    Where it is not known how long the run will be, the high rate is the one that is fitted to a run of the steps so
    far, and the fall begins when training pays no more: when the best error of the second half of the run is not lower
    than that of the first by `least_gain` of it. Where it is known, the fall begins before the last quarter only when
    the training loss has also fallen by more than twice as much, as it does on few vectors, which are learnt by heart.
    """

    STATE = ("errors", "losses", "overfits")
    ENDING = ("epochs", "cooldown_from")
    may_end_early = True

    def __init__(self, options: TrainOptions, plan: StepPlan):
        super().__init__(options, plan)
        self.errors: list[float] = []  # of the start and each epoch
        self.losses: list[float | None] = []
        self.overfits = False  # when the fall begins
        self.has_end = options.epochs is not None or options.minutes is not None
        self.epochs = plan.epochs if self.has_end else None
        self.cooldown_from = self._usual_begin(plan.epochs) if self.has_end else None

    def is_late(self, step: int) -> bool:
        """Whether the rate falls to its end, or has halved before.

        On 60,000 SIFT vectors (M=8, batches of 256), 1,200 steps that are encoded with C=4 B=1 before the fall end at
        MSE 17,062, and 900 steps of C=16 B=4 in the same time at 17,803.
        """
        return self._is_cooling(step) or super().is_late(step)

    def restore(self, state: dict) -> None:
        super().restore({"losses": [None] * len(state["errors"]), "overfits": False} | state)  # of older runs

    def _is_cooling(self, step: int) -> bool:
        return self.cooldown_from is not None and step >= self.cooldown_from

    def factor(self, step: int) -> float:
        begin = self.cooldown_from
        if begin is None or step < begin:
            return self._high(step)
        lowest, end = self.options.lr_min_factor, self._last_step() + 1
        return self._high(begin) * (lowest + (1 - lowest) * max(0, end - step) / max(1, end - begin))

    def decay_factor(self, step: int) -> float:
        return _OVERFIT_DECAY if self.overfits and self._is_cooling(step) else 1.0

    def _high(self, step: int) -> float:
        if self.has_end or self.options.lr is not None:
            return 1.0
        batch = self.plan.batch_size * self.options.grad_accumulate
        return fitted_lr(step, batch) / self.plan.lr

    def observe(self, epoch: int, mse: float, loss: float | None) -> str | None:
        self.errors, self.losses = [*self.errors, mse], [*self.losses, loss]
        begin = epoch * self.plan.steps_per_epoch
        if self.cooldown_from is None or begin <= self.cooldown_from:
            self.overfits = self._learns_by_heart()
        if self._is_cooling(begin):
            return None
        done = len(self.errors) - 1
        tail = max(1, math.ceil(done * _COOLDOWN / (1 - _COOLDOWN)))
        if self._pays_no_more():
            self.finish(epoch, min(self.epochs or self.plan.epochs, epoch + tail))
            return "more epochs would gain little, so the learning rate falls now"
        if self.cooldown_from is None and epoch + tail >= self.plan.epochs:
            self.finish(epoch, self.plan.epochs)
        return None

    def _pays_no_more(self) -> bool:
        """Whether the last doubling of the run gained too little; where the length is known, because it overfits."""
        done, before, after = self._doubling()
        if done < (_OVERFIT_EPOCHS if self.has_end else _JUDGED_EPOCHS):
            return False
        is_little = after >= before * (1 - self.options.least_gain * math.log2(done / (done // 2)))
        return is_little and (self.overfits or not self.has_end)

    def _learns_by_heart(self) -> bool:
        """Whether validation gained less than half of what the training loss did in the last doubling of the run."""
        done, before, after = self._doubling()
        if done < _OVERFIT_EPOCHS:
            return False
        early, late = self.losses[done // 2], self.losses[done]
        learnt = 1 - late / early if early and late is not None else 0.0
        return before - after <= before * max(0.0, _OVERFIT_SHARE * learnt)

    def _doubling(self) -> tuple[int, float, float]:
        """The epochs done, and the best errors of the first half of them and of the second."""
        done, first = len(self.errors) - 1, 1 if self.has_end else 0  # the first epochs may be worse than the start
        if done < 2:
            return done, math.inf, math.inf
        return done, min(self.errors[first : done // 2 + 1]), min(self.errors[done // 2 + 1 :])

    def finish(self, epoch: int, epochs: int) -> None:
        super().finish(epoch, epochs)
        now = epoch * self.plan.steps_per_epoch
        if not self._is_cooling(now):
            self.cooldown_from = max(now, self._usual_begin(epochs))

    def _usual_begin(self, epochs: int) -> int:
        return round(epochs * self.plan.steps_per_epoch * (1 - _COOLDOWN))


class PlateauSchedule(Schedule):
    """A constant rate, reduced by reduce_factor after more than `patience` epochs without gain.

    `reference_mse` is the error of `best_epoch`, the last epoch that gained by more than the threshold.
    """

    STATE = ("best_epoch", "reference_mse", "reductions", "reduced_at")
    may_end_early = True

    def __init__(self, options: TrainOptions, plan: StepPlan):
        super().__init__(options, plan)
        self.best_epoch = self.reductions = self.reduced_at = 0
        self.reference_mse = math.inf

    def factor(self, step: int) -> float:
        return self.options.reduce_factor**self.reductions

    def observe(self, epoch: int, mse: float, loss: float | None) -> str | None:
        if self.reference_mse == math.inf or mse < self.reference_mse * (1 - self.options.threshold):
            self.best_epoch, self.reference_mse = epoch, mse
        elif epoch - max(self.best_epoch, self.reduced_at) > self.options.patience:
            self.reductions, self.reduced_at = self.reductions + 1, epoch

    def is_over(self, epoch: int) -> bool:
        return super().is_over(epoch) or epoch - self.best_epoch >= self.options.stop_patience


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": CosineSchedule, "plateau": PlateauSchedule, "cooldown": CooldownSchedule
}  # fmt: skip
