"""Runs of so many minutes: what a step takes here, and the plan that fills the time."""

import time

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_vectors

from qinco.config import EncodeOptions, ModelConfig
from qinco.model.qinco import Qinco
from qinco.training.budget import Pace, measure, settle, start_rows
from qinco.training.codebooks import initialize_model, sample_rows
from qinco.training.loop import Training
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.schedule import fitted_lr
from qinco.vectors.rows import as_source

PACE = Pace({128: 0.03, 1024: 0.1}, {64: 0.1, 1024: 1.024})  # 1 ms for a vector of validation


def settled(seconds: float, num_train=100_000, num_valid=10_000, pace=PACE, **options):
    options = TrainOptions.from_recipe("default", ModelConfig(4), minutes=1.0, **options)
    return settle(options, pace, seconds, num_train, num_valid)


def seconds_of(plan, pace=PACE, accumulate=1):
    steps = plan.total_steps * accumulate * pace.step(plan.batch_size)
    return steps + (plan.epochs + 1) * pace.validation(plan.num_valid)


@pytest.mark.parametrize("seconds", [3, 10, 60, 600, 36_000])
@pytest.mark.parametrize(("num_train", "num_valid"), [(300, 30), (30_000, 3000), (10**9, 10_000)])
def test_a_plan_fills_the_time(seconds, num_train, num_valid):
    plan = settled(seconds, num_train, num_valid)
    assert (0.9 if plan.total_steps > 100 else 0.8) * seconds < seconds_of(plan) <= 0.98 * seconds
    assert plan.seconds == seconds and 0 < plan.num_valid <= num_valid
    assert plan.epochs * plan.num_valid * 0.001 <= max(0.25 * seconds, 0.7)


def test_validations_are_a_small_share_of_the_time():
    plan = settled(600)
    assert plan.epochs == 16 and plan.num_valid * 17 * 0.001 == pytest.approx(0.06 * 0.96 * 600, rel=0.01)
    assert settled(36_000).num_valid == 10_000
    assert (settled(600, num_valid=200).num_valid, settled(600, num_valid=200).epochs) == (200, 16)


def test_batch_and_rate_fit_the_steps_that_there_is_time_for():
    for seconds, batch in ((3, 128), (10, 512), (30, 512), (70, 1024)):
        plan = settled(seconds)
        assert plan.batch_size == batch
        assert plan.lr == fitted_lr(plan.total_steps, batch)
        assert plan.epoch_vectors == plan.steps_per_epoch * batch
    assert settled(600, num_train=3000).batch_size == 128  # which is seen often enough
    given = settled(600, batch_size=100, lr=0.5)
    assert (given.batch_size, given.lr) == (100, 0.5)
    twice = settled(600, batch_size=512, grad_accumulate=2)
    assert twice.epoch_vectors == twice.steps_per_epoch * 1024
    assert seconds_of(twice, accumulate=2) <= 0.98 * 600
    short = settled(3600, epoch_size=200_000)
    assert short.epoch_vectors <= 200_000 and seconds_of(short) <= 0.98 * 3600


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 0.01])
def test_without_time_there_are_no_epochs(seconds):
    plan = settled(seconds)
    assert plan.epochs == plan.total_steps == 0 and plan.num_valid >= 1


def test_a_pace_lies_on_a_line():
    assert PACE.step(576) == pytest.approx(0.065)
    assert PACE.step(2048) > 0.17 and 0 < PACE.step(1) < PACE.step(128)
    assert Pace({100: 1.0}, {}).step(250) == 1.6  # every step costs as much as 150 vectors more
    assert Pace({128: 1.0, 1024: 0.9}, {}).step(512) == pytest.approx(0.9)  # noise


def run_of(count=300, **options) -> Training:
    options = TrainOptions(**{"epochs": 2, "batch_size": 32, "precision": "float32"} | options)
    source, model = as_source(random_vectors(count, 3)), Qinco.empty(ARCHITECTURES["projected"]).to_empty(device="cpu")
    train, valid = source.window(0, count - 50), source.window(count - 50, count)
    initialize_model(model, train, options, None)
    return Training(
        model, train, valid, options, EncodeOptions(num_pairs=6, beam_width=4), Processes(torch.device("cpu"))
    )


def test_measuring_changes_nothing():
    run = run_of()
    steps = run.run()
    for _ in range(4):
        next(steps)
    later = run.schedule.rate(5)
    arrays, progress = {name: array.copy() for name, array in run.arrays().items()}, run.progress()
    pace = measure(run, (8, 64), 1.0)
    assert all(np.array_equal(array, arrays[name]) for name, array in run.arrays().items())
    assert run.progress() == progress and run.schedule.rate(5) == later
    assert set(pace.steps) == {8, 64} and set(pace.valid) == {50} and min(pace.steps.values()) > 0
    assert sum(1 for report in steps) == 15  # what is left of 16 steps and 3 validations


def test_large_batches_are_not_measured_where_that_takes_long():
    run, sizes = run_of(), []
    run.optimizer_step = lambda parts, lr: (sizes.append(len(parts[0])), time.sleep(0.002 * len(parts[0])))
    assert set(measure(run, (10, 1000), 0.01).steps) == {10}
    assert set(sizes) == {10}


def test_late_steps_are_measured_beside_early_ones():
    run = run_of()

    def optimizer_step(parts, lr):
        time.sleep(0.002 if run.batch_encode_options.beam_width == 2 else 0.006)

    run.optimizer_step = optimizer_step
    pace = measure(run, (32,), 0.1)
    assert 2 < pace.late_cost < 4
    assert settle(run.options, pace, 60.0, 250, 50).late_cost == pace.late_cost


def test_few_vectors_and_large_batches_are_measured(device):
    pace = measure(run_of(80), (128, 1024), 0.01)  # more than there are vectors
    assert pace.step(1024) > 0 and pace.validation(50) > 0


def test_the_start_takes_fewer_vectors_when_there_is_little_time():
    config = ModelConfig(dim=8, num_steps=4, codebook_size=16)
    counts = [start_rows(config, 10**6, seconds, "cpu") for seconds in (1e-9, 1e9)]
    assert counts == [64, sample_rows(config, 10**6)]
    assert start_rows(config, 20, 1e-9, "cpu") == 20
