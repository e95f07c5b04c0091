"""`ShardEncoder`: what an executor maps over the shards of codes, in a folder or a bucket."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qinco.codec.codec import Codec
from qinco.config import EncodeOptions
from qinco.store.code_folder import CodePlan
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource


@dataclass(frozen=True)
class ShardEncoder:
    """Encodes the vectors of a shard, by its number, in any process and order.

    Attributes:
        codec, source, options: what encodes which vectors, and how.
        plan: of all codes.
        has: whether a shard is there.
        write: keeps a shard: its codes, uint8 or uint16 (n, M), and list numbers, int32 (n,), or None.
    """

    codec: Codec
    source: VectorSource
    options: EncodeOptions
    plan: CodePlan
    has: Callable[[int], bool]
    write: Callable[[int, np.ndarray, np.ndarray | None], None]

    def __call__(self, shard: int) -> None:
        if self.has(shard):
            return
        ranges = [self.plan.rows(shard)]
        codes = Codes.concatenate([
            block for _, block in self.codec.encode_blocks(self.source, self.options, ranges=ranges)
        ])  # fmt: skip
        self.write(shard, codes.codes, codes.lists)
