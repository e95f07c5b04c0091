"""A server that searches before it forks, for `gunicorn --preload`; with `WITH_TORCH` torch has computed, too."""

import json
import os
import sys
import time

import numpy as np

import qinco

if os.environ.get("WITH_TORCH"):
    import torch

    torch.randn(300, 300) @ torch.randn(300, 300)
index = qinco.Index.load(os.environ["INDEX"])
queries = np.load(os.environ["QUERIES"])


def answers() -> dict:
    """What calls of all kinds return."""
    codec, found = index.codec, index.search(queries, k=5)
    codes, grown = codec.encode(queries), qinco.Index(codec, index.parts)
    grown.add(queries)
    return {
        "found": found[1].tolist(), "by_tables": index.search(queries, k=5, num_short=0)[1].tolist(),
        "codes": codes.tolist(), "decoded": codec.decode(codes).tolist(), "size": len(grown),
        "exhaustive": qinco.exhaustive_search(queries[:9], queries, 3)[1].tolist(),
        "in_range": index.range_search(queries[:99], 0.5)[2].tolist(), "of_ids": index.reconstruct([3, 1, 2]).tolist(),
        "built": qinco.Index.build(codec, queries, pairwise=True, progress=False).search(queries[:9], 3)[1].tolist(),
        "tables": float(qinco.fit_lookup_decoder(queries, codec=codec, progress=False).mse),
        "saved": len(qinco.Index.from_bytes(index.to_bytes())),
        "in_prefix": codec.decode(codec.prefix(codes, 2)).tolist(),
        "centroids": qinco.kmeans(queries, 7, progress=False).tolist(), "error": qinco.evaluate(codec, queries).mse,
        "heavy": [name for name in ("torch", "faiss") if name in sys.modules],
    }  # fmt: skip


before = answers()


def app(environ, start_response):
    """Whether this child computes what its parent did."""
    time.sleep(0.5)  # so that no child answers twice
    content = json.dumps({"pid": os.getpid(), "parent": os.getppid(), "same": answers() == before, **before}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]


if __name__ == "__main__":  # a child that is spawned
    print(json.dumps(before))
