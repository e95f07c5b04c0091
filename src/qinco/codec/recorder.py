"""The files of a training run, and how it stops without losing anything."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from qinco.atomic import write_atomically
from qinco.codec.plan import TrainingPlan
from qinco.model.qinco import Qinco
from qinco.store.codec import load_models, save_models
from qinco.store.run_state import save_state, state_path
from qinco.training.loop import EpochReport, Training
from qinco.vectors.rows import VectorSource
from qinco.version import __version__

_SAVE_SECONDS = 300


class Recorder:
    """Follows a run: keeps its best weights, writes its files, and stops between two steps when asked to.

    Args:
        plan, training, source: the run and all its vectors.
        output: the codec file; the state lies in `output.last`, the log in `output.jsonl`. None writes nothing.
        saved: header of the state that the run continues from; None for a new run.
    """

    def __init__(self, plan: TrainingPlan, training: Training, source: VectorSource, output, saved: dict | None):
        self.plan, self.training = plan, training
        self.data = {"num_vectors": len(source), "fingerprint": plan.fingerprint(source)}
        self.output = None if output is None else Path(output)
        self.writes = self.output is not None and training.processes.is_main
        self.best: tuple[dict, dict] | None = None
        if saved is not None:
            self.best = (load_models(self.output)[0][0].state_dict(), saved["best"])
        if self.writes:
            self._trim_log()

    def follow(self, listen: Callable) -> tuple[Qinco, dict]:
        """Train to the end; `listen` hears every report.

        Returns:
            The best model, on the run's device, and its provenance.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, when the state is saved.
        """
        saved_at = time.monotonic()
        with _stop_requests() as is_stopped:
            for report in self.training.run():
                if isinstance(report, EpochReport):
                    self._finish_epoch(report)
                    saved_at = time.monotonic()
                elif self.writes and time.monotonic() - saved_at > _SAVE_SECONDS:
                    self._save_state()
                    saved_at = time.monotonic()
                listen(report)
                if is_stopped():
                    self._save_state()
                    raise KeyboardInterrupt
        self.training.processes.wait()
        state, provenance = self.best
        model = Qinco.empty(self.plan.model_config)
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False).to(self.training.processes.device), provenance

    def _finish_epoch(self, report: EpochReport) -> None:
        if report.is_best or self.best is None:
            state = {name: tensor.cpu().clone() for name, tensor in self.training.model.state_dict().items()}
            self.best = (state, self._provenance(report))
            if self.writes:
                save_models(self.output, [self.training.model], None, self.plan.encode_options, self.best[1])
        if self.writes:
            with log_path(self.output).open("a") as log:
                log.write(json.dumps(_json_values(report)) + "\n")
        self._save_state()

    def _save_state(self) -> None:
        if self.writes:
            best = self.best[1] if self.best else {}
            header = self.plan.header() | {"progress": self.training.progress(), "best": best} | self.data
            save_state(self.output, header, self.training.tensors())

    def _provenance(self, report: EpochReport) -> dict:
        return {
            "qinco": __version__,
            "epoch": report.epoch,
            "valid_mse": report.mse,
            "num_vectors": self.data["num_vectors"],
            "seconds": round(report.seconds, 1),
            "train": self.plan.train_options.to_dict(),
        }

    def _trim_log(self) -> None:
        """Begin the log, or drop what it holds beyond the state that the run continues from."""
        lines, path = [], log_path(self.output)
        if self.best is not None and path.exists():
            lines = [line for line in path.read_text().splitlines() if _epoch_of(line) <= self.training.position.epoch]
        with write_atomically(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))


def log_path(output) -> Path:
    """Path of the log of the run that writes `output`."""
    return Path(f"{output}.jsonl")


def _epoch_of(line: str) -> float:
    """The epoch of a line of the log; infinity for a line that was not completely written."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _json_values(report: EpochReport) -> dict:
    """A report as JSON values: numbers that are not finite become null."""
    values = vars(report).items()
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values}


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM has come; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()

    def request(signum, frame):
        requested.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def explained_interrupts(output) -> Iterator[None]:
    """Let a KeyboardInterrupt say what has been saved of the run that writes `output`."""
    before = _save_times(output)
    try:
        yield
    except KeyboardInterrupt:
        if output is None:
            raise
        if _save_times(output) != before:
            message = "the run is saved: give resume=true to continue it"
        else:
            message = "nothing was done yet" + (", and the earlier run is unchanged" if before else "")
        raise KeyboardInterrupt(message) from None


def _save_times(output) -> list[int]:
    """When the saved states of the run of `output`, and of the runs of its parts, were written."""
    if output is None:
        return []
    parts = Path(output).parent.glob(f"{escape(Path(output).name)}.part_*[0-9]")
    return [state.stat().st_mtime_ns for state in (state_path(output), *map(state_path, parts)) if state.exists()]
