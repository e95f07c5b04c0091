"""Vectors in a few bytes: neural residual quantization (QINCo, QINCo2).

    import qinco

    x = qinco.open_vectors("train.fvecs")
    codec = qinco.Codec.fit(x, preset="qinco2-S", num_steps=8, epochs=10)
    codes = codec.encode(x[:1000])  # uint8 (1000, 8)
    x_hat = codec.decode(codes)  # float32 (1000, D)
    codec.save("codec.safetensors")

    index = qinco.Index.build(codec, x)
    distances, ids = index.search(queries, k=10)

Importing this package is quick: what needs torch is imported when it is first used.
"""

from typing import TYPE_CHECKING

from qinco.errors import ConfigError, DataError, QincoError, ResourceError
from qinco.version import __version__

if TYPE_CHECKING:
    from qinco.codec import Codec, ProductCodec
    from qinco.codec.centroids import kmeans
    from qinco.codec.convert import convert_codec
    from qinco.codec.decode_file import decode_file
    from qinco.codec.evaluate import benchmark, evaluate, measure_time
    from qinco.codec.files import encode_file
    from qinco.config import PRESETS, EncodeOptions, ModelConfig
    from qinco.datasets.fetch import download
    from qinco.decoders.lookup import LookupDecoder
    from qinco.decoders.pairwise import PairwiseDecoder
    from qinco.description import describe
    from qinco.installation import check_installation
    from qinco.search.build import build_index
    from qinco.search.exhaustive import exhaustive_search
    from qinco.search.fit import fit_lookup_decoder, fit_pairwise_decoder
    from qinco.search.index import Index
    from qinco.search.measure.evaluate import evaluate_decoder, exhaustive_recall
    from qinco.search.measure.sweep import sweep
    from qinco.search.options import SearchOptions
    from qinco.store.codes import Codes
    from qinco.training.options import TrainOptions
    from qinco.vectors.formats import write_vectors
    from qinco.vectors.rows import VectorSource, open_vectors

__all__ = [
    "PRESETS",
    "Codec",
    "Codes",
    "ConfigError",
    "DataError",
    "EncodeOptions",
    "Index",
    "LookupDecoder",
    "ModelConfig",
    "PairwiseDecoder",
    "ProductCodec",
    "QincoError",
    "ResourceError",
    "SearchOptions",
    "TrainOptions",
    "VectorSource",
    "__version__",
    "benchmark",
    "build_index",
    "check_installation",
    "convert_codec",
    "decode_file",
    "describe",
    "download",
    "encode_file",
    "evaluate",
    "evaluate_decoder",
    "exhaustive_recall",
    "exhaustive_search",
    "fit_lookup_decoder",
    "fit_pairwise_decoder",
    "kmeans",
    "measure_time",
    "open_vectors",
    "sweep",
    "write_vectors",
]

_HOMES = {
    "Codec": "qinco.codec",
    "ProductCodec": "qinco.codec",
    "Codes": "qinco.store.codes",
    "convert_codec": "qinco.codec.convert",
    "decode_file": "qinco.codec.decode_file",
    "encode_file": "qinco.codec.files",
    "benchmark": "qinco.codec.evaluate",
    "evaluate": "qinco.codec.evaluate",
    "measure_time": "qinco.codec.evaluate",
    "PRESETS": "qinco.config",
    "EncodeOptions": "qinco.config",
    "ModelConfig": "qinco.config",
    "Index": "qinco.search.index",
    "SearchOptions": "qinco.search.options",
    "TrainOptions": "qinco.training.options",
    "VectorSource": "qinco.vectors.rows",
    "check_installation": "qinco.installation",
    "describe": "qinco.description",
    "download": "qinco.datasets.fetch",
    "kmeans": "qinco.codec.centroids",
    "open_vectors": "qinco.vectors.rows",
    "write_vectors": "qinco.vectors.formats",
    "LookupDecoder": "qinco.decoders.lookup",
    "PairwiseDecoder": "qinco.decoders.pairwise",
    "build_index": "qinco.search.build",
    "evaluate_decoder": "qinco.search.measure.evaluate",
    "exhaustive_recall": "qinco.search.measure.evaluate",
    "exhaustive_search": "qinco.search.exhaustive",
    "fit_lookup_decoder": "qinco.search.fit",
    "fit_pairwise_decoder": "qinco.search.fit",
    "sweep": "qinco.search.measure.sweep",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
