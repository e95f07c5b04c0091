"""What a person sees of a run: an estimate of its time and memory, log lines, progress and TensorBoard curves."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qinco.config import EncodeOptions
from qinco.engines.tensors import pack
from qinco.errors import ConfigError
from qinco.maths.clustering import BEAM_WIDTH, KMEANS_ROWS
from qinco.maths.devices import to_device
from qinco.progress import Progress, counted, format_duration, format_number, silent
from qinco.training.batches import BUFFER_BYTES
from qinco.training.codebooks import CodewordUse, sample_rows
from qinco.training.loop import EpochReport, StepReport, Training
from qinco.vectors.block_rows import library

_LOG = logging.getLogger(__name__)
_WARN_UNUSED_SHARE = 0.02
_ESTIMATE_ROWS, _ESTIMATE_SECONDS = 256, 0.5


@dataclass(frozen=True)
class Estimate:
    """What a run will take: `seconds` and `epochs` from now to its end, and `memory_bytes` beyond the libraries'.

    `total_epochs` are those of the whole run, also before it was interrupted.
    """

    seconds: float
    memory_bytes: int
    epochs: int
    total_epochs: int
    steps_per_epoch: int
    num_train: int
    num_valid: int
    num_parameters: int
    batch_size: int
    lr: float


def estimate(training: Training) -> Estimate:
    """Time encoding, gradients and validation on a few vectors, but not the fit of the first codebooks."""
    plan, num_train, num_valid = training.plan, len(training.train_source), len(training.valid_source)
    x_ND = training.model.normalize(to_device(training.train_source[:_ESTIMATE_ROWS], training.model.device))
    codes_NM = _encode(training, x_ND, training.batch_encode_options)

    def gradients() -> None:
        use = CodewordUse(training.model)
        training.gradients.add(x_ND, training.initial_reconstructions(x_ND), codes_NM, use, 1.0)
        training.optimizer.zero_grad(set_to_none=True)

    train_seconds = _seconds(lambda: _encode(training, x_ND, training.batch_encode_options), x_ND)
    train_seconds += _seconds(gradients, x_ND)
    valid_seconds = _seconds(lambda: _encode(training, x_ND, training.encode_options), x_ND)
    epochs = training.options.epochs - training.position.epoch
    per_epoch = (plan.epoch_vectors * train_seconds + num_valid * valid_seconds) / training.processes.count
    num_parameters = sum(parameter.numel() for parameter in training.parameters)
    return Estimate(
        epochs * per_epoch, _memory(training), epochs, training.options.epochs, plan.steps_per_epoch, num_train,
        num_valid, num_parameters, plan.batch_size, plan.lr,
    )  # fmt: skip


def _encode(training: Training, x_ND: torch.Tensor, options: EncodeOptions) -> torch.Tensor:
    packed = pack(training.model, options.engine, training.precision)
    return packed.encode_tensors(x_ND, training.initial_reconstructions(x_ND), options)[0]


def _seconds(work, x_ND: torch.Tensor) -> float:
    seconds = 0.0
    for _ in range(2):  # a first call may start threads and compile kernels
        begun = time.monotonic()
        work()
        if x_ND.is_cuda:
            torch.cuda.synchronize(x_ND.device)
        seconds = time.monotonic() - begun
        if seconds > _ESTIMATE_SECONDS:
            break
    return seconds / len(x_ND)


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
            epochs = counted(report.total_epochs, "epoch")
            if report.epochs < report.total_epochs:
                epochs = f"the last {report.epochs:,} of {epochs}"
            _LOG.info(
                f"training {counted(report.num_parameters, 'parameter')} on {counted(report.num_train, 'vector')} "
                f"({report.num_valid:,} for validation), {epochs} of {counted(report.steps_per_epoch, 'step')}, "
                f"batch {report.batch_size:,}, learning rate {report.lr:.2g}: about {format_duration(report.seconds)} "
                f"and {report.memory_bytes / 2**20:,.0f} MiB beyond the libraries",
                extra={"seconds": report.seconds},
            )
        elif isinstance(report, StepReport):
            stage = f"epoch {report.epoch}/{report.epochs}"
            progress(stage, report.step, report.steps, "step", loss=report.loss, lr=report.lr)
        else:
            _log_epoch(report, mse_scale)
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


def _log_epoch(report: EpochReport, scale: float) -> None:
    mse = format_number(report.mse * scale)
    if report.loss is None:
        _LOG.info(f"start: mse {mse}")
        return
    _LOG.info(
        f"epoch {report.epoch}/{report.epochs}: mse {mse}{' (best)' if report.is_best else ''}, "
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
