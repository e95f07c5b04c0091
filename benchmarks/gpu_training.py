"""Training on a GPU: time to the error of the paper's recipe, utilization, and quality of the codecs."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gpu_device import BusyShare, seconds_of
from gpu_plain import train_plainly
from gpu_setting import Setting, report_kernels, say, table

from qinco.codec import Codec
from qinco.codec.plan import TrainingPlan, plan_training, split_validation
from qinco.maths.metrics import recall
from qinco.model.qinco import Qinco
from qinco.search.exhaustive import exhaustive_search
from qinco.store.run_state import load_state, state_path
from qinco.training.codebooks import initialize_model
from qinco.training.loop import EpochReport, StepReport, Training
from qinco.training.processes import Processes
from qinco.training.schedule import StepPlan
from qinco.vectors.formats import read_integers
from qinco.vectors.rows import VectorSource

PAPER = {"recipe": "paper", "epochs": 10, "batch_size": 1024}
TRIALS = (2, 4, 10)  # epochs of the default recipe; the fewest that reach the paper's error count
WANTED_TIMES = 4
PROCESSOR_SECONDS = 900
PLAIN_SHARE, PAPER_SHARE = 0.5, 0.6
WARM_STEPS, TIMED_STEPS = 5, 20
MOST_EPOCHS = 100
TABLE = {f"{size}{steps}": (f"qinco2-{size.upper()}", steps) for size in "sm" for steps in (8, 16)}
FAISS_ROWS = 50_000


def fit_until(until: float, source: VectorSource, preset: str, output: Path, device, **settings):
    """Train to the end, or to the monotonic time `until`, when the state is saved.

    Returns the best codec so far, the reports of the epochs, and whether the run came to its end.
    """
    epochs, late = [], []

    def follow(report) -> None:
        if isinstance(report, EpochReport):
            epochs.append(report)
            print(f"{time.strftime('%X')} {output.name}: epoch {report.epoch}, MSE {report.mse:,.0f}", file=sys.stderr)
        if isinstance(report, EpochReport | StepReport) and time.monotonic() > until and not late:
            late.append(True)
            signal.raise_signal(signal.SIGINT)  # training saves its state and stops, as for Ctrl-C

    try:
        return Codec.fit(source, preset, output=output, device=device, on_report=follow, **settings), epochs, True
    except KeyboardInterrupt:
        if not late:
            raise
        return Codec.load(output, device), epochs, False


def first_steps(
    run: TrainingPlan, train: VectorSource, valid: VectorSource, device
) -> tuple[Training, Callable[[int], None]]:
    """A training run after warm-up, and `go(count)`, which runs `count` more steps."""
    model = Qinco.empty(run.model_config).to_empty(device=device)
    initialize_model(model, train, run.train_options, None)
    training = Training(model, train, valid, run.train_options, run.encode_options, Processes(device))
    reports = (report for report in training.run() if isinstance(report, StepReport))

    def go(count: int) -> None:
        for _ in range(count):
            next(reports)

    go(WARM_STEPS)
    return training, go


# Figure 3


def train(setting: Setting) -> None:
    """Figure 3: seconds to the error of ten epochs of the paper's recipe, for plain torch and for qinco."""
    source = setting.vectors("train")
    settings = setting.sizes(8) | PAPER
    if setting.quick:
        settings |= {"epochs": 2, "batch_size": 256}
    run = plan_training(source, "qinco2-S", settings, recipe=settings.pop("recipe"))
    parts = split_validation(source, None, run.model_config.codebook_size)
    say(training_vectors=len(parts[0]), validation_vectors=len(parts[1]), batch=run.train_options.batch_size)
    rows = [plain := _train_plainly(setting, run, *parts)]
    if plain[3] is None:
        output = setting.output / "paper.safetensors"
        until = setting.at(PAPER_SHARE)
        _, epochs, ended = fit_until(
            until, source, "qinco2-S", output, setting.device, recipe="paper", overwrite=True, **settings
        )
        name = "paper's recipe, our engine" + ("" if ended else " (not to its end)")
        rows.append((name, epochs[-1].epoch, epochs[-1].seconds, epochs[-1].mse, None))
    target = rows[-1][3]
    for epochs in (1, 2) if setting.quick else TRIALS:
        rows.append(_train_ours(setting, source, epochs, target))
        _say_time_to(setting.mse, rows[-1])
        if rows[-1][4] is not None or setting.left < 0:
            break
    table("version|epochs|s|validation MSE|s to the paper's error", [row[:5] for row in rows])
    reached = rows[-1][4]
    say(figure=3, times_plain=None if reached is None else plain[2] / reached, wanted=WANTED_TIMES)
    if setting.left > 0:
        _profile(setting, source, *parts)


def _train_plainly(setting: Setting, run: TrainingPlan, train: VectorSource, valid: VectorSource) -> tuple:
    """A row of the table; without an error if the run was too long and its time is extrapolated."""
    until = setting.at(PLAIN_SHARE)
    model = Qinco.empty(run.model_config).to_empty(device=setting.device)
    initialize_model(model, train, run.train_options, None)
    steps, epochs, warm = StepPlan.from_options(run.train_options, len(train)).total_steps, 0, None
    for report in train_plainly(model, train, valid, run.train_options):
        if report.mse is not None:
            epochs, mse = epochs + 1, report.mse
            say(plain_torch_epoch=epochs, seconds=report.seconds, mse=mse)
            continue
        if report.step in (1, WARM_STEPS):
            warm = report
        late = time.monotonic() > until
        if report.step > warm.step and (late or report.step >= WARM_STEPS + TIMED_STEPS):
            total = (report.seconds - warm.seconds) / (report.step - warm.step) * steps
            if late or time.monotonic() - report.seconds + total > until:
                name = f"plain torch, paper's recipe, extrapolated from {report.step} of {steps} steps"
                return name, run.train_options.epochs, total, None, None
    return "plain torch, paper's recipe", epochs, report.seconds, mse, report.seconds


def _train_ours(setting: Setting, source: VectorSource, epochs: int, target: float) -> tuple:
    output = setting.output / "trained.safetensors"
    with BusyShare(setting.device) as busy:
        _, reports, ended = fit_until(
            setting.until, source, "qinco2-S", output, setting.device, overwrite=True, epochs=epochs, **setting.sizes(8)
        )
    say(card_ran_kernels=str(busy), epochs=epochs)
    reached = next((report.seconds for report in reports if report.epoch and report.mse <= target), None)
    name = "ours" if ended else "ours (not to its end)"
    return name, reports[-1].epoch, reports[-1].seconds, min(report.mse for report in reports), reached, reports


def _say_time_to(mse: float | None, row: tuple) -> None:
    """Seconds to the error that the processor reached in PROCESSOR_SECONDS, if that was given."""
    if mse is not None:
        seconds = next((report.seconds for report in row[5] if report.epoch and report.mse <= mse), None)
        times = None if seconds is None else PROCESSOR_SECONDS / seconds
        say(figure=3, epochs=row[1], seconds_to_processors_error=seconds, times_processor=times, wanted=10)


def _profile(setting: Setting, source: VectorSource, train: VectorSource, valid: VectorSource) -> None:
    run = plan_training(source, "qinco2-S", setting.sizes(8) | {"epochs": TRIALS[-1]})
    training, go = first_steps(run, train, valid, setting.device)
    count = min(TIMED_STEPS, (training.plan.steps_per_epoch - WARM_STEPS) // 3)
    if count < 1:
        return
    report_kernels(f"{count} steps of {training.plan.batch_size:,} vectors", lambda: go(count), setting.device)


# Figure 5


def table_of_codecs(setting: Setting) -> None:
    """Figure 5: trained codecs and faiss's quantizers at equal bytes; a later call continues the runs."""
    rows = []
    base_ND, queries_QD = setting.vectors("base")[:], setting.vectors("query")[:]
    nearest_Q = read_integers(setting.data / "gt.ivecs")[: len(queries_QD), 0]
    if setting.quick:
        nearest_Q = exhaustive_search(queries_QD, base_ND, 1)[1][:, 0]
    for number, (name, (preset, num_steps)) in enumerate(TABLE.items()):
        if setting.left < 10 and not setting.quick:
            say(table=name, failed="not reached in time")
            continue
        until = setting.at(0.9 / (len(TABLE) - number))
        codec, epochs, seconds, ended = _train_further(setting, name, preset, num_steps, until)
        rows.append((f"{preset}, {num_steps} bytes", epochs, seconds, *_judge(codec, base_ND, queries_QD, nearest_Q)))
        if not ended:
            say(table=name, note="not finished in time: a call with the same output continues it")
    rows += _faiss_rows(setting, base_ND, queries_QD, nearest_Q)
    what = f"{len(base_ND):,} base vectors, exhaustive search of {len(queries_QD):,} queries"
    table("codec|epochs|training s|MSE|R@1|R@10", rows, what)


def _train_further(setting: Setting, name: str, preset: str, num_steps: int, until: float):
    """Continue a codec's run or start one that fits the time; returns codec, epochs, seconds, whether it finished."""
    source, output = setting.vectors("train"), setting.output / f"{name}.safetensors"
    settings = setting.sizes(num_steps)
    if state_path(output).exists():
        settings["epochs"] = load_state(output)[0]["train"]["epochs"]
    else:
        settings["epochs"] = setting.epochs or _epochs_until(setting, source, preset, settings, until)
    codec, _, ended = fit_until(until, source, preset, output, setting.device, resume=True, **settings)
    progress = load_state(output)[0]["progress"]
    done = f"{progress['epoch']} of {settings['epochs']}, best {codec.provenance['epoch']}"
    return codec, done, progress["seconds"], ended


def _epochs_until(setting: Setting, source: VectorSource, preset: str, settings: dict, until: float) -> int:
    """Number of epochs that fit the time, so that the learning rate reaches the end of its schedule."""
    if setting.quick:
        return 1
    run = plan_training(source, preset, settings)
    parts = split_validation(source, None, run.model_config.codebook_size)
    begun = time.monotonic()
    training, go = first_steps(run, *parts, setting.device)
    start = time.monotonic() - begun
    step = seconds_of(lambda: go(TIMED_STEPS), setting.device) / TIMED_STEPS
    valid = seconds_of(training.validate, setting.device)

    def fits(epochs: int) -> bool:
        steps = StepPlan.from_options(replace(run.train_options, epochs=epochs), len(parts[0])).total_steps
        return time.monotonic() + start + 1.1 * (steps * step + epochs * valid) <= until

    return next((epochs for epochs in range(MOST_EPOCHS, 1, -1) if fits(epochs)), 1)


def _judge(codec: Codec, base_ND: np.ndarray, queries_QD: np.ndarray, nearest_Q: np.ndarray) -> tuple:
    decoded_ND = codec.decode(codec.encode(base_ND))
    return _errors(base_ND, decoded_ND, queries_QD, nearest_Q, codec.models[0].device)


def _errors(base_ND, decoded_ND, queries_QD, nearest_Q, device: torch.device) -> tuple[float, float, float]:
    """MSE, R@1 and R@10 of decoded vectors."""
    found = recall(exhaustive_search(queries_QD, decoded_ND, 10, device=str(device))[1], nearest_Q)
    return float(np.square(decoded_ND - base_ND, dtype=np.float64).sum(1).mean()), found[1], found[10]


def _faiss_rows(setting: Setting, base_ND: np.ndarray, queries_QD: np.ndarray, nearest_Q: np.ndarray) -> list[tuple]:
    """PQ and RQ of faiss on the CPU, as far as time allows."""
    rows = []
    with suppress(ImportError):
        import faiss

        train_ND = setting.vectors("train").limit(FAISS_ROWS)[:]
        for key in ("PQ8", "PQ16", "RQ8x8", "RQ16x8") if not setting.quick else ("PQ8x4",):
            if setting.left < 10 and not setting.quick:
                break
            index, begun = faiss.index_factory(base_ND.shape[1], key), time.monotonic()
            index.train(train_ND)
            seconds = time.monotonic() - begun
            index.add(base_ND)
            decoded_ND = index.reconstruct_n(0, len(base_ND))
            name = f"faiss {key}, {len(train_ND):,} training vectors, processor"
            rows.append((name, None, seconds, *_errors(base_ND, decoded_ND, queries_QD, nearest_Q, setting.device)))
    return rows
