"""Training a codec from vectors to the saved file: starts, resumes, saves, and stops without losing anything."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from qinco.atomic import check_output, write_atomically
from qinco.codec.codec import Codec
from qinco.codec.plan import Run, check_same_run, check_values, plan_run, split_validation
from qinco.errors import ConfigError, DataError
from qinco.maths.devices import choose_device
from qinco.model.qinco import Qinco
from qinco.store.codec import save_models
from qinco.store.run_state import load_state, save_state, state_path
from qinco.training.codebooks import set_scales, set_steps, start_model
from qinco.training.estimate import Estimate, estimate
from qinco.training.loop import EpochReport, StepReport, Training
from qinco.training.processes import Processes
from qinco.vectors.rows import VectorSource, as_source
from qinco.version import __version__

_SAVE_SECONDS = 300


def fit(
    x,
    preset: str | None = "qinco2-S",
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    coarse_centroids=None,
    initial: Codec | None = None,
    recipe: str = "default",
    on_report: Callable[[Estimate | StepReport | EpochReport], None] | None = None,
    **settings,
) -> Codec:
    """Train a codec on vectors and return its best state on validation vectors.

    x:                (N, D) vectors: array, memory map, torch tensor, path or VectorSource of any float or integer
                      type; a source is streamed, not held in memory. The last `num_valid` are for validation.
    preset:           "qinco1", "qinco2-S", "qinco2-M" or "qinco2-L"; None for ModelConfig's own defaults
    output:           the codec file to write (.pt: a checkpoint of the authors' code); the run's state and log go
                      beside it (`.last`, `.jsonl`)
    resume:           continue the run of `output` where it stopped; starts it where there is none
    overwrite:        replace `output`
    coarse_centroids: (V, D) vectors: an IVF codec, whose reconstruction starts at the nearest of them
    initial:          a codec whose architecture, weights and epoch the run goes on from
    recipe:           "default", or "paper" for the published one
    on_report:        called with an Estimate, then with a StepReport or EpochReport after each step and epoch
    settings:         fields of ModelConfig (num_steps, codebook_size, num_blocks, embed_dim, hidden_dim, ...), of
                      EncodeOptions (num_candidates, where 0 means a model without pre-selector, num_pairs, beam_width)
                      and of TrainOptions (epochs, lr, batch_size, seed, ...)

    Raises ConfigError and DataError before any work begins. On Ctrl-C the state is saved, then KeyboardInterrupt
    raised.
    """
    source = as_source(x, "training vectors")
    run = plan_run(source, preset, coarse_centroids, initial, recipe, settings, output)
    train, valid = split_validation(source, run.train.num_valid, run.model.codebook_size)
    processes = Processes(choose_device(device))
    if output is not None and processes.is_main:
        check_output(output, overwrite=overwrite, resume=resume)
        for beside in (state_path(output), log_path(output)):
            check_output(beside, overwrite=True)
    saved = load_state(output) if output is not None and resume else None
    if saved is not None:
        check_same_run(output, saved[0], run, len(source), run.fingerprint(source))
        if not Path(output).exists():
            raise ConfigError(
                f"{output} does not exist beside {state_path(output)}, so its run cannot be resumed: "
                "give overwrite=true without resume"
            )
    elif resume and output is not None and Path(output).exists() and not overwrite:
        raise ConfigError(f"{state_path(output)} does not exist, so {output} cannot be resumed: give overwrite=true")
    if saved is None:
        check_values(source)
    processes.wait()
    on_report = on_report or (lambda report: None)
    training = start_training(run, train, valid, processes, saved, on_report)
    return _Recorder(run, training, source, output, on_report, saved).follow()


def start_training(
    run: Run, train: VectorSource, valid: VectorSource, processes: Processes, saved, on_report
) -> Training:
    """The run at its beginning, or where it was saved, on this process's device; reports an Estimate first."""
    model = Qinco.empty(run.model).to_empty(device=processes.device)
    if saved is None and run.initial is None:
        # Weights of any value take the same time: an estimate need not wait for the codebooks.
        set_scales(model, train, run.train, run.coarse_VD)
        set_steps(model, torch.zeros(run.model.num_steps, run.model.codebook_size, run.model.dim), run.train)
        on_report(estimate(Training(model, train, valid, run.train, run.encode, processes)))
        if processes.is_main:
            start_model(model, train, run.train, run.coarse_VD)
    elif run.initial is not None:
        model.load_state_dict(run.initial.model.state_dict())
    processes.copy_from_main(model)
    training = Training(model, train, valid, run.train, run.encode, processes)
    if saved is not None:
        try:
            training.restore(saved[1], saved[0]["progress"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"the saved state of the run is damaged: {error}") from None
    elif run.initial is not None:
        training.at.epoch = run.initial.provenance.get("epoch", 0)
        if training.at.epoch >= run.train.epochs:
            raise ConfigError(
                f"the initial codec has had {training.at.epoch} epochs already: give epochs above that, "
                f"not {run.train.epochs}"
            )
    if (saved is not None or run.initial is not None) and training.at.epoch < run.train.epochs:
        on_report(estimate(training))
    return training


class _Recorder:
    """Follows a run: keeps its best weights, writes its files, and stops between two steps when asked to."""

    def __init__(self, run: Run, training: Training, source: VectorSource, output, on_report, saved):
        self.run, self.training, self.on_report = run, training, on_report
        self.data = {"num_vectors": len(source), "fingerprint": run.fingerprint(source)}
        self.output = None if output is None else Path(output)
        self.writes = self.output is not None and training.processes.is_main
        self.best: tuple[dict, dict] | None = None
        if saved is not None:
            self.best = (Codec.load(self.output).model.state_dict(), saved[0]["best"])
        if self.writes:
            self._trim_log()

    def follow(self) -> Codec:
        saved_at = time.monotonic()
        with _interruptible() as interrupted:
            for report in self.training.run():
                if isinstance(report, EpochReport):
                    self._finish_epoch(report)
                    saved_at = time.monotonic()
                elif self.writes and time.monotonic() - saved_at > _SAVE_SECONDS:
                    self._save_state()
                    saved_at = time.monotonic()
                self.on_report(report)
                if interrupted():
                    self._save_state()
                    raise KeyboardInterrupt
        self.training.processes.wait()
        return self._best_codec()

    def _finish_epoch(self, report: EpochReport) -> None:
        if report.is_best or self.best is None:
            state = {name: tensor.cpu().clone() for name, tensor in self.training.model.state_dict().items()}
            self.best = (state, self._provenance(report))
            if self.writes:
                save_models(self.output, [self.training.model], None, self.run.encode, self.best[1])
        if self.writes:
            with self._log_path.open("a") as log:
                log.write(json.dumps(_plain(report)) + "\n")
        self._save_state()

    def _save_state(self) -> None:
        if self.writes:
            best = self.best[1] if self.best else {}
            header = self.run.header() | {"progress": self.training.progress(), "best": best} | self.data
            save_state(self.output, header, self.training.tensors())

    def _best_codec(self) -> Codec:
        state, provenance = self.best
        model = Qinco.empty(self.run.model)
        model.load_state_dict(state, assign=True)
        return Codec(model, self.run.encode, provenance).to(self.training.processes.device)

    def _provenance(self, report: EpochReport) -> dict:
        return {
            "qinco": __version__,
            "epoch": report.epoch,
            "valid_mse": report.mse,
            "num_vectors": self.data["num_vectors"],
            "seconds": round(report.seconds, 1),
            "train": self.run.train.to_dict(),
        }

    @property
    def _log_path(self) -> Path:
        return log_path(self.output)

    def _trim_log(self) -> None:
        """Begin the log, or drop what it holds beyond the state that the run continues from."""
        lines = []
        if self.best is not None and self._log_path.exists():
            written = self._log_path.read_text().splitlines()
            lines = [line for line in written if _epoch_of(line) <= self.training.at.epoch]
        with write_atomically(self._log_path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))


def log_path(output) -> Path:
    """Where the log of the run that writes `output` lies."""
    return Path(f"{output}.jsonl")


def _epoch_of(line: str) -> float:
    """The epoch that a line of the log is about; infinity for one that was not written to its end."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _plain(report: EpochReport) -> dict:
    """A report as JSON values: numbers that are not finite become null."""
    values = dict(vars(report))
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C (and SIGTERM) be noticed between two steps, where the state is whole; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def ask(signum, frame):
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
