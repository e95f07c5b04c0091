"""How long a whole job still takes: by what is expected, and then by what was measured."""

from types import SimpleNamespace

import pytest
from small_indexes import trained, vectors

from qinco.collection import whole_job
from qinco.collection.collection import Collection
from qinco.collection.whole_job import WholeJob
from qinco.progress import JOB_LEFT, metered


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(whole_job.time, "monotonic", lambda: now.seconds)
    return now


def test_what_is_left_is_expected_and_then_measured(clock):
    heard = []
    counts = {"storing": 1000, "encoding": 1000, "indexing": 1000, "evaluating": 1000}
    job = WholeJob(lambda *values, **fields: heard.append((values, fields)), counts, 100, 60.0)

    def left(seconds, *values, **fields) -> float:
        clock.seconds = seconds
        job(*values, **fields)
        assert heard[-1][0][:3] == values and heard[-1][1].items() > fields.items()
        return heard[-1][1][JOB_LEFT]

    first = left(0, "storing", 0, 1000)
    assert 60 < first < 61
    rest = first - 0.03  # what storing was expected to take
    assert left(1, "storing", 100, 1000) == pytest.approx(9 + rest, abs=0.06)
    assert left(10, "storing", 1000, 1000) == pytest.approx(rest, abs=0.06)
    assert left(10, "copying training vectors", 1, 9) == pytest.approx(rest, abs=0.06)
    assert left(40, "epoch 1/2", 1, 9, loss=3.0) == pytest.approx(rest - 30, abs=0.06)
    assert left(99, "epoch 2/2", 1, 9) == pytest.approx(rest - 60, abs=0.06)  # it took longer
    assert left(100, "encoding", 200, 1000) < 0.3  # which another call encoded
    assert left(110, "encoding", 300, 1000) == pytest.approx(80 - 10, abs=0.1)
    assert left(180, "encoding", 1000, 1000) == pytest.approx(0, abs=0.1)
    assert left(180, "filling lists", 1, 2) < 0.1 and left(190, "filling lists", 2, 2) < 0.1
    assert left(191, "searching exactly", 500, 1000) < 0.1
    assert left(193, "searching exactly", 1000, 1000) == 0


def test_parts_that_come_again_are_counted_together(clock):
    heard = []
    job = WholeJob(lambda *_, **fields: heard.append(fields[JOB_LEFT]), {"storing": 400, "encoding": 400}, 1)
    for seconds, stage, done in ((0, "storing", 0), (10, "storing", 200), (10, "encoding", 0), (30, "encoding", 200),
                                 (40, "storing", 400), (40, "encoding", 0), (50, "encoding", 100)):  # fmt: skip
        clock.seconds = seconds
        job(stage, done, 200)
    assert heard[3] == pytest.approx(10 + 20) and heard[-1] == pytest.approx(40 / 300 * 100, abs=0.1)


def test_creation_tells_it_with_each_stage(tmp_path):
    x_ND, texts, heard = vectors(3000, 3), [], {}
    show = metered(lambda meter: (texts.append(meter.text()), heard.setdefault(meter.stage, meter.fields[JOB_LEFT])))
    with Collection.create(tmp_path / "c.qinco", x_ND, codec=trained("plain"), progress=show):
        pass
    assert all(text.endswith("left of the whole job") for text in texts)
    assert {"storing", "encoding", "searching exactly"} < heard.keys() and heard["storing"] >= heard["encoding"] > 0
    fields = []
    stopped = Collection.create(
        tmp_path / "d.qinco", iter([x_ND]), codec=trained("plain"), progress=lambda *_, **more: fields.append(more)
    )
    stopped.close()
    assert fields and not any(JOB_LEFT in each for each in fields)  # the number of records is not known
