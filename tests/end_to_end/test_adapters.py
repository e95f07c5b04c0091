"""The adapters do what ann-benchmarks, big-ann-benchmarks and VectorDBBench ask of them, called as these call them."""

import importlib
import json
import multiprocessing
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import yaml
from scipy.sparse import csr_matrix
from small_models import random_vectors

import qinco

SMALL = {"epochs": 1, "codebook_size": 16, "num_blocks": 1, "hidden_dim": 8, "num_candidates": 4, "beam_width": 4}
pytestmark = pytest.mark.slow
PACKAGES = ("ann_benchmarks", "benchmark", "neurips23", "vectordb_bench")


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch) -> Path:
    """A folder of stand-ins and adapters, which the process is in."""
    stand_ins.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return random_vectors(1500, 12)


def combinations(definition: dict, metric: str) -> list[tuple[list, list]]:
    """Constructor and query arguments of each run that a config.yml of ann-benchmarks asks for, and its parts."""
    assert definition["base_args"] == ["@metric"]
    return [
        ([metric, {name: value[0] if isinstance(value, list) else value for name, value in group["args"].items()}],
         [values[-1] for values in group["query_args"]])
        for group in definition["run_groups"].values()
    ]  # fmt: skip


@pytest.mark.parametrize("metric", ["euclidean", "angular"])
def test_ann_benchmarks_runs_what_its_config_asks_for(metric, vectors):
    definition = yaml.safe_load(Path("ann_benchmarks/algorithms/qinco/config.yml").read_text())["float"]["any"][0]
    module = importlib.import_module(f"{definition['module']}.module")
    x_ND, queries_QD = vectors[:1400], vectors[1400:]
    _, exact_QR = qinco.exhaustive_search(queries_QD, x_ND, 10, metric={"euclidean": "l2", "angular": "cosine"}[metric])
    for (given, settings), query_arguments in combinations(definition, metric):
        settings.pop("minutes")
        algorithm = getattr(module, definition["constructor"])(given, settings | SMALL)
        algorithm.fit(x_ND)
        algorithm.set_query_arguments(*query_arguments)
        algorithm.batch_query(queries_QD, 10)
        found_QR = np.asarray(algorithm.get_batch_results())
        np.testing.assert_array_equal(found_QR[3], algorithm.query(queries_QD[3], 10))
        share = np.mean([len(set(a) & set(b)) for a, b in zip(found_QR, exact_QR, strict=True)]) / 10
        assert share > (0.99 if settings.get("refine") else 0.3), (settings, share)
        assert algorithm.get_additional()["bytes_per_vector"] < 30
        assert str(settings["bytes"]) in str(algorithm) and str(query_arguments[0]) in str(algorithm)


def test_ann_benchmarks_hears_of_an_unknown_metric():
    module = importlib.import_module("ann_benchmarks.algorithms.qinco.module")
    with pytest.raises(NotImplementedError, match="jaccard"):
        module.Qinco("jaccard", {"bytes": 8})


class DataSet:
    """What a data set of big-ann-benchmarks offers, and the number of times its vectors were read."""

    reads = 0

    def __init__(self, vectors: np.ndarray, tags: csr_matrix | None = None):
        self.vectors, self.tags = vectors, tags

    def __call__(self):  # DATASETS holds what makes data sets
        return self

    def get_dataset(self) -> np.ndarray:
        self.reads += 1
        return self.vectors

    def get_dataset_metadata(self) -> csr_matrix:
        return self.tags

    def search_type(self) -> str:
        return "knn" if self.tags is None else "knn_filtered"

    def short_name(self) -> str:
        return f"small-{len(self.vectors)}"


def instantiate(track: str, name: str, metric: str = "euclidean"):
    """The algorithm of a config.yaml, trained in little time, and its first query arguments."""
    config = yaml.safe_load(Path(f"neurips23/{track}/qinco/config.yaml").read_text())[name]["qinco"]
    assert config["docker-tag"] == f"neurips23-{track}-qinco" and config["base-args"] == ["@metric"]
    group = config["run-groups"]["base"]
    params = json.loads(group["args"])[0]
    params.pop("minutes")
    module = importlib.import_module(config["module"])
    algorithm = getattr(module, config["constructor"])(metric, params | {"bytes": 8} | SMALL)
    return algorithm, json.loads(group["query-args"]), sys.modules["benchmark.datasets"].DATASETS


@pytest.mark.parametrize("name", ["random-filter-s", "yfcc-10M"])
def test_the_filter_track_finds_vectors_with_all_tags(name, vectors):
    generator = np.random.default_rng(0)
    tags = csr_matrix(generator.random((1400, 9)) < np.linspace(0.02, 0.6, 9))
    wanted = [(8,), (7, 8), (0,), (0, 1, 2, 3, 4, 5, 6, 7, 8), ()]
    asked = np.zeros((100, 9), bool)
    for row in range(100):
        asked[row, list(wanted[row % 5])] = True
    algorithm, queries_of, data_sets = instantiate("filter", name)
    data_sets["small"] = DataSet(vectors[:1400].astype(np.float32), tags)
    assert not algorithm.load_index("small")
    algorithm.fit("small")
    algorithm.set_query_arguments(queries_of[-1])
    algorithm.filtered_query(vectors[1400:], csr_matrix(asked), 10)
    found_QR, has = algorithm.get_results(), tags.toarray()
    assert found_QR.shape == (100, 10)
    for row, ids in enumerate(found_QR):
        allowed = np.flatnonzero(has[:, list(wanted[row % 5])].all(1))
        there = ids[ids >= 0]
        assert set(there) <= set(allowed) and len(there) == min(10, len(allowed))
        if name == "yfcc-10M":  # refined by the originals
            nearest = allowed[np.square(vectors[allowed] - vectors[1400 + row]).sum(1).argsort()[:10]]
            assert len(set(there) & set(nearest)) >= min(9, len(allowed))


def test_an_index_is_loaded_where_it_was_built(vectors):
    algorithm, queries_of, data_sets = instantiate("ood", "text2image-10M", "ip")
    data_sets["small"] = DataSet(vectors[:1400])
    algorithm.fit("small")
    folder, prefix, files = algorithm.index_files_to_store("small")
    assert files and all((Path(folder) / (prefix + name)).is_file() for name in files)
    again, _, _ = instantiate("ood", "text2image-10M", "ip")
    assert again.load_index("small") and again.track() == "ood"
    queries_QD = random_vectors(50, 12, seed=5)  # of another distribution
    for one in (algorithm, again):
        one.set_query_arguments(queries_of[-1])
        one.query(queries_QD, 10)
    np.testing.assert_array_equal(algorithm.get_results(), again.get_results())
    exact_QR = np.argsort(-queries_QD @ vectors[:1400].T, 1)[:, :10]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(again.get_results(), exact_QR, strict=True)]) > 9.5


def test_the_streaming_track_adds_and_deletes(vectors):
    algorithm, queries_of, _ = instantiate("streaming", "random-xs")
    assert not algorithm.load_index("small")
    algorithm.setup("float32", 1400, 12)
    algorithm.set_query_arguments(queries_of[0])
    alive: set[int] = set()
    steps = [("insert", 0, 800), ("search",), ("delete", 100, 500), ("search",), ("insert", 800, 1400), ("search",),
             ("insert", 200, 300), ("delete", 700, 1100), ("search",)]  # fmt: skip
    for operation, *span in steps:
        ids = np.arange(*span, dtype=np.uint32) if span else None
        if operation == "insert":
            algorithm.insert(vectors[ids], ids)
            alive |= set(ids.tolist())
        elif operation == "delete":
            algorithm.delete(ids)
            alive -= set(ids.tolist())
        else:
            algorithm.query(vectors[1400:], 10)
            assert set(algorithm.get_results().ravel().tolist()) <= alive
            rows = np.array(sorted(alive))
            exact = rows[np.square(vectors[rows] - vectors[1400:, None]).sum(2).argmin(1)]
            assert np.mean((algorithm.get_results() == exact[:, None]).any(1)) > 0.8
    assert len(algorithm.index) == len(alive) and algorithm.track() == "stream"


def found_by(client, queries) -> list[list[int]]:
    with client.init():
        return [client.search_embedding(query, k=5) for query in queries]


@pytest.mark.parametrize("metric", ["COSINE", "L2", "IP"])
def test_vectordbbench_inserts_optimizes_and_searches_in_processes_of_its_own(metric, tmp_path, vectors):
    api = importlib.import_module("vectordb_bench.backend.clients.api")
    filters = importlib.import_module("vectordb_bench.backend.filter")
    config = importlib.import_module("vectordb_bench.backend.clients.qinco.config")
    client_module = importlib.import_module("vectordb_bench.backend.clients.qinco.qinco_client")
    case = config.QincoIndexConfig(metric_type=api.MetricType(metric), bytes=8, minutes=0.1)
    place = config.QincoConfig(folder=str(tmp_path / "bench")).to_dict()
    make = {"dim": 12, "db_config": place, "db_case_config": case, "with_scalar_labels": True}
    client = pickle.loads(pickle.dumps(client_module.Qinco(**make, drop_old=True)))  # as it reaches a process
    x_ND, labels = vectors[:1400], [f"label_{n % 4}" for n in range(1400)]
    with client.init():
        for start in range(0, 1400, 500):
            rows = slice(start, min(start + 500, 1400))
            embeddings, ids = x_ND[rows].tolist(), list(range(rows.start, rows.stop))
            assert client.insert_embeddings(embeddings, ids, labels_data=labels[rows]) == (len(ids), None)
    with client.init():
        client.optimize(1400)  # too few to train on: searches stay exact
    name = {"COSINE": "cosine", "L2": "l2", "IP": "inner_product"}[metric]
    queries = vectors[1400:1410].tolist()
    for chosen, allowed in (
        (filters.Filter(filters.FilterOp.NonFilter), range(1400)),
        (filters.Filter(filters.FilterOp.NumGE, int_value=1000), range(1000, 1400)),
        (filters.Filter(filters.FilterOp.StrEqual, label_value="label_3"), range(3, 1400, 4)),
    ):
        other = client_module.Qinco(**make)
        other.prepare_filter(chosen)
        rows = np.array(allowed)
        _, exact = qinco.exhaustive_search(vectors[1400:1410], x_ND[rows], 5, metric=name)
        assert found_by(other, queries) == rows[exact].tolist()
    with client.init():
        count, error = client.insert_embeddings([[float("nan")] * 12], [1])
        assert count == 0 and isinstance(error, qinco.QincoError)
    if metric == "L2":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(found_by, (client, queries[:1])) == found_by(client, queries[:1])
    client_module.Qinco(**make, drop_old=True)
    assert found_by(client, queries[:1]) == [[]]


def test_vectordbbench_has_a_command(tmp_path):
    commands = importlib.import_module("vectordb_bench.cli.cli")
    importlib.import_module("vectordb_bench.backend.clients.qinco.cli")
    words = ["qinco", "--folder", str(tmp_path), "--bytes", "8", "--nprobe", "4", "--db-label", "small"]
    commands.cli(words, standalone_mode=False)
    (run,) = commands.RUNS
    assert run["db"].value == "Qinco" and run["db_config"].to_dict() == {"folder": str(tmp_path)}
    assert run["db_config"].db_label == "small" and run["db_case_config"].search_param() == {"nprobe": 4}
    assert run["db_case_config"].index_param() == {"metric": "cosine", "bytes": 8, "minutes": 10.0}


def test_vectordbbench_hears_of_an_unknown_metric():
    api = importlib.import_module("vectordb_bench.backend.clients.api")
    config = importlib.import_module("vectordb_bench.backend.clients.qinco.config")
    with pytest.raises(ValueError, match="HAMMING"):
        config.QincoIndexConfig(metric_type=api.MetricType.HAMMING).index_param()


def test_images_install_what_the_adapters_import():
    files = sorted(stand_ins.ADAPTERS.rglob("Dockerfile"))
    assert [path.parent.name for path in files] == ["ann_benchmarks", "big_ann"]
    for path in files:
        assert re.search(r"^FROM .*^RUN pip install .*'qinco\[train\]'$", path.read_text(), re.DOTALL | re.MULTILINE), (
            path
        )
