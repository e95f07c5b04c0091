import math
import re

import numpy as np
import pytest

from qinco.errors import ConfigError
from qinco.hub.card import TAGS, render

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra hub")
CONFIG = {"dim": 6, "num_codes": 4, "bytes_per_vector": 4.0}
MEASURED = {
    "prefixes": [{"steps": 1, "bytes": 1.0, "mse": 3.25, "recall_at_1": 0.125, "recall_at_10": 0.5},
                 {"steps": 2, "bytes": 2.0, "mse": 0.0000015, "recall_at_1": 0.25, "recall_at_10": 1.0}],
    "encode_us": 12.345, "decode_us": 0.5, "machine": "2 threads of a machine", "num_vectors": 9000,
    "num_queries": 1000, "metric": "cosine", "dataset": "our mails",
}  # fmt: skip


def head_of(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", text, re.DOTALL)[1])


def table_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_head_says_what_the_hub_reads():
    given = {"license": "apache-2.0", "base_model": ["sentence-transformers/all-MiniLM-L6-v2", "other/model"],
             "datasets": "owner/data", "tags": ["mine", "embeddings"], "language": ["en", "no"]}  # fmt: skip
    head = head_of(render("owner/name", "codec", CONFIG, given, MEASURED))
    assert head["library_name"] == "qinco" and head["tags"] == [*TAGS, "mine"]
    assert {name: head[name] for name in given if name != "tags"} == {
        name: given[name] for name in given if name != "tags"
    }
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "name" and result["dataset"] == {"type": "our-mails", "name": "our mails"}
    values = [(one["type"], one["value"]) for one in result["metrics"]]
    assert values == [("mse", 3.25), ("recall_at_1", 0.125), ("recall_at_10", 0.5), ("mse", 1.5e-6),
                      ("recall_at_1", 0.25), ("recall_at_10", 1.0)]  # fmt: skip


def test_values_of_a_head_are_theirs_in_yaml():
    given = {"a": "yes", "b": "12", "c": 'quotes " and: colons # and\nlines', "d": ["- x", "null", "é"], "e": {},
             "f": [], "g": {"deep": [{"x": 1, "y": [True, None]}, {"z": -1e-07}]}, "h": 1e22, "i": 0.1, "j": "",
             "k": "  spaces ", "l": [[1, 2], []], "1": "number", "m": "2020-01-01", "n": "1e5"}  # fmt: skip
    head = head_of(render("name", "codec", CONFIG, given, None))
    assert {name: head[name] for name in given} == given
    with pytest.raises(ConfigError, match="JSON"):
        render("name", "codec", CONFIG, {"x": object()}, None)


def test_own_values_replace_ours():
    head = head_of(render("n", "codec", CONFIG, {"library_name": "mine", "model-index": []}, MEASURED))
    assert head["library_name"] == "mine" and head["model-index"] == []


def test_figures_of_each_prefix_are_in_a_table():
    text = render("owner/name", "codec", CONFIG, {}, MEASURED)
    assert table_of(text)[0] == ["bytes", "MSE", "recall@1", "recall@10"]
    assert [[float(cell) for cell in row] for row in table_of(text)[2:]] == [
        [1, 3.25, 0.125, 0.5],
        [2, 1.5e-6, 0.25, 1],
    ]
    for told in ("9,000 vectors", "1,000 queries", "our mails", "12.3", "2 threads of a machine"):
        assert told in text


def test_nothing_is_said_to_be_measured_that_was_not():
    text = render("owner/name", "codec", CONFIG, {}, None)
    assert "model-index" not in head_of(text) and "Measured" not in text and not table_of(text)
    trained = render("owner/name", "codec", CONFIG | {"trained": {"num_vectors": 5000, "valid_mse": 0.75}}, {}, None)
    assert "5,000" in trained and "0.75" in trained and "model-index" not in head_of(trained)


def test_figures_of_an_index_and_a_collection():
    config = {"dim": 6, "num_vectors": 1234, "bytes_per_vector": 5.5, "metric": "l2"}
    recall = {"1": 0.5, "10": 0.75, "100": 1.0}
    measured = {"num_vectors": 90, "num_queries": 10, "recall": recall, "recall_exhaustive": recall, "mse": 2.5}
    text = render("owner/name", "index", config, {}, measured)
    assert [row[1:] for row in table_of(text)[2:]] == [["0.5", "0.75", "1"]] * 2
    assert "1,234" in text and "metric l2" in text
    assert [one["value"] for one in head_of(text)["model-index"][0]["results"][0]["metrics"]] == [0.5, 0.75, 1]
    measured = {"recall": 0.625, "k": 10, "num_queries": 100, "num_vectors": 1234}
    text = render("owner/name", "collection", config | {"bytes_per_vector": None}, {}, measured)
    (metric,) = head_of(text)["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("recall_at_10", 0.625)


def test_examples_in_cards_are_python():
    for kind, config in (
        ("codec", CONFIG),
        ("index", CONFIG | {"num_vectors": 3}),
        ("collection", CONFIG | {"num_vectors": 3}),
        ("named_collection", {"records": 3, "vectors": {'a "b"': CONFIG | {"num_vectors": 3, "metric": "l2"}}}),
    ):
        text = render("owner/name", kind, config, {}, None)
        compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], kind, "exec")


def test_numbers_keep_six_digits():
    values = [math.pi, 1e-12, 123456.789, 5e300]
    head = head_of(render("n", "codec", CONFIG, {"values": values}, None))
    np.testing.assert_allclose(head["values"], values, rtol=1e-5)
