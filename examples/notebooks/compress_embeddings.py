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
# # Compress a corpus of sentence embeddings
#
# 16,000 embeddings of 48 dimensions take 192 bytes each as float32. This notebook trains a codec on them, stores them
# in 4 bytes each, decodes them, and searches them compressed. It takes less than a minute on one core.
#
# `pip install 'qinco[train]'` brings what it needs. To use embeddings of your own, set `VECTORS` to their path (`.npy`,
# `.fvecs`, `.hdf5`, or a column of a table: `texts.parquet:embedding`), in the environment or below.

# %%
import os

import numpy as np

import qinco

VECTORS = os.environ.get("VECTORS")
TRAINING = {"minutes": float(os.environ["MINUTES"])} if "MINUTES" in os.environ else {"epochs": 4}


# %% [markdown]
# Without a path, embeddings are made that resemble those of sentences: they have length 1, gather around topics, and a
# few hidden properties of a text, fewer than there are dimensions, decide where they lie.


# %%
def make_embeddings(count: int, dim: int = 48, topics: int = 50, hidden: int = 6, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    topics_TH = generator.standard_normal((topics, hidden))
    hidden_NH = topics_TH[generator.integers(topics, size=count)] + generator.standard_normal((count, hidden))
    first_HD, second_DD = generator.standard_normal((hidden, dim)), generator.standard_normal((dim, dim))
    x_ND = np.tanh(hidden_NH @ first_HD / 2) @ second_DD + 0.2 * generator.standard_normal((count, dim))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


vectors = qinco.open_vectors(VECTORS)[:] if VECTORS else make_embeddings(16_500)
queries, corpus = vectors[:500], vectors[500:]
print(f"{len(corpus):,} embeddings of {corpus.shape[1]} dimensions, {corpus[0].nbytes} bytes each")

# %% [markdown]
# ## Train
#
# `num_steps` is the length of a code in bytes. Four passes over few vectors are enough to see it work; `MINUTES=10` in
# the environment trains for longer, fitted to the machine, which is what lowers the error.

# %%
codec = qinco.Codec.fit(corpus, "qinco2-XS", num_steps=4, seed=0, device="cpu", **TRAINING)
print(codec)

# %% [markdown]
# ## Encode and decode
#
# A code is 4 bytes. What it decodes to is not the embedding, but near it: the error is compared with the variance of
# the corpus, which is the error of a code of no bytes.

# %%
codes = codec.encode(corpus)
decoded = codec.decode(codes)
variance = np.square(corpus - corpus.mean(0)).sum(1).mean()
error = np.square(corpus - decoded).sum(1).mean()
print(f"{corpus.nbytes / codes.nbytes:.0f} times smaller; {error / variance:.0%} of the variance is lost")

# %% [markdown]
# The first bytes of a code are a shorter code, so one codec serves several sizes.

# %%
for count in (1, 2, 4):
    shorter = codec.decode(codes[:, :count])
    print(f"{count} bytes: {np.square(corpus - shorter).sum(1).mean() / variance:.0%} of the variance is lost")

# %% [markdown]
# ## Search
#
# An index keeps codes in inverted lists. Its results are compared with those of an exact search among the embeddings.

# %%
index = qinco.Index.build(codec, corpus, codes=codes, metric="cosine")
similarities, ids = index.search(queries, k=10, nprobe=32)
_, exact_ids = qinco.exhaustive_search(queries, corpus, k=10, metric="cosine")
found = np.mean([len(set(a) & set(b)) for a, b in zip(ids, exact_ids, strict=True)]) / 10
nearest = (ids == exact_ids[:, :1]).any(1).mean()
print(f"{index.bytes_per_vector:.1f} bytes a vector with its id")
print(f"recall@10 {nearest:.3f}; {found:.0%} of the ten nearest are among the ten found")

# %% [markdown]
# Where the original embeddings may stay on disk, they can rank the first results: `refine=` reads those few alone.

# %%
_, ids = index.search(queries, k=10, nprobe=32, refine=corpus, num_refine=50)
refined = np.mean([len(set(a) & set(b)) for a, b in zip(ids, exact_ids, strict=True)]) / 10
print(f"with the originals of the first 50: {refined:.0%} of the ten nearest")
