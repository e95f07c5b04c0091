import io
import json
import shutil
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, built, copied, trained, vectors

from qinco.errors import ConfigError, DataError
from qinco.search import index_file
from qinco.search import tables as tables_module
from qinco.search.index import Index
from qinco.search.index_file import CODEC, GRAPH, PAIRWISE
from qinco.search.options import SearchOptions
from qinco.search.tables import MIN_GRAPH_LISTS, CoarseGraph
from qinco.store.folder import read_folder, write_folder
from qinco.store.manifest import MANIFEST, read_manifest

QUERIES_QD = vectors(20, 1)


def same(one: Index, other: Index, **options) -> bool:
    found = zip(one.search(QUERIES_QD, **options), other.search(QUERIES_QD, **options), strict=True)
    return all(np.array_equal(*pair) for pair in found)


def files_of(folder) -> set[str]:
    return set(read_manifest(folder, "index").files)


def is_mapped(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array, np.memmap)


ARRAYS = {f"{name}.npy" for name in ("centroids", "tables", "levels", "starts", "codes", "ids", "mean")}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(tmp_path, kind, metric, mmap):
    index = built(kind, metric, pairwise=metric == "l2")
    index.save(tmp_path / "index")
    assert files_of(tmp_path / "index") == ARRAYS | {CODEC} | ({PAIRWISE} if metric == "l2" else set())
    loaded = Index.load(tmp_path / "index", mmap)
    for options in ({}, {"num_short": 0}, {"nprobe": 1, "num_short": 20}, {"filter": range(0, NUM_VECTORS, 50)}):
        assert same(loaded, index, **options)
    assert repr(loaded) == repr(index) and loaded.options == index.options and len(loaded) == NUM_VECTORS
    assert loaded.tables.metric == index.tables.metric and loaded.codec_fingerprint == index.codec.fingerprint()
    np.testing.assert_array_equal(loaded.reconstruct([3, 5]), index.reconstruct([3, 5]))
    assert is_mapped(loaded.segments[0].codes) == is_mapped(loaded.segments[0].ids) == mmap


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_index_is_changed_and_saved_over_itself(tmp_path, mmap):
    built("ivf", pairwise=True).save(tmp_path)
    index = Index.load(tmp_path, mmap)
    assert index.add(vectors(300, 3), ids=np.arange(300) + 2**33).tolist()[-1] == 2**33 + 299
    assert index.remove(range(100)) == 100
    before = index.search(QUERIES_QD)
    for _ in range(2):
        index.save(tmp_path)
        assert all(np.array_equal(*pair) for pair in zip(index.search(QUERIES_QD), before, strict=True))
        again = Index.load(tmp_path, mmap)
        assert len(again) == NUM_VECTORS + 200 and np.array_equal(again.search(QUERIES_QD)[0], before[0])
        assert len(again.segments) == 1 and again.next_id == 2**33 + 300
    assert again.add(vectors(1)).tolist() == [2**33 + 300]
    assert np.array_equal(Index.load(tmp_path).search(QUERIES_QD)[0], before[0]), "only a save changes the disk"


def test_a_pairwise_decoder_keeps_its_own_centroids(tmp_path):
    """It may have been fitted elsewhere, to centroids that the index's tables have moved."""
    index = copied(built("ivf", pairwise=True))
    index.pairwise = replace(index.pairwise, centroids_VD=index.codec.coarse_centroids)
    index.save(tmp_path)
    loaded = Index.load(tmp_path)
    assert not np.array_equal(index.codec.coarse_centroids, index.tables.centroids_VD)
    assert np.array_equal(loaded.pairwise.centroids_VD, index.codec.coarse_centroids) and same(
        loaded, index, num_short=0
    )
    built("ivf", pairwise=True).save(tmp_path)
    loaded = Index.load(tmp_path)
    assert loaded.pairwise.centroids_VD is loaded.tables.centroids_VD


def test_ids_are_not_used_again_after_a_load(tmp_path):
    index = copied(built())
    index.remove(np.arange(5, NUM_VECTORS))
    index.options = SearchOptions(3, 20, 40, 50)
    index.save(tmp_path)
    assert Index.load(tmp_path).options == index.options and same(Index.load(tmp_path), index)
    assert Index.load(tmp_path).add(vectors(1)).tolist() == [NUM_VECTORS]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_index_is_saved(tmp_path, kind):
    index = copied(built(kind))
    index.remove(np.arange(NUM_VECTORS))
    index.save(tmp_path / "emptied")
    index.emptied().save(tmp_path / "new")
    for name, next_id in (("emptied", NUM_VECTORS), ("new", 0)):
        loaded = Index.load(tmp_path / name)
        assert len(loaded) == 0 and (loaded.search(QUERIES_QD)[1] == -1).all()
        assert loaded.add(vectors(3)).tolist() == list(range(next_id, next_id + 3))


@pytest.mark.slow
def test_many_lists_are_saved_with_their_graph(tmp_path, monkeypatch):
    index = Index.build(trained("plain"), vectors(9000, 2), 4500)
    if index.num_lists < MIN_GRAPH_LISTS:
        pytest.fail(f"{index.num_lists} lists need no graph")
    assert index.tables.coarse is not None
    index.save(tmp_path)
    assert GRAPH in files_of(tmp_path)
    loaded = Index.load(tmp_path)
    monkeypatch.setattr(tables_module, "CoarseGraph", lambda *arguments, **named: pytest.fail("the graph is made anew"))
    for options in ({}, {"ef_search": 1, "nprobe": 1}, {"ef_search": 64, "nprobe": 8}, {"filter": [3, 4, 5]}):
        assert same(loaded, index, **options)
    everything = index.search(QUERIES_QD, nprobe=5000, num_short=500)[0]
    shares = [
        (loaded.search(QUERIES_QD, nprobe=64, num_short=500, ef_search=effort)[0] == everything).mean()
        for effort in (1, 256)
    ]
    assert shares[0] <= shares[1] and shares[1] > 0.95


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_graphs_of_older_indexes_are_read_with_faiss_and_made_anew_without(tmp_path, monkeypatch, metric):
    faiss = pytest.importorskip("faiss")
    index = copied(built("plain", metric))
    index.parts = replace(index.parts, tables=replace(index.tables, min_graph_lists=5))
    theirs = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
    theirs.add(index.tables.centroids_VD)
    content = faiss.serialize_index(theirs, faiss.IO_FLAG_SKIP_STORAGE).tobytes()
    with monkeypatch.context() as older:
        older.setattr(index_file, "GRAPH", "graph.faissindex")
        older.setattr(CoarseGraph, "save", lambda self, path: path.write_bytes(content))
        index.save(tmp_path / "older")
    assert "graph.faissindex" in files_of(tmp_path / "older")
    loaded = Index.load(tmp_path / "older")
    assert np.array_equal(loaded.tables.graph.links.neighbors, faiss.vector_to_array(theirs.hnsw.neighbors))
    assert same(loaded, index, nprobe=4)
    loaded.save(tmp_path / "newer")
    assert GRAPH in files_of(tmp_path / "newer") and "graph.faissindex" not in files_of(tmp_path / "newer")
    assert same(Index.load(tmp_path / "newer"), loaded, nprobe=4)
    monkeypatch.setattr(index_file, "find_spec", lambda name: None)
    loaded = Index.load(tmp_path / "older")
    assert loaded.tables.graph is None and same(loaded, index, nprobe=4)


# Codecs


def test_an_index_without_its_codec_takes_one(tmp_path):
    index = built("ivf")
    Index(None, index.parts).save(tmp_path)
    assert files_of(tmp_path) == ARRAYS
    bare = Index.load(tmp_path)
    assert bare.codec is None and same(bare, index, num_short=0)
    assert same(Index.load(tmp_path, codec=trained("ivf")), index)
    bare.save(tmp_path)
    assert Index.load(tmp_path).codec_fingerprint == index.codec_fingerprint
    for wrong in (trained("plain"), trained("product")):
        with pytest.raises(DataError, match=r"holds codes of another codec than .*: give the one that made them"):
            Index.load(tmp_path, codec=wrong)


def test_a_codec_is_asked_for_its_shape_where_nothing_else_is_known(tmp_path):
    index = built("ivf")
    Index(None, replace(index.parts, codec_fingerprint=None)).save(tmp_path)
    assert same(Index.load(tmp_path, codec=trained("ivf")), index)
    with pytest.raises(DataError, match="num_codes is 4, not 8"):
        Index.load(tmp_path, codec=trained("product"))
    index = Index.build(trained("plain"), vectors(), 5)
    Index(None, replace(index.parts, codec_fingerprint=None)).save(tmp_path)
    with pytest.raises(DataError, match="num_lists is 5, not 12"):
        Index.load(tmp_path, codec=trained("ivf"))


# Damage


@pytest.fixture
def saved(tmp_path):
    built("ivf", pairwise=True).save(tmp_path / "index")
    return tmp_path / "index"


def paths(folder) -> list:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("mmap", [True, False])
def test_every_damaged_file_is_refused_by_its_name(saved, tmp_path, mmap):
    for file in paths(saved):
        content = file.read_bytes()
        for damaged in (content[:-2], content[: len(content) // 2], b"", content + b"\0", None, flipped(content)):
            broken = tmp_path / "broken"
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(saved, broken)
            (broken / file.name).unlink()
            if damaged is not None:
                (broken / file.name).write_bytes(damaged)
            with pytest.raises(DataError, match=MANIFEST if file.name == MANIFEST else file.name):
                Index.load(broken, mmap)


def flipped(content: bytes) -> bytes:
    place = content.index(b'"radius": 1') + 10 if b'"radius": 1' in content else len(content) * 2 // 3  # no blank
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"manifest\.json"):
        Index.load(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        Index.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="5"):
        Index.load(5)
    with pytest.raises(ConfigError, match="other files"):
        built().save(tmp_path)
    with pytest.raises(ConfigError, match="create it first"):
        built().save(tmp_path / "nowhere" / "index")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def rewritten(folder, target, change) -> None:
    """A sound folder whose content another writer has changed: change(settings, arrays, files)."""
    opened = read_folder(folder, "index")
    settings, arrays, files = dict(opened.settings), dict(opened.arrays), dict(opened.files)
    change(settings, arrays, files)
    with write_folder(target, "index", settings) as writer:
        for name, array in arrays.items():
            writer.put(name, array)
        for name, file in files.items():
            shutil.copy(file, writer.file(name))


def setting(name, value):
    return lambda settings, arrays, files: settings.update({name: value})


def array(name, change):
    return lambda settings, arrays, files: arrays.update({name: change(arrays[name])})


def missing(*names):
    return lambda settings, arrays, files: [arrays.pop(name, None) for name in names]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (setting("metric", "hamming"), "'hamming'"), (setting("metric", None), "None"),
        (setting("radius", "wide"), "manifest"), (setting("num_lists", 13), "centroids"),
        (setting("num_lists", 0), "manifest"), (setting("num_lists", "12"), "manifest"),
        (setting("dim", 7), "centroids"), (setting("code_size", 5), "tables"), (setting("codebook_size", 8), "tables"),
        (setting("codebook_size", 512), "512"), (setting("next_id", -1), "manifest"),
        (setting("next_id", 2**64), "manifest"), (setting("next_id", 0.5), "manifest"),
        (setting("codec", 5), "manifest"), (setting("options", {"nprobe": 0}), "nprobe"),
        (setting("options", {"speed": 1}), "speed"),
        (setting("options", None), "manifest"), (setting("adds_centroids", 1), "manifest"),
        (setting("fitted", {"tables": -1}), "manifest"),
        (lambda settings, arrays, files: settings.clear(), "manifest"), (missing("centroids"), "centroids"),
        (missing("tables"), "tables"), (missing("levels"), "levels"), (missing("codes", "ids"), "codes, ids"),
        (array("centroids", lambda old: old.astype(np.float64)), "centroids"),
        (array("levels", lambda old: old[:-1]), "levels"),
        (array("tables", lambda old: np.full_like(old, np.nan)), "tables"),
        (array("starts", lambda old: old[:-1]), "starts"), (array("starts", lambda old: old[::-1]), "starts"),
        (array("starts", lambda old: old.astype(np.int32)), "starts"), (array("codes", lambda old: old[:-1]), "codes"),
        (array("ids", lambda old: old[:-1]), "damaged"), (array("ids", lambda old: old.astype(np.int32)), "ids"),
    ],
)  # fmt: skip
def test_folders_whose_parts_do_not_fit_together_are_refused(saved, tmp_path, change, named):
    rewritten(saved, tmp_path / "wrong", change)
    for mmap in (True, False):
        with pytest.raises(DataError, match=named) as told:
            Index.load(tmp_path / "wrong", mmap)
        assert str(tmp_path / "wrong") in str(told.value) and "\n" not in str(told.value)


def test_the_manifest_says_what_it_is(saved):
    index = built("ivf", pairwise=True)
    settings = read_manifest(saved, "index").settings
    assert settings == {
        "metric": "l2", "radius": 1.0, "num_lists": NUM_LISTS, "adds_centroids": True, "dim": DIM, "code_size": 4,
        "codebook_size": 16, "next_id": NUM_VECTORS, "codec": index.codec.fingerprint(),
        "options": {"nprobe": 16, "num_short": 100, "num_mid": None, "ef_search": None},
        "fitted": {"tables": NUM_VECTORS, "lists": None, "pairwise": NUM_VECTORS, "num_lists": None, "seed": 0},
        "ranking": {name: value for name, value in asdict(index.tables.ranking).items() if name != "mean_D"},
    }  # fmt: skip
    assert json.loads((saved / MANIFEST).read_text())["kind"] == "index"


# Lost updates


def test_a_save_over_what_another_has_saved_is_refused(tmp_path, monkeypatch):
    folder, more = tmp_path / "index", vectors(15, 3)
    copied(built()).save(folder)
    one, other, reader = (Index.load(folder) for _ in range(3))
    given = one.add(more[:10])
    one.save(folder)
    assert other.add(more).tolist()[:10] == given.tolist() and one.is_current and not other.is_current
    before = (folder / MANIFEST).read_bytes()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for name in (folder, "index", tmp_path / "link", "link/../index/"):
        with pytest.raises(ConfigError, match=r"reload\(\)"):
            other.save(name)
    assert (folder / MANIFEST).read_bytes() == before and len(other) == NUM_VECTORS + 15
    assert not reader.is_current and reader.reload() and reader.is_current and not reader.reload()
    assert len(reader) == NUM_VECTORS + 10 and same(reader, one)
    other.reload()
    assert other.add(more).tolist() == list(range(NUM_VECTORS + 10, NUM_VECTORS + 25))
    other.save(folder)
    assert len(Index.load(folder)) == NUM_VECTORS + 25 and other.is_current and not one.is_current


def test_saving_elsewhere_or_to_overwrite_is_what_it_was(tmp_path, caplog):
    one, other = tmp_path / "one", tmp_path / "other"
    copied(built()).save(one)
    index, newer = Index.load(one), Index.load(one)
    newer.remove([0])
    newer.save(one)
    index.add(vectors(3, 3))
    index.save(other)
    assert index.is_current and len(Index.load(other)) == NUM_VECTORS + 3
    with pytest.raises(ConfigError):
        Index(index.codec, index.parts).save(one)
    index.save(one, overwrite=True)
    assert len(Index.load(one)) == NUM_VECTORS + 3 and not newer.is_current
    index.add(vectors(2, 4))
    index.reload()
    assert len(index) == NUM_VECTORS + 3 and "dropped" in caplog.text
    copied(built()).save(one)
    shutil.rmtree(other)
    newer.save(other)
    assert Index.load(one).next_id == NUM_VECTORS and len(Index.load(other)) == NUM_VECTORS - 1
    with pytest.raises(ConfigError, match="no folder"):
        copied(built()).reload()


# Bytes


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_made_of_its_bytes(tmp_path, kind):
    index = copied(built(kind, pairwise=True))
    index.add(vectors(9, 3), ids=np.arange(-10, -1))
    content, file = index.to_bytes(), io.BytesIO()
    index.save(file)
    for load in (Index.load, Index.from_bytes):
        assert same(load(io.BytesIO(file.getvalue())), index) and same(load(content), index)
    for given in (content, bytearray(content), np.frombuffer(content, np.uint8)):
        with Index.from_bytes(given) as found:
            assert same(found, index) and found.next_id == index.next_id and found.is_current and found.is_trained
    assert same(Index.from_bytes(content, codec=trained(kind)), index)
    with (tmp_path / "file").open("wb") as file:
        index.save(file)
    assert same(Index.load(tmp_path / "file"), index)
    for wrong in (b"", content[:-9], None, "text", content.replace(b"manifest", b"manifesT"), 7):
        with pytest.raises(DataError):
            Index.from_bytes(wrong)
    for wrong in (b"", content[:-9], trained(kind).to_bytes(), 7, io.StringIO("x")):
        with pytest.raises((ConfigError, DataError)):
            Index.load(wrong)


def test_bytes_do_not_write_elsewhere(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("../manifest.json", "{}")
    with pytest.raises(DataError):
        Index.from_bytes(content.getvalue())
