"""Small trained codecs and indexes of their vectors, for tests; each is made once."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from small_models import random_vectors

from qinco.codec import Codec
from qinco.search.index import Index

DIM, NUM_VECTORS, NUM_LISTS = 6, 1500, 12
_SETTINGS = {
    "num_steps": 4, "codebook_size": 16, "num_blocks": 1, "hidden_dim": 16, "num_pairs": 16, "beam_width": 4,
    "epochs": 2, "batch_size": 128, "narrow_beam": False, "precision": "float32", "device": "cpu", "seed": 1,
    "rows_shuffled": True, "shrinks": False,  # codewords as long as the means that rankings correct
}  # fmt: skip
KINDS = ("plain", "ivf", "product")


@cache
def vectors(count: int = NUM_VECTORS, seed: int = 0) -> np.ndarray:
    """float32 (count, DIM), of one kind whatever the seed."""
    x_ND = random_vectors(20_000, DIM)[np.random.default_rng(seed).permutation(20_000)[:count]]
    x_ND.flags.writeable = False
    return x_ND


@cache
def trained(kind: str) -> Codec:
    """One of KINDS."""
    if kind == "product":
        return Codec.fit(vectors(), num_parts=2, rotate=True, **_SETTINGS | {"codebook_size": 8})
    return Codec.fit(vectors(), coarse_centroids=vectors(NUM_LISTS, 5) if kind == "ivf" else None, **_SETTINGS)


def trained_on(device: torch.device, kind: str) -> Codec:
    """`trained(kind)`, computing on a device."""
    codec = deepcopy(trained(kind))
    models = [model.to(device) for model in codec.models]
    return Codec(models, codec.encode_options, None, codec.rotation_DD)


@cache
def decoded(kind: str) -> np.ndarray:
    """What the codec makes of `vectors()`."""
    return trained(kind).decode(trained(kind).encode(vectors()))


@cache
def built(kind: str = "plain", metric: str = "l2", pairwise: bool = False) -> Index:
    """An index of `vectors()`. Tests that change one make it with `copied`."""
    num_lists = None if kind == "ivf" else NUM_LISTS
    return Index.build(trained(kind), vectors(), num_lists, metric=metric, pairwise=pairwise)


def copied(index: Index) -> Index:
    """Another index of the same vectors, which may be changed."""
    return Index(index.codec, index.parts)


def with_margin(index: Index, margin: float | None) -> Index:
    """Another index of the same vectors, which decodes all of its shortlists with None."""
    other = copied(index)
    other.tables = replace(other.tables, ranking=replace(other.tables.ranking, margin=margin, pairwise_margin=margin))
    return other


def exact(metric, queries_QD, x_ND):
    """What is to be found, float64 (Q, N); the largest are nearest but for L2."""
    queries_QD, x_ND = queries_QD.astype(np.float64), x_ND.astype(np.float64)
    if metric == "l2":
        return np.square(queries_QD[:, None] - x_ND).sum(2)
    products_QN = queries_QD @ x_ND.T
    if metric == "cosine":
        products_QN /= np.linalg.norm(queries_QD, axis=1)[:, None] * np.linalg.norm(x_ND, axis=1)
    return products_QN
