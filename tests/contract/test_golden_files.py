"""Codecs and indexes that earlier versions wrote load forever, and decode and find the same vectors."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from qinco.codec import Codec
from qinco.codec.files import encode_file
from qinco.collection.collection import Collection
from qinco.errors import DataError
from qinco.search.index import Index
from qinco.search.options import SearchOptions
from qinco.store.codes import Codes
from qinco.store.manifest import read_manifest
from qinco.store.tensors import read_header

DATA = Path(__file__).parents[1] / "data"
NAMES = ["golden-codec-v1", "golden-ivf-codec-v1", "golden-product-codec-v1"]
INDEXES = ["golden-graph-index-v1", "golden-index-v1"]
CODES = ["golden-begun-codes-v1", "golden-codes-v1"]


@pytest.fixture(params=NAMES)
def golden(request):
    arrays = np.load(DATA / f"{request.param}.npz")
    parts = [arrays[name] for name in ("codes", "lists") if name in arrays]
    return Codec.load(DATA / f"{request.param}.safetensors"), parts, arrays


def test_all_golden_files_are_tested():
    assert sorted(path.stem for path in DATA.glob("golden-*.safetensors")) == sorted(NAMES)
    assert sorted(path.parent.name for path in DATA.glob("golden-*/manifest.json")) == sorted(INDEXES + CODES)


def test_they_decode_to_the_same_vectors(golden):
    codec, parts, arrays = golden
    np.testing.assert_allclose(codec.decode(*parts), arrays["decoded"], rtol=0, atol=1e-6 * np.ptp(arrays["decoded"]))
    assert len(np.unique(arrays["decoded"], axis=0)) > 20


def test_they_encode_as_well_as_they_did(golden):
    codec, parts, arrays = golden
    found = codec.encode(arrays["vectors"], precision="float32")
    errors = [np.square(decoded - arrays["vectors"]).sum() for decoded in (codec.decode(found), codec.decode(*parts))]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_the_kinds_are_what_they_were(golden):
    codec, parts, _ = golden
    assert codec.is_ivf == (len(parts) == 2)
    assert len(codec.models) == 1 or codec.rotation_DD is not None
    assert (codec.encode_options.num_pairs, codec.encode_options.beam_width) == (8, 4)
    assert codec.provenance["train"]["epochs"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_their_header_is_of_version_one(name):
    header = read_header(DATA / f"{name}.safetensors")
    assert set(header) == {"kind", "format_version", "model", "num_parts", "encode", "provenance"}
    assert (header["kind"], header["format_version"]) == ("codec", 1)


# Folders of codes


def test_folders_of_codes_hold_the_same_codes(tmp_path):
    codec, arrays = Codec.load(DATA / "golden-ivf-codec-v1.safetensors"), np.load(DATA / "golden-ivf-codec-v1.npz")
    whole = Codes.load(DATA / "golden-codes-v1", codec)
    assert np.array_equal(whole.codes, arrays["codes"]) and np.array_equal(whole.lists, arrays["lists"])
    with pytest.raises(DataError, match="2 of 3 shards"):
        Codes.load(DATA / "golden-begun-codes-v1", codec)
    shutil.copytree(DATA / "golden-begun-codes-v1", tmp_path / "codes")
    done = encode_file(codec, arrays["vectors"], tmp_path / "codes", shard_rows=16, resume=True)
    assert (done.num_done, done.complete) == (8, True)
    assert np.array_equal(Codes.load(tmp_path / "codes", codec).codes, arrays["codes"])


def test_version_1_is_continued_where_it_was_to_replace_a_folder(tmp_path):
    codec, arrays = Codec.load(DATA / "golden-ivf-codec-v1.safetensors"), np.load(DATA / "golden-ivf-codec-v1.npz")
    encode_file(codec, arrays["vectors"][::-1], tmp_path / "codes", shard_rows=16)
    shutil.copytree(DATA / "golden-begun-codes-v1", tmp_path / "codes.shards")
    (tmp_path / ".codes.shards.done").mkdir()
    (tmp_path / ".codes.shards.done" / "codes-00000.npy").touch()
    done = encode_file(codec, arrays["vectors"], tmp_path / "codes", shard_rows=16, overwrite=True, resume=True)
    assert (done.num_done, done.complete, [path.name for path in tmp_path.iterdir()]) == (8, True, ["codes"])
    assert np.array_equal(Codes.load(tmp_path / "codes", codec).codes, arrays["codes"])
    shutil.copytree(DATA / "golden-begun-codes-v1", tmp_path / "codes.shards")
    encode_file(codec, arrays["vectors"][:20], tmp_path / "codes", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


# Indexes


@pytest.fixture(params=INDEXES)
def golden_index(request):
    spec = importlib.util.spec_from_file_location("make_golden", DATA / "make_golden.py")
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    return DATA / request.param, np.load(DATA / f"{request.param}.npz"), make_golden.SEARCHES


@pytest.mark.parametrize("mmap", [True, False])
def test_indexes_find_the_same_vectors(golden_index, mmap):
    folder, arrays, searches = golden_index
    index = Index.load(folder, mmap)
    decoded_ND, ids_N = arrays["decoded"], arrays["ids"]
    for number, options in enumerate(searches):
        distances_QR, ids_QR = index.search(arrays["queries"], k=5, **options)
        np.testing.assert_allclose(distances_QR, arrays[f"distances_{number}"], rtol=1e-4, atol=1e-4)
        assert np.isin(ids_QR, ids_N).all()
    np.testing.assert_allclose(index.reconstruct(ids_N), decoded_ND, rtol=0, atol=1e-6 * np.ptp(decoded_ND))
    assert len(index) == len(ids_N) == 250 and len(np.unique(decoded_ND, axis=0)) > 20


def test_indexes_are_what_they_were(golden_index):
    folder, arrays, _ = golden_index
    index = Index.load(folder)
    assert index.next_id == arrays["ids"].max() + 1
    assert index.codec.fingerprint() == index.codec_fingerprint
    if folder.name == "golden-index-v1":
        assert (index.metric, index.num_lists, index.codec.is_ivf) == ("l2", 6, True)
        assert index.pairwise.num_pairs > 0 and index.tables.graph is None
        assert index.tables.partition_VD is None and index.segments[0].ids.dtype == np.uint32
        assert index.options == SearchOptions()
    else:
        assert (index.metric, index.num_lists, index.codec.is_ivf) == ("cosine", 20, False)
        assert index.pairwise is None and index.tables.graph is None  # its file is empty
        assert index.tables.partition_VD is not None and index.segments[0].ids.dtype == np.int64
        assert index.options == SearchOptions(4, 30, None, 8)


def test_indexes_are_changed_and_saved(golden_index, tmp_path):
    folder, arrays, _ = golden_index
    shutil.copytree(folder, tmp_path / "index")
    index = Index.load(tmp_path / "index")
    before = index.search(arrays["queries"], num_short=250, nprobe=40)[0]
    assert index.add(arrays["queries"]).tolist()[0] == arrays["ids"].max() + 1
    assert index.remove(arrays["ids"][:9]) == 9
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    found = again.search(arrays["queries"], num_short=291, nprobe=40)
    assert len(again) == 291 and all(
        np.array_equal(*pair)
        for pair in zip(found, index.search(arrays["queries"], num_short=291, nprobe=40), strict=True)
    )
    assert before.shape == found[0].shape and not np.array_equal(before, found[0])


@pytest.mark.parametrize("name", INDEXES)
def test_their_manifest_is_of_version_one(name):
    manifest = read_manifest(DATA / name, "index")
    arrays = {f"{name}.npy" for name in ("centroids", "tables", "levels", "starts", "codes", "ids")}
    extra = {"golden-index-v1": "pairwise.safetensors", "golden-graph-index-v1": "graph.faissindex"}[name]
    assert set(manifest.files) == arrays | {"codec.safetensors", extra}
    assert set(manifest.settings) == {
        "metric", "radius", "num_lists", "adds_centroids", "dim", "code_size", "codebook_size", "next_id", "codec",
        "options",
    }  # fmt: skip


def test_a_collection_finds_what_it_found(tmp_path):
    shutil.copytree(DATA / "golden-collection-v1", tmp_path / "c")
    arrays = np.load(DATA / "golden-collection-v1.npz")
    with Collection.open(tmp_path / "c", read_only=True) as docs:
        found = docs.search(arrays["queries"], 5, nprobe=100)
        assert docs.verify() == [] and len(docs) == 231 and docs.get("bare")[0].payload == {"n": -2}
    assert np.array_equal([[str(hit.id) for hit in hits] for hits in found], arrays["ids"])
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], arrays["scores"], rtol=1e-3, atol=1e-3)
    with Collection.open(tmp_path / "c") as docs:
        docs.upsert(["more"], arrays["queries"][:1])
        assert docs.optimize(progress=False)["encoded"] == 2 and docs.verify() == [] and len(docs) == 232
