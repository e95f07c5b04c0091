"""Names of data sets and models, the addresses of their files, and the paths of these."""

from pathlib import PurePosixPath

import pytest

from qinco.datasets.catalogue import DATASETS, PublishedFile, find_files, names
from qinco.errors import ConfigError
from qinco.vectors.formats import SUFFIXES

ROOT = "https://dl.fbaipublicfiles.com/QINCo"
TEXMEX = "ftp://ftp.irisa.fr/local/texmex/corpus"
DEEP = "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP"


def table(*names, **options) -> dict:
    return {file.target: (file.address, file.packing, file.member) for file in find_files(names, **options)}


def test_the_files_of_sets():
    assert table("bigann1M") == {
        "data/bigann/bigann_base.bvecs": (f"{ROOT}/datasets/bigann/bigann1M.bvecs", None, None),
        "data/bigann/bigann_learn.bvecs": (f"{ROOT}/datasets/bigann/bigann_learn_10M10k.bvecs", None, None),
        "data/bigann/bigann_query.bvecs": (f"{TEXMEX}/bigann_query.bvecs.gz", "gzip", None),
        "data/bigann/gnd/idx_1M.ivecs": (f"{ROOT}/datasets/bigann/gnd/idx_1M.ivecs", None, None),
    }
    truth = table("bigann1B")["data/bigann/gnd/idx_1000M.ivecs"]
    assert truth == (f"{TEXMEX}/bigann_gnd.tar.gz", "tar", "gnd/idx_1000M.ivecs")
    assert table("deep1M")["data/deep1b/deep1B_queries.fvecs"] == (f"{DEEP}/query.public.10K.fbin", "fbin", None)
    for name, small in (("bigann1B", "bigann1M"), ("deep1B", "deep1M"), ("FB_ssnpp1M", "FB_ssnpp1M")):
        assert table(name, small=True) == table(small)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_every_file_of_a_set_is_published_in_its_own_format(dataset):
    targets = {dataset.database, dataset.trainset, dataset.queries, dataset.ground_truth}
    files = find_files([dataset.name])
    assert {file.target for file in files} == targets
    for file in files:
        suffix = PurePosixPath(file.target).suffix
        assert suffix in SUFFIXES and PurePosixPath(file.target).parts[0] == "data"
        packed = {"gzip": ".gz", "tar": ".gz", "fbin": ".fbin"}.get(file.packing, suffix)
        assert PurePosixPath(file.address).suffix == packed


@pytest.mark.parametrize(
    "name, path, target",
    [
        ("qinco2_L-bigann1M-8x8", "qinco2-models/qinco2_L-bigann1M-8x8.pt", "models/qinco2_L-bigann1M-8x8.pt"),
        ("IVF-qinco2_M-deep1B-32x8", "qinco2-models/IVF-qinco2_M-deep1B-32x8.pt", "models/IVF-qinco2_M-deep1B-32x8.pt"),
        ("bigann_8x8_L2.pt", "models/bigann_8x8_L2.pt", "models/bigann_8x8_L2.pt"),
        ("deep_IVF65k_16x8_L4", "models/deep_IVF65k_16x8_L4.pt", "models/deep_IVF65k_16x8_L4.pt"),
        ("bigann_centroids_1M.npy", "ivf/bigann_centroids_1M.npy", "models/bigann_centroids_1M.npy"),
        ("deep1B_IVF1M_32x8_L4", "ivf/deep1B_IVF1M_32x8_L4.faissindex", "index/deep1B_IVF1M_32x8_L4.faissindex"),
    ],
)
def test_models_centroids_and_indexes(name, path, target):
    assert find_files([name]) == [PublishedFile(f"{ROOT}/{path}", target)]


def test_every_name_is_found():
    assert len(names()) > 60 and all(find_files([name]) for name in names())


def test_two_files_for_one_target_are_refused():
    with pytest.raises(ConfigError, match=r"bigann1M and bigann1B .*data/bigann/bigann_base\.bvecs"):
        find_files(["bigann1M", "bigann1B"])
    assert table("bigann1M", "bigann1B", small=True) == table("bigann1M")


@pytest.mark.parametrize(
    "name, near",
    [
        ("bigann1m", "Did you mean bigann1M?"),
        ("qinco2_L-bigan1M-8x8.pt", "Did you mean qinco2_L-bigann1M-8x8.pt?"),
        ("../../etc/passwd", "bigann1M, bigann1B"),
        ("x" * 10_000, "bigann1M, bigann1B"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_what_there_is(name, near):
    with pytest.raises(ConfigError) as raised:
        find_files([name])
    for part in (repr(name), near, *DATASETS):
        assert part in str(raised.value)
    assert len(str(raised.value)) < 300 + len(name)


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:8000", "ftp://host:2121", "https://host/some/folder/"])
def test_a_mirror_replaces_scheme_and_host(mirror):
    published, mirrored = find_files(["bigann1B"]), find_files(["bigann1B"], mirror=mirror)
    assert mirrored[0].address == mirror.rstrip("/") + "/local/texmex/corpus/bigann_query.bvecs.gz"
    assert [(f.target, f.member, f.packing) for f in mirrored] == [(f.target, f.member, f.packing) for f in published]


@pytest.mark.parametrize(
    "mirror",
    ["", "host", "file:///x", "http://", "http://:80", "http://a b", "http://host?x=1", "http://host/#x",
     "http://me:secret@host", "http://host:port", "http://host:0", "http://[::1", "http://a..b", "http://höst"],
)  # fmt: skip
def test_a_mirror_that_is_not_an_address_is_refused(mirror):
    with pytest.raises(ConfigError, match="mirror="):
        find_files(["bigann1M"], mirror=mirror)
