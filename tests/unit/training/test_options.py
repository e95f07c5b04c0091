import pytest

from qinco.config import ModelConfig
from qinco.errors import ConfigError
from qinco.training.options import TrainOptions

QINCO2, QINCO1 = ModelConfig(dim=4), ModelConfig(dim=4, has_preselector=False, codeword_skip=False)


def test_options_survive_their_dict():
    options = TrainOptions(epochs=3, lr=0.1, grad_clip=None, redraw="targets")
    assert TrainOptions(**options.to_dict()) == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1), ("epochs", 2.5), ("batch_size", 0), ("grad_accumulate", 0), ("epoch_size", 0),
        ("num_valid", 0), ("seed", -1), ("optimizer", "sgd"), ("schedule", "linear"), ("precision", "fp8"),
        ("redraw", "never"), ("lr", 0), ("lr", float("nan")), ("lr", float("inf")), ("lr", "fast"),
        ("grad_clip", -0.1), ("weight_decay", -1), ("weight_decay", None), ("ramp_epochs", "3"),
        ("minutes", 0), ("minutes", -1), ("minutes", float("nan")), ("minutes", float("inf")), ("minutes", "ten"),
        ("minutes", True), ("least_gain", 2), ("threshold", float("nan")), ("lr_min_factor", 2),
        ("exact_start", "false"), ("range_scaling", 1),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}\b.*{value}"):
        TrainOptions(**{name: value})


def test_the_papers_recipes():
    two = TrainOptions.from_recipe("paper", QINCO2)
    assert (two.lr, two.exact_start, two.codebook_noise, two.redraw) == (8e-4, False, 0.1, "targets")
    assert (two.optimizer, two.weight_decay, two.grad_clip, two.schedule) == ("adamw", 0.1, 0.1, "cosine")
    one = TrainOptions.from_recipe("paper", QINCO1)
    assert (one.optimizer, one.lr, one.weight_decay, one.grad_clip) == ("adam", 1e-4, 0.0, None)
    assert (one.schedule, one.stop_patience, one.patience, one.range_scaling) == ("plateau", 20, 10, True)


def test_given_fields_come_before_the_recipe():
    assert TrainOptions.from_recipe("paper", QINCO2, lr=0.5, redraw="split").lr == 0.5
    assert TrainOptions.from_recipe("default", QINCO1, epochs=60) == TrainOptions()
    with pytest.raises(ConfigError, match=r"recipe .*'best'"):
        TrainOptions.from_recipe("best", QINCO2)


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_run_ends_after_epochs_or_minutes_or_when_it_pays_no_more(recipe):
    def end(**given):
        options = TrainOptions.from_recipe(recipe, QINCO2, **given)
        return options.epochs, options.minutes, options.schedule

    fitted = "cooldown" if recipe == "default" else "cosine"
    assert end(epochs=3) == end(epochs=3, minutes=None) == (3, None, "cosine")
    assert end(minutes=3) == end(minutes=3, epochs=None) == (None, 3, fitted)
    assert (
        end() == end(epochs=None, minutes=None) == ((None, None, fitted) if recipe == "default" else (60, None, fitted))
    )
    assert end(schedule="plateau") == (60, None, "plateau")  # whose epochs are those of the papers at most
    assert end(minutes=3, schedule="plateau") == (None, 3, "plateau")
    with pytest.raises(ConfigError, match=r"epochs=5 and minutes=3 exclude each other"):
        end(epochs=5, minutes=3)
