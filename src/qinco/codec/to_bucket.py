"""Encoding vectors to codes in a bucket."""

from qinco.codec.codec import Codec
from qinco.codec.joining import Share
from qinco.codec.shard_encoder import ShardEncoder
from qinco.config import EncodeOptions
from qinco.executors import Executor, in_this_process, run_parts
from qinco.progress import Progress
from qinco.store.code_bucket import CodeBucket
from qinco.vectors.rows import VectorSource


def encode_to_bucket(
    codec: Codec, source: VectorSource, options: EncodeOptions, share: Share, url: str, executor: Executor | None,
    report: Progress,
) -> tuple[int, bool]:  # fmt: skip
    """Encode the shards that are missing; how many vectors these hold, and whether the codes are complete."""
    plan, (complete, pending) = share.plan, CodeBucket.find(url)
    bucket = share.joined(url, complete, pending) or CodeBucket.create(url, plan, complete and complete.token)
    missing = [shard for shard in bucket.missing() if shard in share.shards]
    parts = [plan.rows(shard) for shard in range(plan.num_shards)]
    encoder = ShardEncoder(codec, source, options, plan, bucket.has, bucket.write)
    run_parts(executor or in_this_process, encoder, missing, parts, "encoding", report)
    num_done = sum(len(parts[shard]) for shard in missing)
    if bucket.is_pending and bucket.is_current():
        if bucket.missing():
            return num_done, False
        bucket.commit()
    return num_done, True
