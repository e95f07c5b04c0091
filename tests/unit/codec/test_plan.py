"""A file that is sorted by class is trained on, sampled and validated as one in random order."""

import numpy as np
import pytest
from small_models import random_model

from qinco.codec.centroids import kmeans
from qinco.codec.codec import Codec
from qinco.codec.plan import plan_training, split_validation
from qinco.config import ModelConfig
from qinco.errors import ConfigError
from qinco.store.run_state import load_state, save_state
from qinco.training.batches import batches
from qinco.training.codebooks import set_scales
from qinco.training.options import TrainOptions
from qinco.vectors.rows import as_source

CLASSES, EACH, DIM = 10, 120, 8


def sorted_by_class() -> np.ndarray:
    generator = np.random.default_rng(0)
    centers_CD = 4 * generator.standard_normal((CLASSES, DIM))
    return (centers_CD.repeat(EACH, 0) + generator.standard_normal((CLASSES * EACH, DIM))).astype(np.float32)


def shares(x_ND: np.ndarray) -> np.ndarray:
    """How many vectors each class has, if they hold their number in a sorted file of 20,000."""
    return np.bincount((x_ND[:, 0] // 1000).astype(int), minlength=20)


def numbered(count: int = 20_000):
    return as_source(np.arange(count, dtype=np.float32)[:, None].repeat(4, 1))


def test_a_sorted_file_trains_every_class():
    x_ND = sorted_by_class()
    settings = {"num_steps": 2, "codebook_size": 16, "num_blocks": 0, "epochs": 0, "device": "cpu"}
    orders = np.arange(len(x_ND)), np.random.default_rng(1).permutation(len(x_ND))
    codecs = [Codec.fit(x_ND[order_N], **settings) for order_N in orders]
    errors = [np.square(c.decode(c.encode(x_ND)) - x_ND).sum(1).reshape(CLASSES, EACH).mean(1) for c in codecs]
    assert errors[0].mean() < 1.1 * errors[1].mean()
    assert errors[0].max() < 1.5 * errors[1].max()


@pytest.mark.parametrize("period", [1, 10, 20])
def test_validation_has_some_of_every_part_of_the_file(period):
    x_ND = numbered()[:].reshape(period, -1, 4).swapaxes(0, 1).reshape(-1, 4)  # every `period`-th is of one class
    train, valid = split_validation(as_source(x_ND), None, 16)
    assert sorted(np.concatenate([train[:], valid[:]])[:, 0]) == list(range(20_000))
    assert shares(valid[:]).min() > 60 and shares(valid[:]).sum() == 2000


@pytest.mark.parametrize(
    ("count", "wanted"), [(300, 30), (9_000, 900), (20_000, 1_000), (80_000, 2_000), (1_000_000, 10_000)]
)
def test_few_vectors_are_held_out(count, wanted):
    source = as_source(np.zeros((count, 1), np.float32))
    assert plan_training(source, None, {}).train_options.num_valid == wanted
    assert plan_training(source, None, {"num_valid": 7}).train_options.num_valid == 7


def test_the_papers_recipe_validates_on_the_last_vectors():
    options = TrainOptions.from_recipe("paper", ModelConfig(4))
    train, valid = split_validation(numbered(), options.num_valid, 16, options.rows_shuffled)
    assert np.array_equal(np.concatenate([train[:], valid[:]]), numbered()[:])


def test_a_run_of_an_older_version_keeps_its_validation_vectors(tmp_path):
    x_ND, output = sorted_by_class(), tmp_path / "x.safetensors"
    settings = {"num_steps": 2, "codebook_size": 16, "num_blocks": 0, "device": "cpu", "epochs": 2, "output": output}
    older = Codec.fit(x_ND, **settings, rows_shuffled=True)
    header, tensors = load_state(output)
    del header["train"]["rows_shuffled"]  # the first versions knew one rule only
    parts = ("model", "encode", "train", "progress", "best", "num_vectors", "fingerprint")
    save_state(output, {name: header[name] for name in parts}, tensors)
    resumed = Codec.fit(x_ND, **settings, resume=True)
    assert resumed.provenance["valid_mse"] == older.provenance["valid_mse"]
    assert Codec.fit(x_ND, **settings | {"output": None}).provenance["valid_mse"] != older.provenance["valid_mse"]


def test_a_run_that_held_out_a_tenth_goes_on_with_the_same_vectors(tmp_path):
    x_ND, output = np.random.default_rng(0).standard_normal((12_000, 4), np.float32), tmp_path / "x.safetensors"
    settings = {"num_steps": 1, "codebook_size": 4, "num_blocks": 0, "device": "cpu", "epochs": 1, "output": output}
    older = Codec.fit(x_ND, **settings, num_valid=1200)
    header, tensors = load_state(output)
    header["train"]["num_valid"] = header["best"]["train"]["num_valid"] = None  # what older versions wrote
    parts = ("model", "encode", "train", "progress", "best", "num_vectors", "fingerprint")
    save_state(output, {name: header[name] for name in parts}, tensors)
    resumed = Codec.fit(x_ND, **settings, resume=True)
    assert resumed.provenance["valid_mse"] == older.provenance["valid_mse"]
    with pytest.raises(ConfigError, match="num_valid=1200 there, 300 here"):
        Codec.fit(x_ND, **settings, num_valid=300, resume=True)
    resumed.provenance["train"]["num_valid"] = None
    longer = plan_training(as_source(x_ND), None, {}, initial=resumed).train_options
    assert longer.num_valid == 1200 and not longer.rows_shuffled
    assert plan_training(as_source(x_ND), None, {"num_valid": None}, initial=resumed).train_options == longer
    assert plan_training(as_source(x_ND[1:]), None, {}, initial=resumed).train_options.num_valid == 1000


def test_samples_have_some_of_every_part_of_the_file():
    assert shares(numbered()[:]).tolist() == [1000] * 20
    found_VD = kmeans(numbered(), 20, max_points_per_centroid=20, device="cpu")
    assert shares(found_VD).max() < 4
    source = numbered(250_000)
    model = random_model(ModelConfig(4, codebook_size=4))
    set_scales(model, source, TrainOptions(), None)
    assert float(model.mean[0]) == pytest.approx(125_000, rel=0.01)


def test_every_batch_has_some_of_every_part_of_the_file():
    bounds = np.arange(11) * 2000
    parts = list(batches(numbered(), 0, bounds, 0, 0, 4 * 4 * 5000, rows_shuffled=False))
    assert sorted(np.concatenate(parts)[:, 0]) == list(range(20_000))
    assert min(shares(part).min() for part in parts) > 40


@pytest.mark.parametrize(
    ("dim", "options", "wanted"),
    [
        (128, {}, True),
        (64, {}, True),
        (384, {}, False),
        (384, {"embed_dim": 0}, True),
        (384, {"has_ranker": True}, True),
        (128, {"has_ranker": False}, False),
        (128, {"num_blocks": 0}, False),
        (128, {"num_blocks": 4}, False),
        (128, {"num_candidates": 0}, False),
        (128, {"has_preselector": False}, False),
    ],
)
def test_small_models_of_a_preset_have_rankers_where_these_pay(dim, options, wanted):
    source = as_source(np.zeros((300, dim), np.float32))
    assert plan_training(source, "qinco2-S", options).model_config.has_ranker is wanted
    if "has_ranker" not in options:
        others = {"preset": None}, {"preset": "qinco1"}, {"recipe": "paper"}, {"output": "x.pt"}, {"preset": "qinco2-L"}
        for other in others:
            config = plan_training(source, **{"preset": "qinco2-S", "settings": options} | other).model_config
            assert not config.has_ranker
