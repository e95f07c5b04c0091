"""Stand-ins of the benchmarks that `benchmarks/adapters` is for: packages of what their adapters import, no more.

Written from the interfaces that ann-benchmarks, big-ann-benchmarks and VectorDBBench document. `install` lays them in a
folder, with our adapters where a user of these benchmarks copies them to.
"""

import shutil
from pathlib import Path

ADAPTERS = Path(__file__).parents[1] / "benchmarks" / "adapters"
BASE_ANN = """
class BaseANN:
    def done(self):
        pass

    def get_results(self):
        return self.res

    def get_batch_results(self):
        return self.res

    def get_additional(self):
        return {}

    def __str__(self):
        return self.name

    def track(self):
        raise NotImplementedError

    def load_index(self, dataset):
        raise NotImplementedError
"""
VECTOR_DB = """
from abc import ABC, abstractmethod
from enum import Enum

from pydantic import BaseModel


class MetricType(str, Enum):
    L2 = "L2"
    COSINE = "COSINE"
    IP = "IP"
    DP = "DP"
    HAMMING = "HAMMING"


class DBConfig(ABC, BaseModel):
    db_label: str = ""

    @abstractmethod
    def to_dict(self): ...


class DBCaseConfig(ABC):
    @abstractmethod
    def index_param(self): ...

    @abstractmethod
    def search_param(self): ...


class VectorDB(ABC):
    @abstractmethod
    def __init__(self, dim, db_config, db_case_config, collection_name, drop_old=False, **kwargs): ...

    @abstractmethod
    def init(self): ...

    @abstractmethod
    def insert_embeddings(self, embeddings, metadata, **kwargs): ...

    @abstractmethod
    def search_embedding(self, query, k=100): ...

    @abstractmethod
    def optimize(self, data_size=None): ...
"""
FILTER = """
from dataclasses import dataclass
from enum import Enum


class FilterOp(str, Enum):
    NumGE = "NumGE"
    StrEqual = "StrEqual"
    NonFilter = "NonFilter"


@dataclass
class Filter:
    type: FilterOp
    int_value: int = 0
    label_value: str = ""
"""
COMMANDS = """
from typing import TypedDict, get_type_hints

import click

RUNS = []


class CommonTypedDict(TypedDict):
    db_label: str


def click_parameter_decorators_from_typed_dict(kind):
    def decorate(function):
        for hint in get_type_hints(kind, include_extras=True).values():
            for option in getattr(hint, "__metadata__", ()):
                function = option(function)
        return click.option("--db-label", default="")(function)

    return decorate


@click.group()
def cli():
    pass


def run(**given):
    RUNS.append(given)
"""
OF_TRACK = "from benchmark.algorithms.base import BaseANN\n\n\nclass {name}(BaseANN):\n    pass\n"
FILES = {
    "ann_benchmarks/algorithms/base/module.py": BASE_ANN,
    "benchmark/algorithms/base.py": BASE_ANN,
    "benchmark/datasets.py": "DATASETS = {}\n",
    "neurips23/filter/base.py": OF_TRACK.format(name="BaseFilterANN"),
    "neurips23/ood/base.py": OF_TRACK.format(name="BaseOODANN"),
    "neurips23/streaming/base.py": OF_TRACK.format(name="BaseStreamingANN"),
    "vectordb_bench/backend/clients/__init__.py": "from enum import Enum\n\n\nclass DB(Enum):\n    Qinco = 'Qinco'\n",
    "vectordb_bench/backend/clients/api.py": VECTOR_DB,
    "vectordb_bench/cli/cli.py": COMMANDS,
    "vectordb_bench/backend/filter.py": FILTER,
}
TRACKS = ("filter", "streaming", "ood")


def install(folder: Path) -> None:
    """Packages and adapters in a folder that is to be imported from."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    shutil.copytree(ADAPTERS / "ann_benchmarks", folder / "ann_benchmarks" / "algorithms" / "qinco")
    for track in TRACKS:
        place = folder / "neurips23" / track / "qinco"
        shutil.copytree(ADAPTERS / "big_ann" / track, place)
        shutil.copy(ADAPTERS / "big_ann" / "qinco_ann.py", place)
    shutil.copytree(ADAPTERS / "vectordbbench" / "qinco", folder / "vectordb_bench" / "backend" / "clients" / "qinco")
