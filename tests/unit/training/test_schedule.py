"""How a run is cut into steps, and the learning rate of each."""

import pytest

from qinco.training import options as training_options
from qinco.training.options import TrainOptions
from qinco.training.schedule import SCHEDULES, StepPlan, fitted_lr


def scheduled(num_train=100, **options):
    options = TrainOptions(**{"epochs": 10, "batch_size": 10, "lr": 2.0} | options)
    return SCHEDULES[options.schedule](options, StepPlan.from_options(options, num_train))


def test_the_rate_fits_the_length_of_the_run():
    rates = [fitted_lr(steps, 1024) for steps in (0, 1, 500, 2_000, 20_000, 586_000, 10**9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[3] == pytest.approx(4e-3)
    assert rates[-2] == pytest.approx(8e-4) and rates[-1] == pytest.approx(8e-4)
    assert StepPlan.from_options(TrainOptions(lr=0.5), 1000).lr == 0.5


@pytest.mark.parametrize(
    ("options", "num_train", "vectors", "per_epoch"),
    [
        ({"batch_size": 100}, 1000, 1000, 10),
        ({"batch_size": 100, "epoch_size": 300}, 1000, 300, 3),
        ({"batch_size": 100, "grad_accumulate": 2}, 1000, 1000, 5),
        ({"batch_size": 1024}, 10, 10, 1),
        ({"batch_size": 1}, 7, 7, 7),
    ],
)
def test_an_epoch_is_the_vectors_there_are_or_fewer(options, num_train, vectors, per_epoch):
    plan = StepPlan.from_options(TrainOptions(epochs=4, **options), num_train)
    assert (plan.epoch_vectors, plan.steps_per_epoch, plan.total_steps) == (vectors, per_epoch, 4 * per_epoch)


@pytest.mark.parametrize(
    ("options", "ramp"), [({"epochs": 60}, 30), ({"epochs": 4}, 4), ({"epochs": 4, "ramp_epochs": 0}, 0)]
)
def test_the_ramp_is_at_most_a_tenth(options, ramp):
    assert scheduled(**options).plan.ramp_steps == ramp


def test_cosine_climbs_then_falls_to_its_end():
    schedule = scheduled(lr_min_factor=1e-3)
    rates = [schedule.rate(step) for step in range(schedule.plan.total_steps)]
    top = schedule.plan.ramp_steps
    assert rates[:top] == sorted(rates[:top]) and 0 < rates[0] < rates[top - 1] < 2.0
    assert rates[top] == 2.0 and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(2e-3)
    # a quarter of a cosine, not a half: after half of the way 71 % are left
    assert rates[(top + len(rates)) // 2] == pytest.approx(2 * 0.7071, rel=0.02)


def test_cosine_runs_to_its_end_whatever_the_errors():
    schedule = scheduled(stop_patience=1)
    for epoch in range(9):
        schedule.observe(epoch, 1.0)
    assert not schedule.is_over(9) and schedule.state() == {}


def test_plateau_is_lowered_after_epochs_without_gain_alone():
    schedule = scheduled(schedule="plateau", reduce_factor=0.1, ramp_epochs=0, patience=2, stop_patience=7)
    rates = []
    for epoch, mse in enumerate([9.0, 8.0, *[7.9999] * 7]):  # gains below the threshold are none
        assert not schedule.is_over(epoch - 1)
        schedule.observe(epoch, mse)
        assert schedule.rate(0) == schedule.rate(99)
        rates.append(schedule.rate(99))
    assert rates == pytest.approx([2.0] * 4 + [0.2] * 3 + [0.02] * 2)
    assert schedule.is_over(epoch) and (schedule.best_epoch, schedule.reference_mse) == (1, 8.0)


def test_a_gain_begins_the_patience_anew():
    schedule = scheduled(schedule="plateau", patience=1, stop_patience=3)
    for epoch, mse in enumerate([9.0, 9.0, 8.0, 8.0, 7.0, 7.0, 7.0]):
        schedule.observe(epoch, mse)
    assert not schedule.is_over(6) and schedule.best_epoch == 4 and schedule.reductions == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_restored_schedule_goes_on(name):
    errors = [9.0, 8.0, 8.0, 8.0, 7.0, 7.0, 7.0, 7.0]
    whole = scheduled(schedule=name, patience=1, stop_patience=3)
    for epoch, mse in enumerate(errors[:5]):
        whole.observe(epoch, mse)
    other = scheduled(schedule=name, patience=1, stop_patience=3)
    other.restore(whole.state())
    for epoch, mse in enumerate(errors[5:], 5):
        for schedule in (whole, other):
            schedule.observe(epoch, mse)
        assert (whole.rate(70), whole.is_over(epoch)) == (other.rate(70), other.is_over(epoch))
        assert whole.state() == other.state()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("epochs", [1, 2])
def test_rates_of_the_shortest_runs_are_finite_and_above_zero(name, epochs):
    schedule = scheduled(5, epochs=epochs, schedule=name, batch_size=None, lr=None)
    assert all(schedule.rate(step) > 0 for step in range(schedule.plan.total_steps))


def test_options_know_the_schedules():
    assert set(training_options.SCHEDULES) == set(SCHEDULES)
