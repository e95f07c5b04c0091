"""What a person sees of a run: an estimate of its time and memory, log lines, progress and TensorBoard curves."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qinco.errors import ConfigError
from qinco.maths.clustering import BEAM_WIDTH, KMEANS_ROWS
from qinco.progress import Progress, counted, format_duration, format_number, silent
from qinco.training.batches import BUFFER_BYTES
from qinco.training.budget import Pace, measure
from qinco.training.codebooks import sample_rows
from qinco.training.loop import EpochReport, StepReport, Training
from qinco.vectors.block_rows import library

_LOG = logging.getLogger(__name__)
_WARN_UNUSED_SHARE = 0.02
_MEASURED_BATCH = 256


@dataclass(frozen=True)
class Estimate:
    """What a run will take: `seconds` and `epochs` from now to its end, and `memory_bytes` beyond the libraries'.

    `total_epochs` are those of the whole run, also before it was interrupted. They, `epochs` and `seconds` are None
    where training goes on until it pays no more; where that may end it before, they are the most it takes
    (`may_end_early`). `passes` is how many times an epoch sees each training vector.
    """

    seconds: float | None
    epoch_seconds: float
    memory_bytes: int
    epochs: int | None
    total_epochs: int | None
    steps_per_epoch: int
    passes: float
    num_train: int
    num_valid: int
    num_parameters: int
    batch_size: int
    lr: float
    may_end_early: bool = False


def estimate(training: Training, pace: Pace | None = None) -> Estimate:
    """What a run takes at the pace of this machine, by default measured now, but without the first codebooks."""
    plan, total, num_valid = training.plan, training.schedule.epochs, len(training.valid_source)
    pace = pace or measure(training, (min(_MEASURED_BATCH, plan.batch_size),))
    step_seconds = pace.step(plan.batch_size) * training.options.grad_accumulate
    per_epoch = plan.steps_per_epoch * step_seconds + pace.validation(num_valid)
    epochs = None if total is None else total - training.position.epoch
    num_train, num_parameters = len(training.train_source), sum(parameter.numel() for parameter in training.parameters)
    return Estimate(
        None if epochs is None else epochs * per_epoch, per_epoch, _memory(training), epochs, total,
        plan.steps_per_epoch, plan.epoch_vectors / num_train, num_train, num_valid, num_parameters, plan.batch_size,
        plan.lr, training.schedule.may_end_early,
    )  # fmt: skip


def _memory(training: Training) -> int:
    """Bytes of initialization, of weights, gradients, moments and the best copy, of shuffle buffers and activations."""
    config, num_train = training.model.config, len(training.train_source)
    vector, rows = 4 * config.dim, sample_rows(config, num_train)
    start = (rows * (1 + BEAM_WIDTH) + min(KMEANS_ROWS, rows * BEAM_WIDTH)) * vector
    weights = sum(tensor.nbytes for tensor in training.model.state_dict().values())
    buffers = 2 * min(BUFFER_BYTES, vector * num_train)
    widths = 3 * config.dim + 2 * config.embed_dim + config.num_blocks * (config.embed_dim + 2 * config.hidden_dim)
    return start + 5 * weights + buffers + 4 * training.plan.batch_size * config.num_steps * widths


Report = Estimate | StepReport | EpochReport


@contextmanager
def monitor(
    progress: Progress = silent, mse_scale: float = 1.0, tensorboard=None, on_report: Callable | None = None
) -> Iterator[Callable[[Report], None]]:
    """Yield a function that shows the reports of a run, with errors times `mse_scale`, and then calls `on_report`."""
    try:
        board = None if tensorboard is None else summary_writer()(tensorboard)
    except OSError as error:
        raise ConfigError(f"tensorboard={tensorboard}: cannot write there: {error.strerror or error}") from error

    def show(report: Report) -> None:
        if isinstance(report, Estimate):
            _LOG.info(_estimate_line(report), extra={"seconds": report.seconds or report.epoch_seconds})
        elif isinstance(report, StepReport):
            stage = f"epoch {_of_all(report)}"
            progress(stage, report.step, report.steps, "step", loss=report.loss, lr=report.lr)
        else:
            _log_epoch(report, mse_scale)
            if report.ending is not None:
                _LOG.info(f"{report.ending}: training ends after epoch {report.epochs}")
            if board is not None:
                for name, value in _curves(report, mse_scale).items():
                    board.add_scalar(name, value, report.epoch)
        if on_report is not None:
            on_report(report)

    try:
        yield show
    finally:
        if board is not None:
            board.close()


def _estimate_line(report: Estimate) -> str:
    steps, time = counted(report.steps_per_epoch, "step"), format_duration(report.seconds or report.epoch_seconds)
    epochs = f"epochs of {steps} until they pay no more" if report.total_epochs is None else (
        f"{counted(report.total_epochs, 'epoch')} of {steps}"
    )  # fmt: skip
    if report.epochs is not None and report.total_epochs is not None and report.epochs < report.total_epochs:
        epochs = f"the last {report.epochs:,} of {epochs}"
    if report.may_end_early and report.epochs is not None:
        epochs = f"at most {epochs}"
    if not 0.99 < report.passes < 1.01:
        epochs += f" ({report.passes:.2g} passes over the vectors each)"
    return (
        f"training {counted(report.num_parameters, 'parameter')} on {counted(report.num_train, 'vector')} "
        f"({report.num_valid:,} for validation), {epochs}, batch {report.batch_size:,}, learning rate "
        f"{report.lr:.2g}: about {time}{' an epoch' if report.seconds is None else ''} and "
        f"{report.memory_bytes / 2**20:,.0f} MiB beyond the libraries"
    )


def _of_all(report: StepReport | EpochReport) -> str:
    return f"{report.epoch}" if report.epochs is None else f"{report.epoch}/{report.epochs}"


def _log_epoch(report: EpochReport, scale: float) -> None:
    mse = format_number(report.mse * scale)
    if report.loss is None:
        _LOG.info(f"start: mse {mse}")
        return
    _LOG.info(
        f"epoch {_of_all(report)}: mse {mse}{' (best)' if report.is_best else ''}, "
        f"loss {format_number(report.loss)}, lr {report.lr:.2g}, code entropy {report.code_entropy:.2f} bits, "
        f"{counted(report.unused_codewords, 'codeword')} unused, {format_duration(report.seconds)}"
    )
    if report.unused_share > _WARN_UNUSED_SHARE:
        _LOG.warning(
            f"{report.unused_share:.0%} of the codewords ({report.unused_codewords:,}) were not used in epoch "
            f"{report.epoch} and have been redrawn; if this continues, train on more vectors, or with a smaller "
            "codebook_size (K)"
        )


def summary_writer() -> type:
    """TensorBoard's writer; raises ConfigError where the package is missing."""
    with library("tensorboard", "tensorboard", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def _curves(report: EpochReport, scale: float) -> dict[str, float]:
    values = {"mse/valid": report.mse * scale, "lr": report.lr, "codewords/unused": report.unused_codewords}
    if report.loss is not None:  # the start has neither loss nor entropy
        values |= {"loss/train": report.loss, "codewords/entropy_bits": report.code_entropy}
    return values | {f"mse_per_step/{step}": mse * scale for step, mse in enumerate(report.mse_per_step, 1)}
