"""Public data sets and published models: their names, the addresses of their files, and the paths of these here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from qinco.config import suggest
from qinco.errors import ConfigError

_QINCO = "https://dl.fbaipublicfiles.com/QINCo"
_TEXMEX = "ftp://ftp.irisa.fr/local/texmex/corpus"
_DEEP = "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP"
_PACKINGS = {".tar.gz": "tar", ".gz": "gzip", ".fbin": "fbin"}


@dataclass(frozen=True)
class DataSet:
    """A public data set: files of vectors, their paths relative to the folder of downloads.

    `ground_truth` holds the queries' nearest neighbours, row by row; `mse_scale` is the factor of the mean squared
    error in papers; `database_limit` is how many of the database file's first vectors belong to the set (None: all).
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


# The sets of a million share the database file of those of a billion, of which they are the start.
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


@dataclass(frozen=True)
class PublishedFile:
    """A file on a server (https, http or ftp), and its path below the folder of downloads.

    `member` is the file's path inside the archive, where the address is that of a .tar.gz.
    """

    address: str
    target: str
    member: str | None = None

    @property
    def packing(self) -> str | None:
        """How it is converted: "gzip" and "tar" (gzipped) are unpacked, "fbin" becomes fvecs; None: kept as it is."""
        return next((packing for suffix, packing in _PACKINGS.items() if self.address.endswith(suffix)), None)

    @property
    def is_start(self) -> bool:
        """Whether it holds the first vectors of another published file of the same target, which serves as well."""
        return self.address.endswith(("/bigann1M.bvecs", "/base1M.fvecs"))


def _in(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


# Of each data set: queries, ground truth, database, training vectors. Small files come first, so that an unreachable
# server is noticed before hours of work.
_DATASET_ADDRESSES = {
    "bigann1M": (
        f"{_TEXMEX}/bigann_query.bvecs.gz",
        *_in(f"{_QINCO}/datasets/bigann", "gnd/idx_1M.ivecs", "bigann1M.bvecs", "bigann_learn_10M10k.bvecs"),
    ),
    "bigann1B": _in(
        _TEXMEX, "bigann_query.bvecs.gz", "bigann_gnd.tar.gz", "bigann_base.bvecs.gz", "bigann_learn.bvecs.gz"
    ),
    "deep1M": (
        f"{_DEEP}/query.public.10K.fbin",
        *_in(f"{_QINCO}/datasets/deep1b", "deep1M_groundtruth.ivecs", "base1M.fvecs", "learn10M10k.fvecs"),
    ),
    "deep1B": (
        f"{_DEEP}/query.public.10K.fbin",
        f"{_QINCO}/datasets/deep1b/deep1B_groundtruth.ivecs",
        *_in(_DEEP, "base.1B.fbin", "learn.350M.fbin"),
    ),
    "contriever1M": _in(
        f"{_QINCO}/datasets/ContrieverEmb",
        *("queries.npy", "ground_truth1M.npy", "database1M.npy", "training_set.npy"),
    ),
    "FB_ssnpp1M": _in(
        f"{_QINCO}/datasets/FB_ssnpp",
        *("queries.npy", "ground_truth1M.npy", "database1M.npy", "training_set10010k.npy"),
    ),
}
_SMALL = {"bigann1B": "bigann1M", "deep1B": "deep1M"}
_MEMBER = "gnd/idx_1000M.ivecs"

# Folder on the server, folder here, names; braces hold alternatives.
_GROUPS = {
    "models": [
        ("qinco2-models", "models", "qinco1-{bigann1M,deep1M,contriever1M,FB_ssnpp1M}-{8x8,16x8}.pt"),
        ("qinco2-models", "models", "qinco2_L-{bigann1M,deep1M,contriever1M,FB_ssnpp1M}-{8x8,16x8}.pt"),
        ("qinco2-models", "models", "IVF-qinco2_{S,M}-{bigann1B,deep1B}-{8x8,16x8,32x8}.pt"),
        ("models", "models", "{bigann,deep,FB_ssnpp,Contriever}_{8x8,16x8}_L{2,4,12,16}.pt"),
        ("models", "models", "{bigann,deep}_IVF{65k,1M}_{8x8,16x8}_L{2,4}.pt"),
    ],
    "centroids": [
        ("qinco2-models", "models", "ivf_centroids_{bigann1B,deep1B}_1048576.npy"),
        ("ivf", "models", "{bigann,deep}_centroids_{65k,1M}.npy"),
    ],
    "indexes": [
        ("ivf", "index", "bigann10M_IVF65k_16x8_L2.faissindex"),
        ("ivf", "index", "{bigann1B,deep1B}_IVF1M_{8x8,16x8,32x8}_L{2,4}.faissindex"),
    ],
}


def find_files(names: Iterable[str], small: bool = False, mirror: str | None = None) -> list[PublishedFile]:
    """The files of data sets, models, centroids and indexes; names of single files with or without their suffix.

    Args:
        names: of what is published.
        small: of a data set of a billion vectors, take the set of its first million.
        mirror: replaces scheme and host of every address; the path is kept.

    Raises:
        ConfigError: a name is unknown, two names have different files for one path, or the mirror is not an address.
    """
    if mirror is not None:
        _check_mirror(mirror)
    files: dict[str, tuple[str, PublishedFile]] = {}
    for name in names:
        for file in _find(_SMALL.get(name, name) if small else name):
            if mirror is not None:
                address = mirror.rstrip("/") + urlsplit(file.address).path
                file = PublishedFile(address, file.target, file.member)
            other, known = files.setdefault(file.target, (name, file))
            if known != file:
                raise ConfigError(f"{other} and {name} both have a file {file.target}: choose one, or give small=true")
    return [file for _, file in files.values()]


def names() -> list[str]:
    """Every name that `find_files` knows, those of single files with their suffix."""
    return [*_DATASET_ADDRESSES, *_single_files()]


def _single_files() -> dict[str, PublishedFile]:
    return {
        file_name: PublishedFile(f"{_QINCO}/{server_folder}/{file_name}", f"{folder}/{file_name}")
        for patterns in _GROUPS.values()
        for server_folder, folder, pattern in patterns
        for file_name in _expand(pattern)
    }


def _find(name: str) -> list[PublishedFile]:
    if name in _DATASET_ADDRESSES:
        dataset = DATASETS[name]
        targets = (dataset.queries, dataset.ground_truth, dataset.database, dataset.trainset)
        pairs = zip(_DATASET_ADDRESSES[name], targets, strict=True)
        return [PublishedFile(a, target, _MEMBER if a.endswith(".tar.gz") else None) for a, target in pairs]
    single = _single_files()
    by_stem = {PurePosixPath(file_name).stem: file for file_name, file in single.items()}
    file = single.get(name) or by_stem.get(name)
    if file is not None:
        return [file]
    hint = suggest(name, (*single, *by_stem, *_DATASET_ADDRESSES))
    groups = {"data sets": list(_DATASET_ADDRESSES)} | {
        group: [pattern for _, _, pattern in patterns] for group, patterns in _GROUPS.items()
    }
    listing = "; ".join(f"{group}: {', '.join(members)}" for group, members in groups.items())
    raise ConfigError(f"Nothing is published as {name!r}. {hint}Available {listing}")


def _expand(pattern: str) -> list[str]:
    """Every name that `a{b,c}d` stands for."""
    pieces = re.split(r"\{(.*?)\}", pattern)  # those at odd places were in braces
    return ["".join(choice) for choice in product(*(piece.split(",") for piece in pieces))]


def _check_mirror(mirror: str) -> None:
    try:
        parts = urlsplit(mirror)
        host = parts.hostname or ""
        is_address = parts.scheme in ("http", "https", "ftp") and bool(host.encode("idna")) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or set("?#@") & set(mirror) or not re.fullmatch(r"[!-~]+", mirror):
        raise ConfigError(f"mirror={mirror} must be an address such as https://host/folder (http, https or ftp)")
