"""Encoding vectors to codes in a bucket."""

from dataclasses import dataclass

from qinco.codec.codec import Codec
from qinco.codec.joining import Share
from qinco.config import EncodeOptions
from qinco.executors import Executor, in_this_process, run_parts
from qinco.progress import Progress
from qinco.store.code_bucket import CodeBucket
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
    codec: Codec, source: VectorSource, options: EncodeOptions, share: Share, url: str, executor: Executor | None,
    report: Progress,
) -> tuple[int, bool]:  # fmt: skip
    """Encode the shards that are missing; how many vectors these hold, and whether the codes are complete."""
    plan, (complete, pending) = share.plan, CodeBucket.find(url)
    bucket = share.joined(url, complete, pending) or CodeBucket.create(url, plan, complete and complete.token)
    missing = [shard for shard in bucket.missing() if shard in share.shards]
    parts = [plan.rows(shard) for shard in range(plan.num_shards)]
    encoder = BucketEncoder(codec, source, options, bucket)
    run_parts(executor or in_this_process, encoder, missing, parts, "encoding", report)
    num_done = sum(len(parts[shard]) for shard in missing)
    if bucket.is_pending and bucket.is_current():
        if bucket.missing():
            return num_done, False
        bucket.commit()
    return num_done, True
