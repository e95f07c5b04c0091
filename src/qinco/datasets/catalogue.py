"""Public data sets and published models: names, addresses of their files, and the paths of these here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from qinco.config import suggest
from qinco.errors import ConfigError

_QINCO = "https://dl.fbaipublicfiles.com/QINCo"
_TEXMEX = "ftp://ftp.irisa.fr/local/texmex/corpus"
_DEEP = "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP"
_PACKINGS = {".tar.gz": "tar", ".gz": "gzip", ".fbin": "fbin"}
_MIRROR = re.compile(r"(https?|ftp)://([\w-]+(\.[\w-]+)*|\[[0-9a-fA-F:]+\])(:[1-9]\d*)?(/[^?#@\s]*)?", re.ASCII)


@dataclass(frozen=True)
class DataSet:
    """A public data set: paths of its files below the folder of downloads."""

    name: str
    queries: str
    ground_truth: str
    database: str
    trainset: str
    mse_scale: float = 1.0  # factor of the mean squared error in papers
    database_limit: int | None = None  # the first vectors of the database that belong to the set; None: all


@dataclass(frozen=True)
class PublishedFile:
    """A file on a server, its path below the folder of downloads, and the one inside the archive if it is a .tar.gz."""

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


# Folder here, scale of the MSE, limit of the database; names here and addresses of queries, ground truth, database and
# training vectors. Small files come first: an unreachable server is noticed before hours of work.
_TABLE: dict[str, tuple[str, float, int | None, dict[str, str]]] = {
    "bigann1M": ("data/bigann", 1e-4, 1_000_000, {
        "bigann_query.bvecs": f"{_TEXMEX}/bigann_query.bvecs.gz",
        "gnd/idx_1M.ivecs": f"{_QINCO}/datasets/bigann/gnd/idx_1M.ivecs",
        "bigann_base.bvecs": f"{_QINCO}/datasets/bigann/bigann1M.bvecs",
        "bigann_learn.bvecs": f"{_QINCO}/datasets/bigann/bigann_learn_10M10k.bvecs",
    }),
    "bigann1B": ("data/bigann", 1e-4, None, {
        "bigann_query.bvecs": f"{_TEXMEX}/bigann_query.bvecs.gz",
        "gnd/idx_1000M.ivecs": f"{_TEXMEX}/bigann_gnd.tar.gz",
        "bigann_base.bvecs": f"{_TEXMEX}/bigann_base.bvecs.gz",
        "bigann_learn.bvecs": f"{_TEXMEX}/bigann_learn.bvecs.gz",
    }),
    "deep1M": ("data/deep1b", 1.0, 1_000_000, {
        "deep1B_queries.fvecs": f"{_DEEP}/query.public.10K.fbin",
        "deep1M_groundtruth.ivecs": f"{_QINCO}/datasets/deep1b/deep1M_groundtruth.ivecs",
        "base.fvecs": f"{_QINCO}/datasets/deep1b/base1M.fvecs",
        "learn.fvecs": f"{_QINCO}/datasets/deep1b/learn10M10k.fvecs",
    }),
    "deep1B": ("data/deep1b", 1.0, None, {
        "deep1B_queries.fvecs": f"{_DEEP}/query.public.10K.fbin",
        "deep1B_groundtruth.ivecs": f"{_QINCO}/datasets/deep1b/deep1B_groundtruth.ivecs",
        "base.fvecs": f"{_DEEP}/base.1B.fbin",
        "learn.fvecs": f"{_DEEP}/learn.350M.fbin",
    }),
    "contriever1M": ("data/contriever", 1.0, None, {
        name: f"{_QINCO}/datasets/ContrieverEmb/{name}"
        for name in ("queries.npy", "ground_truth1M.npy", "database1M.npy", "training_set.npy")
    }),
    "FB_ssnpp1M": ("data/fb_ssnpp", 1e-4, None, {
        name: f"{_QINCO}/datasets/FB_ssnpp/{name}"
        for name in ("queries.npy", "ground_truth1M.npy", "database1M.npy", "training_set10010k.npy")
    }),
}  # fmt: skip
_SMALL, _MEMBER = {"bigann1B": "bigann1M", "deep1B": "deep1M"}, "gnd/idx_1000M.ivecs"
DATASETS = {
    name: DataSet(name, *(f"{folder}/{file}" for file in files), mse_scale=scale, database_limit=limit)
    for name, (folder, scale, limit, files) in _TABLE.items()
}

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


_SINGLE_FILES = {
    name: PublishedFile(f"{_QINCO}/{server_folder}/{name}", f"{folder}/{name}")
    for patterns in _GROUPS.values()
    for server_folder, folder, pattern in patterns
    # Splitting at braces leaves fixed texts and lists of alternatives in turn.
    for name in map("".join, product(*(piece.split(",") for piece in re.split(r"[{}]", pattern))))
}


def find_files(names: Iterable[str], small: bool = False, mirror: str | None = None) -> list[PublishedFile]:
    """The files of data sets, models, centroids and indexes; names of single files with or without their suffix.

    With `small`, a data set of a billion vectors is replaced by that of its first million; `mirror` replaces scheme and
    host of every address.
    """
    if mirror is not None and not _MIRROR.fullmatch(mirror):
        raise ConfigError(f"mirror={mirror} must be an address such as https://host/folder (http, https or ftp)")
    files: dict[str, tuple[str, PublishedFile]] = {}
    for name in names:
        for file in _find(_SMALL.get(name, name) if small else name):
            if mirror is not None:
                file = replace(file, address=mirror.rstrip("/") + urlsplit(file.address).path)
            other, known = files.setdefault(file.target, (name, file))
            if known != file:
                raise ConfigError(f"{other} and {name} both have a file {file.target}: choose one, or give small=true")
    return [file for _, file in files.values()]


def names() -> list[str]:
    """Every name that `find_files` knows."""
    return [*_TABLE, *_SINGLE_FILES]


def _find(name: str) -> list[PublishedFile]:
    if name in _TABLE:
        folder, _, _, files = _TABLE[name]
        members = {address: _MEMBER if address.endswith(".tar.gz") else None for address in files.values()}
        return [PublishedFile(address, f"{folder}/{file}", members[address]) for file, address in files.items()]
    by_stem = {PurePosixPath(file_name).stem: file for file_name, file in _SINGLE_FILES.items()}
    file = _SINGLE_FILES.get(name) or by_stem.get(name)
    if file is not None:
        return [file]
    files = {stem: PurePosixPath(file.target).name for stem, file in by_stem.items()}
    hint = suggest(PurePosixPath(name).stem, files | {name: name for name in _TABLE})
    listing = f"data sets {', '.join(_TABLE)}; docs/cli.md lists the models, centroids and indexes"
    raise ConfigError(f"nothing is published as {name!r}. {hint}There are the {listing}")
