"""Sweeps, and measurements with other decoders, as Python's users call them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_indexes import KINDS, NUM_LISTS, NUM_VECTORS, built, copied, decoded, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.maths.metrics import recall
from qinco.search.measure import timing

QUERIES_QD = vectors(40, 1)
NEAREST_Q = np.square(QUERIES_QD[:, None] - vectors()).sum(2).argmin(1)
VALUES = {"nprobe": [1, 50], "num_short": [5, 40], "mid_factors": [0]}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    monkeypatch.setattr(timing, "MIN_REPEATS", 1)


def test_an_index_is_swept_and_resumed(tmp_path):
    index, output, heard = built("ivf"), tmp_path / "sweep.json", []
    result = qinco.sweep(
        index, QUERIES_QD, NEAREST_Q, **VALUES, output=output, progress=lambda *told: heard.append(told[1:])
    )
    assert all(setting.nprobe in (1, NUM_LISTS) for setting in result.requested) and result.front
    best = result.measured[result.front[-1]]
    options = result.front[-1].options
    ids_QR = index.search(QUERIES_QD, options.num_short, options.nprobe, options.num_short)[1]
    assert best.recall == recall(ids_QR, NEAREST_Q) and best.recall[10] > 0.5
    assert heard[-1] == (4, 4, "setting")
    assert len(json.loads(output.read_text())["settings"]) == len(result.measured)
    assert qinco.sweep(index, QUERIES_QD, NEAREST_Q, **VALUES, output=output, resume=True).measured == result.measured
    with pytest.raises(ConfigError, match=r"sweep\.json"):
        qinco.sweep(index, QUERIES_QD, NEAREST_Q, **VALUES, output=output)
    changed = copied(index)
    changed.remove([next(i for i in range(NUM_VECTORS) if i not in NEAREST_Q)])
    with pytest.raises(ConfigError, match="another index"):
        qinco.sweep(changed, QUERIES_QD, NEAREST_Q, **VALUES, output=output, resume=True)


@pytest.mark.parametrize("name", ["index", "index.faissindex"])
def test_an_index_on_disk_is_swept(tmp_path, name):
    codec = trained("ivf")
    qinco.build_index(codec.encode(vectors()), tmp_path / name, codec=codec)
    pairs = built("ivf", pairwise=True).pairwise
    values = VALUES | {"mid_factors": [4]}
    result = qinco.sweep(tmp_path / name, QUERIES_QD, NEAREST_Q[:, None], **values, codec=codec, pairwise=pairs)
    exhaustive = qinco.exhaustive_recall(codec, vectors(), QUERIES_QD, NEAREST_Q)
    best = max(found.recall[10] for found in result.measured.values())
    assert best == pytest.approx(exhaustive[10], abs=0.1)
    assert all(found.seconds_by_stage["pairwise"] > 0 for found in result.measured.values())


def test_what_cannot_be_swept_is_refused(tmp_path):
    codec, index = trained("ivf"), built("ivf")
    qinco.build_index(codec.encode(vectors()), tmp_path / "index.faissindex", codec=codec)
    index.save(tmp_path / "index")
    for arguments, options, error in (
        ((index, QUERIES_QD, NEAREST_Q + NUM_VECTORS), {}, DataError),
        ((index, QUERIES_QD, NEAREST_Q[:9]), {}, DataError),
        ((index.emptied(), QUERIES_QD, NEAREST_Q), {}, DataError),
        ((index, QUERIES_QD, NEAREST_Q), {"decoder": "pairwise"}, ConfigError),
        ((tmp_path / "index.faissindex", QUERIES_QD, NEAREST_Q), {}, ConfigError),
        ((index, QUERIES_QD, NEAREST_Q), {"nprobe": []}, ConfigError),
        ((index, QUERIES_QD, NEAREST_Q), {"nprobe": [1, "2"]}, ConfigError),
        ((index, QUERIES_QD, NEAREST_Q), {"decoder": "network"}, ConfigError),
        ((index, QUERIES_QD, NEAREST_Q), {"threads": -1}, ConfigError),
        ((index, QUERIES_QD, NEAREST_Q), {"output": tmp_path / "sweep.csv"}, ConfigError),
        ((index, QUERIES_QD, NEAREST_Q), {"plot": tmp_path / "sweep.jpg"}, ConfigError),
        ((tmp_path / "index", QUERIES_QD, NEAREST_Q), {"output": tmp_path / "index" / "sweep.json"}, ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            qinco.sweep(*arguments, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_other_decoders_are_measured(kind):
    codec = trained(kind)
    lookup = built(kind).tables.lookup
    found = qinco.evaluate_decoder(codec, vectors(), lookup)
    codes = codec.encode(vectors())
    assert found.mse == pytest.approx(np.square(lookup.decode(codes.codes, codes.lists) - vectors()).sum(1).mean())
    # Tables of a codec that is a residual quantizer decode as it does, but for rounding.
    assert found.mse >= 0.999 * qinco.evaluate(codec, vectors()).mse and found.num_vectors == NUM_VECTORS
    shares = [
        qinco.exhaustive_recall(codec, vectors(), QUERIES_QD, NEAREST_Q, decoder=decoder) for decoder in (None, lookup)
    ]
    _, ids_QR = qinco.exhaustive_search(QUERIES_QD, decoded(kind), 100)
    assert shares[0] == recall(ids_QR, NEAREST_Q) and shares[1][100] > 0.5


def test_nothing_is_encoded_for_what_is_no_decoder_or_precision():
    codec, other, queries, heard = trained("plain"), built("ivf").tables.lookup, (QUERIES_QD, NEAREST_Q), []
    listen = {"progress": lambda *report: heard.append(report)}
    foreign = replace(other, tables_MKD=other.tables_MKD[:-1])
    for wrong, error in (("lookup", ConfigError), (foreign, DataError)):
        with pytest.raises(error):
            qinco.evaluate_decoder(codec, vectors(), wrong, **listen)
        with pytest.raises(error):
            qinco.exhaustive_recall(codec, vectors(), *queries, decoder=wrong, **listen)
    with pytest.raises(ConfigError, match="int8"):
        qinco.exhaustive_recall(codec, vectors(), *queries, precision="int8", **listen)
    assert heard == []


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (qinco.fit_lookup_decoder, {"num_training": 0}), (qinco.fit_lookup_decoder, {"num_training": -1}),
        (qinco.fit_lookup_decoder, {"seed": -1}), (qinco.fit_pairwise_decoder, {"pairs_per_code": -1}),
        (qinco.fit_pairwise_decoder, {"num_training": 1.5}), (qinco.fit_pairwise_decoder, {"overwrite": "no"}),
    ],
)  # fmt: skip
def test_values_that_the_command_line_refuses_are_refused_in_python(tmp_path, call, wrong):
    codec = trained("plain")
    output = {"output": tmp_path / "pairs.safetensors"} if call is qinco.fit_pairwise_decoder else {}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        call(vectors(), codec.encode(vectors()), codec=codec, **output, **wrong)


def test_kmeans_refuses_what_the_command_line_refuses(tmp_path):
    for wrong in ({"seed": -1}, {"overwrite": "no", "output": tmp_path / "c.npy"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            qinco.kmeans(vectors(), 4, **wrong)
