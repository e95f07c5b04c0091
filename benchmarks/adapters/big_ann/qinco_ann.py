"""qinco in the tracks of big-ann-benchmarks (NeurIPS 2023): copy this file to a folder `qinco` of each track there,
beside what lies in the folder of that track here: `neurips23/filter/qinco`, `neurips23/streaming/qinco`,
`neurips23/ood/qinco`.

Shape suffixes: N vectors, Q queries, D dimension, R results.
"""

from pathlib import Path

import numpy as np
from benchmark.algorithms.base import BaseANN
from benchmark.datasets import DATASETS
from neurips23.filter.base import BaseFilterANN
from neurips23.ood.base import BaseOODANN
from neurips23.streaming.base import BaseStreamingANN

import qinco

METRICS = {"euclidean": "l2", "ip": "inner_product", "angular": "cosine"}


class Qinco(BaseANN):
    """An index of codes of a few bytes.

    `index_params` are `bytes` of a code, `refine` (whether the original vectors rank the first results), and arguments
    of `qinco.Codec.fit`, such as `minutes`. Query arguments are those of `qinco.Index.search`: `nprobe`, `num_short`,
    `num_refine`.
    """

    def __init__(self, metric: str, index_params: dict):
        self.metric, self.params = METRICS[metric], dict(index_params)
        self.refines, self.options = self.params.pop("refine", False), {}
        self.originals, self.name = {}, f"qinco-{self.params['bytes']}"

    def fit(self, dataset: str) -> None:
        x_ND = DATASETS[dataset]().get_dataset()
        self.index = self._build(x_ND)
        self._folder(dataset).parent.mkdir(parents=True, exist_ok=True)
        self.index.save(self._folder(dataset))
        self._prepare(dataset, x_ND)

    def load_index(self, dataset: str) -> bool:
        if not self._folder(dataset).exists():
            return False
        self.index = qinco.Index.load(self._folder(dataset))
        self._prepare(dataset, DATASETS[dataset]().get_dataset() if self.refines else None)
        return True

    def index_files_to_store(self, dataset: str) -> tuple[str, str, list[str]]:
        folder = self._folder(dataset)
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        return str(folder), "", files

    def set_query_arguments(self, query_args: dict) -> None:
        self.options = dict(query_args)

    def query(self, X: np.ndarray, k: int) -> None:
        self.res = self.index.search(X, k, **self.options, **self.originals)[1]

    def get_additional(self) -> dict:
        return {"bytes_per_vector": self.index.bytes_per_vector}

    def __str__(self) -> str:
        return f"qinco({self.params}, refine={self.refines}, {self.options})"

    def _build(self, x_ND: np.ndarray, ids: np.ndarray | None = None) -> qinco.Index:
        training = dict(self.params)
        codec = qinco.Codec.fit(x_ND, num_steps=training.pop("bytes"), **training)
        return qinco.Index.build(codec, x_ND, ids=ids, metric=self.metric)

    def _prepare(self, dataset: str, x_ND: np.ndarray | None) -> None:
        """What a search needs besides the index."""
        self.originals = {"refine": x_ND} if self.refines else {}

    def _folder(self, dataset: str) -> Path:
        settings = "-".join(f"{name}={value}" for name, value in sorted(self.params.items()))
        return Path("data", "indices", self.track(), settings, DATASETS[dataset]().short_name())


class QincoFilter(Qinco, BaseFilterANN):
    """The filter track: vectors and queries have tags, and what is found has all tags of its query."""

    def track(self) -> str:
        return "filter"

    def _prepare(self, dataset: str, x_ND: np.ndarray | None) -> None:
        super()._prepare(dataset, x_ND)
        data_set = DATASETS[dataset]()
        if data_set.search_type() == "knn_filtered":
            self.rows_of_tag = data_set.get_dataset_metadata().T.tocsr()

    def filtered_query(self, X: np.ndarray, filter, k: int) -> None:
        """Search queries (Q, D) whose tags are rows of a sparse matrix (Q, tags); equal tags are searched at once."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for row in range(len(X)):
            tags = filter.indices[filter.indptr[row] : filter.indptr[row + 1]]
            alike.setdefault(tuple(sorted(tags.tolist())), []).append(row)
        self.res = np.full((len(X), k), -1, np.int64)
        for tags, rows in alike.items():
            among = self.index.select(self._rows_with(tags)) if tags else None
            self.res[rows] = self.index.search(X[rows], k, filter=among, **self.options, **self.originals)[1]

    def _rows_with(self, tags: tuple[int, ...]) -> np.ndarray:
        """Row numbers of the vectors that have all of these tags."""
        rows, counts = np.unique(np.concatenate([self.rows_of_tag[tag].indices for tag in tags]), return_counts=True)
        return rows[counts == len(tags)].astype(np.int64)


class QincoStreaming(Qinco, BaseStreamingANN):
    """The streaming track: the codec is trained on the first vectors that come, and others are added and removed."""

    def track(self) -> str:
        return "stream"

    def setup(self, dtype: str, max_pts: int, ndims: int) -> None:
        self.index = None

    def load_index(self, dataset: str) -> bool:
        return False

    def insert(self, X: np.ndarray, ids: np.ndarray) -> None:
        ids = np.asarray(ids).astype(np.int64)
        if self.index is None:
            self.index = self._build(X, ids)
        else:
            self.index.upsert(X, ids)

    def delete(self, ids: np.ndarray) -> None:
        self.index.remove(np.asarray(ids).astype(np.int64))


class QincoOOD(Qinco, BaseOODANN):
    """The track of queries of another distribution than the vectors."""

    def track(self) -> str:
        return "ood"
