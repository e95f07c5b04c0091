"""Runs that may take so many minutes: what a step takes on this machine, and the plan that fills the time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from qinco.config import ModelConfig
from qinco.machine import num_threads
from qinco.maths.clustering import BEAM_WIDTH, ITERATIONS, KMEANS_ROWS, nearest
from qinco.training.codebooks import sample_rows
from qinco.training.loop import Training
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.schedule import StepPlan, fitted_batch, fitted_lr

MEASURED_SECONDS, MEASURED_SHARE = 4.0, 0.01  # of steps of each size, and of validation
MEASURED_BATCHES = (128, 1024)
_MEASURED_VALID, _MEASURED_CALLS = (64, 1024), 5
_START_SHARE, _START_ROWS = 0.15, 4096  # of the time, at most, for the first codebooks; rows to measure them with
_FILLED = 0.96  # of the time that is left, for the rest varies
_VALID_SHARE, _EPOCHS = 0.06, (6, 16)
_LEAST_VALID, _FEWEST_VALID = 500, 100  # vectors for validation, if possible and in any case
_STEP_ROWS = 150  # a step on a CPU takes about as long as so many of its vectors, besides these
_ROWS_PER_BATCH = 16  # vectors for each one of a batch, at least: few vectors are trained on in small batches


@dataclass(frozen=True)
class Pace:
    """Seconds of an optimizer step by its batch size, and of validation by its vectors, on all processes together.

    Steps are those of the whole run on average; a late one, encoded with more candidates, takes `late_cost` times as
    long as an early one.
    """

    steps: dict[int, float]
    valid: dict[int, float]
    late_cost: float = 1.0

    def step(self, batch_size: int) -> float:
        """Of one step: on the line through the smallest and the largest batch that were measured.

        Where only small ones were, as larger ones would have taken too long, each step costs some vectors more.
        """
        return _on_line(self.steps, batch_size)

    def validation(self, num_valid: int) -> float:
        return num_valid * min(seconds / rows for rows, seconds in self.valid.items())


def _on_line(seconds: dict[int, float], size: int) -> float:
    low, high = min(seconds), max(seconds)
    if low == high:
        return seconds[low] * (size + _STEP_ROWS) / (low + _STEP_ROWS)
    slope = max(0.0, seconds[high] - seconds[low]) / (high - low)
    return max(seconds[high] + slope * (size - high), seconds[high] * min(1.0, size / high))


def measure(training: Training, batches: tuple[int, ...] = MEASURED_BATCHES, limit: float = MEASURED_SECONDS) -> Pace:
    """Time real steps on the first training vectors, for about `limit` seconds each; the run stays as it was."""
    train, valid = training.train_source, training.valid_source
    x_ND = train[: min(len(train), max(batches))]
    x_ND = np.resize(x_ND, (max(batches), train.dim))

    def validate(count: int) -> None:
        training.validate(valid.window(0, count))

    def step(count: int) -> None:
        training.optimizer_step([x_ND[:count]], 0.0)

    shares, times = training.batch_options_shares(), []
    with training.on_trial():
        for options in shares:
            training.batch_encode_options = options
            times.append(_times(step, batches, limit / len(shares), training.processes))
    steps: dict[int, float] = {
        size: sum(share * of[size] for share, of in zip(shares.values(), times, strict=True))
        for size in batches if all(size in of for of in times)
    }  # fmt: skip
    late_cost = times[-1][max(steps)] / times[0][max(steps)]
    sizes = tuple(sorted({min(size, len(valid)) for size in _MEASURED_VALID}))
    return Pace(steps, _times(validate, sizes, limit, training.processes), late_cost)


def _times(work: Callable[[int], object], sizes: tuple[int, ...], limit: float, processes: Processes) -> dict:
    """The median seconds of `work(size)`; sizes that would take longer than the limit are left out but for the first.

    Those of the main process decide, so that all processes do the same.
    """

    def timed(size: int) -> float:
        begun = time.monotonic()
        work(size)
        return processes.from_main(time.monotonic() - begun)

    first = timed(sizes[0])  # which may start threads and compile kernels
    times = {sizes[0]: first}
    for size in sizes:
        if times[sizes[0]] * size / sizes[0] > (2 * limit if size != sizes[0] else 4 * limit):
            break
        spent: list[float] = []
        while len(spent) < _MEASURED_CALLS and sum(spent) < limit:
            spent.append(timed(size))
        times[size] = median(spent)
    return times


def start_rows(config: ModelConfig, num_train: int, seconds: float, device: str) -> int:
    """How many vectors to fit the first codebooks to, so that it takes a small share of the time."""
    rows = sample_rows(config, num_train)
    x_ND = torch.randn(min(rows, _START_ROWS), config.dim, device=device)
    book_KD = torch.randn(config.codebook_size, config.dim, device=device)
    begun = time.monotonic()
    int(nearest(x_ND, book_KD, num_threads())[-1])
    each = (time.monotonic() - begun) / len(x_ND) * config.num_steps  # a vector of all codebooks, once

    def needed(count: int) -> float:
        return each * (ITERATIONS * min(KMEANS_ROWS, BEAM_WIDTH * count) + BEAM_WIDTH * count)

    while needed(rows) > _START_SHARE * seconds and rows > BEAM_WIDTH * config.codebook_size:
        rows = max(BEAM_WIDTH * config.codebook_size, rows * 3 // 4)
    return rows


def settle(options: TrainOptions, pace: Pace, seconds: float, num_train: int, num_valid: int) -> StepPlan:
    """The plan of a run that takes at most `seconds` from now on; the start's validation is included."""
    usable = _FILLED * seconds
    epochs, rows, valid_seconds = _validations(options, pace, usable, num_valid)
    accumulate, left = options.grad_accumulate, max(0.0, usable - (epochs + 1) * valid_seconds)

    def num_steps(size: int) -> float:
        return left / (accumulate * pace.step(size))

    largest = max(1, num_train // _ROWS_PER_BATCH)
    batch = options.batch_size or fitted_batch(lambda size: num_steps(size) if size <= largest else 0, is_timed=True)
    total = int(num_steps(batch))
    epochs = min(epochs, total)
    per_epoch = max(1, round(total / max(epochs, 1)))
    total = per_epoch * epochs
    return StepPlan(
        per_epoch * batch * accumulate, batch, per_epoch, epochs, total // 10 if options.ramp_epochs else 0,
        options.lr or fitted_lr(total, batch * accumulate), seconds, rows, late_cost=pace.late_cost,
    )  # fmt: skip


def _validations(options: TrainOptions, pace: Pace, usable: float, num_valid: int) -> tuple[int, int, float]:
    """Epochs, the vectors to validate on after each, and how long that takes: a small share of all if possible."""
    batch = options.batch_size or MEASURED_BATCHES[-1]
    needed = math.ceil(usable / pace.step(batch) * batch / options.epoch_size)
    fewest, epochs = (max(count, needed) for count in _EPOCHS)
    share, each = _VALID_SHARE * usable, pace.validation(1)
    rows = min(num_valid, max(_LEAST_VALID, int(share / ((epochs + 1) * each))))
    epochs = max(fewest, min(epochs, int(2 * share / (rows * each)) - 1))
    rows = min(rows, max(_FEWEST_VALID, int(4 * share / ((epochs + 1) * each))))
    return epochs, rows, rows * each
