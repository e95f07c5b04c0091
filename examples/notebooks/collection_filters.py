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
# # A collection with filters
#
# A collection is a database in one folder: ids, JSON payloads, and vectors that are compressed once there are enough.
# This notebook stores 8,000 records, searches them with filters, compresses them, and changes them, in less than a
# minute on one core. `pip install 'qinco[train]'` brings what it needs.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import qinco

VECTORS = os.environ.get("VECTORS")
TRAINING = {"minutes": float(os.environ["MINUTES"])} if "MINUTES" in os.environ else {"epochs": 4}
COUNT, DIM = 8_000, 24


# %% [markdown]
# Articles of twelve subjects, written in some year and language. With `VECTORS=PATH` the vectors are your own.


# %%
def make_vectors(subjects_N: np.ndarray, seed: int = 0, hidden: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    subjects_SH = generator.standard_normal((subjects_N.max() + 1, hidden))
    hidden_NH = subjects_SH[subjects_N] + generator.standard_normal((len(subjects_N), hidden))
    first_HD, second_DD = generator.standard_normal((hidden, DIM)), generator.standard_normal((DIM, DIM))
    return (np.tanh(hidden_NH @ first_HD) @ second_DD).astype(np.float32)


generator = np.random.default_rng(1)
own = qinco.open_vectors(VECTORS)[:] if VECTORS else None
count = COUNT if own is None else len(own)
subjects = generator.integers(12, size=count)
vectors = make_vectors(subjects) if own is None else own
languages, years = generator.choice(["de", "en", "fr"], count), generator.integers(1990, 2025, count)
payloads = [
    {"subject": f"subject {subject}", "lang": str(lang), "year": int(year)}
    for subject, lang, year in zip(subjects, languages, years, strict=True)
]

# %% [markdown]
# ## Store
#
# A call that has returned is on disk. `fields` get an index, so that filters on them are fast.

# %%
folder = Path(mkdtemp()) / "articles.qinco"
docs = qinco.Collection.create(
    folder, metric="cosine", bytes=4, exact_below=2_000, fields={"year": "integer", "lang": "keyword"}
)
docs.upsert([f"article-{n}" for n in range(count)], vectors, payloads)
print(f"{len(docs):,} records; years: {docs.facet('year', limit=3)}")

# %% [markdown]
# ## Search with filters
#
# A filter says which records may be found. Conditions of one mapping must all hold.

# %%
for hit in docs.search(vectors[0], k=3, where={"lang": "de", "year": {"gte": 2010}}):
    print(f"{hit.id:14} {hit.score:.3f} {hit.payload}")

# %% [markdown]
# Alternatives, complements and ids are filters, too. `count` and `facet` take the same ones.

# %%
old_or_french = {"$or": [{"year": {"lt": 1995}}, {"lang": "fr"}], "$not": {"subject": "subject 3"}}
print(f"{docs.count(old_or_french):,} records; languages: {docs.facet('lang', where=old_or_french)}")
hits = docs.search(vectors[0], k=5, where=old_or_french)
assert all(hit.payload["lang"] == "fr" or hit.payload["year"] < 1995 for hit in hits)

# %% [markdown]
# ## Compress
#
# Vectors are kept exactly until `optimize` trains a codec and encodes them: from 20,000 on, unless `exact_below` says
# otherwise. How many of the records that an exact search finds does a compressed one find? A filter that few records
# fulfil is no harder than one that many do.

# %%
filters = [None, {"lang": "de"}, {"year": {"gte": 2020}}, {"lang": "de", "year": {"gte": 2020}}]
exact = [[{hit.id for hit in docs.search(query, k=10, where=where)} for query in vectors[:30]] for where in filters]
docs.optimize(preset="qinco2-XS", **TRAINING)
for where, wanted in zip(filters, exact, strict=True):
    found = [{hit.id for hit in docs.search(query, k=10, where=where)} for query in vectors[:30]]
    shares = [len(a & b) / max(1, len(b)) for a, b in zip(found, wanted, strict=True)]
    print(f"{np.mean(shares):.0%} of the ten nearest, where={where} ({docs.count(where):,} records)")

# %% [markdown]
# ## Change
#
# What changes is searched at once: fresh vectors exactly, beside the compressed ones.

# %%
docs.upsert(["article-0"], vectors[:1], [{"subject": "new", "lang": "it", "year": 2026}])
print(docs.search(vectors[0], k=1, where={"lang": "it"}))
docs.update_payload({"seen": True}, ids=["article-1", "article-2"])
print(docs.count({"seen": True}), "records were seen")
docs.delete(where={"year": {"lt": 1995}})
print(f"{len(docs):,} records are left")
docs.close()
