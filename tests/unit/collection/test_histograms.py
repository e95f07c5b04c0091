"""Histograms of errors and list sizes, beside the definitions."""

import numpy as np
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection

X = vectors()


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2", payload=False, codec=trained("plain")) as docs:
        yield docs


def relative_errors(x_ND):
    codec = trained("plain")
    decoded_ND = codec.decode(codec.encode(x_ND))
    return np.square(x_ND - decoded_ND).sum(1) / np.square(x_ND).sum(1)


def test_errors_are_counted_in_bins(docs):
    docs.upsert(range(700), X[:700])
    docs.optimize()
    found = docs.histograms()["error"]
    edges, (segment,) = np.array(found["edges"]), found["segments"]
    expected = np.histogram(relative_errors(X[:700]), [*edges, np.inf])[0] / 700
    assert segment["vectors"] == 700 and np.isclose(sum(segment["shares"]), 1, atol=1e-3)
    assert np.allclose(segment["shares"], expected, atol=0.01)  # decoded in another precision
    assert edges[np.cumsum(segment["shares"]) < 0.2].max() < docs.stats()["error"] < edges[-1]


def test_merged_segments_have_the_errors_of_both(docs):
    shares = []
    for first in (0, 600):
        docs.upsert(range(first, first + 600), X[first : first + 600])
        docs.optimize()
        newest = docs.histograms()["error"]["segments"][-1]
        shares.append(newest["shares"])
    assert len(docs.histograms()["error"]["segments"]) == 2
    docs.delete(range(0, 200))
    docs.delete(range(600, 800))
    docs.optimize()
    (merged,) = docs.histograms()["error"]["segments"]
    assert merged["vectors"] == 800 and np.allclose(merged["shares"], np.mean(shares, 0), atol=1e-4)


def test_sizes_of_lists(docs):
    assert docs.histograms()["list_size"] is None and docs.histograms()["error"]["segments"] == []
    docs.upsert(range(700), X[:700])
    docs.optimize()
    sizes = docs.histograms()["list_size"]
    centers = np.array(sizes["edges"]) + np.diff(sizes["edges"])[0] / 2
    assert sum(sizes["lists"]) > 1 and abs(np.dot(centers, sizes["lists"]) - 700) < 0.3 * 700


def test_they_are_those_of_the_segments_that_there_are(docs):
    docs.upsert(range(700), X[:700])
    docs.optimize()
    docs.delete(range(700))
    docs.optimize()
    assert docs.histograms()["error"]["segments"] == [] and docs.histograms()["list_size"] is None
