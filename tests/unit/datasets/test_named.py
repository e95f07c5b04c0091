from pathlib import PurePosixPath

import pytest

from qinco.datasets.named import DATASETS, DataSet, find_dataset


def test_the_named_sets():
    assert find_dataset("bigann1M") == DataSet(
        "bigann1M",
        database="data/bigann/bigann_base.bvecs",
        trainset="data/bigann/bigann_learn.bvecs",
        queries="data/bigann/bigann_query.bvecs",
        ground_truth="data/bigann/gnd/idx_1M.ivecs",
        mse_scale=1e-4,
        database_limit=1_000_000,
    )
    assert find_dataset("deep1M") == DataSet(
        "deep1M",
        database="data/deep1b/base.fvecs",
        trainset="data/deep1b/learn.fvecs",
        queries="data/deep1b/deep1B_queries.fvecs",
        ground_truth="data/deep1b/deep1M_groundtruth.ivecs",
        database_limit=1_000_000,
    )
    assert find_dataset("FB_ssnpp1M") == DataSet(
        "FB_ssnpp1M",
        database="data/fb_ssnpp/database1M.npy",
        trainset="data/fb_ssnpp/training_set10010k.npy",
        queries="data/fb_ssnpp/queries.npy",
        ground_truth="data/fb_ssnpp/ground_truth1M.npy",
        mse_scale=1e-4,
    )
    contriever = find_dataset("contriever1M")
    assert (contriever.trainset, contriever.mse_scale) == ("data/contriever/training_set.npy", 1)
    assert find_dataset("bigann1B").ground_truth == "data/bigann/gnd/idx_1000M.ivecs"
    assert find_dataset("bigann1B").database_limit is None and find_dataset("deep1B").database_limit is None
    assert find_dataset("deep1B").ground_truth == "data/deep1b/deep1B_groundtruth.ivecs"


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_paths_are_relative_and_of_known_formats(dataset):
    for path in (dataset.database, dataset.trainset, dataset.queries, dataset.ground_truth):
        assert PurePosixPath(path).parts[0] == "data"
        assert PurePosixPath(path).suffix in (".fvecs", ".bvecs", ".ivecs", ".npy")


def test_anything_else_is_a_path():
    assert find_dataset("bigann1m") is None and find_dataset("x.npy") is None
