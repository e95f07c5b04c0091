"""Collections that compress whatever is written, at once."""

from functools import cache

import numpy as np

from qinco import Codec, Collection


class Compressed(Collection):
    """Nothing in it is searched as it was given."""

    def upsert(self, *records, **options) -> None:
        super().upsert(*records, **options)
        self.optimize()
        assert self.stats()["fresh"] == 0


@cache
def codec(dim: int) -> Codec:
    x_ND = np.random.default_rng(0).standard_normal((500, dim)).astype(np.float32)
    return Codec.fit(x_ND, num_steps=8, codebook_size=16, num_blocks=1, hidden_dim=16, epochs=0, device="cpu", seed=0)


def empty(kind: str, folder, dim: int, **settings) -> Collection:
    """An empty collection, of kind "exact" or "compressed"."""
    if kind == "exact":
        return Collection.create(folder, **settings)
    return Compressed.create(folder, codec=codec(dim), exact_below=0, **settings)
