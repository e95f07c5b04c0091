"""Public calls take a codec or the path of one, and refuse anything else in one sentence."""

from dataclasses import replace
from functools import cache
from inspect import getmembers, isfunction, ismethod, signature

import numpy as np
import pytest
from small_indexes import NUM_LISTS, built, trained, vectors

import qinco
from qinco.codec.codec import Codec
from qinco.codec.given import as_codec
from qinco.errors import ConfigError
from qinco.search.index import Index

X, QUERIES = vectors(300, 1), vectors(5, 2)
TRUTH = np.zeros(5, np.int64)


@cache
def codes() -> qinco.Codes:
    return trained("plain").encode(X)


def bare_index(codec, tmp_path, load):
    """What is found in an index without its codec, once it is given."""
    index = built()
    parts = replace(index.parts, codec_fingerprint=trained("plain").fingerprint())
    Index(None, parts).save(tmp_path / "bare", overwrite=True)
    return load(tmp_path / "bare", codec).search(QUERIES, 3)


def written(tmp_path, write):
    """The content of what is written to a path."""
    write(path := tmp_path / "written.npy")
    return np.load(path)


# Each with a codec and a folder to write to; what they return is compared.
CALLS = {
    "benchmark": lambda codec, _: len(
        qinco.benchmark(codec, threads=[1], precisions=["float32"], pass_us=1, max_vectors=1)
    ),
    "build_index": lambda codec, tmp: vars(qinco.build_index(codes(), tmp / "ix", codec=codec))["num_vectors"],
    "convert_codec": lambda codec, tmp: qinco.convert_codec(codec, tmp / "c.safetensors").fingerprint(),
    "decode_file": lambda codec, tmp: written(tmp, lambda path: qinco.decode_file(codec, codes(), path)),
    "encode_file": lambda codec, tmp: written(tmp, lambda path: qinco.encode_file(codec, X, path)),
    "evaluate": lambda codec, _: qinco.evaluate(codec, X).mse_per_step,
    "evaluate_decoder": lambda codec, _: qinco.evaluate_decoder(codec, X, built().tables.lookup).mse,
    "exhaustive_recall": lambda codec, _: qinco.exhaustive_recall(codec, X, QUERIES, TRUTH),
    "exhaustive_search": lambda codec, _: qinco.exhaustive_search(QUERIES, (codec, codes()), 3),
    "fit_lookup_decoder": lambda codec, _: qinco.fit_lookup_decoder(X, codec=codec).decoder.tables_MKD,
    "fit_pairwise_decoder": lambda codec, _: qinco.fit_pairwise_decoder(X, codes(), codec=codec).mse_neural,
    "measure_time": lambda codec, _: len(qinco.measure_time(codec, X[:10])),
    "sweep": lambda codec, tmp: bare_index(codec, tmp, lambda path, codec: _Swept(path, codec)),
    "Index.build": lambda codec, _: Index.build(codec, X, NUM_LISTS).search(QUERIES, 3),
    "Index.from_bytes": lambda codec, tmp: bare_index(codec, tmp, _from_bytes),
    "Index.load": lambda codec, tmp: bare_index(codec, tmp, lambda path, codec: Index.load(path, codec=codec)),
}


def _from_bytes(path, codec) -> Index:
    return Index.from_bytes(Index.load(path).to_bytes(), codec=codec)


class _Swept:
    def __init__(self, path, codec):
        self.path, self.codec = path, codec

    def search(self, queries, k):
        found = qinco.sweep(self.path, queries, TRUTH, codec=self.codec, nprobe=[2], num_short=[k])
        return [measured.recall for measured in found.measured.values()]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    trained("plain").save(path := tmp_path_factory.mktemp("codec") / "c.safetensors")
    return path


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_path_stands_for_its_codec(call, path, tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    expected, found = CALLS[call](trained("plain"), tmp_path / "one"), CALLS[call](str(path), tmp_path / "two")
    np.testing.assert_equal(found, expected)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", [5, {"M": 8}, [None]], ids=str)
def test_anything_else_is_refused(call, wrong, tmp_path):
    with pytest.raises(ConfigError, match=r"^codec must be a Codec or the path of one, not "):
        CALLS[call](wrong, tmp_path)


def test_these_are_all_public_calls_that_take_a_codec():
    functions = {name: getattr(qinco, name) for name in qinco.__all__ if isfunction(getattr(qinco, name))}
    for kind in (qinco.Index, qinco.Codes, qinco.ProductCodec, Codec):
        found = getmembers(kind, lambda value: isfunction(value) or ismethod(value))
        functions |= {f"{kind.__name__}.{name}": value for name, value in found if not name.startswith("_")}
    taking = {name for name, value in functions.items() if "codec" in signature(value).parameters}
    assert taking | {"exhaustive_search"} == {*CALLS, "Codes.load", "Codes.save"}


def test_training_goes_on_from_a_path(path):
    settings = {"epochs": 3, "device": "cpu", "seed": 1}
    here, there = (Codec.fit(X, None, initial=one, **settings) for one in (as_codec(path), path))
    assert here.fingerprint() == there.fingerprint()


def test_codes_name_the_remedy(path, tmp_path):
    for call in (codes().save, qinco.Codes.load):
        with pytest.raises(ConfigError, match=r"codec must be a Codec, not '.*': see Codec.load"):
            call(tmp_path / "x.raw", str(path))


def test_a_codec_is_not_replaced_by_what_it_makes(path, tmp_path):
    (own := tmp_path / "own.npy").write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="is read"):
        qinco.encode_file(own, X, own, overwrite=True)
    with pytest.raises(ConfigError, match="is read"):
        qinco.decode_file(own, codes(), own, overwrite=True)
