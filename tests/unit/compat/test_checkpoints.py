from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from first_code import save_first_code
from small_models import ARCHITECTURES, random_model

from qinco.codec import Codec
from qinco.compat.checkpoints import check_expressible, describe_checkpoint, read_checkpoint, write_checkpoint
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.model.weights import Weights
from qinco.store.codec import load_models, save_models

DATA = Path(__file__).parents[2] / "data" / "upstream"
OPTIONS = EncodeOptions(num_candidates=3, beam_width=2)
EXPRESSIBLE = {name: config for name, config in ARCHITECTURES.items() if config.concat_rank is None}
QINCO1 = ARCHITECTURES["qinco1"]
LARGE = replace(ARCHITECTURES["projected"], codebook_size=1024)
PROJECTED = random_model(ARCHITECTURES["projected"]).weights()


def options_of(config: ModelConfig) -> EncodeOptions:
    return OPTIONS if config.has_preselector else EncodeOptions()


def same_state(a: Weights, b: Weights) -> bool:
    return a.arrays.keys() == b.arrays.keys() and all(
        map(np.array_equal, a.arrays.values(), map(b.arrays.get, a.arrays))
    )


# The second code's checkpoints


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_every_architecture_survives(tmp_path, name):
    model = random_model(EXPRESSIBLE[name]).weights()
    config, options = model.config, options_of(model.config)
    save_models(tmp_path / "x.pt", [model], None, options, {"epoch": 3, "valid_mse": 1.5})
    if config.has_ranker:  # which are left out
        config = replace(config, has_ranker=False)
        model = Weights(config, {name: array for name, array in model.arrays.items() if "ranker" not in name})
    (loaded,), *rest = load_models(tmp_path / "x.pt")
    options = options if name != "one step" else replace(options, beam_width=1)  # a bare codebook needs no beam
    provenance = {"source": "QINCo2 checkpoint (v2)", "epoch": 3}
    assert (loaded.config, rest) == (config, [None, options, provenance]) and same_state(model, loaded)
    assert describe_checkpoint(tmp_path / "x.pt") == {
        "kind": "QINCo2 checkpoint (v2)", "model": config.to_dict(), "encode": options.to_dict(),
        "provenance": provenance, "num_parts": 1, "dim": config.dim, "bytes_per_vector": config.bytes_per_vector,
    }  # fmt: skip


def test_deep_models_of_one_step_survive(tmp_path):
    for coarse in ({}, {"starts_from_coarse": True, "num_lists": 3}):
        config = ModelConfig(dim=2, num_steps=1, codebook_size=4, num_blocks=40, hidden_dim=2, **coarse)
        model = random_model(config).weights()
        for path in (tmp_path / "x.pt", tmp_path / "x.safetensors"):
            save_models(path, [model], None, OPTIONS, {})
            assert same_state(load_models(path)[0][0], model)


@pytest.mark.parametrize("count", [None, 99])
def test_every_codeword_is_as_many_candidates_as_there_are(tmp_path, count):
    write_checkpoint(tmp_path / "x.pt", [PROJECTED], EncodeOptions(num_candidates=count, beam_width=4), {})
    assert read_checkpoint(tmp_path / "x.pt")[2] == EncodeOptions(num_candidates=4, beam_width=4)


@pytest.mark.parametrize("epoch", [None, "3", True, [1]])
def test_epochs_that_are_none_are_not_written(tmp_path, epoch):
    write_checkpoint(tmp_path / "x.pt", [PROJECTED], OPTIONS, {"epoch": epoch})
    assert read_checkpoint(tmp_path / "x.pt")[3] == {"source": "QINCo2 checkpoint (v2)"}


def test_what_is_written_is_what_the_authors_code_writes(tmp_path):
    models, _, options, provenance = load_models(DATA / "v2_proj.pt")
    save_models(tmp_path / "x.pt", models, None, options, provenance)
    theirs, ours = (torch.load(path, weights_only=True) for path in (DATA / "v2_proj.pt", tmp_path / "x.pt"))
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == theirs[key] for key in ("parameters", "data_dim", "epoch"))
    assert ours["model"].keys() == theirs["model"].keys()
    for name, tensor in ours["model"].items():
        wanted = theirs["model"][name]
        assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype)
        assert ".xtarget_" in name or torch.equal(tensor, wanted), name
    assert all(ours[key] is None for key in ("optimizer", "scheduler", "logger"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("same width", {"A": 3, "B": 2}), ("projected", {"A": 3, "B": 2, "de": 6}),
        ("qinco1", {"A": 0, "B": 1, "qinco1_mode": True}), ("no blocks", {"A": 3, "B": 2, "L": 0}),
        ("coarse", {"A": 3, "B": 2, "ivf_in_use": True, "ivf_K": 5}),
    ],
)  # fmt: skip
def test_parameters_are_the_authors(tmp_path, name, expected):
    config = EXPRESSIBLE[name]
    write_checkpoint(tmp_path / "x.pt", [random_model(config).weights()], options_of(config), {})
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert content["parameters"] == {"K": 4, "M": 3, "dh": 5, "L": 2} | expected
    assert content["data_dim"] == 3
    steps = {key.split(".")[1] for key in content["model"] if key.endswith("xtarget_var")}
    assert steps == ({"1", "2", "3"} if config.starts_from_coarse else {"0", "1", "2"})


@pytest.mark.parametrize(
    ("name", "options", "num_parts", "value"),
    [
        ("projected", OPTIONS, 2, "2"),
        ("low rank", EncodeOptions(), 1, "concat_rank"),
        ("projected", EncodeOptions(num_pairs=4, beam_width=2), 1, "num_pairs=4"),
        ("qinco1", EncodeOptions(beam_width=2), 1, "B=1, not 2"),
        ("projected", EncodeOptions(num_candidates=2, beam_width=9), 1, "B=9 exceeds the 8"),
        ("coarse", EncodeOptions(num_candidates=2, beam_width=5), 1, "B=5 exceeds the 4"),
        ("1024 codewords", EncodeOptions(num_candidates=256, beam_width=257), 1, "65792"),
    ],
)
def test_what_the_authors_code_cannot_do_is_refused(tmp_path, name, options, num_parts, value):
    config = LARGE if name == "1024 codewords" else ARCHITECTURES[name]
    with pytest.raises(ConfigError, match=value):
        check_expressible(config, options, num_parts)
    with pytest.raises(ConfigError, match=r"\.safetensors"):
        save_models(tmp_path / "x.pt", [random_model(config).weights()] * num_parts, None, options, {})
    assert not list(tmp_path.iterdir())


def test_the_beam_may_be_all_there_is():
    for config, *sizes in ((ARCHITECTURES["projected"], 2, 8), (ARCHITECTURES["coarse"], 2, 4), (LARGE, 256, 256)):
        check_expressible(config, EncodeOptions(num_candidates=sizes[0], beam_width=sizes[1]))


def test_codecs_are_saved_and_loaded_by_their_suffix(tmp_path):
    codec = Codec(PROJECTED, OPTIONS, {"epoch": 5})
    codec.save(tmp_path / "x.PT")
    torch.load(tmp_path / "x.PT", weights_only=True)
    x_ND = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    loaded = Codec.load(tmp_path / "x.PT")
    np.testing.assert_array_equal(loaded.encode(x_ND), codec.encode(x_ND))
    assert loaded.provenance["epoch"] == 5
    (tmp_path / "x.PT").rename(tmp_path / "model")  # its content says what it is
    assert Codec.load(tmp_path / "model").config == codec.config
    (tmp_path / "model").rename(tmp_path / "y.safetensors")
    assert Codec.load(tmp_path / "y.safetensors").config == codec.config


@pytest.mark.parametrize("name", ["x.pt", "x.PT"])
def test_our_own_files_are_no_checkpoints(tmp_path, name):
    save_models(tmp_path / "x.safetensors", [PROJECTED], None, OPTIONS, {})
    with pytest.raises(DataError, match=name):
        load_models((tmp_path / "x.safetensors").rename(tmp_path / name))


def rewrite(path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "x.pt", [PROJECTED], OPTIONS, {"epoch": 2})
    return tmp_path / "x.pt"


def test_states_of_several_processes_and_half_precision_are_read(path):
    halves = {f"module.{name}": t.half() for name, t in torch.load(path, weights_only=True)["model"].items()}
    rewrite(path, lambda content: content.update(model=halves))
    (model,), _, _, _ = read_checkpoint(path)
    np.testing.assert_allclose(model.step(1).codebook_KD, PROJECTED.step(1).codebook_KD, atol=1e-3, rtol=1e-3)
    assert model.mean_D.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c.pop("model"), "'model'"),
        (lambda c: c.update(model=[]), "'model'"),
        (lambda c: c.pop("parameters"), "'parameters'"),
        (lambda c: c.pop("data_dim"), "'data_dim'"),
        (lambda c: c["model"].pop("data_mean"), "data_mean"),
        (lambda c: c["model"].update(more=torch.zeros(1)), "more"),
        (lambda c: c["model"].update(data_mean=torch.zeros(4)), r"data_mean is \(4,\), not \(3,\)"),
        (lambda c: c["model"].update(data_std=torch.tensor(0.0)), "0"),
        (lambda c: c["model"].update(data_std=torch.tensor(-1.0)), "-1"),
        (lambda c: c["model"].update({3: torch.zeros(1)}), ""),
        (lambda c: c["model"].update({"a\x1b[2J": torch.zeros(1)}), "name"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(path, change, name):
    rewrite(path, change)
    with pytest.raises(DataError, match=f"x.pt .*{name}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "tensor",
    [
        1.0, torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(), torch.zeros(3, dtype=torch.complex64),
        torch.full((3,), torch.nan), torch.full((3,), 1e300, dtype=torch.float64), torch.zeros(4),
    ],
)  # fmt: skip
def test_values_that_are_no_finite_tensors_are_refused(path, tensor):
    rewrite(path, lambda c: c["model"].update(data_mean=tensor))
    with pytest.raises(DataError, match=r"x.pt .*data_mean"):
        read_checkpoint(path)


HOSTILE = [2**60, 2**70, -1, "3", 2.0, float("nan"), True, [3], {"a": 1}, torch.zeros(1), "x" * 10**6]


@pytest.mark.parametrize("name", ["K", "M", "de", "dh", "L", "A", "B", "data_dim"])
def test_hostile_parameters_are_refused(path, name):
    good = path.read_bytes()
    for value in HOSTILE:
        rewrite(path, lambda c, value=value: (c if name == "data_dim" else c["parameters"]).update({name: value}))
        with pytest.raises(DataError, match=r"x\.pt .{1,200}$"):
            read_checkpoint(path)
        with pytest.raises(DataError, match=r"x\.pt .{1,200}$"):
            describe_checkpoint(path)
        path.write_bytes(good)
    assert same_state(read_checkpoint(path)[0][0], PROJECTED)


@pytest.mark.parametrize(
    "change",
    [
        {"K": None}, {"K": 3}, {"K": 0}, {"M": 0}, {"M": 2}, {"M": 4}, {"L": 3}, {"dh": 0}, {"de": None}, {"A": None},
        {"ivf_in_use": True}, {"ivf_in_use": True, "ivf_K": 5}, {"ivf_in_use": "yes"}, {"qinco1_mode": True},
        {"qinco1_mode": {}}, {"A": 4, "B": 16385}, {"A": 65537}, {"A": 0, "B": 65537}, {"dh": 2**24, "de": 2**24},
        {"M": 10**6, "L": 0},
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_refused(path, change):
    rewrite(path, lambda c: c["parameters"].update(change))
    with pytest.raises(DataError, match=r"x\.pt (is damaged|does not fit its configuration)"):
        read_checkpoint(path)


def test_tensors_that_share_their_values_are_refused(path):
    shared = torch.ones(20_000)
    rewrite(path, lambda c: c["model"].update({f"x{n}": shared for n in range(100)}))
    with pytest.raises(DataError, match="share"):
        read_checkpoint(path)


# The first code's pickles


@pytest.mark.parametrize("name", ["qinco1", "low rank", "coarse, qinco1"])
@pytest.mark.parametrize("scale", [2.5, 3, np.float32(2.5), torch.tensor(2.5), torch.tensor([2.5])])
def test_models_of_the_first_code_are_read(tmp_path, name, scale):
    config = ARCHITECTURES[name]
    rank = None if config.concat_rank is None else config.hidden_dim
    model = random_model(replace(config, concat_rank=rank))
    save_first_code(tmp_path / "x", [model], scale)
    (loaded,), rotation, options, provenance = load_models(tmp_path / "x")
    model.mean.zero_()
    model.scale.fill_(float(scale))
    assert same_state(loaded, model.weights()) and loaded.config == model.config
    assert (rotation, options, provenance) == (None, EncodeOptions(), {"source": "QINCo checkpoint (v1)"})
    described = describe_checkpoint(tmp_path / "x")
    assert (described["kind"], described["model"]) == ("QINCo checkpoint (v1)", model.config.to_dict())


@pytest.mark.parametrize(("count", "rotates"), [(3, True), (3, False), (1, False)])
def test_product_models_of_the_first_code_are_read(tmp_path, count, rotates):
    models = [random_model(QINCO1, seed) for seed in range(count)]
    rotation_DD = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0))).Q if rotates else None
    save_first_code(tmp_path / "x.pt", models, 2.0, rotation_DD, product=True)
    codec = Codec.load(tmp_path / "x.pt")
    assert len(codec.weights) == count and (codec.rotation_DD is not None) == rotates
    for model, part in zip(models, codec.weights, strict=True):
        model.mean.zero_()
        model.scale.fill_(2.0)
        assert same_state(part, model.weights())
    if rotates:
        np.testing.assert_array_equal(codec.rotation_DD, rotation_DD.numpy())
    described = describe_checkpoint(tmp_path / "x.pt")
    assert (described["num_parts"], described["dim"], described["model"]) == (count, 3 * count, QINCO1.to_dict())


def test_the_first_code_becomes_the_second(tmp_path):
    codec = Codec.load(DATA / "v1_qinco.pt")
    codec.save(tmp_path / "x.pt")
    converted = Codec.load(tmp_path / "x.pt")
    assert same_state(converted.weights[0], codec.weights[0]) and converted.config == codec.config
    for name in ("v1_qinco_lr", "v1_pq_opq"):
        with pytest.raises(ConfigError, match=r"\.safetensors"):
            Codec.load(DATA / f"{name}.pt").save(tmp_path / "y.pt")


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, np.nan, np.inf, 1e-60, 1e60, "1", None, True, [1.0], torch.zeros(2), 10**400]
)
def test_impossible_scales_are_refused(tmp_path, scale):
    save_first_code(tmp_path / "x.pt", [random_model(QINCO1)], scale)
    with pytest.raises(DataError, match=r"x\.pt"):
        read_checkpoint(tmp_path / "x.pt")


COARSE, SHORTER = random_model(ARCHITECTURES["coarse, qinco1"]), random_model(replace(QINCO1, num_steps=2))


@pytest.mark.parametrize(
    ("models", "rotation_DD", "value"),
    [
        ([random_model(QINCO1)] * 2, torch.eye(5), r"\(5, 5\)"),
        ([random_model(QINCO1)] * 2, torch.zeros(6), r"\(6,\)"),
        ([random_model(QINCO1)] * 2, torch.full((6, 6), torch.nan), "opq_matrix"),
        ([random_model(QINCO1)], torch.eye(3), "one part"),
        ([COARSE, COARSE], None, "IVFQINCo"),
        ([random_model(QINCO1), SHORTER], None, "architecture"),
    ],
)
def test_products_that_are_not_supported_are_refused(tmp_path, models, rotation_DD, value):
    save_first_code(tmp_path / "x.pt", models, 1.0, rotation_DD, product=True)
    with pytest.raises(DataError, match=value):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [[], {}, torch.zeros(2), {"model": 3}, "text", None, torch.nn.Linear(2, 2)])
def test_other_objects_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    for read in (read_checkpoint, describe_checkpoint):
        with pytest.raises(DataError, match=r"x\.pt .*('model'|Linear)"):
            read(tmp_path / "x.pt")
