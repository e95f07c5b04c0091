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
        schedule.observe(epoch, 1.0, None)
    assert not schedule.is_over(9) and schedule.state() == {}


def rates_of(schedule):
    return [schedule.rate(step) for step in range(schedule.plan.steps_per_epoch * schedule.epochs)]


def test_a_cosine_that_is_to_end_earlier_falls_faster_from_where_it_is():
    schedule = scheduled(epochs=20)
    before = rates_of(schedule)
    for epoch, epochs in ((10, 14), (12, 13)):
        schedule.finish(epoch, epochs)
        rates = rates_of(schedule)
        assert len(rates) == 10 * epochs and rates[-1] == pytest.approx(2e-3)
        assert rates[10 * epoch] == pytest.approx(before[10 * epoch])  # without a jump
        assert rates[10 * epoch :] == sorted(rates[10 * epoch :], reverse=True)
        before = rates
    assert schedule.is_over(13) and not schedule.is_over(12)


def test_a_cooldown_falls_over_the_last_quarter():
    rates = rates_of(scheduled(epochs=20, schedule="cooldown"))
    assert set(rates[20:150]) == {2.0} and rates[:20] == sorted(rates[:20])
    assert rates[150:] == sorted(rates[150:], reverse=True) and rates[-1] < 0.05
    assert rates[175] == pytest.approx(1.0, abs=0.01)


def test_a_cooldown_that_is_to_end_earlier_keeps_its_shape():
    schedule = scheduled(epochs=20, schedule="cooldown")
    schedule.finish(2, 8)
    assert rates_of(schedule)[20:] == rates_of(scheduled(epochs=8, schedule="cooldown"))[20:]
    schedule.finish(7, 7)
    assert schedule.is_over(7)


@pytest.mark.parametrize("name", ["cosine", "cooldown"])
def test_an_end_may_be_put_off(name):
    schedule = scheduled(epochs=8, schedule=name)
    before = rates_of(schedule)
    schedule.finish(4, 20)
    rates = rates_of(schedule)
    assert rates[40] == pytest.approx(before[40])
    assert rates[40:] == sorted(rates[40:], reverse=True) and len(rates) == 200
    assert name == "cosine" or rates[40:] == rates_of(scheduled(epochs=20, schedule=name))[40:]


def test_a_run_whose_end_was_put_off_may_still_learn_by_heart():
    schedule = scheduled(epochs=8, schedule="cooldown")
    schedule.finish(4, 40)
    for epoch in range(21):
        if schedule.observe(epoch, 0.85 ** min(epoch, 6), 0.8**epoch if epoch else None):
            break
    assert 8 < epoch < schedule.epochs < 20
    assert schedule.is_late(10 * epoch) and schedule.rate(10 * schedule.epochs - 1) < 0.1


def test_training_without_an_end_goes_on_while_a_doubling_pays():
    schedule = scheduled(epochs=None, schedule="cooldown", ramp_epochs=0, least_gain=0.1)
    assert schedule.epochs is None and not schedule.is_over(10**6)
    errors = [100.0 * 0.9**epoch for epoch in range(12)] + [28.0] * 30  # the last gain is after epoch 12
    for epoch, mse in enumerate(errors):
        schedule.observe(epoch, mse, 5.0)
        if schedule.epochs is not None:
            break
    assert epoch == 24  # nothing was gained in the second half, 13 to 24, on the first
    assert schedule.epochs == 32 and schedule.rate(epoch * 100) == 2.0 and schedule.rate(32 * 100 - 1) < 0.01
    for later in range(epoch + 1, 32):
        schedule.observe(later, 1.0, 5.0)
        assert not schedule.is_over(later)
    assert schedule.is_over(32)


def test_the_rate_of_a_run_without_an_end_is_that_of_its_length_so_far():
    schedule = scheduled(100_000, epochs=None, schedule="cooldown", batch_size=None, lr=None)
    assert schedule.plan.batch_size == 1024
    for step in (2000, 10_000, 100_000):
        assert schedule.rate(step) == pytest.approx(fitted_lr(step, 1024))


def test_a_run_without_an_end_has_one():
    schedule = scheduled(1000, epochs=None, schedule="cooldown", batch_size=100)
    most = schedule.plan.epochs
    assert schedule.plan.total_steps <= 586_000
    for epoch in range(most):
        schedule.observe(epoch, 1.0 / (epoch + 1), 5.0)
    assert schedule.epochs == most and schedule.is_over(most)


@pytest.mark.parametrize(("num_train", "steps", "batch"), [(500, 100, 128), (100_000, 100, 1024), (400_000, 391, 1024),
                                                           (10**8, 1000, 1024)])  # fmt: skip
def test_epochs_of_a_run_without_an_end_are_neither_short_nor_long(num_train, steps, batch):
    plan = StepPlan.from_options(TrainOptions(epochs=None), num_train)
    assert (plan.steps_per_epoch, plan.batch_size) == (steps, batch)
    assert StepPlan.from_options(TrainOptions(epochs=None, epoch_size=300, batch_size=10), 10**6).epoch_vectors == 300


def test_a_cooldown_is_late_while_the_rate_falls():
    schedule = scheduled(epochs=20, schedule="cooldown")
    assert [schedule.is_late(step) for step in (0, 30, 149, 150, 199)] == [False, False, False, True, True]
    assert schedule.late_share() == 0.25
    schedule.finish(2, 8)
    assert not schedule.is_late(59) and schedule.is_late(60)
    without_end = scheduled(100_000, epochs=None, schedule="cooldown", lr=None)
    assert not without_end.is_late(10_000) and without_end.is_late(100_000)  # as the rate has halved


def heard(errors, losses, **options):
    """A schedule of 16 epochs that heard of the start and some epochs, and what it said to each."""
    schedule = scheduled(**{"epochs": 16, "schedule": "cooldown"} | options)
    return schedule, [schedule.observe(*epoch) for epoch in zip(range(17), errors, [None, *losses], strict=False)]


LOSSES = [7.0 * 0.98**epoch for epoch in range(16)]


@pytest.mark.parametrize(
    ("errors", "losses"),
    [
        ([9.0 * 0.98**epoch for epoch in range(17)], LOSSES),  # validation gains as much
        ([9.0 * 0.987**epoch for epoch in range(17)], LOSSES),  # more than half as much
        ([9.0 * 0.998**epoch for epoch in range(17)], [7.0 * 0.997**epoch for epoch in range(16)]),  # both gain little
        ([9.0 * 0.97**epoch for epoch in range(17)], [7.0 * 0.8**epoch for epoch in range(16)]),  # both gain much
        ([9.0] + [10.0 * 0.98**epoch for epoch in range(16)], LOSSES),  # above the start
        ([9.0, 8.9, 8.95, 8.5, 8.55, 8.2, 8.3, 8.1, 8.05, 7.9, 7.95, *[7.8] * 6], LOSSES),  # noise
    ],
)
def test_a_run_that_gains_keeps_its_schedule(errors, losses):
    schedule, said = heard(errors, losses)
    assert said == [None] * 17 and schedule.epochs == 16 and schedule.state().keys() == {"errors", "losses", "overfits"}
    assert rates_of(schedule) == rates_of(scheduled(epochs=16, schedule="cooldown"))


@pytest.mark.parametrize(("gain", "decay"), [(0.98, 1.0), (0.995, 10.0)])
def test_few_vectors_cool_down_with_more_weight_decay(gain, decay):
    schedule, _ = heard([9.0 * gain**epoch for epoch in range(13)], LOSSES, least_gain=0.0)
    assert schedule.epochs == 16 and [schedule.decay_factor(step) for step in (0, 119)] == [1.0, 1.0]
    assert {schedule.decay_factor(step) for step in range(120, 160)} == {decay}
    schedule.observe(13, 1.0, 6.0)  # while it falls nothing changes that
    assert schedule.decay_factor(159) == decay


@pytest.mark.parametrize(("gains_until", "judged_at", "ends_after"), [(1, 4, 6), (3, 6, 8), (4, 8, 11), (5, 10, 14)])
def test_a_run_that_learns_its_vectors_by_heart_cools_down(gains_until, judged_at, ends_after):
    errors = [9.0 * 0.96 ** min(epoch, gains_until) for epoch in range(judged_at + 1)]
    schedule, said = heard(errors, LOSSES)
    assert said[:-1] == [None] * judged_at and said[-1] is not None
    assert schedule.epochs == ends_after and schedule.is_over(ends_after) and not schedule.is_over(ends_after - 1)
    rates = rates_of(schedule)
    assert rates[10 * judged_at] == 2.0 and rates[10 * judged_at :] == sorted(rates[10 * judged_at :], reverse=True)
    assert [schedule.decay_factor(10 * judged_at + step) > 1 for step in (-1, 6)] == [False, True]
    assert rates[10 * judged_at + 6] < 2.0 and rates[-1] < 0.3
    for epoch in range(judged_at + 1, ends_after + 1):  # nothing that follows changes it
        assert schedule.observe(epoch, 100.0, 1.0) is None
    assert schedule.epochs == ends_after


def test_plateau_is_lowered_after_epochs_without_gain_alone():
    schedule = scheduled(schedule="plateau", reduce_factor=0.1, ramp_epochs=0, patience=2, stop_patience=7)
    rates = []
    for epoch, mse in enumerate([9.0, 8.0, *[7.9999] * 7]):  # gains below the threshold are none
        assert not schedule.is_over(epoch - 1)
        schedule.observe(epoch, mse, 5.0)
        assert schedule.rate(0) == schedule.rate(99)
        rates.append(schedule.rate(99))
    assert rates == pytest.approx([2.0] * 4 + [0.2] * 3 + [0.02] * 2)
    assert schedule.is_over(epoch) and (schedule.best_epoch, schedule.reference_mse) == (1, 8.0)


def test_a_gain_begins_the_patience_anew():
    schedule = scheduled(schedule="plateau", patience=1, stop_patience=3)
    for epoch, mse in enumerate([9.0, 9.0, 8.0, 8.0, 7.0, 7.0, 7.0]):
        schedule.observe(epoch, mse, 5.0)
    assert not schedule.is_over(6) and schedule.best_epoch == 4 and schedule.reductions == 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("finishes", [False, True])
def test_a_restored_schedule_goes_on(name, finishes):
    errors = [9.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 7.0, 7.0, 7.0]
    whole = scheduled(schedule=name, patience=1, stop_patience=3)
    for epoch, mse in enumerate(errors[:9]):
        whole.observe(epoch, mse, 7.0 - epoch / 4)
    if finishes:
        whole.finish(8, 9)
    other = scheduled(schedule=name, patience=1, stop_patience=3)
    other.restore(whole.state())
    for epoch, mse in enumerate(errors[9:], 9):
        for schedule in (whole, other):
            schedule.observe(epoch, mse, 5.0)
        assert (whole.rate(70), whole.is_over(epoch)) == (other.rate(70), other.is_over(epoch))
        assert whole.state() == other.state()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("epochs", [1, 2])
def test_rates_of_the_shortest_runs_are_finite_and_above_zero(name, epochs):
    schedule = scheduled(5, epochs=epochs, schedule=name, batch_size=None, lr=None)
    assert all(schedule.rate(step) > 0 for step in range(schedule.plan.total_steps))


def test_options_know_the_schedules():
    assert set(training_options.SCHEDULES) == set(SCHEDULES)
