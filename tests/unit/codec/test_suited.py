import pytest
import torch
from small_models import random_vectors

from qinco.codec import Codec
from qinco.codec.plan import plan_training
from qinco.codec.suited import is_short
from qinco.config import PRESETS
from qinco.errors import DataError
from qinco.training.loop import StepReport
from qinco.training.processes import Processes
from qinco.vectors.rows import as_source

FEW = {"num_steps": 4, "codebook_size": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def x():
    return random_vectors(600, 8)


def sizes(codec):
    return {name: getattr(codec.config, name) for name in PRESETS["qinco2-S"]}


@pytest.mark.parametrize("minutes, parts, expected", [(0.02, 1, True), (10_000, 1, False), (10_000, 10**7, True)])
def test_the_smaller_network_is_for_few_steps(x, minutes, parts, expected):
    plan = plan_training(as_source(x), "auto", {"num_steps": 4, "codebook_size": 16, "minutes": minutes})
    assert is_short(plan, Processes(torch.device("cpu")), parts) == expected


def test_few_minutes_train_the_smaller_network_unless_a_size_is_given(x):
    assert sizes(Codec.fit(x, **FEW, minutes=0.02)) == PRESETS["qinco2-XS"]
    assert sizes(Codec.fit(x, "qinco2-S", **FEW, minutes=0.02)) == PRESETS["qinco2-S"]
    assert sizes(Codec.fit(x, **FEW, minutes=0.02, de=32)) == PRESETS["qinco2-S"] | {"embed_dim": 32}
    assert sizes(Codec.fit(x, **FEW, epochs=1)) == PRESETS["qinco2-S"]
    assert sizes(Codec.fit(x, **FEW, recipe="paper", minutes=0.02)) == PRESETS["qinco2-S"]


def test_a_resumed_run_keeps_its_network(tmp_path, x):
    output = tmp_path / "codec.safetensors"

    def stop(report):
        if isinstance(report, StepReport):
            raise KeyboardInterrupt

    for preset, minutes in (("qinco2-S", 0.3), ("qinco2-XS", 10_000)):
        with pytest.raises(KeyboardInterrupt):
            Codec.fit(x, preset, **FEW, minutes=minutes, output=output, on_report=stop, overwrite=True)
        with pytest.raises(KeyboardInterrupt) as stopped:
            Codec.fit(x, **FEW, minutes=minutes, output=output, on_report=stop, resume=True)
        assert sizes(stopped.value.codec) == PRESETS[preset]


def test_vectors_that_are_not_finite_are_named_before_anything_is_chosen(x):
    broken = x.copy()
    broken[5, 2] = float("nan")
    with pytest.raises(DataError, match="row 5"):
        Codec.fit(broken, **FEW, minutes=0.02)
