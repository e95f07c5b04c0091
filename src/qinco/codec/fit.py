"""Training a codec: from vectors to the saved file."""

import logging
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
import torch

from qinco.atomic import check_output, exclusive, user_path
from qinco.codec.columns import cut
from qinco.codec.plan import (
    SIZES,
    TrainingPlan,
    begun_with,
    check_same_run,
    check_values,
    plan_training,
    split_validation,
)
from qinco.codec.recorder import Recorder, log_path
from qinco.codec.suited import is_short
from qinco.config import AUTO_PRESET, EncodeOptions, ModelConfig, by_field, require_bool, require_int, require_number
from qinco.errors import ConfigError, DataError
from qinco.interrupts import StoppedTwice, handling
from qinco.maths.devices import choose_device, within_cores
from qinco.maths.rotation import fit_rotation
from qinco.model.qinco import Qinco
from qinco.progress import Progress, ProgressOption, reporting
from qinco.store.codec import CHECKPOINT_SUFFIX, SUFFIXES, load_models, save_models
from qinco.store.run_state import load_state, state_path
from qinco.training.budget import MEASURED_BATCHES, MEASURED_SECONDS, MEASURED_SHARE, measure, settle, start_rows
from qinco.training.codebooks import initialize_model, set_scales, set_steps
from qinco.training.loop import Training
from qinco.training.monitor import Report, estimate, monitor, summary_writer
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.ranked import ranked_rows
from qinco.training.rankers import clear_rankers
from qinco.vectors.formats import input_files
from qinco.vectors.rows import VectorSource, as_source, sample

_LOG = logging.getLogger(__name__)
_ROTATION_ROWS, _UNTRAINED_ROWS = 65_536, 1024
Fitted = tuple[list[Qinco], np.ndarray | None, EncodeOptions, dict]


def fit(
    x, preset: str | None = "auto", *, output: str | Path | None = None, resume: bool = False,
    overwrite: bool = False, device: "str | torch.device" = "auto", coarse_centroids=None, initial=None,
    recipe: str = "default", num_parts: int = 1, rotate: bool = False, tensorboard: str | Path | None = None,
    mse_scale: float = 1.0, inputs: Iterable = (), progress: ProgressOption = None,
    on_report: Callable[[Report], None] | None = None, **settings,
) -> Fitted:  # fmt: skip
    """Train on vectors, and return the best state on validation vectors. `Codec.fit` makes a codec of it.

    An estimate, a line for each epoch and warnings are logged to the logger `qinco`. Under torchrun every process
    trains on its share of each batch, and the first one writes.

    Args:
        x: (N, D) vectors: array, memory map, torch tensor, path or VectorSource of any integer or float type. A source
            is streamed. `num_valid` vectors are for validation: some of all parts, so that the order of the rows does
            not matter, or the last ones with `rows_shuffled` and the paper's recipe.
        preset: "auto", "qinco1", "qinco2-XXS", "-XS", "-S", "-M" or "-L"; None for ModelConfig's own
            defaults. "auto" is qinco2-S, or qinco2-XS where `minutes` on this CPU are too few for more.
        output: codec file to write (.pt: a checkpoint of the authors' code). The run's state and log lie beside it
            (`.last`, `.jsonl`); a codec of several parts has these for each part (`.part_i`) until it is complete.
        resume: continue the run of `output` where it stopped; start it where there is none.
        overwrite: replace `output`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        coarse_centroids: (V, D) vectors: an IVF codec, whose reconstructions start at the nearest of them.
        initial: Codec, or the path of one, whose architecture, weights and epoch the run continues from.
        recipe: "default", or "paper" for the published one, of QINCo or QINCo2.
        num_parts: cut the vectors into so many parts, and train a model for each (PQ-QINCo; QINCo paper, section 5.3).
        rotate: with parts: learn a rotation that spreads the variance over them (OPQ).
        tensorboard: folder for TensorBoard curves (of each part in a folder `part_i` there).
        mse_scale: factor on the errors in log lines and curves.
        inputs: files that are read, which `output` must not replace.
        progress: see `qinco.progress`; a stage for each epoch, with the loss and learning rate.
        on_report: called with an Estimate, then with a StepReport or EpochReport after each step and epoch.
        **settings: fields of ModelConfig (num_steps, codebook_size, num_blocks, embed_dim, hidden_dim, ...), of
            EncodeOptions (num_candidates, where 0 means a model without pre-selector, num_pairs, beam_width) and of
            TrainOptions (minutes or epochs, lr, batch_size, seed, ...). `minutes` are those of the whole call, also
            where it is resumed; epochs, batch size and learning rate are fitted to what this machine does in them, and
            training ends before when it only learns few vectors by heart. With neither minutes nor epochs, it ends when
            another doubling of its length would gain little.

    Returns:
        The models (one for each part), the float32 rotation (D, D) before the cut or None, the options for encoding,
        and the provenance: how the models were trained, as plain values.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM, when the state is saved. A second one acts at once. Its attribute
            `fitted` is what would have been returned, or None before the start was validated; parts that were not
            begun are residual quantizers of a few vectors.
    """
    begun = time.monotonic()
    for name, value in {"resume": resume, "overwrite": overwrite, "rotate (opq)": rotate}.items():
        require_bool(name, value)
    require_number("mse_scale", mse_scale, above=0)
    source = as_source(x, "training vectors")
    output, tensorboard = user_path(output), user_path(tensorboard)
    if output is not None:
        read = [*inputs, *input_files(x, coarse_centroids)]
        check_output(output, suffixes=SUFFIXES, overwrite=True, inputs=read)
    _check_parts(source, num_parts, rotate, coarse_centroids, initial, output)
    settings = by_field(settings, ModelConfig, EncodeOptions, TrainOptions)
    if resume and output is not None:
        settings |= begun_with(output, initial is None, settings, preset)
    first = source if num_parts == 1 else _part(source, 0, num_parts, None)
    planned = partial(
        plan_training, first, settings=settings, coarse_centroids=coarse_centroids, initial=initial, recipe=recipe,
        output=output, arguments=signature(fit).parameters,
    )  # fmt: skip
    plan = planned(preset)
    split_validation(source, plan.train_options.num_valid, plan.model_config.codebook_size)
    processes = Processes(torch.device(choose_device(device)))
    if tensorboard is not None:
        summary_writer()  # must not be missed after a part has been trained
    terminable, alone = handling(signal.default_int_handler, signal.SIGTERM), nullcontext()
    if output is not None and processes.is_main:  # two runs would go back behind each other's states
        lock = Path(output).with_name(f".{Path(output).name}.lock")
        alone = exclusive(lock, f"another process is training {output}: wait for it, or give another output")
    with within_cores(), reporting(progress if processes.is_main else False) as report, terminable, alone:
        is_open = preset == AUTO_PRESET and recipe == "default" and initial is None and not SIZES & settings.keys()
        if is_open and is_short(plan, processes, num_parts):
            plan = planned("qinco2-XS")
        runs = _Runs(plan, processes, resume, overwrite, mse_scale, report, on_report, num_parts)
        if num_parts > 1:
            return runs.train_parts(source, rotate, output, tensorboard, begun)
        try:
            model, provenance = runs.train(source, output, tensorboard, begun)
        except (KeyboardInterrupt, ConfigError) as stop:
            if found := getattr(stop, "fitted", None):
                vars(stop)["fitted"] = [found[0]], None, plan.encode_options, found[1]
            raise
        return [model], None, plan.encode_options, provenance


@dataclass(frozen=True)
class _Runs:
    """The runs of all parts, and what they share."""

    plan: TrainingPlan
    processes: Processes
    resume: bool
    overwrite: bool
    mse_scale: float
    progress: Progress
    on_report: Callable | None
    num_parts: int

    def train(self, source: VectorSource, output, tensorboard, begun: float) -> tuple[Qinco, dict]:
        """Train one model, on the vectors of one part; returns its best state and provenance.

        A budget of time counts from `begun`, and is divided evenly between the parts.
        """
        is_main, header = self.processes.is_main, self.plan.header(source)
        saved = None if output is None else self._open(output, header)
        shown = monitor(self.progress, self.mse_scale, tensorboard, self.on_report)
        with shown if is_main else nullcontext(self.on_report or (lambda report: None)) as listen:
            if saved is None:
                check_values(source, self.progress)
            self.processes.wait()
            try:
                training = self._start(source, saved, listen, begun)
                recorder = Recorder(self.plan, training, header, output, saved and saved[0], self.mse_scale)
                model, provenance = recorder.follow(listen)
            except KeyboardInterrupt as stop:
                if is_main and not any(stop.args) and not isinstance(stop, StoppedTwice):  # the start is not validated
                    stop.args = ("what was saved is as it was",) if saved else ("nothing was saved: start again",)
                raise
        if is_main and provenance["epoch"] == 0 and training.position.epoch > 0:
            _LOG.warning(
                "no epoch improved on the start, so the codec is the residual quantizer that training began with: "
                "give more vectors (100,000 are a good start) or more time, and leave lr and batch out, so that they "
                "are fitted to the run"
            )
        return model, provenance

    def _open(self, output, header: dict) -> tuple[dict, dict] | None:
        """Check that the run can be written, and load the state to continue from; None for a new run."""
        if self.processes.is_main:
            check_output(output, overwrite=self.overwrite, resume=self.resume)
            for beside in (state_path(output), log_path(output)):
                check_output(beside, overwrite=True)
        saved, exists = load_state(output) if self.resume else None, Path(output).exists()
        if saved is not None:
            check_same_run(output, saved[0], header)
        if self.resume and exists != (saved is not None) and not (exists and self.overwrite):
            raise ConfigError(
                f"the run cannot be resumed, because {output} or {state_path(output)} is missing: "
                "give overwrite=true without resume"
            )
        if self.resume and saved is None and self.processes.is_main:
            _LOG.info(f"there is nothing to resume at {output}: training begins")
        return saved

    def _start(self, source: VectorSource, saved, listen, begun: float) -> Training:
        """The run at its beginning, or where it was saved, on this process's device; `listen` hears an Estimate."""
        plan, options, initial = self.plan, self.plan.train_options, self.plan.initial
        sizes = options.num_valid, plan.model_config.codebook_size
        train, valid = split_validation(source, *sizes, options.rows_shuffled)
        model = Qinco.empty(plan.model_config).to_empty(device=self.processes.device)
        is_new = saved is None and initial is None
        if saved is None and initial is not None:
            model.load_state_dict(initial.models[0].state_dict())
            clear_rankers(model)
        training = Training(model, train, valid, options, plan.encode_options, self.processes)
        if saved is not None:
            try:
                training.restore(saved[1], saved[0]["progress"])
            except (RuntimeError, KeyError, ValueError, TypeError) as error:
                raise DataError(f"the saved state of the run is damaged: {error}") from None
        elif options.minutes is not None:
            return self._within_minutes(training, is_new, listen, begun)
        elif initial is not None and options.epochs is not None:
            training.position.epoch = initial.provenance.get("epoch", 0)
            if training.position.epoch >= options.epochs:
                raise ConfigError(
                    f"epochs must be more than {training.position.epoch}, which the initial codec was trained for, "
                    f"not {options.epochs}: it counts from the beginning of that training"
                )
        if is_new:  # weights of any value take the same time: the estimate does not wait for the codebooks
            set_scales(model, train, options, plan.coarse_VD)
            set_steps(model, torch.zeros(len(model.steps), plan.model_config.codebook_size, train.dim), options)
        if is_new or not training.schedule.is_over(training.position.epoch):
            listen(estimate(training))
        if is_new and self.processes.is_main:
            initialize_model(model, train, options, plan.coarse_VD, self.progress)
        self.processes.copy_from_main(model)
        return training

    def _within_minutes(self, training: Training, is_new: bool, listen, begun: float) -> Training:
        """A run at its beginning whose plan fills the time that the start leaves."""
        options, processes, minutes = training.options, training.processes, training.options.minutes
        assert minutes is not None
        model, train, seconds = training.model, training.train_source, 60 * minutes / self.num_parts
        limit = min(MEASURED_SECONDS, MEASURED_SHARE * seconds)
        batches = MEASURED_BATCHES if options.batch_size is None else (options.batch_size,)
        if is_new and processes.is_main:
            rows = start_rows(model.config, len(train), seconds, str(processes.device))
            initialize_model(model, train, options, self.plan.coarse_VD, self.progress, rows)
        processes.copy_from_main(model)
        pace = measure(training, batches, limit)
        num_ranked, needed = map(processes.from_main, ranked_rows(training, seconds))
        left = processes.from_main(begun + seconds - time.monotonic()) - needed
        plan = settle(options, pace, left, len(train), len(training.all_valid))
        training.begin(replace(plan, num_ranked=num_ranked))
        listen(estimate(training, pace))
        if training.plan.epochs == 0 and processes.is_main:
            _LOG.warning(
                f"minutes={minutes:g} are over after the start, a residual quantizer, which is what the codec is: give "
                "more minutes"
            )
        return training

    def train_parts(self, source: VectorSource, rotate: bool, output, tensorboard, begun: float) -> Fitted:
        """Train a model for each part, one after the other, with files `output.part_i` until all are complete."""
        is_main, options, num_parts = self.processes.is_main, self.plan.encode_options, self.num_parts
        outputs = [Path(f"{output}.part_{part}") for part in range(num_parts)]
        if output is not None:
            if is_main:
                check_output(output, overwrite=self.overwrite, resume=self.resume)
            is_complete = Path(output).exists() and not state_path(outputs[0]).exists()
            if self.resume and is_complete and not self.overwrite:
                parts, rotation_DD, options, provenance = load_models(output)
                if len(parts) != num_parts:
                    what = f"num_parts (pq) of {output} is {len(parts)}, not {num_parts}"
                    raise ConfigError(f"{what}: give that, or overwrite=true")
                models = [Qinco.of(weights, self.processes.device) for weights in parts]
                return models, rotation_DD, options, provenance
        check_values(source, self.progress)
        sampled = sample(source, _ROTATION_ROWS, self.plan.train_options.seed) if rotate else None
        rotation_DD = None if sampled is None else fit_rotation(sampled, num_parts)
        models, provenances = [], []
        for part, part_output in enumerate([None] * num_parts if output is None else outputs):
            if is_main:
                _LOG.info(f"part {part + 1} of {num_parts}")
            board = None if tensorboard is None else Path(tensorboard, f"part_{part}")
            try:
                vectors = _part(source, part, num_parts, rotation_DD)
                model, provenance = self.train(vectors, part_output, board, time.monotonic() if part else begun)
            except (KeyboardInterrupt, ConfigError) as stop:
                if part > 0 and output is not None and isinstance(stop, KeyboardInterrupt):
                    stop.args = ("the parts before are saved: give resume=true to continue",)
                vars(stop)["fitted"] = self._begun(source, rotation_DD, num_parts, models, provenances, stop)
                raise
            models.append(model)
            provenances.append(provenance)
        provenance = _joint(provenances, num_parts)
        if output is not None and is_main:
            save_models(output, [model.weights() for model in models], rotation_DD, options, provenance)
            for path in outputs:
                for file in (state_path(path), path, log_path(path)):  # without its state a part is not resumed
                    file.unlink(missing_ok=True)
        return models, rotation_DD, options, provenance

    def _begun(self, source, rotation_DD, num_parts: int, models: list, provenances: list, stop) -> Fitted | None:
        """What there is of a codec of several parts; None if there is nothing."""
        if found := getattr(stop, "fitted", None):
            models, provenances = [*models, found[0]], [*provenances, found[1]]
        if not models:
            return None
        for part in range(len(models), num_parts):
            rows = sample(_part(source, part, num_parts, rotation_DD), _UNTRAINED_ROWS, self.plan.train_options.seed)
            model = Qinco.empty(self.plan.model_config).to_empty(device=self.processes.device)
            initialize_model(model, as_source(rows), self.plan.train_options, None)
            models = [*models, model]
        return models, rotation_DD, self.plan.encode_options, _joint(provenances, num_parts)


def _joint(provenances: list[dict], num_parts: int) -> dict:
    """That of the first part, with the error of all; without it where some were not trained."""
    joint = provenances[0] | {"valid_mse": sum(found["valid_mse"] for found in provenances)}
    return joint if len(provenances) == num_parts else {n: v for n, v in joint.items() if n != "valid_mse"}


def _check_parts(source: VectorSource, num_parts: int, rotate: bool, coarse_centroids, initial, output) -> None:
    """Raise ConfigError for what a codec of several parts cannot have."""
    require_int("num_parts (pq)", num_parts, 1)
    if rotate and num_parts == 1:
        raise ConfigError("rotate (opq) needs num_parts (pq) of 2 or more, which the rotated vectors are cut into")
    if source.dim % num_parts:
        raise ConfigError(f"num_parts (pq) must divide the dimension {source.dim}, not {num_parts}")
    if num_parts > 1 and (coarse_centroids is not None or initial is not None):
        name = "initial (model)" if coarse_centroids is None else "coarse_centroids (ivf_centroids)"
        raise ConfigError(f"a codec of several parts (PQ-QINCo) cannot be trained with {name}")
    if num_parts > 1 and output is not None and Path(output).suffix.lower() == CHECKPOINT_SUFFIX:
        raise ConfigError(f"output={output}: a codec of several parts (PQ-QINCo) is written to a .safetensors file")


def _part(source: VectorSource, part: int, num_parts: int, rotation_DD: np.ndarray | None) -> VectorSource:
    width = source.dim // num_parts
    rows = source.map(lambda x_ND: cut(x_ND, part, width, rotation_DD), width)
    return VectorSource(rows, f"{source.name}, part {part}")
