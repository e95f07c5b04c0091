"""The public data sets that may be named instead of a path, and where their files are expected."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A public data set; paths are relative to the current directory.

    database, trainset, queries: files of vectors     ground_truth: file of the queries' nearest neighbours, by row
    mse_scale:      factor of the mean squared error in reports and papers
    database_limit: how many of the database file's first vectors belong to the set; all where it is None
    """

    name: str
    database: str
    trainset: str
    queries: str
    ground_truth: str
    mse_scale: float = 1.0
    database_limit: int | None = None


def _bigann(name: str, ground_truth: str, limit: int | None) -> DataSet:
    files = (f"data/bigann/bigann_{part}.bvecs" for part in ("base", "learn", "query"))
    return DataSet(name, *files, f"data/bigann/gnd/{ground_truth}", 1e-4, limit)


def _deep(name: str, limit: int | None) -> DataSet:
    files = (f"data/deep1b/{part}.fvecs" for part in ("base", "learn", "deep1B_queries"))
    return DataSet(name, *files, f"data/deep1b/{name}_groundtruth.ivecs", 1.0, limit)


def _npy(name: str, folder: str, trainset: str, mse_scale: float) -> DataSet:
    files = (f"data/{folder}/{part}.npy" for part in ("database1M", trainset, "queries", "ground_truth1M"))
    return DataSet(name, *files, mse_scale)


# The sets of a million share a database's name with those of a billion, of which they are the start.
DATASETS = {
    dataset.name: dataset
    for dataset in (
        _bigann("bigann1M", "idx_1M.ivecs", 1_000_000),
        _bigann("bigann1B", "idx_1000M.ivecs", None),
        _deep("deep1M", 1_000_000),
        _deep("deep1B", None),
        _npy("contriever1M", "contriever", "training_set", 1.0),
        _npy("FB_ssnpp1M", "fb_ssnpp", "training_set10010k", 1e-4),
    )
}


def find_dataset(name: str) -> DataSet | None:
    """The data set called `name`, or None: it is a path then."""
    return DATASETS.get(name)
