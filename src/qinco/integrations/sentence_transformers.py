"""Embeddings of sentence-transformers as codes: quantized, searched, and written to disk while a model makes them.

The functions stand beside `quantize_embeddings` and `semantic_search_faiss` of `sentence_transformers.util`, and return
what those return. `semantic_search_faiss(corpus_index=index, corpus_precision="float32", rescore=False)` takes an
`Index`, too.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.files import FileResult, encode_file
from qinco.codec.given import CodecLike, as_codec
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.progress import ProgressOption
from qinco.search.index import Index
from qinco.vectors.arrays import ComputedRows
from qinco.vectors.rows import VectorSource, as_source


def quantize_embeddings(embeddings, codec: CodecLike) -> np.ndarray:
    """Codes of embeddings.

    Args:
        embeddings: (N, D) array, tensor or list of them, as `SentenceTransformer.encode` returns it.
        codec: a Codec, or the path of one, without lists.

    Returns:
        uint8 (N, M), uint16 above 256 codewords; `codec.decode` reconstructs the embeddings.

    Example:
        >>> quantize_embeddings(model.encode(sentences), codec).shape
        (1000, 16)
    """
    codec = as_codec(codec)
    if codec.is_ivf:
        raise ConfigError("codes of an IVF codec belong to list numbers: call encode of the codec, which gives both")
    return codec.encode(embeddings).codes


def semantic_search_qinco(
    query_embeddings, corpus_embeddings=None, corpus_index: Index | None = None, top_k: int = 10,
    output_index: bool = False, *, codec: CodecLike | None = None, metric: str = "cosine", **search: Any,
) -> tuple:  # fmt: skip
    """The nearest embeddings of a compressed corpus.

    Args:
        query_embeddings: (Q, D) array or tensor; or one (D,).
        corpus_embeddings: (N, D) embeddings, which an `Index` is built of; or their codes, (N, M) integers.
        corpus_index: an Index instead.
        top_k: results of each query.
        output_index: return the index, to search again.
        codec: of corpus_embeddings: a Codec, or the path of one.
        metric: of an index that is built: "cosine", "inner_product" or "l2".
        **search: options of `Index.search`, such as nprobe, filter and refine.

    Returns:
        For each query a list of {"corpus_id", "score"}, nearest first; the seconds that the search took; and with
        `output_index` the index. Scores are those of `Index.search`.

    Example:
        >>> hits, seconds = semantic_search_qinco(model.encode(queries), corpus_index=index, top_k=5)
        >>> hits[0][0]
        {'corpus_id': 42, 'score': 0.83}
    """
    if (corpus_embeddings is None) == (corpus_index is None):
        raise ConfigError("give either corpus_embeddings= or corpus_index=")
    if corpus_index is None:
        if codec is None:
            raise ConfigError("corpus_embeddings are compressed by a codec: give codec=")
        corpus_index = _built(as_codec(codec), corpus_embeddings, metric)
    queries = query_embeddings[None] if np.ndim(query_embeddings) == 1 else query_embeddings
    begun = time.perf_counter()
    scores_QR, ids_QR = corpus_index.search(queries, top_k, **search)
    seconds = time.perf_counter() - begun
    hits = [
        [{"corpus_id": id, "score": score} for id, score in zip(ids, scores, strict=True) if id >= 0]
        for ids, scores in zip(ids_QR.tolist(), scores_QR.tolist(), strict=True)
    ]
    return (hits, seconds, corpus_index) if output_index else (hits, seconds)


def encode_to(
    model, texts: Sequence[str], output: str | os.PathLike, codec: CodecLike, *, batch_size: int = 32,
    resume: bool = False, overwrite: bool = False, progress: ProgressOption = None, **encode: Any,
) -> FileResult:  # fmt: skip
    """Write the codes of texts to a file or folder, while a model makes their embeddings, a block at a time.

    Only a block of embeddings is ever in memory, and what an interruption leaves is continued with `resume`.

    Args:
        model: SentenceTransformer, or an object with such an `encode`.
        texts: a list, a column of `datasets` or another sequence of N texts.
        output: a folder or file, as of `qinco.encode_file`: "codes" or "codes.npy".
        codec: a Codec, or the path of one.
        batch_size: texts that the model computes at a time.
        resume, overwrite, progress: as of `qinco.encode_file`.
        **encode: further arguments of the model's `encode`, such as prompt_name and normalize_embeddings.

    Example:
        >>> encode_to(model, sentences, "codes", codec, normalize_embeddings=True).num_vectors
        1000
    """
    if isinstance(texts, str) or not hasattr(texts, "__len__") or not hasattr(texts, "__getitem__"):
        raise ConfigError(f"texts must be a sequence of texts, such as a list, not {type(texts).__name__}")
    require_int("batch_size", batch_size)
    codec, rows = as_codec(codec), getattr(texts, "iloc", texts)  # a column of pandas is indexed by its labels
    settings = {"batch_size": batch_size, "show_progress_bar": False, **encode}

    def read(key) -> np.ndarray:
        places = range(len(texts))[key] if isinstance(key, slice) else np.asarray(key).tolist()
        if not places:
            return np.empty((0, codec.dim), np.float32)
        x_nD = np.asarray(model.encode([rows[place] for place in places], **settings), np.float32)
        if x_nD.shape != (len(places), codec.dim):
            raise DataError(f"the model must give embeddings ({len(places)}, {codec.dim}), for the codec, not "
                            f"{x_nD.shape}")  # fmt: skip
        return x_nD

    source = VectorSource(ComputedRows((len(texts), codec.dim), np.dtype(np.float32), read), "embeddings")
    return encode_file(codec, source, output, resume=resume, overwrite=overwrite, progress=progress)


def _built(codec: Codec, corpus, metric: str) -> Index:
    """An index of embeddings (N, D), or of their codes (N, M)."""
    source = as_source(corpus, "corpus_embeddings")
    if not source.holds_integers or source.dim != codec.num_codes or source.dim == codec.dim:
        return Index.build(codec, source, metric=metric)
    codes = codec.check_codes(corpus)
    return Index.build(codec, codec.decode(codes), metric=metric, codes=codes)
