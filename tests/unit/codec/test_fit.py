import json
import signal
import time

import numpy as np
import pytest
import torch
from small_models import random_vectors

from qinco.codec import Codec
from qinco.codec.files import encode_file
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.training.loop import EpochReport, StepReport
from qinco.training.monitor import Estimate
from qinco.vectors.rows import as_source

SMALL = {
    "num_steps": 3, "codebook_size": 8, "num_blocks": 1, "embed_dim": 6, "hidden_dim": 8, "num_pairs": 12,
    "beam_width": 4, "epochs": 2, "batch_size": 64, "precision": "float32", "device": "cpu",
}  # fmt: skip


def fit(x=None, **settings):
    return Codec.fit(random_vectors(400, 4) if x is None else x, **SMALL | settings)


def mse(codec, x):
    parts = codec.encode(x)
    return float(np.square(codec.decode(*(parts if codec.is_ivf else (parts,))) - x).sum(1).mean())


def test_the_same_seed_gives_the_same_codec():
    one, two, other = fit(seed=1), fit(seed=1), fit(seed=2)
    states = [codec.models[0].state_dict() for codec in (one, two, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["steps.0.codebook.weight"], states[2]["steps.0.codebook.weight"])


def test_a_run_on_a_device_is_saved_resumed_and_loaded_anywhere(tmp_path, named_device, device):
    x, centroids = random_vectors(200, 4), random_vectors(6, 4, 5)
    settings = {"device": named_device, "coarse_centroids": centroids, "epochs": 3}
    codec = fit(x, output=tmp_path / "x.safetensors", **settings)
    assert codec.models[0].device.type == device.type
    assert mse(codec, x) < mse(fit(x, coarse_centroids=centroids, epochs=0), x)
    here = Codec.load(tmp_path / "x.safetensors")
    assert here.models[0].device.type == "cpu" and here.fingerprint() == codec.fingerprint()
    assert mse(here, x) == pytest.approx(mse(codec, x), rel=1e-4)

    def stop(report):
        if isinstance(report, EpochReport) and report.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(x, output=tmp_path / "y.safetensors", on_report=stop, **settings)
    resumed = fit(x, output=tmp_path / "y.safetensors", resume=True, **settings)
    assert resumed.provenance["epoch"] == codec.provenance["epoch"]
    assert resumed.fingerprint() == codec.fingerprint()
    again = fit(x, output=tmp_path / "y.safetensors", resume=True, **settings | {"device": "cpu"})
    assert again.models[0].device.type == "cpu" and again.fingerprint() == codec.fingerprint()


def test_global_generators_are_neither_read_nor_changed():
    torch.manual_seed(1), np.random.seed(1)
    one = fit()
    draws = torch.rand(1), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    assert draws == (torch.rand(1), np.random.rand())
    torch.manual_seed(2), np.random.seed(2)
    assert torch.equal(one.models[0].steps[1].codebook.weight, fit().models[0].steps[1].codebook.weight)


def test_more_steps_have_a_lower_error_and_training_a_lower_one_than_its_start():
    x = random_vectors(600, 4)
    codec = fit(x, epochs=8)
    assert mse(codec, x) < mse(fit(x, epochs=0), x)
    codes = codec.encode(x)
    errors = [np.square(codec.decode(codes[:, :m]) - x).sum(1).mean() for m in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("preset", ["qinco1", "qinco2-XXS", "qinco2-XS", "qinco2-S", "qinco2-M", None])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_every_preset_and_recipe_trains(preset, recipe):
    rule = {"num_pairs": None, "beam_width": 2}
    size = {"num_blocks": 1, "embed_dim": None if preset == "qinco1" else 5}
    codec = fit(preset=preset, recipe=recipe, **rule | size)
    assert np.isfinite(codec.provenance["valid_mse"])
    assert codec.config.codeword_skip == (preset != "qinco1")
    if codec.config.has_preselector:
        wanted = EncodeOptions(num_pairs=80) if recipe == "default" else EncodeOptions(num_candidates=16)
        assert (codec.encode_options.num_pairs, codec.encode_options.num_candidates) == (
            wanted.num_pairs,
            wanted.num_candidates,
        )


def test_the_best_codec_is_ranked_in_the_end(tmp_path):
    x = random_vectors(1500, 4)
    ranked = {"has_ranker": True, "num_pairs": 3, "beam_width": 3}
    ranked |= {"shrinks": False, "optimizer": "adamw"}  # rankers gain there
    codec = fit(x, output=tmp_path / "x.safetensors", **ranked)
    assert codec.provenance["ranked"] and codec.models[0].steps[2].ranker.is_fitted
    assert codec.provenance["valid_mse"] < fit(x, **ranked | {"has_ranker": False}).provenance["valid_mse"]
    again = fit(x, output=tmp_path / "x.safetensors", resume=True, **ranked)
    assert again.fingerprint() == codec.fingerprint() and again.provenance == codec.provenance

    def stop(report):
        if isinstance(report, EpochReport) and report.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(x, output=tmp_path / "y.safetensors", on_report=stop, **ranked)
    assert not stopped.value.codec.models[0].steps[2].ranker.is_fitted
    assert fit(x, output=tmp_path / "y.safetensors", resume=True, **ranked).fingerprint() == codec.fingerprint()


def test_runs_that_began_without_rankers_go_on_without_them(tmp_path):
    codec = fit(output=tmp_path / "x.safetensors", preset="qinco2-S", has_ranker=False)
    again = fit(output=tmp_path / "x.safetensors", preset="qinco2-S", resume=True)
    assert again.fingerprint() == codec.fingerprint() and not again.config.has_ranker


def test_arrays_tensors_lists_paths_and_sources_train_alike(tmp_path):
    x = np.round(random_vectors(300, 4))
    np.save(tmp_path / "x.npy", x)
    wanted = fit(x).models[0].steps[1].codebook.weight
    for same in (
        x.astype(np.float64), x.astype(np.int16), torch.from_numpy(x), torch.from_numpy(x).bfloat16(), x.tolist(),
        tmp_path / "x.npy", str(tmp_path / "x.npy"), as_source(x), np.load(tmp_path / "x.npy", mmap_mode="r"),
    ):  # fmt: skip
        assert torch.equal(fit(same).models[0].steps[1].codebook.weight, wanted)


def test_an_ivf_codec_starts_from_its_centroids():
    x, centroids = random_vectors(400, 4), random_vectors(6, 4, 5)
    codec = fit(x, coarse_centroids=centroids)
    codes, lists = codec.encode(x)
    assert codec.is_ivf and codec.config.num_lists == 6
    assert np.array_equal(lists, np.square(x[:, None] - centroids).sum(2).argmin(1))
    assert np.square(codec.decode(codes, lists) - x).sum(1).mean() < np.square(centroids[lists] - x).sum(1).mean()


def test_reports_begin_with_an_estimate():
    reports = []
    fit(on_report=reports.append)
    assert isinstance(reports[0], Estimate) and isinstance(reports[1], EpochReport)
    assert isinstance(reports[2], StepReport) and isinstance(reports[-1], EpochReport)


def test_progress_has_a_stage_for_each_epoch():
    heard = []
    fit(progress=lambda stage, done, total, unit, **fields: heard.append((stage, done, total, unit, *fields)))
    stages = list(dict.fromkeys(report[0] for report in heard))
    assert stages == ["checking vectors", "fitting the first codebooks", "epoch 1/2", "epoch 2/2"]
    assert heard[-6:] == [("epoch 2/2", step, 6, "step", "loss", "lr") for step in range(1, 7)]


@pytest.mark.parametrize(("lr", "is_warned"), [(1e-3, False), (1.0, True)])
def test_a_codec_that_never_improved_is_a_warning(lr, is_warned, caplog):
    codec = fit(lr=lr, ramp_epochs=0)
    assert (codec.provenance["epoch"] == 0) == is_warned
    assert any("no epoch" in record.getMessage() for record in caplog.records) == is_warned


def test_the_best_epoch_is_returned_and_saved(tmp_path):
    reports = []
    codec = fit(output=tmp_path / "x.safetensors", epochs=4, lr=0.5, on_report=reports.append)
    errors = [report.mse for report in reports if isinstance(report, EpochReport)]
    best = codec.provenance["epoch"]
    assert errors[best] == min(errors) == codec.provenance["valid_mse"]
    saved = Codec.load(tmp_path / "x.safetensors")
    assert saved.provenance == codec.provenance
    assert all(torch.equal(t, saved.models[0].state_dict()[n]) for n, t in codec.models[0].state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "x.safetensors.jsonl").read_text().splitlines()]
    assert [line["mse"] for line in lines] == errors and [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x.safetensors",
        "x.safetensors.jsonl",
        "x.safetensors.last",
    ]


def test_no_epochs_give_the_residual_quantizer():
    codec = fit(epochs=0)
    assert codec.provenance["epoch"] == 0
    book_KD = codec.models[0].steps[1].codebook.weight
    torch.testing.assert_close(codec.models[0].steps[1](torch.arange(8), torch.randn(8, 4)), book_KD)


def timed_fit(x=None, **settings):
    """A codec, its reports and how long it took."""
    reports, begun = [], time.monotonic()
    codec = fit(x, **{"epochs": None, "batch_size": None, "on_report": reports.append} | settings)
    return codec, reports, time.monotonic() - begun


def test_minutes_settle_the_plan():
    codec, reports, seconds = timed_fit(minutes=0.05)
    assert 0.1 < seconds < 60  # 3 on an idle machine
    estimate, start, last = reports[0], reports[1], reports[-1]
    assert isinstance(estimate, Estimate) and estimate.seconds < 3 and estimate.total_epochs > 1
    assert start.epoch == 0 and start.epochs == estimate.total_epochs
    assert last.epoch == last.epochs  # which moves with the time that epochs take
    assert codec.provenance["train"]["minutes"] == 0.05 and codec.provenance["train"]["epochs"] is None
    assert codec.provenance["valid_mse"] <= start.mse


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e-3, "schedule": "cosine"}, {"recipe": "paper"}, {"coarse_centroids": random_vectors(6, 4, 5)},
        {"num_parts": 2, "embed_dim": 4}, {"preset": "qinco1", "embed_dim": None, "num_pairs": None},
        {"batch_size": 16, "grad_accumulate": 2}, {"x": random_vectors(30, 4)}, {"num_valid": 5},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_minutes_go_with_all_other_settings(settings):
    codec, reports, seconds = timed_fit(**{"minutes": 0.005} | settings)
    assert seconds < 60 and np.isfinite(codec.provenance["valid_mse"])
    assert len([report for report in reports if isinstance(report, Estimate)]) == settings.get("num_parts", 1)
    assert "lr" not in settings or reports[0].lr == 1e-3


def test_minutes_that_the_start_takes_leave_a_residual_quantizer(caplog):
    codec, reports, _ = timed_fit(minutes=1e-6)
    assert codec.provenance["epoch"] == 0 and not [report for report in reports if isinstance(report, StepReport)]
    assert [r.getMessage() for r in caplog.records if "minutes=1e-06 are over after the start" in r.getMessage()]
    assert not [r for r in caplog.records if "no epoch improved" in r.getMessage()]


def test_a_codec_is_trained_on_for_minutes():
    first = fit()
    reports = []
    codec = Codec.fit(random_vectors(400, 4), minutes=0.01, initial=first, device="cpu", on_report=reports.append)
    assert reports[1].epoch == 0 and reports[1].mse == pytest.approx(first.provenance["valid_mse"], rel=0.2)
    assert codec.provenance["valid_mse"] <= reports[1].mse


def test_with_neither_minutes_nor_epochs_training_ends_when_it_pays_no_more():
    codec, reports, _ = timed_fit(least_gain=0.5, batch_size=64)
    epochs = [report for report in reports if isinstance(report, EpochReport)]
    assert reports[0].seconds is None and reports[0].epoch_seconds > 0
    assert [report.epochs for report in epochs] == [None] * 8 + [
        11
    ] * 4  # the first judgement, and a quarter to cool down
    assert codec.provenance["epoch"] > 0 and epochs[-1].lr < epochs[8].lr / 10


def test_a_trained_codec_goes_on(tmp_path):
    x = random_vectors(400, 4)
    reports = []
    first = fit(x, epochs=2)
    kept = {name: SMALL[name] for name in ("batch_size", "precision", "device")}
    second = Codec.fit(x, initial=first, epochs=5, on_report=reports.append, output=tmp_path / "y.safetensors", **kept)
    epochs = [report.epoch for report in reports if isinstance(report, EpochReport)]
    begun = first.provenance["epoch"]
    assert epochs == list(range(begun, 6))
    assert second.config == first.config and second.provenance["valid_mse"] <= first.provenance["valid_mse"]
    with pytest.raises(ConfigError, match=f"not {second.provenance['epoch']}"):
        Codec.fit(x, initial=second, epochs=second.provenance["epoch"], **kept)
    with pytest.raises(ConfigError, match="num_steps"):
        Codec.fit(x, initial=second, epochs=9, num_steps=4)
    with pytest.raises(DataError, match=r"dimension.* not 2"):
        Codec.fit(random_vectors(400, 2), initial=second, epochs=9)


def test_a_trained_codec_goes_on_with_a_plateau_schedule():
    x = random_vectors(300, 4)
    first = fit(x, epochs=0)
    first.provenance["epoch"] = 4
    kept = {name: SMALL[name] for name in ("batch_size", "precision", "device")}
    reports = []
    Codec.fit(x, initial=first, epochs=6, schedule="plateau", stop_patience=2, on_report=reports.append, **kept)
    assert [report.epoch for report in reports if isinstance(report, EpochReport)] == [4, 5, 6]


@pytest.mark.parametrize(
    "x",
    [
        np.full((80, 4), 7.5, np.float32),
        np.zeros((80, 4), np.uint8),
        np.repeat(np.eye(4, dtype=np.float32), 20, 0),
        np.full((80, 1), -1e20, np.float32),
    ],
    ids=["constant", "zeros", "duplicated", "huge"],
)
def test_constant_and_duplicated_vectors_are_kept(x):
    codec = fit(x, precision="auto")
    np.testing.assert_allclose(codec.decode(codec.encode(x)), x, rtol=0.05, atol=0.1)


def test_one_dimension():
    x = random_vectors(300, 1)
    assert mse(fit(x, epochs=5), x) < 0.05 * x.var()


def test_the_fewest_vectors_that_train():
    assert fit(random_vectors(9, 4)).num_codes == 3
    with pytest.raises(DataError, match=r"at least 8 vectors.* not 7 \(8 less 1"):
        fit(random_vectors(8, 4))


def test_a_small_set_does_not_collapse():
    x = random_vectors(320, 6)
    codec = fit(x, codebook_size=16, num_steps=4, epochs=12, num_pairs=16)
    codes = codec.encode(x)
    assert [len(set(column)) for column in codes.T] == [16] * 4
    assert mse(codec, x) < mse(fit(x, codebook_size=16, num_steps=4, epochs=0, num_pairs=16), x)


BAD_ROW = random_vectors(400, 4)
BAD_ROW[390, 2] = np.nan


@pytest.mark.parametrize(
    ("x", "settings", "error", "message"),
    [
        (BAD_ROW, {}, DataError, r"row 390 of training vectors .*column 2"),
        (np.zeros((0, 4), np.float32), {}, DataError, "at least 8 vectors"),
        (np.zeros(4, np.float32), {}, DataError, "training vectors"),
        ("nowhere.fvecs", {}, DataError, "nowhere.fvecs"),
        (None, {"num_valid": 201}, ConfigError, r"num_valid \(ds.valset\) .*201.*400"),
        (None, {"num_valid": 0}, ConfigError, r"num_valid \(ds.valset\)"),
        (None, {"codebok_size": 4}, ConfigError, "'codebok_size'.*codebook_size"),
        (None, {"batchsize": 4}, ConfigError, "'batchsize'.*batch_size"),
        (None, {"preset": "qinco2-XL"}, ConfigError, "qinco2-XL"),
        (None, {"recipe": "papers"}, ConfigError, "recipe .*default, paper"),
        (None, {"num_candidates": 4}, ConfigError, r"A=4\).*C=12\)"),
        (None, {"preset": "qinco1", "embed_dim": None}, ConfigError, r"num_pairs \(C\)"),
        (None, {"codebook_size": 12}, ConfigError, r"codebook_size \(K\).*12"),
        (None, {"codebook_size": 512}, DataError, "at least 512 vectors"),
        (None, {"epochs": -1}, ConfigError, "epochs .*0"),
        (None, {"minutes": 0, "epochs": None}, ConfigError, "minutes must be above 0, not 0"),
        (None, {"minutes": -1, "epochs": None}, ConfigError, "minutes .*-1"),
        (None, {"minutes": np.float32("nan"), "epochs": None}, ConfigError, "minutes .*nan"),
        (None, {"minutes": "ten", "epochs": None}, ConfigError, "minutes must be a number, not 'ten'"),
        (None, {"minutes": 10}, ConfigError, "epochs=2 and minutes=10 exclude each other"),
        (None, {"lr": "fast"}, ConfigError, "lr .*fast"),
        (None, {"device": "gpu"}, ConfigError, "'gpu'"),
        (None, {"coarse_centroids": np.zeros((3, 5))}, DataError, r"coarse centroids.* 4, .*\(3, 5\)"),
        (None, {"coarse_centroids": np.zeros((0, 4))}, DataError, "coarse centroids"),
        (None, {"coarse_centroids": np.full((3, 4), np.nan)}, DataError, "row 0 of coarse centroids"),
        (None, {"output": "/nowhere/x.safetensors"}, ConfigError, "/nowhere"),
        (None, {"output": "codec.bin"}, ConfigError, r"codec\.bin"),
        (None, {"output": "mine.pt", "inputs": ["mine.pt"]}, ConfigError, r"mine\.pt"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, monkeypatch, x, settings, error, message):
    monkeypatch.chdir(tmp_path)
    reports = []
    with pytest.raises(error, match=message):
        fit(x, **{"output": "x.safetensors", "on_report": reports.append} | settings)
    assert reports == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".last", ".jsonl"])
def test_what_lies_beside_the_output_must_be_writable_too(tmp_path, suffix):
    (tmp_path / f"x.safetensors{suffix}").mkdir()
    with pytest.raises(ConfigError, match=f"x.safetensors{suffix} is a folder"):
        fit(output=tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [f"x.safetensors{suffix}"]


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = {"num_steps": np.int64(2), "lr": np.float32(1e-3), "exact_start": np.bool_(True)}
    assert fit(output=tmp_path / "x.safetensors", **numbers).num_codes == 2


def test_only_a_codec_can_go_on():
    with pytest.raises(DataError, match=r"x\.safetensors"):
        Codec.fit(random_vectors(400, 4), initial="x.safetensors", epochs=2)
    with pytest.raises(ConfigError, match=r"initial.*3"):
        Codec.fit(random_vectors(400, 4), initial=3, epochs=2)


def test_an_output_that_exists_is_kept(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="overwrite=true"):
        fit(output=path)
    with pytest.raises(ConfigError, match=r"x\.safetensors\.last"):
        fit(output=path, resume=True)
    assert path.read_text() == "precious"
    assert Codec.load(fit_to(path)).num_codes == 3


def test_two_runs_of_one_output_refuse_each_other(tmp_path):
    """The one that is behind would replace the state of the other."""
    refused = []

    def begin_another(report):
        if not refused:
            with pytest.raises(ConfigError, match=r"x\.safetensors") as error:
                fit(output=tmp_path / "x.safetensors", resume=True)
            refused.append(error)

    fit(output=tmp_path / "x.safetensors", on_report=begin_another)
    assert refused and not list(tmp_path.glob(".*"))
    fit(output=tmp_path / "x.safetensors", resume=True)


def fit_to(path):
    fit(output=path, overwrite=True)
    return path


def test_only_the_same_run_is_resumed(tmp_path):
    fit(output=tmp_path / "x.safetensors")
    for different in ({"epochs": 9}, {"lr": 0.1}, {"num_pairs": 3}, {"hidden_dim": 9}, {"seed": 5}):
        with pytest.raises(ConfigError, match=r"x\.safetensors\.last .* here"):
            fit(output=tmp_path / "x.safetensors", resume=True, **different)
    with pytest.raises(ConfigError, match=r"400.*399"):
        fit(random_vectors(399, 4), output=tmp_path / "x.safetensors", resume=True)


def test_a_finished_run_that_is_resumed_is_its_codec(tmp_path):
    one = fit(output=tmp_path / "x.safetensors")
    two = fit(output=tmp_path / "x.safetensors", resume=True)
    assert two.provenance == one.provenance
    assert torch.equal(one.models[0].steps[2].codebook.weight, two.models[0].steps[2].codebook.weight)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"x\.safetensors\.last"):
        fit(output=tmp_path / "x.safetensors", resume=True)


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_damaged_state_is_refused(tmp_path, damage):
    fit(output=tmp_path / "x.safetensors")
    state = tmp_path / "x.safetensors.last"
    state.write_bytes(state.read_bytes()[:-50] if damage == "truncated" else (tmp_path / "x.safetensors").read_bytes())
    before = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(DataError, match=r"x\.safetensors\.last"):
        fit(output=tmp_path / "x.safetensors", resume=True)
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_a_run_in_another_thread_trains():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fit).result().num_codes == 3


def test_the_letters_of_the_papers_are_settings_too(tmp_path):
    x = random_vectors(60, 4)
    short = Codec.fit(x, M=2, K=8, L=1, de=4, dh=6, A=4, B=2, epochs=0, device="cpu")
    long = {"num_steps": 2, "codebook_size": 8, "num_blocks": 1, "embed_dim": 4, "hidden_dim": 6}
    codec = Codec.fit(x, **long, num_candidates=4, beam_width=2, M=2, epochs=0, device="cpu")
    assert codec.fingerprint() == short.fingerprint() and codec.encode_options == short.encode_options
    assert ModelConfig(4, M=2, K=8, L=1, de=4, dh=6, has_ranker=True) == codec.config
    assert EncodeOptions(A=4, B=2) == codec.encode_options
    greedy = codec.with_options(A=0, B=1)
    assert greedy.encode_options == codec.with_options(EncodeOptions()).encode_options == EncodeOptions()
    assert np.array_equal(codec.encode(x, A=0, B=0).codes, greedy.encode(x).codes)
    assert np.array_equal(codec.encode(x, M=1, C=3).codes, codec.encode(x, num_steps=1, num_pairs=3).codes)
    assert encode_file(codec, x, tmp_path / "codes.npy", A=2, beam_width=3).complete
    for call, given in ((Codec.fit, x), (codec.encode, x), (ModelConfig, 4)):
        with pytest.raises(ConfigError, match=r"num_steps .* 2 .* 3"):
            call(given, M=2, num_steps=3)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("num_epochs", "epochs"), ("learning_rate", "lr"), ("n_clusters", "codebook_size"), ("model_args", "preset"),
     ("outptu", "output"), ("NUM_STEPS", "num_steps"), ("pq", "num_parts"), ("k", None), ("m", None), ("nlist", None),
     ("ivf_K", None), ("verify", None), ("topk", None), ("n_neighbors", None), ("d_model", "embed_dim"),
     ("metric_type", None)],
)  # fmt: skip
def test_a_hint_is_the_right_one_or_none(name, meant):
    with pytest.raises(ConfigError, match=f"'{name}'") as caught:
        Codec.fit(random_vectors(60, 4), **{name: 10})
    assert ("Did you mean" in str(caught.value)) == (meant is not None)
    assert meant is None or f"Did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"overwrite": "no"}, {"resume": 1}, {"rotate": "no"}, {"mse_scale": 0}])
def test_switches_and_factors_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Codec.fit(random_vectors(60, 4), **wrong)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_an_interrupt_carries_the_best_codec(tmp_path, num_parts):
    x = random_vectors(400, 4)

    def stop(report):
        if isinstance(report, EpochReport) and report.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"codec = stop\.codec") as caught:
        fit(x, epochs=20, num_parts=num_parts, on_report=stop)
    codec = caught.value.codec
    assert codec.provenance["epoch"] <= 2 and len(codec.models) == num_parts
    assert mse(codec, x) < x.var(0).sum()
    with pytest.raises(KeyboardInterrupt, match="resume=true"):
        fit(x, epochs=20, num_parts=num_parts, on_report=stop, output=tmp_path / "x.safetensors")
    part = next(path for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".part_0"))
    assert Codec.load(part).weights[0].fingerprint() == codec.weights[0].fingerprint()


def test_an_interrupt_before_the_first_validation_carries_no_codec():
    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing was saved") as caught:
        fit(on_report=stop)
    assert caught.value.codec is None


def test_a_run_without_a_state_says_that_it_begins(tmp_path, caplog):
    caplog.set_level("INFO")
    fit(output=tmp_path / "x.safetensors", resume=True, epochs=0)
    assert f"nothing to resume at {tmp_path / 'x.safetensors'}" in caplog.text


def test_vectors_near_the_limit_of_float32_are_rotated_without_warnings(recwarn):
    codec = fit(num_parts=2, rotate=True, epochs=0, embed_dim=2)
    codec.encode(np.full((3, 4), 3e38, np.float32))
    assert not recwarn.list


def test_a_run_that_diverges_carries_the_best_codec_and_a_remedy_that_works(tmp_path):
    settings = {"output": tmp_path / "x.safetensors", "ramp_epochs": 0}
    for given in ({"ramp_epochs": 0}, settings):
        with pytest.raises(ConfigError, match=r"diverged.*lr=null.*overwrite=true") as caught:
            fit(lr=1e30, **given)
        assert caught.value.codec.provenance["epoch"] == 0
    assert fit(lr=None, overwrite=True, **settings).provenance["epoch"] > 0
