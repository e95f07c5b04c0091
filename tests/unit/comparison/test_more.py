"""The parts of a report besides its cells: they are added, kept in files, and not measured again."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
from small_indexes import DIM, trained, vectors

from qinco.comparison.installed import is_installed
from qinco.comparison.kept import Kept
from qinco.comparison.more import add, best_codecs
from qinco.errors import ConfigError

SOURCES = SimpleNamespace(train=vectors(300, 1), db=vectors(600, 2), queries={"given": vectors(30, 3)})
OURS = {"id": "S", "family": "qinco2-S", "ours": True, "bytes": 2, "status": "done", "index": []}
RIVAL = {"id": "SQ8", "family": "SQ", "ours": False, "bytes": DIM, "status": "done", "index": []}
FAST = {"targets": (0.05,), "seconds": 0.01, "limit_seconds": 1.0, "progress": False}


def report():
    return deepcopy({"cells": [OURS, RIVAL], "metrics": ["l2"]})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return add(report(), SOURCES, folder, codecs={"S": trained("plain")}, parts=("exact", "index"), **FAST), folder


def test_the_report_gains_indexes_and_what_follows(measured):
    found, _ = measured
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    ours, rival = found["cells"]
    assert ours["index"][0]["status"] == "done" and ours["index"][0]["rows"] == 600
    assert bool(rival["index"]) == is_installed("faiss")
    assert found["exact"]["query_us"] > 0
    assert [one["codec"] for one in found["break_even"]["vectors"]] == ["S", "S"]
    assert [one["against"] for one in found["break_even"]["memory"]] == ["exact"]


def test_what_was_measured_is_not_measured_again(measured):
    found, folder = measured
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    again = add(report(), SOURCES, folder, codecs={"S": trained("plain")}, parts=("exact", "index"), **FAST)
    assert again == found and before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before


def test_other_vectors_are_measured_again(measured, tmp_path):
    found, folder = measured
    for path in folder.rglob("*.json"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / path.name).write_bytes(path.read_bytes())
    others = SimpleNamespace(train=vectors(300, 1), db=vectors(500, 7), queries=vectors(30, 3))
    again = add(report(), others, tmp_path, parts=("exact",), codecs={}, **FAST)
    assert again["exact"]["rows"] == 500 and found["exact"]["rows"] == 600


def test_scales_are_added(tmp_path):
    scales = {"dimension": (4,), "size": (100,), "steps": (1,)}
    found = add(
        report(), SOURCES, tmp_path, codecs={}, parts=("scaling",), scales=scales, **FAST | {"limit_seconds": 1e-6}
    )
    assert {name: len(points) for name, points in found["scaling"].items()} == {"dimension": 1, "size": 1, "steps": 1}
    assert found["scaling"]["size"][0]["status"] == "time limit"


def test_the_best_codec_of_each_size_is_taken(tmp_path):
    def cell(name, size, error, **others):
        return OURS | {"id": name, "bytes": size, "codec": f"codecs/{name}", "settings": {"valid_mse": error}} | others

    cells = [cell("a", 8, 2.0), cell("b", 8, 1.0), cell("c", 16, 3.0), cell("d", 16, 0.1, prefix_of="e"),
             cell("f", 32, 0.1, status="time limit"), RIVAL]  # fmt: skip
    assert best_codecs(cells, tmp_path) == {"b": tmp_path / "codecs/b", "c": tmp_path / "codecs/c"}


def test_a_codec_is_indexed_once_whatever_its_cells(tmp_path):
    settings = {"valid_mse": 1.0}
    cells = [OURS | {"id": f"S-{size}", "bytes": size, "codec": "codecs/S", "settings": settings} for size in (17, 16)]
    assert best_codecs(cells, tmp_path) == {"S-17": tmp_path / "codecs/S"}


@pytest.mark.parametrize(
    "given",
    [{"parts": ("exact", "graphs")}, {"codecs": {"T": "t"}}, {"targets": ()}, {"limit_seconds": 0},
     {"scales": {"width": (1,)}}],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_work(given, tmp_path):
    with pytest.raises(ConfigError):
        add(report(), SOURCES, tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_a_part_goes_on_after_an_interrupt(tmp_path):
    kept, conditions = Kept(tmp_path, {}, lambda *told: None), {"values": [1, 2]}
    kept.saver("p", conditions)([1])
    assert kept.begun("p", conditions) == [1] and kept.begun("p", {"values": [3]}) is None

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.part("p", conditions, stop)
    assert kept.begun("p", conditions) == [1]
    assert kept.part("p", conditions, lambda progress: [1, 2]) == [1, 2]
    assert kept.part("p", conditions, stop) == [1, 2]


def test_damaged_parts_are_measured_again(tmp_path):
    kept = Kept(tmp_path, {}, lambda *told: None)
    for content in ("", "[]", '{"conditions": {}}'):
        (tmp_path / "p.json").write_text(content)
        assert kept.part("p", {}, lambda progress: 5) == 5
