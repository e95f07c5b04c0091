"""`task=train`: from keys to a run, and what the person at the terminal sees of it."""

import time
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from qinco.atomic import check_output
from qinco.cli import inputs
from qinco.cli.console import Console, format_duration, format_value
from qinco.cli.overrides import Settings
from qinco.cli.resolved import RULE, SCHEDULES, SIZES, TRAINING, chosen_preset
from qinco.codec.codec import Codec
from qinco.codec.fit import fit
from qinco.errors import ConfigError
from qinco.store.codec import CHECKPOINT_SUFFIX
from qinco.store.run_state import state_path
from qinco.training.estimate import Estimate
from qinco.training.loop import EpochReport, StepReport
from qinco.training.processes import Processes

_WARN_UNUSED = 0.02


def train(settings: Settings, console: Console) -> None:
    """Train a codec and write it, its state and its log."""
    source = inputs.open_trainset(settings)
    chosen = run_settings(settings, source.dim)
    output = Path(settings["output"])
    if output.suffix.lower() not in (".safetensors", CHECKPOINT_SUFFIX):
        raise ConfigError(f"output={output}: a codec is written to a .safetensors (ours) or .pt (the authors') file")
    check_output(output, overwrite=True, inputs=inputs.files_read(settings))
    if not Processes.is_main_by_environment():
        console = Console(verbose=False, json_logs=console.json_logs)
    elif settings["ivf_K"] is not None and settings["ivf_centroids"] is None and settings["model"] is None:
        console.warn(
            f"ivf_K={settings['ivf_K']} has no effect without ivf_centroids=FILE, which task ivf_centroids writes: "
            "this codec will have no lists"
        )
    begun, before = time.monotonic(), _states(output)
    try:
        with _reporter(settings, console, inputs.mse_scale(settings)) as report:
            codec = _fit(settings, source, chosen, report)
    except KeyboardInterrupt:
        message = "nothing was done yet" + (", and what was there is as it was" if before else "")
        if _states(output) != before:
            message = "the run is saved; the same command with resume=true continues it"
        raise KeyboardInterrupt(message) from None
    if not Processes.is_main_by_environment():
        return
    scale, provenance = inputs.mse_scale(settings), codec.provenance
    if provenance["epoch"] == 0 and settings["epochs"] > 0:
        console.warn(
            "no epoch was better than the start, so the codec is the residual quantizer that training began with: "
            "give more epochs or vectors, or a lower lr"
        )
    result = {
        "output": str(output),
        "mse": provenance["valid_mse"] * scale,
        "epoch": provenance["epoch"],
        "num_vectors": provenance["num_vectors"],
        "bytes_per_vector": codec.bytes_per_vector,
        "seconds": time.monotonic() - begun,
    }
    console.print_result(result | inputs.machine(settings), settings["json"])


def _states(output: Path) -> list[int]:
    """When the saved states of the run of `output` were written."""
    states = [state_path(output), *map(state_path, output.parent.glob(f"{escape(output.name)}.part_*[0-9]"))]
    return [state.stat().st_mtime_ns for state in states if state.exists()]


def run_settings(settings: Settings, dim: int) -> dict:
    """The arguments of `fit` that the command line gives; what it leaves out is for preset and recipe to decide."""
    chosen = {name: settings[key] for key, name in (SIZES | RULE | TRAINING).items() if settings.given(key)}
    if settings.given("de") and settings["de"] is None:
        chosen["embed_dim"] = dim
    if "schedule" in chosen:
        chosen["schedule"] = {theirs: ours for ours, theirs in SCHEDULES.items()}[chosen["schedule"]]
    if settings["qinco1_mode"]:
        if settings["model_args"] not in (None, "qinco1"):
            raise ConfigError(f"qinco1_mode=true contradicts model_args={settings['model_args']}: keep one of them")
        chosen |= {"codeword_skip": False, "embed_dim": dim}
        if settings["A"] is None and settings["C"] is None:
            chosen["has_preselector"] = False
    preset = chosen_preset(settings.task, settings.given_values)
    return chosen | {"preset": preset, "recipe": settings["recipe"]}


def _fit(settings: Settings, source, chosen: dict, report) -> Codec:
    common = {
        "output": settings["output"],
        "resume": settings["resume"],
        "overwrite": settings["overwrite"],
        "device": inputs.device_of(settings),
        "on_report": report,
    }
    centroids = settings["ivf_centroids"]
    if settings["pq"] is not None:
        if centroids is not None or settings["model"] is not None:
            raise ConfigError("pq= trains a codec of several parts: leave out ivf_centroids= and model=")
        return Codec.fit(source, num_parts=settings["pq"], rotate=settings["opq"], **common, **chosen)
    if settings["opq"]:
        raise ConfigError("opq=true needs pq=, the number of parts that the rotated vectors are cut into")
    initial = None if settings["model"] is None else Codec.load(settings["model"])
    if initial is not None:
        if settings["model_args"] is not None:
            raise ConfigError(f"the architecture is that of model={settings['model']}: leave out model_args")
        chosen["preset"] = None
    if centroids is not None and settings["ivf_K"] is not None:
        found = len(inputs.open_vectors(centroids))
        if found != settings["ivf_K"]:
            raise ConfigError(f"ivf_K={settings['ivf_K']}, but {centroids} holds {found} centroids")
    return fit(source, coarse_centroids=centroids, initial=initial, **common, **chosen)


@contextmanager
def _reporter(settings: Settings, console: Console, scale: float):
    """A function for `fit` to report to: lines, progress, and TensorBoard where it is asked for."""
    board = _open_tensorboard(settings["tensorboard"] if Processes.is_main_by_environment() else None)
    bar, bar_epoch = None, None

    def close_bar() -> None:
        nonlocal bar, bar_epoch
        if bar is not None:
            bar.__exit__(None, None, None)
        bar = bar_epoch = None

    def report(event: Estimate | StepReport | EpochReport) -> None:
        nonlocal bar, bar_epoch, progress
        if isinstance(event, Estimate):
            console.info(_estimate_line(event))
        elif isinstance(event, StepReport):
            if bar_epoch != event.epoch:
                close_bar()
                bar, bar_epoch = (
                    console.progress(event.steps, "step", f"epoch {event.epoch}", event.step - 1),
                    event.epoch,
                )
                progress = bar.__enter__()
            progress.update(event.step, loss=event.loss, lr=event.lr)
        else:
            close_bar()
            _report_epoch(event, console, scale)
            if board is not None:
                _write_board(board, event, scale)

    progress = None
    try:
        yield report
    finally:
        close_bar()
        if board is not None:
            board.close()


def _estimate_line(event: Estimate) -> str:
    return (
        f"training {event.num_parameters:,} parameters on {event.num_train:,} vectors ({event.num_valid:,} for "
        f"validation), {event.epochs} epochs of {event.steps_per_epoch:,} steps, batch {event.batch_size:,}, "
        f"learning rate {event.lr:.2g}: about {format_duration(event.seconds)} and "
        f"{event.memory_bytes / 2**20:,.0f} MiB beyond the libraries"
    )


def _report_epoch(event: EpochReport, console: Console, scale: float) -> None:
    mse = format_value(event.mse * scale)
    if event.loss is None:
        console.info(f"start: mse {mse}")
        return
    console.info(
        f"epoch {event.epoch}/{event.epochs}: mse {mse}{' (best)' if event.is_best else ''}, "
        f"loss {format_value(event.loss)}, lr {event.lr:.2g}, code entropy {event.code_entropy:.2f} bits, "
        f"{event.unused_codewords:,} codewords unused, {format_duration(event.seconds)}"
    )
    if event.unused_share > _WARN_UNUSED:
        console.warn(
            f"{event.unused_codewords:,} codewords ({event.unused_share:.0%}) went unused in epoch {event.epoch} and "
            "were drawn again; if it stays so, train on more vectors, or with a smaller K or lr"
        )


def _open_tensorboard(folder: str | None):
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tensorboard= needs the package tensorboard: pip install 'qinco[tensorboard]'") from None
    try:
        return SummaryWriter(folder)
    except OSError as error:
        raise ConfigError(f"tensorboard={folder} is no folder to write to: {error.strerror or error}") from error


def _write_board(board, event: EpochReport, scale: float) -> None:
    values = {
        "mse/valid": event.mse * scale,
        "loss/train": event.loss,
        "lr": event.lr,
        "codewords/unused": event.unused_codewords,
        "codewords/entropy_bits": event.code_entropy,
    }
    for name, value in values.items():
        if value is not None and value == value:  # the start has no entropy
            board.add_scalar(name, value, event.epoch)
    for step, mse in enumerate(event.mse_per_step, 1):
        board.add_scalar(f"mse_per_step/{step}", mse * scale, event.epoch)
