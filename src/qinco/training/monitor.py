"""What a person sees of a run: log lines, progress and TensorBoard curves."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan

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
    """Yield a function that shows the reports of a run.

    Args:
        progress: hears of every step.
        mse_scale: factor on the errors that are logged.
        tensorboard: folder for TensorBoard; None for none.
        on_report: called with every report after it has been shown.

    Raises:
        ConfigError: where `tensorboard` is no folder to write to, or its package is missing.
    """
    board = None if tensorboard is None else _open_board(tensorboard)

    def show(report: Report) -> None:
        if isinstance(report, Estimate):
            _log_estimate(report)
        elif isinstance(report, StepReport):
            stage = f"epoch {report.epoch}/{report.epochs}"
            progress(stage, report.step, report.steps, "step", loss=report.loss, lr=report.lr)
        else:
            _log_epoch(report, mse_scale)
            if board is not None:
                _draw(board, report, mse_scale)
        if on_report is not None:
            on_report(report)

    try:
        yield show
    finally:
        if board is not None:
            board.close()


def _log_estimate(found: Estimate) -> None:
    _LOG.info(
        f"training {found.num_parameters:,} parameters on {found.num_train:,} vectors ({found.num_valid:,} for "
        f"validation), {found.epochs} epochs of {found.steps_per_epoch:,} steps, batch {found.batch_size:,}, "
        f"learning rate {found.lr:.2g}: about {format_duration(found.seconds)} and "
        f"{found.memory_bytes / 2**20:,.0f} MiB beyond the libraries"
    )


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


def _open_board(folder):
    try:
        return summary_writer()(folder)
    except OSError as error:
        raise ConfigError(f"tensorboard={folder}: cannot write there: {error.strerror or error}") from error


def _draw(board, report: EpochReport, scale: float) -> None:
    values = {
        "mse/valid": report.mse * scale,
        "loss/train": report.loss,
        "lr": report.lr,
        "codewords/unused": report.unused_codewords,
        "codewords/entropy_bits": report.code_entropy,
    }
    for name, value in values.items():
        if value is not None and not isnan(value):  # the start has neither loss nor entropy
            board.add_scalar(name, value, report.epoch)
    for step, mse in enumerate(report.mse_per_step, 1):
        board.add_scalar(f"mse_per_step/{step}", mse * scale, report.epoch)
