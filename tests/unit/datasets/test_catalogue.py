from pathlib import PurePosixPath

import pytest

from qinco.datasets.catalogue import PublishedFile, find_files
from qinco.datasets.named import DATASETS
from qinco.errors import ConfigError

ROOT = "https://dl.fbaipublicfiles.com/QINCo"
TEXMEX = "ftp://ftp.irisa.fr/local/texmex/corpus"
DEEP = "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP"


def table(*names, **options) -> dict:
    return {file.target: (file.address, file.packing, file.member) for file in find_files(names, **options)}


def test_bigann_of_a_million():
    assert table("bigann1M") == {
        "data/bigann/bigann_base.bvecs": (f"{ROOT}/datasets/bigann/bigann1M.bvecs", None, None),
        "data/bigann/bigann_learn.bvecs": (f"{ROOT}/datasets/bigann/bigann_learn_10M10k.bvecs", None, None),
        "data/bigann/bigann_query.bvecs": (f"{TEXMEX}/bigann_query.bvecs.gz", "gzip", None),
        "data/bigann/gnd/idx_1M.ivecs": (f"{ROOT}/datasets/bigann/gnd/idx_1M.ivecs", None, None),
    }


def test_bigann_of_a_billion_and_its_small_files():
    assert table("bigann1B") == {
        "data/bigann/bigann_base.bvecs": (f"{TEXMEX}/bigann_base.bvecs.gz", "gzip", None),
        "data/bigann/bigann_learn.bvecs": (f"{TEXMEX}/bigann_learn.bvecs.gz", "gzip", None),
        "data/bigann/bigann_query.bvecs": (f"{TEXMEX}/bigann_query.bvecs.gz", "gzip", None),
        "data/bigann/gnd/idx_1000M.ivecs": (f"{TEXMEX}/bigann_gnd.tar.gz", "tar", "gnd/idx_1000M.ivecs"),
    }
    assert table("bigann1B", small=True) == table("bigann1M") == table("bigann1M", small=True)


def test_deep():
    queries = {"data/deep1b/deep1B_queries.fvecs": (f"{DEEP}/query.public.10K.fbin", "fbin", None)}
    assert table("deep1M") == queries | {
        "data/deep1b/base.fvecs": (f"{ROOT}/datasets/deep1b/base1M.fvecs", None, None),
        "data/deep1b/learn.fvecs": (f"{ROOT}/datasets/deep1b/learn10M10k.fvecs", None, None),
        "data/deep1b/deep1M_groundtruth.ivecs": (f"{ROOT}/datasets/deep1b/deep1M_groundtruth.ivecs", None, None),
    }
    assert table("deep1B") == queries | {
        "data/deep1b/base.fvecs": (f"{DEEP}/base.1B.fbin", "fbin", None),
        "data/deep1b/learn.fvecs": (f"{DEEP}/learn.350M.fbin", "fbin", None),
        "data/deep1b/deep1B_groundtruth.ivecs": (f"{ROOT}/datasets/deep1b/deep1B_groundtruth.ivecs", None, None),
    }
    assert table("deep1B", small=True) == table("deep1M")


@pytest.mark.parametrize(
    "name, server_folder, folder, trainset",
    [
        ("contriever1M", "ContrieverEmb", "contriever", "training_set"),
        ("FB_ssnpp1M", "FB_ssnpp", "fb_ssnpp", "training_set10010k"),
    ],
)
def test_the_npy_sets(name, server_folder, folder, trainset):
    parts = ("database1M", trainset, "queries", "ground_truth1M")
    expected = {
        f"data/{folder}/{part}.npy": (f"{ROOT}/datasets/{server_folder}/{part}.npy", None, None) for part in parts
    }
    assert table(name) == expected == table(name, small=True)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_every_file_of_a_set_is_published_in_its_own_format(dataset):
    files = find_files([dataset.name])
    assert {file.target for file in files} == {
        dataset.database, dataset.trainset, dataset.queries, dataset.ground_truth
    }  # fmt: skip
    for file in files:
        suffix = {"gzip": ".gz", "tar": ".gz", "fbin": ".fbin"}.get(file.packing, PurePosixPath(file.target).suffix)
        assert PurePosixPath(file.address).suffix == suffix


@pytest.mark.parametrize(
    "name, path, target",
    [
        (
            "qinco1-contriever1M-16x8.pt",
            "qinco2-models/qinco1-contriever1M-16x8.pt",
            "models/qinco1-contriever1M-16x8.pt",
        ),
        ("qinco2_L-bigann1M-8x8", "qinco2-models/qinco2_L-bigann1M-8x8.pt", "models/qinco2_L-bigann1M-8x8.pt"),
        ("IVF-qinco2_M-deep1B-32x8", "qinco2-models/IVF-qinco2_M-deep1B-32x8.pt", "models/IVF-qinco2_M-deep1B-32x8.pt"),
        (
            "ivf_centroids_deep1B_1048576",
            "qinco2-models/ivf_centroids_deep1B_1048576.npy",
            "models/ivf_centroids_deep1B_1048576.npy",
        ),
        ("bigann_8x8_L2.pt", "models/bigann_8x8_L2.pt", "models/bigann_8x8_L2.pt"),
        ("Contriever_16x8_L12", "models/Contriever_16x8_L12.pt", "models/Contriever_16x8_L12.pt"),
        ("deep_IVF65k_16x8_L4", "models/deep_IVF65k_16x8_L4.pt", "models/deep_IVF65k_16x8_L4.pt"),
        ("bigann_centroids_1M.npy", "ivf/bigann_centroids_1M.npy", "models/bigann_centroids_1M.npy"),
        ("deep1B_IVF1M_32x8_L4", "ivf/deep1B_IVF1M_32x8_L4.faissindex", "index/deep1B_IVF1M_32x8_L4.faissindex"),
    ],
)
def test_models_centroids_and_indexes(name, path, target):
    assert find_files([name]) == [PublishedFile(f"{ROOT}/{path}", target)]


def test_names_keep_their_order_and_files_come_once():
    files = find_files(["bigann_8x8_L2", "deep1M", "deep1M", "bigann_8x8_L2.pt"])
    assert [file.target for file in files] == ["models/bigann_8x8_L2.pt", *table("deep1M")]


def test_two_files_for_one_target_are_refused():
    with pytest.raises(ConfigError, match=r"bigann1M and bigann1B both have a file for data/bigann/bigann_base\.bvecs"):
        find_files(["bigann1M", "bigann1B"])
    assert table("bigann1M", "bigann1B", small=True) == table("bigann1M")


@pytest.mark.parametrize(
    "name, near",
    [("bigann1m", "bigann1M"), ("bigan1B", "bigann1B"), ("qinco2_L-bigan1M-8x8.pt", "qinco2_L-bigann1M-8x8.pt")],
)
def test_an_unknown_name_is_told_the_nearest_and_what_there_is(name, near):
    with pytest.raises(ConfigError) as raised:
        find_files([name])
    message = str(raised.value)
    assert message.startswith(
        f"nothing is published as '{name}'. Did you mean {near}? There are the data sets bigann1M,"
    )
    for group in ("the models qinco1-{", "the centroids ivf_centroids_{", "the indexes "):
        assert group in message


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "x" * 10_000])
def test_a_name_like_nothing_published(name):
    with pytest.raises(ConfigError, match="There are the data sets"):
        find_files([name])


@pytest.mark.parametrize(
    "mirror", ["http://127.0.0.1:8000", "https://host/", "ftp://host:2121", "https://host/some/folder/"]
)
def test_a_mirror_stands_for_scheme_and_host(mirror):
    published, mirrored = find_files(["bigann1B"]), find_files(["bigann1B"], mirror=mirror)
    assert mirrored[0].address == mirror.rstrip("/") + "/local/texmex/corpus/bigann_query.bvecs.gz"
    assert [(f.target, f.member, f.packing) for f in mirrored] == [(f.target, f.member, f.packing) for f in published]
    model = find_files(["bigann_8x8_L2"], mirror=mirror)[0]
    assert model.address == mirror.rstrip("/") + "/QINCo/models/bigann_8x8_L2.pt"


@pytest.mark.parametrize(
    "mirror",
    ["", "host", "file:///x", "http://", "http://:80", "http://a b", "http://host?x=1", "http://host/#x", "http://me:secret@host",
     "http://host:port", "http://host:0", "http://host:70000", "http://[::1", "http://a..b", "http://höst", "http://h/\n"],
)  # fmt: skip
def test_a_mirror_that_is_no_address_is_refused(mirror):
    with pytest.raises(ConfigError, match="it must be an address such as"):
        find_files(["bigann1M"], mirror=mirror)
