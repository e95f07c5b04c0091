# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The rate-distortion curve of your own data
#
# How many bytes does a vector need? This notebook measures error and recall for codes of one byte to four, beside
# faiss's product quantization where faiss is installed, and draws them where matplotlib is. It takes less than a minute
# on one core.
#
# `pip install 'qinco[train,faiss,plot]'`; set `VECTORS` to the path of your own vectors (`.npy`, `.fvecs`, `.hdf5`, or
# a column of a table: `texts.parquet:embedding`). `qinco compare` measures the same with more rivals, sizes and
# training, and writes a report.

# %%
import os
from importlib.util import find_spec

import numpy as np

import qinco

VECTORS = os.environ.get("VECTORS")
TRAINING = {"minutes": float(os.environ["MINUTES"])} if "MINUTES" in os.environ else {"epochs": 4}
SIZES = (1, 2, 3, 4)


# %% [markdown]
# Without a path, vectors are made: each is a smooth function of a few hidden numbers, and noise. Every fifth vector is
# kept from training, and some of these are queries: what is measured must not have been seen.


# %%
def make_vectors(count: int, dim: int = 24, hidden: int = 4, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    hidden_NH = generator.standard_normal((count, hidden))
    first_HD, second_DD = generator.standard_normal((hidden, dim)), generator.standard_normal((dim, dim))
    x_ND = np.tanh(hidden_NH @ first_HD) @ second_DD + 0.1 * generator.standard_normal((count, dim))
    return x_ND.astype(np.float32)


vectors = qinco.open_vectors(VECTORS)[:] if VECTORS else make_vectors(20_000)
unseen = np.arange(len(vectors)) % 5 == 0
train, rest = vectors[~unseen], vectors[unseen]
queries, base = rest[: len(rest) // 4], rest[len(rest) // 4 :]
variance = np.square(base - base.mean(0)).sum(1).mean()
_, exact_ids = qinco.exhaustive_search(queries, base, k=1, metric="l2")
print(f"{len(train):,} vectors to train on, {len(base):,} to compress, {len(queries):,} queries")

# %% [markdown]
# ## One training, every size
#
# A residual codec is progressive: the first m bytes of a code are a code of m bytes. With `num_steps=m` the encoder
# looks for the best code of that length, which is a little better than a prefix of a longer one. Four passes over few
# vectors show the curve, not what training is worth: `MINUTES=10` in the environment trains for longer.

# %%
codec = qinco.Codec.fit(train, "qinco2-XS", num_steps=max(SIZES), seed=0, device="cpu", **TRAINING)


def measure(decoded: np.ndarray) -> tuple[float, float]:
    """Share of the variance that is lost, and recall@10: how often the nearest vector is among the first ten."""
    _, ids = qinco.exhaustive_search(queries, decoded, k=10, metric="l2")
    return float(np.square(base - decoded).sum(1).mean() / variance), float((ids == exact_ids).any(1).mean())


curves = {"qinco": {size: measure(codec.decode(codec.encode(base, num_steps=size))) for size in SIZES}}

# %% [markdown]
# ## A rival
#
# Product quantization cuts a vector into as many parts as the code has bytes.

# %%
if find_spec("faiss"):
    import faiss

    curves["faiss PQ"] = {}
    for size in SIZES:
        if train.shape[1] % size == 0:
            product = faiss.IndexPQ(train.shape[1], size, 8)
            product.train(train)
            curves["faiss PQ"][size] = measure(product.sa_decode(product.sa_encode(base)))

# %%
print(f"{'':10} {'bytes':>5} {'error':>7} {'recall@10':>10}")
for name, curve in curves.items():
    for size, (error, found) in curve.items():
        print(f"{name:10} {size:5} {error:7.3f} {found:10.3f}")

# %% [markdown]
# ## The curve
#
# Read it from the recall that you need to the bytes that it takes. Where the curve is flat, more bytes gain little.

# %%
if find_spec("matplotlib"):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name, curve in curves.items():
        for axis, values in zip(axes, zip(*curve.values(), strict=True), strict=True):
            axis.plot(list(curve), values, marker="o", label=name)
    axes[0].set(xlabel="bytes a vector", ylabel="share of the variance lost", yscale="log")
    axes[1].set(xlabel="bytes a vector", ylabel="recall@10")
    axes[1].legend()
    plt.show()
