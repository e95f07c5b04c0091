"""Where an index breaks even, of times and sizes with known answers."""

import json

import pytest

from qinco.comparison.break_even import break_even
from qinco.errors import ConfigError

EXACT = {"rows": 100_000, "query_us": 1010.0, "batch_us": 100.0, "bytes": 512,
         "smaller": {"rows": 10_000, "query_us": 110.0, "batch_us": 10.0}}  # fmt: skip


def row(rows=100_000, query_us=410.0, **others):
    return {"rows": rows, "target": 0.9, "query_us": query_us, "batch_us": query_us, "bytes": 12.0,
            "fixed_bytes": 1_000_000, **others}  # fmt: skip


def graph(query_us=210.0, num_bytes=656.0, target=0.9):
    return {"rows": 100_000, "target": target, "query_us": query_us, "bytes": num_bytes}


def one_at_a_time(found):
    return next(one for one in found["vectors"] if one["mode"] == "one query at a time")


def test_a_scan_of_ten_nanoseconds_a_vector_overtakes_400_microseconds_at_40_000_vectors():
    found = one_at_a_time(break_even({"S": [row()]}, EXACT))
    assert found["value"] == pytest.approx(40_000)
    assert found["extrapolated"] and found["measured"] == [100_000, 100_000]
    assert "40,000" in found["sentence"]


def test_between_two_measured_numbers_nothing_is_extrapolated():
    rows = [row(), row(10_000, 230.0)]  # 210 + 0.002 N against 10 + 0.01 N
    found = one_at_a_time(break_even({"S": rows}, EXACT))
    assert found["value"] == pytest.approx(25_000)
    assert not found["extrapolated"]


def test_an_index_that_grows_as_fast_as_a_scan_never_overtakes_it():
    rows = [row(query_us=2000.0), row(10_000, 200.0)]
    found = one_at_a_time(break_even({"S": rows}, EXACT))
    assert found["value"] is None and "slower" in found["sentence"]


def test_a_faster_index_is_faster_with_any_number():
    found = one_at_a_time(break_even({"S": [row(query_us=5.0)]}, EXACT))
    assert found["value"] == 0 and "faster" in found["sentence"]


def test_batches_are_judged_by_their_own_times():
    found = break_even({"S": [row()]}, EXACT)["vectors"]
    assert {one["mode"]: one["value"] for one in found}["in large batches"] == pytest.approx(410_000)


def test_memory_breaks_even_where_what_is_saved_pays_for_the_codec():
    found = {one["against"]: one for one in break_even(
        {"S": [row()]}, EXACT, [graph(), graph(num_bytes=700.0)], memory_bytes=512_000_000)["memory"]}  # fmt: skip
    assert found["exact"]["value"] == pytest.approx(1_000_000 / 500)
    assert found["exact"]["fits"] == pytest.approx(1e6)
    assert found["exact"]["index_fits"] == pytest.approx(511e6 / 12)
    assert found["hnsw"]["bytes"] == 656.0


def test_codes_longer_than_floats_save_nothing():
    found = break_even({"S": [row(bytes=600.0)]}, EXACT)["memory"]
    assert found[0]["value"] is None


def test_a_slower_smaller_index_is_cheaper_below_some_load():
    found = [one for one in break_even({"S": [row()]}, None, [graph(), graph(300.0)], gigabytes_per_core=8)[
        "queries_per_second"] if one["against"] == "hnsw"]  # fmt: skip
    assert len(found) == 1 and found[0]["index_is_cheaper"] == "below"
    gigabytes = (644 * 100_000 - 1_000_000) / 1e9
    assert found[0]["value"] == pytest.approx(gigabytes / (8 * 200e-6))  # 200 µs of a core each
    assert found[0]["sentence"].startswith("Above about")


@pytest.mark.parametrize(
    ("own", "expected"),
    [(row(query_us=100.0), "always"), (row(bytes=800.0), "never"), (row(query_us=100.0, bytes=800.0), "above")],
)
def test_who_is_cheaper(own, expected):
    found = break_even({"S": [own]}, None, [graph()])["queries_per_second"]
    assert [one["index_is_cheaper"] for one in found] == [expected]


@pytest.mark.parametrize("own_us", [100.0, 1000.0])
def test_sentences_call_codecs_by_the_names_given(own_us):
    found = break_even({"S-8": [row(query_us=own_us)]}, EXACT, [graph()], names={"S-8": "qinco2-S with 8 bytes"})
    for one in found["vectors"] + found["memory"] + found["queries_per_second"]:
        assert one["codec"] == "S-8" and "qinco2-S with 8 bytes" in one["sentence"] and "S-8" not in one["sentence"]


def test_a_target_that_is_out_of_reach_among_all_vectors_breaks_even_nowhere():
    rows = [row(10_000), row(query_us=None, reason="R@10 is 0.850 at most")]
    found = break_even({"S": rows, "empty": []}, EXACT, [graph()])
    assert [one["value"] for one in found["vectors"]] == [None] and not found["queries_per_second"]
    assert "0.850" in found["vectors"][0]["sentence"] and found["exact"] is None


def test_missing_parts_give_nothing():
    assert break_even({"S": [row()]}, None, [graph(target=0.99)])["queries_per_second"] == []
    assert break_even({}, None)["memory"] == []


def test_the_smallest_codec_that_reaches_enough_is_spoken_of():
    sizes = {"small": (8.0, 0.9), "large": (16.0, 0.95), "larger": (20.0, 0.99), "largest": (30.0, 0.95)}
    rows = {name: [row(bytes=size) | {"target": target}] for name, (size, target) in sizes.items()}
    found = break_even(rows, EXACT, [graph(target=0.95)])
    assert found["exact"]["codec"] == found["hnsw"]["codec"] == "large"
    assert found["exact"]["vectors"] == pytest.approx(40_000)
    assert found["exact"]["memory_bytes"] == pytest.approx(40_000 * 512)
    assert found["exact"]["text"] not in found["sentences"] and found["sentences"]
    assert all("large" in said and "largest" not in said for said in found["sentences"])
    assert break_even({}, EXACT)["exact"] is None


def test_all_of_it_is_json():
    found = break_even({"S": [row(query_us=100.0)]}, EXACT, [graph()])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("given", [{"gigabytes_per_core": 0}, {"gigabytes_per_core": "8"}, {"memory_bytes": -1}])
def test_wrong_numbers_are_refused(given):
    with pytest.raises(ConfigError):
        break_even({"S": [row()]}, EXACT, **given)
