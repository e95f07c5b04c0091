"""The files of a training run, and how it stops without losing anything."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from math import isfinite
from pathlib import Path

from qinco.atomic import write_atomically
from qinco.codec.plan import TrainingPlan
from qinco.errors import ConfigError
from qinco.interrupts import StoppedTwice, held_back
from qinco.model.qinco import Qinco
from qinco.model.weights import Weights
from qinco.progress import format_number
from qinco.store.codec import load_models, save_models
from qinco.store.run_state import save_state
from qinco.training.loop import EpochReport, Training
from qinco.training.ranked import rank_best
from qinco.version import __version__

_LOG = logging.getLogger(__name__)
_SAVE_SECONDS = 300


class Recorder:
    """Follows a run: keeps its best weights, writes its files if there is an output, and stops when asked to.

    `header` is the plan's, and `saved` that of the state that the run continues from, None for a new run.
    """

    def __init__(
        self, plan: TrainingPlan, training: Training, header: dict, output, saved: dict | None, mse_scale: float = 1.0
    ):  # fmt: skip
        self.plan, self.training, self.header, self.output = plan, training, header, output
        self.mse_scale, self.writes = mse_scale, output is not None and training.processes.is_main
        self.best: tuple[Weights, dict] | None = None
        if saved is not None and output is not None:
            self.best = (load_models(output)[0][0], saved["best"])
        if self.writes:
            self._trim_log()

    def follow(self, listen: Callable) -> tuple[Qinco, dict]:
        """Train to the end; returns the best model and its provenance.

        Raises:
            KeyboardInterrupt, ConfigError: interrupted, or diverged; `fitted` is what would be returned now, or None.
        """
        saved_at = time.monotonic()
        try:
            with closing(self.training.run()) as reports:
                for report in reports:
                    with held_back():
                        if isinstance(report, EpochReport):
                            self._finish_epoch(report)
                            saved_at = time.monotonic()
                        elif self.writes and time.monotonic() - saved_at > _SAVE_SECONDS:
                            self._save_state()
                            saved_at = time.monotonic()
                        listen(report)
            self._rank()
        except (KeyboardInterrupt, ConfigError) as stop:
            if not isinstance(stop, ConfigError | StoppedTwice):
                with held_back():
                    stop.args = (self._keep(),)
            vars(stop)["fitted"] = self.best and self._fitted()
            raise
        self.training.processes.wait()
        return self._fitted()

    def _rank(self) -> None:
        """Fit the rankers of the best weights when the run is over, unless that has been done."""
        if self.best is None or self.best[1].get("ranked"):
            return
        weights, provenance = self.best
        ranked = rank_best(self.training, weights, provenance["valid_mse"])
        if ranked is None:
            return
        with held_back():
            self.best = ranked[0], provenance | {"valid_mse": ranked[1], "ranked": True}
            _LOG.info(f"candidates are ranked now: mse {format_number(ranked[1] * self.mse_scale)}")
            if self.writes:
                save_models(self.output, [self.best[0]], None, self.plan.encode_options, self.best[1])
            self._save_state()

    def _keep(self) -> str:
        """Save the state of an interrupted run; says what is kept, and how to get it."""
        if self.best is None or (self.output is not None and not self.writes):
            return ""
        if self.writes:
            self._save_state()
            return "the run is saved: give resume=true to continue it"
        return (
            f"the best codec so far, of epoch {self.best[1]['epoch']}, is in the exception: "
            "`except KeyboardInterrupt as stop: codec = stop.codec`, "
            "or in Jupyter `import sys; codec = sys.last_value.codec`"
        )

    def _fitted(self) -> tuple[Qinco, dict]:
        assert self.best is not None  # an epoch has ended, now or before
        weights, provenance = self.best
        return Qinco.of(weights, self.training.processes.device), provenance

    def _finish_epoch(self, report: EpochReport) -> None:
        if report.is_best or self.best is None:
            provenance = {
                "qinco": __version__,
                "epoch": report.epoch,
                "valid_mse": report.mse,
                "num_vectors": self.header["num_vectors"],
                "seconds": round(report.seconds, 1),
                "train": self.header["train"],
            }
            weights = deepcopy(self.training.model.weights())
            self.best = (weights, provenance)
            if self.writes:
                save_models(self.output, [weights], None, self.plan.encode_options, provenance)
        if self.writes:  # JSON has no numbers that are not finite
            values = {n: None if isinstance(v, float) and not isfinite(v) else v for n, v in vars(report).items()}
            with log_path(self.output).open("a", encoding="utf-8") as log:
                log.write(json.dumps(values) + "\n")
        self._save_state()

    def _save_state(self) -> None:
        if self.writes:
            header = self.header | {"progress": self.training.progress(), "best": self.best[1] if self.best else {}}
            save_state(self.output, header, self.training.arrays())

    def _trim_log(self) -> None:
        """Begin the log, or drop what it holds beyond the state that the run continues from."""
        lines, path = [], log_path(self.output)
        if self.best is not None and path.exists():
            whole = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]  # the last may be cut
            lines = [line for line in whole if json.loads(line)["epoch"] <= self.training.position.epoch]
        with write_atomically(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def log_path(output) -> Path:
    return Path(f"{output}.jsonl")
