"""Encoding vectors to codes in a bucket."""

from collections.abc import Container
from dataclasses import dataclass

from qinco.codec.codec import Codec
from qinco.config import EncodeOptions
from qinco.executors import Executor, in_this_process, run_parts
from qinco.progress import Progress
from qinco.store.code_bucket import CodeBucket, begun
from qinco.store.code_folder import CodePlan
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource


@dataclass(frozen=True)
class BucketEncoder:
    """Encodes shards of codes in a bucket, in any process and order; what an `executor` maps over them."""

    codec: Codec
    source: VectorSource
    options: EncodeOptions
    bucket: CodeBucket

    def __call__(self, shard: int) -> None:
        rows = self.bucket.plan.rows(shard)
        blocks = [block for _, block in self.codec.encode_blocks(self.source, self.options, ranges=[rows])]
        codes = Codes.concatenate(blocks)
        self.bucket.write(shard, codes.codes, codes.lists)


def encode_to_bucket(
    codec: Codec, source: VectorSource, options: EncodeOptions, plan: CodePlan, url: str, shards: Container[int],
    executor: Executor | None, report: Progress, *, resume: bool, overwrite: bool,
) -> tuple[int, bool]:  # fmt: skip
    """Encode the shards that are missing; how many vectors these hold, and whether the codes are complete."""
    bucket = begun(url, plan, resume, overwrite)
    missing = [shard for shard in bucket.missing() if shard in shards]
    parts = [plan.rows(shard) for shard in range(plan.num_shards)]
    encoder = BucketEncoder(codec, source, options, bucket)
    run_parts(executor or in_this_process, encoder, missing, parts, "encoding", report)
    is_complete = not bucket.missing()
    if bucket.is_pending and is_complete:
        bucket.commit()
    return sum(len(parts[shard]) for shard in missing), is_complete
