import h5py
import numpy as np
import pytest
import torch

from qinco.errors import ConfigError
from qinco.search.metric import METRICS, Metric, choose_metric
from qinco.vectors.rows import VectorSource, as_source, open_vectors

GENERATOR = np.random.default_rng(0)
Q_ND, X_ND = (GENERATOR.standard_normal((50, 7)).astype(np.float32) * scale for scale in (2, 3))


def exact(name, q_ND, x_ND):
    q_ND, x_ND = q_ND.astype(np.float64), x_ND.astype(np.float64)
    if name == "l2":
        return np.square(q_ND - x_ND).sum(1)
    products = (q_ND * x_ND).sum(1)
    return (
        products if name == "inner_product" else products / np.linalg.norm(q_ND, axis=1) / np.linalg.norm(x_ND, axis=1)
    )


@pytest.mark.parametrize("name", METRICS)
def test_values_order_as_users_know_them(name):
    metric = Metric(name, 4.0 if name == "cosine" else 1.0)
    values_N = metric.values(metric.prepare(Q_ND), X_ND)
    expected_N = exact(name, Q_ND, X_ND)
    assert values_N.dtype == np.float32
    np.testing.assert_allclose(metric.distances(values_N), expected_N, rtol=1e-5, atol=1e-5)
    assert metric.distances(values_N).dtype == np.float32
    sign = 1 if name == "l2" else -1
    assert np.array_equal(np.argsort(values_N), np.argsort(sign * expected_N))


def test_what_is_not_found_is_infinitely_far():
    for name in METRICS:
        expected = np.inf if name == "l2" else -np.inf
        assert Metric(name).distances(np.array([np.inf], np.float32)).tolist() == [expected]


def test_only_cosine_prepares():
    for name in ("l2", "inner_product"):
        assert Metric(name).prepare(X_ND) is X_ND
    prepared_ND = Metric("cosine", 2.5).prepare(X_ND)
    assert prepared_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(prepared_ND, axis=1), 2.5, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e18, 1e38])
def test_cosine_knows_no_scale(scale):
    x_ND = (X_ND / np.abs(X_ND).max() * np.float32(scale)).astype(np.float32)
    np.testing.assert_allclose(Metric("cosine").prepare(x_ND), Metric("cosine").prepare(X_ND), rtol=1e-5, atol=1e-6)


def test_cosine_of_a_zero_vector_is_zero():
    metric, zero_ND = Metric("cosine", 3.0), np.zeros((2, 7), np.float32)
    assert not metric.prepare(zero_ND).any()
    for q_ND, x_ND in ((zero_ND, X_ND[:2]), (metric.prepare(X_ND[:2]), zero_ND), (zero_ND, zero_ND)):
        np.testing.assert_allclose(metric.distances(metric.values(q_ND, x_ND)), 0, atol=1e-6)


def test_cosines_of_any_length_are_compared():
    for length in (1e-18, 1e-12, 1e10, 1e18):
        metric = Metric("cosine", length)
        found_N = metric.distances(metric.values(metric.prepare(Q_ND), (X_ND * length).astype(np.float32)))
        np.testing.assert_allclose(found_N, exact("cosine", Q_ND, X_ND), atol=1e-5)


def test_values_that_are_not_finite_stay_so():
    x_ND = X_ND[:3].copy()
    x_ND[0, 1], x_ND[1, 2] = np.nan, -np.inf
    prepared_ND = Metric("cosine").prepare(x_ND)
    assert np.isnan(prepared_ND[0, 1]) and prepared_ND[1, 2] == -np.inf and np.isfinite(prepared_ND[2]).all()


def test_shortlists_of_cosine_are_those_of_distances():
    assert [Metric(name).scans_inner_products for name in METRICS] == [False, True, False]


def test_metrics_have_the_names_of_faiss_and_of_ann_benchmarks():
    known = {"l2": ("L2", "euclidean", "METRIC_L2", 1), "inner_product": ("ip", "dot", "Inner-Product", 0)}
    known["l2"] += "EUCLID", "L2Squared", "squared l2"
    known["inner_product"] += "DotProduct", "innerproduct", "MIPS", " IP "
    for name, spellings in (known | {"cosine": ("angular", "Cosine", "cos")}).items():
        assert {Metric(spelling).name for spelling in spellings} == {name}


def test_a_file_chooses_the_metric_unless_it_is_given(tmp_path, caplog):
    for name, stated in {"a": "angular", "e": b"euclidean", "h": "hamming"}.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"], file.attrs["distance"] = X_ND, stated
    a, e, h = (tmp_path / f"{name}.h5" for name in "aeh")
    np.save(tmp_path / "x.npy", X_ND)
    assert choose_metric(None, X_ND, tmp_path / "x.npy", tmp_path / "none.h5") == "l2"
    chosen = choose_metric(None, a, X_ND), choose_metric(None, f"{a}:x"), choose_metric("cos", open_vectors(a))
    assert chosen == ("cosine",) * 3
    assert not caplog.text
    for files in ((a, e), (h,), (a, h)):
        with pytest.raises(ConfigError, match="choose metric="):
            choose_metric(None, *files)
    assert choose_metric("ip", h, e) == "inner_product" and choose_metric(None, a, own="l2") == "l2"
    assert [word in caplog.text for word in ("hamming", "euclidean", "angular")] == [True] * 3
    with pytest.raises(ConfigError, match="metric=cosine"):
        choose_metric("angular", own="l2")


def test_unknown_metrics_are_refused():
    with pytest.raises(ConfigError, match="l2, inner_product, cosine, not 'hamming'"):
        Metric("hamming")


def test_the_metric_of_several_files(tmp_path):
    x = np.ones((3, 2), np.float32)
    for name in ("a.hdf5", "b.hdf5"):
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs["distance"], file["train"] = "angular", x
    paths = [str(tmp_path / name) for name in ("a.hdf5", "b.hdf5")]
    several = [open_vectors(paths), open_vectors(paths[:1]), open_vectors(tmp_path), open_vectors(f"{tmp_path}/*.hdf5"),
               open_vectors(paths).limit(4), paths, tuple(paths), [open_vectors(paths[0])], [x, paths[1]]]  # fmt: skip
    assert [choose_metric(None, source) for source in several] == ["cosine"] * len(several)


def test_hdf5_states_its_metric_in_any_form_and_place(tmp_path):
    for number, (place, key, value) in enumerate([
        ("/", "distance", np.array([b"angular"])), ("/", "Distance", "Cosine"), ("g", "metric", "angular"),
        ("g/x", "distance_metric", b"COS"), ("train", "metric_type", "Angular"),
    ]):  # fmt: skip
        with h5py.File(path := tmp_path / f"{number}.hdf5", "w") as file:
            file["train"], file["g/x"] = X_ND, X_ND
            file[place].attrs[key] = value
        assert choose_metric(None, f"{path}:g/x" if place[0] == "g" else path) == "cosine", (place, key)
        with h5py.File(path) as file:
            data = file["g/x" if place[0] == "g" else "train"]
            assert choose_metric(None, data) == choose_metric(None, as_source(data)) == "cosine"


def unit(count=1500, dim=24, seed=0):
    x_ND = np.random.default_rng(seed).standard_normal((count, dim))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


def test_vectors_of_length_1_are_noticed(tmp_path, caplog):
    caplog.set_level("INFO", "qinco")
    x_ND = unit()
    np.save(tmp_path / "x.npy", x_ND)
    coarse = torch.from_numpy(unit(dim=256)).to(torch.bfloat16)
    for x in (x_ND, x_ND.astype(np.float16), coarse, tmp_path / "x.npy", x_ND[:1]):
        caplog.clear()
        assert choose_metric(None, x, compared=as_source(x)) == "cosine"
        assert len(caplog.messages) == 1 and "length 1" in caplog.text and "metric=cosine" in caplog.text
    caplog.clear()
    longer_ND = x_ND.copy()
    longer_ND[999] *= 1.002
    zero_ND = x_ND.copy()
    zero_ND[3] = 0
    others = [
        x_ND * 127,
        (x_ND * 127).astype(np.int8),
        np.eye(24, dtype=np.int8),
        np.eye(24, dtype=np.uint8),
        longer_ND,
    ]
    others += [zero_ND, np.where(x_ND > 0.9, np.nan, x_ND * np.nan), x_ND[:0], torch.eye(24).to(torch.int8)]
    for x in others:
        assert choose_metric(None, compared=as_source(x)) == "l2"
    longer_ND[999], longer_ND[1000:] = x_ND[999], 7
    assert not caplog.messages
    assert choose_metric(None, compared=as_source(longer_ND)) == "cosine"  # a thousand rows are read


def test_what_is_given_or_stated_is_before_what_is_noticed(tmp_path, caplog):
    caplog.set_level("INFO", "qinco")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train"], file.attrs["distance"] = unit(), "euclidean"
    source = open_vectors(tmp_path / "x.h5")
    assert choose_metric(None, source, compared=source) == "l2"
    assert choose_metric("ip", unit(), compared=as_source(unit())) == "inner_product"
    assert choose_metric(None, unit(), own="l2", compared=as_source(unit())) == "l2"
    assert choose_metric(None, tmp_path / "none.h5", own="inner_product", compared=source) == "inner_product"
    assert "length 1" not in caplog.text


class Counting:
    """Rows that count how many of them are read."""

    def __init__(self, x_ND):
        self.x_ND, self.shape, self.dtype, self.read = x_ND, x_ND.shape, x_ND.dtype, 0

    def __getitem__(self, key):
        self.read += len(self.x_ND[key])
        return self.x_ND[key]


def test_a_thousand_rows_are_read():
    rows = Counting(unit())
    choose_metric(None, compared=VectorSource(rows))
    assert rows.read == 1000
    choose_metric("l2", compared=VectorSource(rows))
    choose_metric(None, own="l2", compared=VectorSource(rows))
    assert rows.read == 1000
