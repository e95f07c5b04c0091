"""Encoding on a cluster."""

import os

from qinco.codec.files import FileResult, encode_file
from qinco.codec.given import CodecLike
from qinco.distributed.pool import WorkerPool


def encode(
    codec: CodecLike, source, output: str | os.PathLike, *, cluster: str = "auto", workers: int | None = None,
    threads: int | None = None, **settings,
) -> FileResult:  # fmt: skip
    """`qinco.encode_file` on a cluster of Ray: the same codes, byte for byte, in the same folder.

    Workers encode the shards that are missing and write them to the folder. All machines must see it, and the source's
    files, at the same paths. A killed worker or machine costs the shards that it was at, a
    killed driver no more: `resume=True` goes on. Where vectors cannot be encoded (NaN, a damaged file) the other shards
    are, and the error names all that are missing.

    Args:
        codec: a Codec, or the path of one. It is sent to the workers.
        source: (N, D) vectors, as of `encode_file`: files (a path, folder, pattern or list) are opened by each worker,
            arrays are sent to all.
        output: a folder or file.
        cluster: an address, as of `ray.init`; "auto": the one that this process is connected to, that RAY_ADDRESS names
            or that runs on this machine, or else a new one on its cores.
        workers: processes; if None as many as the cluster has cores for.
        threads: cores of each; if None those of the smallest node, 8 at most.
        settings: those of `encode_file`.

    Example:
        >>> qinco.distributed.encode("codec.safetensors", "emb/*.parquet", "codes", cluster="auto", resume=True)
    """
    return encode_file(codec, source, output, executor=WorkerPool(cluster, workers, threads), **settings)
