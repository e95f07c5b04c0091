import pytest

from qinco.config import ModelConfig
from qinco.errors import ConfigError
from qinco.training.options import TrainOptions

QINCO2, QINCO1 = ModelConfig(dim=4), ModelConfig(dim=4, has_preselector=False, codeword_skip=False)


def test_options_survive_their_dict():
    options = TrainOptions(epochs=3, lr=0.1, grad_clip=None, redraw="targets")
    assert TrainOptions(**options.to_dict()) == options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"epochs": 2.5}, "epochs must be an integer"),
        ({"batch_size": 0}, r"batch_size \(batch\) must be at least 1"),
        ({"grad_accumulate": 0}, "grad_accumulate"),
        ({"epoch_size": 0}, "epoch_size"),
        ({"num_valid": 0}, r"num_valid \(ds.valset\) must be at least 1"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adam, not 'sgd'"),
        ({"schedule": "linear"}, "schedule .* must be one of cosine, plateau"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"redraw": "never"}, "redraw must be one of split, targets"),
        ({"lr": 0}, "lr must be above 0, not 0"),
        ({"lr": float("nan")}, "lr must be above 0, not nan"),
        ({"lr": float("inf")}, "lr must be above 0"),
        ({"lr": "fast"}, "lr must be a number, not 'fast'"),
        ({"grad_clip": -0.1}, "grad_clip must be above 0"),
        ({"weight_decay": -1}, r"weight_decay \(wd\) must be at least 0, not -1"),
        ({"weight_decay": None}, "weight_decay .* must be a number, not None"),
        ({"ramp_epochs": "3"}, "ramp_epochs .* must be a number"),
        ({"threshold": float("nan")}, "threshold"),
        ({"lr_min_factor": 2}, "lr_min_factor .* must be between 0 and 1"),
        ({"exact_start": "false"}, "exact_start must be true or false, not 'false'"),
        ({"range_scaling": 1}, "range_scaling must be true or false"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainOptions(**fields)


def test_the_papers_recipes():
    two = TrainOptions.from_recipe("paper", QINCO2)
    assert (two.lr, two.exact_start, two.codebook_noise, two.redraw) == (8e-4, False, 0.1, "targets")
    assert (two.optimizer, two.weight_decay, two.grad_clip, two.schedule) == ("adamw", 0.1, 0.1, "cosine")
    one = TrainOptions.from_recipe("paper", QINCO1)
    assert (one.optimizer, one.lr, one.weight_decay, one.grad_clip) == ("adam", 1e-4, 0.0, None)
    assert (one.schedule, one.stop_patience, one.patience, one.range_scaling) == ("plateau", 20, 10, True)


def test_given_fields_come_before_the_recipe():
    assert TrainOptions.from_recipe("paper", QINCO2, lr=0.5, redraw="split").lr == 0.5
    assert TrainOptions.from_recipe("default", QINCO1) == TrainOptions()
    with pytest.raises(ConfigError, match="recipe must be one of default, paper, not 'best'"):
        TrainOptions.from_recipe("best", QINCO2)
