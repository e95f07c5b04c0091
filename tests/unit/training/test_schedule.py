import pytest

from qinco.training.options import TrainOptions
from qinco.training.schedule import Plan, fitted_lr


def test_the_rate_fits_the_length_of_the_run():
    rates = [fitted_lr(steps, 1024) for steps in (0, 1, 500, 2_000, 20_000, 586_000, 10**9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[3] == pytest.approx(4e-3)
    assert rates[-2] == pytest.approx(8e-4) and rates[-1] == pytest.approx(8e-4)
    assert Plan.of(TrainOptions(lr=0.5), 1000).lr == 0.5


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
    plan = Plan.of(TrainOptions(epochs=4, **options), num_train)
    assert (plan.epoch_vectors, plan.steps_per_epoch, plan.total_steps) == (vectors, per_epoch, 4 * per_epoch)


def test_the_ramp_is_at_most_a_tenth():
    assert Plan.of(TrainOptions(epochs=60, batch_size=10), 100).ramp_steps == 30
    assert Plan.of(TrainOptions(epochs=4, batch_size=10), 100).ramp_steps == 4
    assert Plan.of(TrainOptions(epochs=4, batch_size=10, ramp_epochs=0), 100).ramp_steps == 0


def test_cosine_climbs_then_falls_to_its_end():
    options = TrainOptions(epochs=10, batch_size=10, lr=2.0, lr_min_factor=1e-3)
    plan = Plan.of(options, 100)
    rates = [plan.rate(options, step) for step in range(plan.total_steps)]
    top = plan.ramp_steps
    assert rates[:top] == sorted(rates[:top]) and 0 < rates[0] < rates[top - 1] < 2.0
    assert rates[top] == 2.0 and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(2e-3)
    # a quarter of a cosine, not a half: after half of the way 71 % are left
    assert rates[(top + len(rates)) // 2] == pytest.approx(2 * 0.7071, rel=0.02)


def test_plateau_is_lowered_by_reductions_alone():
    options = TrainOptions(epochs=10, batch_size=10, lr=2.0, schedule="plateau", reduce_factor=0.1, ramp_epochs=0)
    plan = Plan.of(options, 100)
    assert plan.rate(options, 0) == plan.rate(options, 99) == 2.0
    assert plan.rate(options, 50, reductions=2) == pytest.approx(0.02)


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_rates_of_the_shortest_runs_are_finite_and_above_zero(schedule):
    for epochs in (1, 2):
        options = TrainOptions(epochs=epochs, schedule=schedule)
        plan = Plan.of(options, 5)
        assert all(plan.rate(options, step) > 0 for step in range(plan.total_steps))
