"""What a person sees of a run: log lines, progress and TensorBoard curves."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qinco.errors import ConfigError
from qinco.progress import Progress, format_duration, format_number, silent
from qinco.training.estimate import Estimate
from qinco.training.loop import EpochReport, StepReport

Report = Estimate | StepReport | EpochReport
_LOG = logging.getLogger(__name__)
_WARN_UNUSED_SHARE = 0.02


@contextmanager
def monitor(
    progress: Progress = silent, mse_scale: float = 1.0, tensorboard=None, on_report: Callable | None = None
) -> Iterator[Callable[[Report], None]]:
    """Yield a function that shows the reports of a run, with errors times `mse_scale`, and then calls `on_report`.

    `tensorboard` is the folder of TensorBoard; raises ConfigError where it cannot be written.
    """
    try:
        board = None if tensorboard is None else summary_writer()(tensorboard)
    except OSError as error:
        raise ConfigError(f"tensorboard={tensorboard}: cannot write there: {error.strerror or error}") from error

    def show(report: Report) -> None:
        if isinstance(report, Estimate):
            _LOG.info(
                f"training {report.num_parameters:,} parameters on {report.num_train:,} vectors "
                f"({report.num_valid:,} for validation), {report.epochs} epochs of {report.steps_per_epoch:,} steps, "
                f"batch {report.batch_size:,}, learning rate {report.lr:.2g}: about {format_duration(report.seconds)} "
                f"and {report.memory_bytes / 2**20:,.0f} MiB beyond the libraries"
            )
        elif isinstance(report, StepReport):
            stage = f"epoch {report.epoch}/{report.epochs}"
            progress(stage, report.step, report.steps, "step", loss=report.loss, lr=report.lr)
        else:
            _log_epoch(report, mse_scale)
            for name, value in {} if board is None else _curves(report, mse_scale).items():
                board.add_scalar(name, value, report.epoch)
        if on_report is not None:
            on_report(report)

    try:
        yield show
    finally:
        if board is not None:
            board.close()


def _log_epoch(report: EpochReport, scale: float) -> None:
    mse = format_number(report.mse * scale)
    if report.loss is None:
        _LOG.info(f"start: mse {mse}")
        return
    _LOG.info(
        f"epoch {report.epoch}/{report.epochs}: mse {mse}{' (best)' if report.is_best else ''}, "
        f"loss {format_number(report.loss)}, lr {report.lr:.2g}, code entropy {report.code_entropy:.2f} bits, "
        f"{report.unused_codewords:,} codewords unused, {format_duration(report.seconds)}"
    )
    if report.unused_share > _WARN_UNUSED_SHARE:
        _LOG.warning(
            f"{report.unused_codewords:,} codewords ({report.unused_share:.0%}) were not used in epoch {report.epoch} "
            "and have been redrawn; if this continues, train on more vectors, or with a smaller codebook_size (K) or lr"
        )


def summary_writer() -> type:
    """TensorBoard's writer; raises ConfigError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tensorboard needs the package tensorboard: pip install 'qinco[tensorboard]'") from None
    return SummaryWriter


def _curves(report: EpochReport, scale: float) -> dict[str, float]:
    """Points of TensorBoard's curves."""
    values = {"mse/valid": report.mse * scale, "lr": report.lr, "codewords/unused": report.unused_codewords}
    if report.loss is not None:  # the start has neither loss nor entropy
        values |= {"loss/train": report.loss, "codewords/entropy_bits": report.code_entropy}
    return values | {f"mse_per_step/{step}": mse * scale for step, mse in enumerate(report.mse_per_step, 1)}
