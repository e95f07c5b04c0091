"""What VectorDBBench asks for of a qinco collection."""

from pydantic import BaseModel

from ..api import DBCaseConfig, DBConfig, MetricType

METRICS = {"L2": "l2", "COSINE": "cosine", "IP": "inner_product", "DP": "inner_product"}


class QincoConfig(DBConfig):
    """Where collections lie: a folder on this machine."""

    folder: str = "qinco_collections"

    def to_dict(self) -> dict:
        return {"folder": self.folder}


class QincoIndexConfig(BaseModel, DBCaseConfig):
    """How vectors are compressed and searched; 0: as qinco chooses."""

    metric_type: MetricType | None = None
    bytes: int = 16
    minutes: float = 10.0
    nprobe: int = 0
    num_short: int = 0

    def parse_metric(self) -> str:
        metric = MetricType.COSINE if self.metric_type is None else self.metric_type
        if metric.value not in METRICS:
            raise ValueError(f"qinco searches by {', '.join(METRICS)}, not by {metric.value}")
        return METRICS[metric.value]

    def index_param(self) -> dict:
        return {"metric": self.parse_metric(), "bytes": self.bytes, "minutes": self.minutes}

    def search_param(self) -> dict:
        return {name: value for name in ("nprobe", "num_short") if (value := getattr(self, name))}
