"""What is published: the address of every file of a data set, model, centroids or index, and its place here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from qinco.config import suggest
from qinco.datasets.named import DATASETS
from qinco.errors import ConfigError

_QINCO = "https://dl.fbaipublicfiles.com/QINCo"
_TEXMEX = "ftp://ftp.irisa.fr/local/texmex/corpus"
_DEEP = "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP"
_PACKINGS = {".tar.gz": "tar", ".gz": "gzip", ".fbin": "fbin"}


@dataclass(frozen=True)
class PublishedFile:
    """A file on a server and the file that it becomes.

    address: https://..., http://... or ftp://...
    target:  path relative to the current directory
    member:  the file's path inside the archive, where the address is that of a .tar.gz
    """

    address: str
    target: str
    member: str | None = None

    @property
    def packing(self) -> str | None:
        """What is undone on the way: "gzip", "tar" (gzipped), "fbin" (made fvecs), or None: it is kept as it is."""
        return next((packing for suffix, packing in _PACKINGS.items() if self.address.endswith(suffix)), None)

    @property
    def is_start(self) -> bool:
        """Whether the file is the first part of a published longer one of the same target."""
        return self.address.endswith(_STARTS)


# The first vectors of another file: that one serves too, where it is there already.
_STARTS = ("/bigann1M.bvecs", "/base1M.fvecs")

# Of each data set: queries, ground truth, database, training vectors. What is quick to get comes first, so that a
# server out of reach shows before hours of work.
_DATASET_ADDRESSES = {
    "bigann1M": (
        f"{_TEXMEX}/bigann_query.bvecs.gz",
        f"{_QINCO}/datasets/bigann/gnd/idx_1M.ivecs",
        f"{_QINCO}/datasets/bigann/bigann1M.bvecs",
        f"{_QINCO}/datasets/bigann/bigann_learn_10M10k.bvecs",
    ),
    "bigann1B": tuple(
        f"{_TEXMEX}/bigann_{part}.gz" for part in ("query.bvecs", "gnd.tar", "base.bvecs", "learn.bvecs")
    ),
    "deep1M": (
        f"{_DEEP}/query.public.10K.fbin",
        *(
            f"{_QINCO}/datasets/deep1b/{name}"
            for name in ("deep1M_groundtruth.ivecs", "base1M.fvecs", "learn10M10k.fvecs")
        ),
    ),
    "deep1B": (
        f"{_DEEP}/query.public.10K.fbin",
        f"{_QINCO}/datasets/deep1b/deep1B_groundtruth.ivecs",
        f"{_DEEP}/base.1B.fbin",
        f"{_DEEP}/learn.350M.fbin",
    ),
    "contriever1M": tuple(
        f"{_QINCO}/datasets/ContrieverEmb/{name}.npy"
        for name in ("queries", "ground_truth1M", "database1M", "training_set")
    ),
    "FB_ssnpp1M": tuple(
        f"{_QINCO}/datasets/FB_ssnpp/{name}.npy"
        for name in ("queries", "ground_truth1M", "database1M", "training_set10010k")
    ),
}
_SMALL = {"bigann1B": "bigann1M", "deep1B": "deep1M"}
_MEMBER = "gnd/idx_1000M.ivecs"

# Folder of the server, folder here, names: what stands in braces is to be chosen from.
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
    """The files that `names` stand for: data sets, models, centroids and indexes, these with or without their suffix.

    small:  of a data set of a billion vectors, take what the set of its first million consists of
    mirror: an address that stands for scheme and host of every published one, whose path is kept

    Raises ConfigError for an unknown name, for names whose files would replace each other, and for a wrong mirror.
    """
    sources: dict[str, tuple[str, PublishedFile]] = {}
    for name in names:
        for file in _find(_SMALL.get(name, name) if small else name):
            other, known = sources.setdefault(file.target, (name, file))
            if known != file:
                raise ConfigError(
                    f"{other} and {name} both have a file for {file.target}: download one of them, or give small=true"
                )
    files = [file for _, file in sources.values()]
    if mirror is None:
        return files
    _check_mirror(mirror)
    root = mirror.rstrip("/")
    return [PublishedFile(root + urlsplit(file.address).path, file.target, file.member) for file in files]


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
    suggestion = suggest(name, (*single, *by_stem, *_DATASET_ADDRESSES))
    groups = {"data sets": list(_DATASET_ADDRESSES)} | {
        group: [pattern for _, _, pattern in patterns] for group, patterns in _GROUPS.items()
    }
    listing = "; ".join(f"the {group} {', '.join(members)}" for group, members in groups.items())
    raise ConfigError(f"nothing is published as {name!r}. {suggestion}There are {listing}")


def _expand(pattern: str) -> list[str]:
    """Every name that `a{b,c}d` stands for."""
    pieces = re.split(r"\{(.*?)\}", pattern)  # those at odd places stood in braces
    return ["".join(choice) for choice in product(*(piece.split(",") for piece in pieces))]


def _check_mirror(mirror: str) -> None:
    try:
        parts = urlsplit(mirror)
        host = parts.hostname or ""
        is_address = parts.scheme in ("http", "https", "ftp") and bool(host.encode("idna")) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or set("?#@") & set(mirror) or not re.fullmatch(r"[!-~]+", mirror):
        raise ConfigError(f"mirror={mirror}: it must be an address such as https://host/folder (http, https or ftp)")
