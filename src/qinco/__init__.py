"""Vectors in a few bytes: neural residual quantization (QINCo, QINCo2).

    import qinco

    x = qinco.open_vectors("train.fvecs")
    codec = qinco.Codec.fit(x, num_steps=8, minutes=10)
    codes = codec.encode(x[:1000])  # uint8 (1000, 8)
    x_hat = codec.decode(codes)  # float32 (1000, D)
    codec.save("codec.safetensors")

    index = qinco.Index.build(codec, x)
    distances, ids = index.search(queries, k=10)

Importing this package is quick: what needs torch is imported when it is first used.
"""

import os
from typing import TYPE_CHECKING

import qinco.forking  # noqa: F401 (what is forked is set up from here on)
from qinco.errors import ConfigError, DataError, QincoError, ResourceError
from qinco.version import __version__

# torch's OpenMP threads that spin while they wait take cores from other programs. Beside a busy program, a training
# step on two threads takes 314 us a vector with this and 473 without; on idle cores it costs 11 % of a training step.
# torch reads it when it is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from qinco.codec import Codec, ProductCodec, load_codec
    from qinco.codec.centroids import kmeans
    from qinco.codec.convert import convert_codec
    from qinco.codec.decode_file import decode_file
    from qinco.codec.evaluate import benchmark, evaluate, measure_time
    from qinco.codec.files import encode_file
    from qinco.collection.collection import Collection
    from qinco.collection.named import NamedCollection
    from qinco.collection.records import Hit, Record
    from qinco.comparison.compare import compare
    from qinco.config import PRESETS, EncodeOptions, ModelConfig
    from qinco.datasets.fetch import download
    from qinco.decoders.lookup import LookupDecoder
    from qinco.decoders.pairwise import PairwiseDecoder
    from qinco.description import describe
    from qinco.installation import check_installation
    from qinco.machine import set_num_threads
    from qinco.search.build_index import build_index
    from qinco.search.exhaustive import exhaustive_search
    from qinco.search.fit import fit_lookup_decoder, fit_pairwise_decoder
    from qinco.search.index import Index
    from qinco.search.measure.evaluate import evaluate_decoder, exhaustive_recall
    from qinco.search.measure.neighbors import find_neighbors
    from qinco.search.measure.sweep import sweep
    from qinco.search.options import SearchOptions
    from qinco.search.selection import Selection
    from qinco.store.codes import Codes
    from qinco.training.options import TrainOptions
    from qinco.vectors.formats import write_vectors
    from qinco.vectors.rows import VectorSource, open_vectors

__all__ = [
    "PRESETS", "Codec", "Codes", "Collection", "ConfigError", "DataError", "EncodeOptions", "Hit", "Index",
    "LookupDecoder", "ModelConfig", "NamedCollection", "PairwiseDecoder", "ProductCodec", "QincoError", "Record",
    "ResourceError", "SearchOptions", "Selection", "TrainOptions", "VectorSource", "__version__", "benchmark",
    "build_index", "check_installation", "compare", "convert_codec", "decode_file", "describe", "download",
    "encode_file", "evaluate", "evaluate_decoder", "exhaustive_recall", "exhaustive_search", "find_neighbors",
    "fit_lookup_decoder", "fit_pairwise_decoder", "kmeans", "load_codec", "measure_time", "open_vectors",
    "set_num_threads", "sweep", "write_vectors",
]  # fmt: skip

# Where a name lives: nothing slow is imported before it is used.
_PUBLIC = {
    "qinco.codec": "Codec ProductCodec load_codec",
    "qinco.codec.centroids": "kmeans",
    "qinco.codec.convert": "convert_codec",
    "qinco.codec.decode_file": "decode_file",
    "qinco.codec.evaluate": "benchmark evaluate measure_time",
    "qinco.codec.files": "encode_file",
    "qinco.collection.collection": "Collection",
    "qinco.collection.named": "NamedCollection",
    "qinco.collection.records": "Hit Record",
    "qinco.comparison.compare": "compare",
    "qinco.config": "EncodeOptions ModelConfig PRESETS",
    "qinco.datasets.fetch": "download",
    "qinco.decoders.lookup": "LookupDecoder",
    "qinco.decoders.pairwise": "PairwiseDecoder",
    "qinco.description": "describe",
    "qinco.installation": "check_installation",
    "qinco.machine": "set_num_threads",
    "qinco.search.build_index": "build_index",
    "qinco.search.exhaustive": "exhaustive_search",
    "qinco.search.fit": "fit_lookup_decoder fit_pairwise_decoder",
    "qinco.search.index": "Index",
    "qinco.search.measure.evaluate": "evaluate_decoder exhaustive_recall",
    "qinco.search.measure.neighbors": "find_neighbors",
    "qinco.search.measure.sweep": "sweep",
    "qinco.search.options": "SearchOptions",
    "qinco.search.selection": "Selection",
    "qinco.store.codes": "Codes",
    "qinco.training.options": "TrainOptions",
    "qinco.vectors.formats": "write_vectors",
    "qinco.vectors.rows": "VectorSource open_vectors",
}
_HOMES = {name: home for home, names in _PUBLIC.items() for name in names.split()}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
