"""Work on several machines, which Ray shares out: `pip install 'qinco[ray]'`."""

from qinco.distributed.clustering import kmeans
from qinco.distributed.encoding import encode
from qinco.distributed.pool import WorkerPool
from qinco.distributed.sharded import Found, ShardedIndex

__all__ = ["Found", "ShardedIndex", "WorkerPool", "encode", "kmeans"]
