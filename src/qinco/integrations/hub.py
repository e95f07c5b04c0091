"""What the cards of codecs on the Hugging Face hub show: error and recall of each prefix of the codes, and speed.

`Codec.push_to_hub`, `save_pretrained` and `from_pretrained` are methods; those of `Index` and `Collection` show what
their `evaluate` measures.

Shape suffixes: N vectors, Q queries, D dimension.
"""

import numpy as np

from qinco.codec.evaluate import evaluate, measure_time
from qinco.codec.given import CodecLike, as_codec
from qinco.config import require_int
from qinco.errors import DataError
from qinco.machine import num_threads, processor_name
from qinco.maths.metrics import recall
from qinco.progress import ProgressOption, counted, reporting
from qinco.search.exhaustive import exhaustive_search
from qinco.search.metric import choose_metric
from qinco.vectors.rows import as_source, check_not_empty, stratified_rows

_MAX_QUERIES = 1000
_RANKS = (1, 10)


def measure_codec(
    codec: CodecLike, vectors, queries=None, *, metric: str | None = None, dataset: str | None = None,
    max_vectors: int = 100_000, progress: ProgressOption = None,
) -> dict:  # fmt: skip
    """Measure what a card of a codec shows.

    Args:
        codec: a Codec, or the path of one.
        vectors: (N, D) array, tensor, path or VectorSource, that the codec was not trained on.
        queries: (Q, D), held out; None: a tenth of the vectors, 1,000 at most, which are taken out of these.
        metric: "l2", "inner_product" or "cosine"; if None "cosine" for vectors of length 1, and "l2" for others.
        dataset: the name of the data, for the card.
        max_vectors: use so many at most.
        progress: see `qinco.progress`.

    Returns:
        "prefixes", for each number of steps "bytes", "mse" and "recall_at_1" and "recall_at_10" (the share of queries
        whose nearest vector is among the first found, by comparing with all decoded vectors); "encode_us" and
        "decode_us", microseconds a vector; "machine", "num_vectors", "num_queries", "metric" and "dataset".

    Example:
        >>> codec.push_to_hub("owner/name", measured=measure_codec(codec, "test.fvecs", dataset="our mails"))
    """
    codec, source = as_codec(codec), check_not_empty(as_source(vectors))
    codec.check_dim(source)
    require_int("max_vectors", max_vectors, 2)
    if len(source) > max_vectors:
        source = source.take(stratified_rows(len(source), max_vectors))
    measure = choose_metric(metric, vectors, compared=source)
    x_ND = np.concatenate([block for _, block in source.blocks(1 << 14)])
    if queries is None:
        if len(x_ND) < 2:
            raise DataError("vectors must be two or more, as queries are taken of them: give queries=")
        rows_Q = stratified_rows(len(x_ND), min(_MAX_QUERIES, -(-len(x_ND) // 10)))
        x_ND, queries = np.delete(x_ND, rows_Q, 0), x_ND[rows_Q]
    queries_QD = as_source(queries, "queries")
    with reporting(progress) as report:
        errors = evaluate(codec, x_ND, progress=report).mse_per_step
        nearest_Q = exhaustive_search(queries_QD, x_ND, 1, metric=measure)[1][:, 0]
        codes = codec.encode(x_ND, progress=report)
        prefixes = []
        for step, mse in enumerate(errors, start=1):
            part = codec.prefix(codes, step)
            _, ids_QR = exhaustive_search(queries_QD, (codec, part), max(_RANKS), metric=measure)
            shares = recall(ids_QR, nearest_Q, _RANKS)
            size = codec.bytes_per_vector * step / codec.config.num_steps
            prefixes.append({"steps": step, "bytes": size, "mse": mse,
                             **{f"recall_at_{rank}": share for rank, share in shares.items()}})  # fmt: skip
            report("measuring recall", step, len(errors), "prefix")
    encode_us, decode_us = measure_time(codec, x_ND)
    where = processor_name() if codec.device == "cpu" else codec.device
    measured = {"prefixes": prefixes, "encode_us": encode_us, "decode_us": decode_us,
                "machine": f"{counted(num_threads(), 'thread')} of {where}", "num_vectors": len(x_ND),
                "num_queries": len(queries_QD), "metric": measure}  # fmt: skip
    return measured if dataset is None else measured | {"dataset": dataset}
