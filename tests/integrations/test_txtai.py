"""`QincoANN` inside txtai, and beside its backend of exact vectors."""

import json
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_indexes import DIM, trained, vectors

from qinco.errors import ConfigError

txtai = pytest.importorskip("txtai", reason="needs the extra txtai")
from txtai.ann import ANNFactory  # noqa: E402

from qinco.integrations.txtai import QincoANN  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
NAME = "qinco.integrations.txtai.QincoANN"
ROWS = [{"id": f"row-{number}", "text": f"text {number}", "year": 2000 + number % 20} for number in range(300)]


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    trained("plain").save(path)
    return str(path)


@pytest.fixture(params=["exact", "compressed"])
def settings(request, codec) -> dict:
    return {NAME: {"codec": codec} if request.param == "compressed" else {"bytes": 4}}


def transform(texts) -> np.ndarray:
    """The vector of "text 7" is row 7."""
    return vectors(1000, 1)[[int(text.split()[-1]) for text in texts]]


def made(settings: dict, count: int = 1000, backend: str = NAME):
    ann = ANNFactory.create({"backend": backend, "dimensions": DIM, **settings})
    ann.index(unit(vectors(count, 1)))
    return ann


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def ids(found) -> list[list[int]]:
    return [[id for id, _ in hits] for hits in found]


def test_it_does_what_upstream_asks_of_a_backend(settings, tmp_path):
    queries = unit(vectors(20, 9))
    ann = made(settings)
    assert isinstance(ann, QincoANN) and ann.config["backend"] == NAME
    assert ann.count() == ann.config["offset"] == 1000
    build = ann.config["build"]["settings"]
    assert build == {"bytes": 4 if "bytes" in settings[NAME] else trained("plain").bytes_per_vector}

    ann.append(unit(vectors(50, 4)))
    assert ann.count() == ann.config["offset"] == 1050
    ann.delete([0, 1])
    ann.delete(np.array([2, 3]))
    ann.delete([100_000])
    assert ann.count() == 1046 and ann.config["offset"] == 1050
    found = ann.search(queries, 5)
    assert all(len(hits) == 5 and hits == sorted(hits, key=lambda hit: -hit[1]) for hits in found)
    assert all(type(id) is int and type(score) is float and score > 0 for hits in found for id, score in hits)
    everything = ann.search(queries[:1], 5000)
    assert sorted(ids(everything)[0]) == list(range(4, 1050))

    ann.save(str(tmp_path / "embeddings"))
    assert ann.search(queries, 5) == found
    ann.close()
    ann.load(str(tmp_path / "embeddings"))
    assert ann.count() == 1046 and ann.search(queries, 5) == found
    ann.close()


def test_exact_vectors_are_found_as_the_exact_backend_finds_them():
    queries = unit(vectors(30, 9))
    found, expected = (made({}, backend=name).search(queries, 10) for name in (NAME, "numpy"))
    assert ids(found) == ids(expected)
    scores, others = ([[score for _, score in hits] for hits in one] for one in (found, expected))
    np.testing.assert_allclose(scores, others, atol=1e-5)


def test_few_vectors_are_less_than_the_limit(settings):
    ann = made(settings, 10)
    ann.delete(np.array([3, 4]))
    (hits,) = ann.search(unit(vectors(1, 9)), 10)
    assert sorted(id for id, _ in hits) == [0, 1, 2, 5, 6, 7, 8, 9]
    ann.delete(range(10))
    assert ann.count() == 0 and ann.search(unit(vectors(2, 9)), 10) == [[], []]
    ann.append(unit(vectors(1, 9)))
    assert ids(ann.search(unit(vectors(1, 9)), 10)) == [[10]]


def test_files_and_folders_at_the_path_are_replaced(settings, tmp_path):
    path = tmp_path / "embeddings"
    path.write_bytes(b"of another backend")
    ann = made(settings, 100)
    for count in (100, 120):
        ann.save(str(path))
        other = ANNFactory.create({"backend": NAME, **settings})
        other.load(str(path))
        assert other.count() == count and [one.name for one in tmp_path.iterdir()] == ["embeddings"]
        ann.append(unit(vectors(20, 4)))


def test_what_was_loaded_is_changed_by_save_alone(settings, tmp_path):
    path = tmp_path / "embeddings"
    made(settings, 100).save(str(path))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    ann = ANNFactory.create({"backend": NAME, "offset": 100, **settings})
    ann.load(str(path))
    ann.append(unit(vectors(20, 4)))
    ann.delete([0])
    assert {file: file.read_bytes() for file in before} == before
    ann.save(str(path))
    ann.load(str(path))
    assert ann.count() == 119


def test_a_codec_is_trained_once_there_are_enough(tmp_path):
    ann = made({NAME: {"bytes": 2, "exact_below": 1100, "minutes": 0.02}}, 1000)
    assert ann.backend.stats()["compressed"] == 0
    ann.append(unit(vectors(200, 4)))
    stats = ann.backend.stats()
    assert (stats["compressed"], stats["fresh"]) == (1200, 0)
    assert len(ann.search(unit(vectors(1, 9)), 10)[0]) == 10


@pytest.mark.parametrize(
    ("settings", "x", "told"),
    [
        ({NAME: {"byte": 4}}, np.ones((2, DIM), np.float32), "no setting 'byte'.*bytes"),
        ({"quantize": 1}, np.ones((2, DIM), np.uint8), "quantize"),
    ],
)
def test_what_it_cannot_do_is_refused(settings, x, told):
    ann = ANNFactory.create({"backend": NAME, "dimensions": DIM, **settings})
    with pytest.raises(ConfigError, match=told):
        ann.index(x)


@pytest.mark.parametrize("archive", ["index", "index.tar.gz", "index.zip"])
def test_txtai_indexes_filters_changes_saves_and_loads(settings, tmp_path, archive):
    config = {"method": "external", "transform": transform, "content": True, "backend": NAME, **settings}
    embeddings = txtai.Embeddings(config)
    embeddings.index((row["id"], row, None) for row in ROWS)
    assert embeddings.count() == 300 and embeddings.search("text 42", 1)[0]["id"] == "row-42"
    sql = "select id, text, score from txtai where similar('text 42', 300) and year = 2002 limit 3"
    found = embeddings.search(sql)
    assert found[0]["id"] == "row-42" and found[0]["score"] > 0.5
    assert {int(one["id"][4:]) % 20 for one in found} == {2}

    embeddings.upsert([("row-42", {"text": "text 900", "year": 1990}, None), ("new", {"text": "text 901"}, None)])
    assert embeddings.count() == 301
    assert {one["id"] for one in embeddings.search("text 900", 3)} >= {"row-42"}
    assert embeddings.delete(["row-7"]) == ["row-7"]
    assert embeddings.count() == 300 and "row-7" not in {one["id"] for one in embeddings.search("text 7", 300)}
    expected = embeddings.search("text 8", 5)

    for _ in range(2):
        embeddings.save(str(tmp_path / archive))
    embeddings.close()
    loaded = txtai.Embeddings().load(str(tmp_path / archive), config={"transform": transform})
    assert loaded.count() == 300 and loaded.search("text 8", 5) == expected
    loaded.upsert([("row-8", {"text": "text 902"}, None)])
    loaded.save(str(tmp_path / f"again-{archive}"))
    loaded.close()
    again = txtai.Embeddings().load(str(tmp_path / f"again-{archive}"), config={"transform": transform})
    assert again.search("text 902", 1)[0]["id"] == "row-8" and again.count() == 300
    again.close()


def test_an_archive_holds_the_codes_and_no_vectors(codec, tmp_path):
    config = {"method": "external", "transform": transform, "content": False, "backend": NAME, NAME: {"codec": codec}}
    embeddings = txtai.Embeddings(config)
    embeddings.index(row["text"] for row in ROWS)
    embeddings.save(str(tmp_path / "index.tar.gz"))
    embeddings.close()
    with tarfile.open(tmp_path / "index.tar.gz") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert json.loads(Path(tmp_path, "out/config.json").read_text())["offset"] == 300
    connection = sqlite3.connect(tmp_path / "out/embeddings/collection.sqlite")
    assert connection.execute("SELECT count(*) FROM fresh").fetchone() == (0,)
    connection.close()
