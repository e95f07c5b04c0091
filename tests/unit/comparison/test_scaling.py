"""What grows with dimension, number of vectors and steps."""

import pytest

from qinco.comparison.scaling import random_index, scaling
from qinco.comparison.step_time import time_training
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError

MODEL = {"codebook_size": 16, "num_blocks": 1, "embed_dim": 4, "hidden_dim": 8}
SMALL = {
    "dim": 4, "num_steps": 2, "rows": 300, "model": MODEL, "options": EncodeOptions(num_pairs=8, beam_width=2),
    "progress": False,
}  # fmt: skip


def test_each_value_is_measured():
    points = scaling("steps", (2, 1), **SMALL)
    assert [point["steps"] for point in points] == [1, 2] and {point["dim"] for point in points} == {4}
    for point in points:
        assert point["status"] == "done"
        assert min(point[name] for name in ("encode_us", "decode_us", "train_us", "search_us")) > 0
    assert points[0]["model_bytes"] < points[1]["model_bytes"] and points[0]["bytes"] < points[1]["bytes"]


def test_codecs_are_measured_once_where_only_the_index_grows():
    points = scaling("size", (100, 400), trains=False, **SMALL)
    assert [point["rows"] for point in points] == [100, 400]
    assert points[0]["encode_us"] > 0 and points[1]["encode_us"] is None
    assert points[0]["memory_bytes"] < points[1]["memory_bytes"] and points[1]["search_us"] > 0


def test_values_beyond_the_time_limit_are_told():
    points = scaling("dimension", (4, 8), trains=False, limit_seconds=1e-9, **SMALL)
    assert [point["status"] for point in points] == ["time limit"] * 2 and points[1]["search_us"] is None


def test_values_beyond_the_memory_are_told():
    points = scaling("size", (100, 1 << 50), trains=False, limit_seconds=1e30, **SMALL)
    assert [point["status"] for point in points] == ["done", "memory"] and "GB" in points[1]["reason"]


def test_known_values_are_not_measured_again():
    heard = []
    first = scaling("dimension", (4,), trains=False, **SMALL)
    both = scaling("dimension", (4, 6), trains=False, known=first, on_point=lambda p: heard.append(len(p)), **SMALL)
    assert both[0] is first[0] and both[1]["dim"] == 6 and heard == [1, 2]


@pytest.mark.parametrize("given", [{"part": "depth"}, {"values": (0,)}, {"limit_seconds": 0}, {"preset": "qinco9"}])
def test_wrong_scales_are_refused(given):
    with pytest.raises(ConfigError):
        scaling(**{"part": "size", "values": (100,)} | SMALL | given)


def test_random_indexes_hold_what_they_should():
    from qinco.codec.codec import Codec
    from qinco.model.weights import random_weights

    codec = Codec(random_weights(ModelConfig(dim=4, num_steps=2, **MODEL)), SMALL["options"])
    index = random_index(codec, 500)
    assert len(index) == 500 and index.num_lists > 1
    with pytest.raises(ConfigError):
        random_index(codec, 0)


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"seconds": 0}])
def test_wrong_training_steps_are_refused(given):
    with pytest.raises(ConfigError):
        time_training(ModelConfig(dim=4, num_steps=2, **MODEL), **given)
