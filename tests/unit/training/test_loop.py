import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors, torch_encoder

from qinco.config import EncodeOptions, ModelConfig
from qinco.model.qinco import Qinco
from qinco.training.codebooks import CodewordUse, initialize_model
from qinco.training.gradients import prefix_losses
from qinco.training.loop import EpochReport, StepReport, Training, narrow_options
from qinco.training.monitor import estimate
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.schedule import SCHEDULES, StepPlan
from qinco.vectors.rows import as_source

CPU = torch.device("cpu")
WIDE = EncodeOptions(num_pairs=6, beam_width=4)


def training(
    config=ARCHITECTURES["projected"], count=300, encode=None, coarse_VD=None, device=CPU, **options
) -> Training:
    options = TrainOptions(**{"epochs": 2, "batch_size": 32, "precision": "float32"} | options)
    source = as_source(random_vectors(count, config.dim))
    model = Qinco.empty(config).to_empty(device=device)
    train, valid = source.window(0, count - 50), source.window(count - 50, count)
    initialize_model(model, train, options, coarse_VD)
    encode = encode or (WIDE if config.has_preselector else EncodeOptions(beam_width=2))
    return Training(model, train, valid, options, encode, Processes(device))


def centroids(config):
    return random_vectors(config.num_lists, config.dim, 9) if config.starts_from_coarse else None


def epochs_of(run: Training) -> list[EpochReport]:
    return [report for report in run.run() if isinstance(report, EpochReport)]


def test_reports_come_after_every_step_and_every_epoch():
    run = training(batch_size=50)
    reports = list(run.run())
    assert [type(report) for report in reports] == [EpochReport, *([StepReport] * 5 + [EpochReport]) * 2]
    assert [(r.epoch, r.step, r.steps) for r in reports if isinstance(r, StepReport)][4:6] == [(1, 5, 5), (2, 1, 5)]
    assert [report.epoch for report in reports if isinstance(report, EpochReport)] == [0, 1, 2]
    assert [r.lr for r in reports if isinstance(r, StepReport)] == [run.schedule.rate(i) for i in range(10)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_lowers_the_error_of_every_architecture(name):
    config = ARCHITECTURES[name]
    # Losses of batches can be compared where all are encoded as widely.
    reports = epochs_of(training(config, coarse_VD=centroids(config), epochs=10, narrow_beam=False))
    assert reports[-1].loss < reports[1].loss
    assert math.isfinite(reports[-1].mse)
    assert len(reports[-1].mse_per_step) == config.num_steps and reports[-1].mse == reports[-1].mse_per_step[-1]


OPTIONS = [
    {"optimizer": "muon"},
    {"optimizer": "adam", "lr": 1e-3},
    {"schedule": "plateau"},
    {"grad_accumulate": 3},
    {"precision": "bf16"},
    {"grad_clip": None},
    {"redraw": "targets"},
    {"range_scaling": True},
    {"exact_start": False, "codebook_noise": 0.1},
    {"epoch_size": 70},
    {"batch_size": 1, "epoch_size": 20, "grad_accumulate": 7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains(options):
    reports = epochs_of(training(epochs=10, narrow_beam=False, **options))
    assert len(reports) == 11 and math.isfinite(reports[-1].mse)
    if "epoch_size" not in options:  # an epoch of a few vectors says little about the next
        assert reports[-1].loss < reports[1].loss


def check_elsewhere(elsewhere, config=ARCHITECTURES["projected"], rel=1e-3, **options):
    """From the same start, two epochs of a few steps are the processor's, but for rounding and what it grows to."""
    runs = [
        training(config, count=150, coarse_VD=centroids(config), device=place, **options) for place in (CPU, elsewhere)
    ]
    runs[1].restore({name: array.copy() for name, array in runs[0].arrays().items()}, runs[0].progress())
    for wanted, found in zip(*map(epochs_of, runs), strict=True):
        assert found.mse_per_step == pytest.approx(wanted.mse_per_step, rel=rel)
        assert (found.loss or 0) == pytest.approx(wanted.loss or 0, rel=rel)
    assert all(parameter.device.type == elsewhere.type for parameter in runs[1].parameters)


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in ARCHITECTURES] +
                         [pytest.param("projected", options, marks=pytest.mark.slow) for options in OPTIONS],
                         ids=str)  # fmt: skip
def test_runs_elsewhere_are_those_of_the_processor(name, options, elsewhere):
    check_elsewhere(elsewhere, ARCHITECTURES[name], **options)


def test_accumulated_batches_are_one_large_batch(device):
    runs = training(batch_size=40, device=device), training(batch_size=20, grad_accumulate=2, device=device)
    x_ND = random_vectors(40, 3, 7)
    losses = [
        runs[0].optimizer_step([x_ND], 1e-3),
        runs[1].optimizer_step([x_ND[:20], x_ND[20:]], 1e-3),
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.equal(runs[0].use.counts_MK, runs[1].use.counts_MK)
    for a, b in zip(runs[0].parameters, runs[1].parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_papers(device):
    """Mean squared errors of all prefixes, and of the pre-selectors on what the prefix before leaves."""
    model = random_model(ARCHITECTURES["projected"]).to(device)
    x_ND, codes_NM = torch.randn(5, 3).to(device), torch.randint(4, (5, 3)).to(device)
    wanted, reached_ND = 0.0, model.initial_reconstruction(5)
    for m, step in enumerate(model.steps):
        if step.preselector is not None:
            wanted += float((reached_ND + step.preselector.weight[codes_NM[:, m]] - x_ND).square().mean(1).sum())
        reached_ND = reached_ND + step(codes_NM[:, m], reached_ND)
        wanted += float((reached_ND - x_ND).square().mean(1).sum())
    use = CodewordUse(model)
    assert float(prefix_losses(model, x_ND, model.initial_reconstruction(5), codes_NM, use)) == pytest.approx(
        wanted, rel=1e-5
    )
    assert use.counts_MK.sum(1).tolist() == [5, 5, 5]


def test_the_preselector_does_not_pull_at_the_network():
    config = ARCHITECTURES["same width"]
    x_ND, codes_NM, gradients = torch.randn(4, 3), torch.zeros(4, 3, dtype=torch.int64), []
    for shift in (0.0, 5.0):
        model = random_model(config).requires_grad_(True)
        for step in model.steps[1:]:
            step.preselector.weight.data += shift
        prefix_losses(model, x_ND, model.initial_reconstruction(4), codes_NM, CodewordUse(model)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if "preselector" not in n})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_validation_is_the_error_of_encoding_in_data_space(device):
    run = training(device=device)
    run.model.requires_grad_(False)
    x_ND = torch.from_numpy(run.valid_source[:]).to(device)
    y_ND = run.model.normalize(x_ND)
    codes_NM, _ = torch_encoder(run.model, WIDE).encode(y_ND, run.model.initial_reconstruction(50))
    errors = [
        float((run.model.denormalize(reached_ND) - x_ND).square().sum(1).mean())
        for reached_ND in run.model.reconstructions(codes_NM, run.model.initial_reconstruction(50))
    ]
    assert run.validate() == pytest.approx(errors, rel=1e-4)


def test_training_encodes_narrowly_and_the_paper_as_evaluation_does():
    wide = EncodeOptions(num_pairs=64, beam_width=32)
    assert training(encode=wide, narrow_beam=False).batch_options_shares() == {wide: 1.0}
    run = training(encode=wide, epochs=6, batch_size=80)
    early, late = (EncodeOptions(num_pairs=C, beam_width=B) for C, B in ((4, 2), (16, 4)))
    assert run.batch_options_shares() == pytest.approx({early: 2 / 3, late: 1 / 3}, abs=0.05)
    used = [run.batch_encode_options for report in run.run() if isinstance(report, StepReport)]
    begin = round(len(used) * 2 / 3)
    assert set(used[: begin - 1]) == {early} and set(used[begin + 1 :]) == {late}


@pytest.mark.parametrize(
    ("wide", "early", "late"),
    [
        ((16, None, 32), (2, None, 2), (4, None, 4)),
        ((2, None, 1), (2, None, 1), (2, None, 1)),
        ((None, 8, 32), (None, 4, 2), (None, 8, 4)),
        ((None, None, 8), (None, None, 8), (None, None, 8)),
    ],
)
def test_narrow_is_never_wider(wide, early, late):
    for is_late, narrow in ((False, early), (True, late)):
        assert narrow_options(EncodeOptions(*wide), is_late) == EncodeOptions(*narrow)


def scripted(run: Training, errors):
    values = iter(errors)
    run.validate = lambda: [0.0] * (run.model.config.num_steps - 1) + [next(values)]
    return run


def test_a_plateau_lowers_the_rate_and_ends():
    options = {"epochs": 20, "schedule": "plateau", "patience": 2, "stop_patience": 7, "lr": 1e-3, "ramp_epochs": 0}
    run = scripted(training(count=90, **options), [9.0, 8.0] + [8.0] * 20)
    reports = epochs_of(run)
    assert reports[-1].epoch == 8  # the best was epoch 1
    assert [round(math.log10(report.lr)) for report in reports] == [-3] * 4 + [-4] * 3 + [-5] * 2
    assert [report.is_best for report in reports] == [True, True] + [False] * 7


def test_a_gain_below_the_threshold_is_still_kept_as_the_best():
    run = scripted(training(count=90, epochs=2, schedule="plateau", threshold=0.1), [9.0, 8.9, 8.8])
    assert [report.is_best for report in epochs_of(run)] == [True, True, True]
    assert run.schedule.best_epoch == 0 and run.position.best_mse == 8.8


def test_cosine_runs_all_its_epochs_without_gain():
    assert len(epochs_of(scripted(training(count=90, epochs=30), [1.0] * 31))) == 31


class Clock:
    """A clock that validation and steps move on, at a speed that changes."""

    def __init__(self, run: Training, step_seconds):
        self.now, step, seconds = 0.0, run.optimizer_step, iter(step_seconds)

        def optimizer_step(parts, lr):
            self.now += next(seconds)
            return step(parts, lr)

        run.optimizer_step = optimizer_step

    def monotonic(self) -> float:
        return self.now


def within(monkeypatch, step_seconds, schedule="cooldown", late_cost=1.0):
    """The reports of a run whose plan is 10 epochs of 5 steps of a second, for 52 seconds."""
    run = training(epochs=None, minutes=1.0, schedule=schedule, batch_size=50, shrinks=False)
    run.begin(StepPlan(250, 50, 5, 10, 0, 1e-3, seconds=52.0, num_valid=20, late_cost=late_cost))
    monkeypatch.setattr("qinco.training.loop.time", Clock(run, step_seconds))
    return epochs_of(run)


@pytest.mark.parametrize("schedule", ["cosine", "cooldown"])
def test_a_run_that_is_slower_than_planned_ends_earlier(monkeypatch, schedule):
    as_planned = within(monkeypatch, [1.0] * 50, schedule)
    assert as_planned[-1].epoch == as_planned[-1].epochs == 10 and as_planned[-1].seconds == 50
    slow = within(monkeypatch, [3.0] * 50, schedule)
    assert [report.epochs for report in slow] == [10, 3, 3, 3] and slow[-1].seconds == 45


@pytest.mark.parametrize("schedule", ["cosine", "cooldown"])
def test_a_run_that_is_faster_than_planned_uses_its_time(monkeypatch, schedule):
    fast = within(monkeypatch, [0.5] * 200, schedule)
    assert [report.epochs for report in fast[:3]] == [10, 19, 19] and fast[1].ending and not fast[2].ending
    assert fast[-1].epoch == fast[-1].epochs == 19 and fast[-1].seconds == 47.5
    assert fast[-1].lr < 0.1 * fast[5].lr


def test_late_steps_are_known_to_take_longer(monkeypatch):
    seconds = [0.8] * 38 + [1.6] * 12  # 49.6 in all: as planned
    for late_cost in (2.0, None):  # of a state that does not say
        assert within(monkeypatch, seconds, late_cost=late_cost)[-1].epoch == 10
    assert within(monkeypatch, [*seconds, *[0.8] * 50])[1].epochs > 10  # taken to be early ones


def test_a_rate_that_falls_to_its_end_does_not_rise_again(monkeypatch):
    reports = within(monkeypatch, [1.0] * 40 + [0.1] * 10)  # the last ten steps, of the last quarter
    assert reports[-1].epoch == 10
    rates = [report.lr for report in reports[7:]]
    assert rates == sorted(rates, reverse=True)


def test_an_end_follows_what_lasts(monkeypatch):
    later = within(monkeypatch, [1.0] * 25 + [3.0] * 25)
    assert later[-1].epoch == later[-1].epochs < 10 and later[-1].seconds <= 1.2 * 52
    once = within(monkeypatch, [1.0] * 20 + [2.0] + [1.0] * 29)
    assert once[-1].epoch == 10


def test_the_end_of_a_slow_run_is_saved(monkeypatch):
    run = training(epochs=None, minutes=1.0, schedule="cooldown", batch_size=50)
    run.begin(StepPlan(250, 50, 5, 10, 0, 1e-3, seconds=52.0, num_valid=20))
    monkeypatch.setattr("qinco.training.loop.time", Clock(run, [3.0] * 50))
    reports = run.run()
    while not isinstance(report := next(reports), EpochReport) or report.epoch < 1:
        pass
    other = training(epochs=None, minutes=1.0, schedule="cooldown", batch_size=50)
    other.restore({name: array.copy() for name, array in run.arrays().items()}, json.loads(json.dumps(run.progress())))
    assert other.plan == run.plan and len(other.valid_source) == 20
    assert other.progress() == run.progress() and other.schedule.epochs == 3
    assert [other.schedule.rate(step) for step in range(15)] == [run.schedule.rate(step) for step in range(15)]


def test_unused_codewords_are_redrawn_but_after_the_last_epoch(device):
    config = ModelConfig(dim=3, num_steps=2, codebook_size=16, hidden_dim=4)
    run = training(config, count=400, epochs=2, device=device)
    with torch.no_grad():
        run.model.steps[0].codebook.weight[5] = 30  # nobody's nearest
    reports = epochs_of(run)
    assert reports[1].unused_codewords >= 1
    assert run.model.steps[0].codebook.weight[5].detach().abs().max() < 10
    assert 0 < reports[2].code_entropy <= 4


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_restored_run_is_the_same_run(device, schedule):
    run = training(count=220, epochs=3, schedule=schedule, patience=1, device=device)
    stream = run.run()
    for _ in range(12):
        next(stream)
    arrays = {name: array.copy() for name, array in run.arrays().items()}  # as they lie in a file
    other = training(count=220, epochs=3, schedule=schedule, patience=1, device=device)
    other.restore(arrays, run.progress())
    assert other.position == run.position and other.progress() == run.progress()
    rest = [list(stream), list(other.run())]
    for a, b in zip(*rest, strict=True):
        assert [v for k, v in dataclasses.asdict(a).items() if k != "seconds"] == [
            v for k, v in dataclasses.asdict(b).items() if k != "seconds"
        ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_states_of_format_version_1_hold_all_fields_for_every_schedule(schedule):
    run = training(schedule=schedule)
    saved = {"epoch": 1, "step": 3, "best_mse": 8.0, "best_epoch": 1, "reference_mse": 8.5, "reductions": 2,
             "reduced_at": 1, "loss_sum": 4.0, "seconds": 5.0}  # fmt: skip
    saved |= {"errors": [9.0, 8.0]} if schedule == "cooldown" else {}
    run.restore(run.arrays(), saved)
    saved |= {"losses": [None, None], "overfits": False} if schedule == "cooldown" else {}  # later ones
    assert saved == saved | run.progress()
    assert schedule != "plateau" or run.progress() == saved


def test_an_estimate_changes_nothing(device):
    run = training(device=device)
    before = {name: array.copy() for name, array in run.arrays().items()}
    found = estimate(run)
    assert all(np.array_equal(array, before[name]) for name, array in run.arrays().items())
    assert all(p.grad is None for p in run.parameters)
    assert (found.epochs, found.steps_per_epoch, found.num_train, found.num_valid) == (2, 8, 250, 50)
    assert found.seconds > 0 and found.num_parameters == sum(p.numel() for p in run.model.parameters())
    assert found.memory_bytes > 4 * found.num_parameters


def test_one_process_has_everything():
    processes = Processes(CPU)
    assert processes.is_main and processes.share(7) == slice(0, 7)
    assert processes.sum(torch.tensor(3.0)) == 3


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_shares_are_disjoint_and_complete(count):
    processes, rows = Processes(CPU), []
    for rank in range(3):
        processes.rank, processes.count = rank, 3
        rows.append(np.arange(count)[processes.share(count)])
    assert np.concatenate(rows).tolist() == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
