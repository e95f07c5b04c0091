"""Makes the golden files of the formats of codecs and indexes, version 1. Run once; what it wrote must load forever.

    python tests/data/make_golden.py

It makes what is not there, and replaces nothing: a new version of a format gets new files beside these.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from qinco.codec import Codec
from qinco.collection.collection import Collection
from qinco.search.index import Index
from qinco.search.options import SearchOptions

HERE = Path(__file__).parent
SMALL = {
    "num_steps": 3, "codebook_size": 4, "num_blocks": 1, "embed_dim": 5, "hidden_dim": 6, "num_pairs": 8,
    "beam_width": 4, "epochs": 3, "batch_size": 32, "precision": "float32", "device": "cpu", "seed": 1,
}  # fmt: skip
GRAPH_LISTS = 8  # so few lead to a golden graph
SEARCHES = (
    {"nprobe": 40, "num_short": 250}, {"nprobe": 3, "num_short": 20}, {"nprobe": 3, "num_short": 0},
    {"nprobe": 3, "num_short": 0, "num_mid": 0}, {},
)  # fmt: skip


def vectors() -> np.ndarray:
    generator = np.random.default_rng(1)
    return (generator.standard_normal((300, 4)) @ generator.standard_normal((4, 4)) + 3).astype(np.float32)


def make_codecs(x_ND: np.ndarray) -> None:
    codecs = {
        "golden-codec-v1": lambda: Codec.fit(x_ND, **SMALL),
        "golden-ivf-codec-v1": lambda: Codec.fit(x_ND, coarse_centroids=x_ND[:6], **SMALL),
        "golden-product-codec-v1": lambda: Codec.fit(x_ND, num_parts=2, rotate=True, **SMALL),
    }
    for name, fit in codecs.items():
        if (HERE / f"{name}.safetensors").exists():
            continue
        codec = fit()
        codec.save(HERE / f"{name}.safetensors", overwrite=False)
        codes = codec.encode(x_ND[:40])
        arrays = {"codes": codes.codes} | ({"lists": codes.lists} if codes.has_lists else {})
        decoded = codec.decode(codes)
        np.savez(HERE / f"{name}.npz", vectors=x_ND[:40], decoded=decoded, **arrays)


def make_indexes(x_ND: np.ndarray) -> None:
    """One of an IVF codec, with a pairwise decoder; one of a codec without lists, with a graph and wide ids."""
    generator = np.random.default_rng(2)  # tables of pairs are worth fitting to many vectors only
    many_ND = np.tile(x_ND[:250], (20, 1)) + generator.standard_normal((5000, 4)).astype(np.float32) / 4
    made = {
        "golden-index-v1": ("golden-ivf-codec-v1", {"pairwise": True}, SearchOptions()),
        "golden-graph-index-v1": (
            "golden-codec-v1",
            {"num_lists": 20, "metric": "cosine", "ids": np.arange(5000) * 3 + 2**40},
            SearchOptions(4, 30, None, 8),
        ),
    }
    for name, (codec, settings, options) in made.items():
        if (HERE / name).exists():
            continue
        index = Index.build(Codec.load(HERE / f"{codec}.safetensors"), many_ND, **settings)
        index.tables = replace(index.tables, min_graph_lists=GRAPH_LISTS)
        index.remove(np.sort(index.segments[0].ids)[:-250])
        index.options = options
        index.save(HERE / name)
        found = [index.search(x_ND[250:], k=5, **options) for options in SEARCHES]
        ids = np.sort(index.segments[0].ids)
        expected = {f"distances_{i}": distances for i, (distances, _) in enumerate(found)}
        np.savez(HERE / f"{name}.npz", queries=x_ND[250:], ids=ids, decoded=index.reconstruct(ids), **expected)


def make_collection(x_ND: np.ndarray) -> None:
    """Two segments, tombstones, fresh vectors, ids of both kinds, and a record without a vector."""
    if (folder := HERE / "golden-collection-v1").exists():
        return
    with Collection.create(folder, metric="l2", codec=HERE / "golden-codec-v1.safetensors") as docs:
        docs.upsert(range(200), x_ND[:200], [{"n": n} for n in range(200)])
        docs.optimize()
        docs.upsert([f"t{n}" for n in range(50)], x_ND[200:250])
        docs.optimize()
        docs.delete(range(0, 20))
        docs.upsert([30, "bare"], [x_ND[250], None], [{"n": -1}, {"n": -2}])
        found = docs.search(x_ND[250:260], 5, nprobe=100)
    (folder / "lock").unlink()
    ids = np.array([[str(hit.id) for hit in hits] for hits in found])
    scores = np.array([[hit.score for hit in hits] for hits in found], np.float32)
    np.savez(HERE / "golden-collection-v1.npz", ids=ids, scores=scores, queries=x_ND[250:260])


if __name__ == "__main__":
    make_codecs(vectors())
    make_indexes(vectors())
    make_collection(vectors())
