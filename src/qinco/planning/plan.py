"""What each stage of work on many vectors takes on a number of machines: arithmetic on measured rates."""

from dataclasses import asdict, dataclass

from qinco.comparison.scaling import NPROBE, NUM_SHORT
from qinco.config import DEFAULT_ENCODE_OPTIONS, EncodeOptions, ModelConfig, find_preset, require_int, require_number
from qinco.machine import usable_cores
from qinco.maths.clustering import COARSE_ITERATIONS
from qinco.planning.rates import Rates, measure_rates
from qinco.progress import ProgressOption
from qinco.search.build import CLUSTER_ROWS_EACH, FIT_ROWS, choose_num_lists

_EXACT_LISTS, _GRAPH_COMPARED = 65_536, 4000  # `assigner` compares all centroids up to so many, and in a graph so many
_SHARDS_EACH = 4
_GB = 1e9


@dataclass(frozen=True)
class Stage:
    """What one stage takes.

    Attributes:
        name: "train", "encode", "centroids", "build" or "search".
        hours: on all machines together; None for "search".
        memory_gb, disk_gb, network_gb: of memory and disk of each machine, and what it reads over the network.
        limit: what it waits for: "cores" or "disk".
        detail: what else there is to say.
    """

    name: str
    hours: float | None
    memory_gb: float
    disk_gb: float
    network_gb: float
    limit: str
    detail: str


@dataclass(frozen=True)
class Plan:
    """What `plan` returns.

    Attributes:
        stages: in order.
        hours: of all stages.
        bytes_per_vector: in the index, ids included.
        queries_per_second: of all machines.
        query_ms: of a query alone, on the cores of all machines that hold a part of the index.
        rates: what it was computed from.
        settings: what it was asked for, defaults included.
    """

    stages: list[Stage]
    hours: float
    bytes_per_vector: float
    queries_per_second: float
    query_ms: float
    rates: Rates
    settings: dict

    def to_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


def plan(
    vectors: float, dim: int, bytes: int, *, machines: int = 1, cores: int | None = None, preset: str = "qinco2-S",
    num_lists: int | None = None, nprobe: int = NPROBE, num_short: int = NUM_SHORT, replicas: int = 1,
    minutes: float = 60.0, value_bytes: int = 4, options: EncodeOptions = DEFAULT_ENCODE_OPTIONS,
    rates: Rates | None = None, progress: ProgressOption = None,
) -> Plan:  # fmt: skip
    """Estimate hours, memory, disk and network of compressing and searching many vectors.

    Args:
        vectors: N.
        dim: D.
        bytes: M, codes of a vector.
        machines: that share the work.
        cores: of each; those of this machine if None.
        preset: of the codec.
        num_lists: V; about 4 √N if None.
        nprobe, num_short: of a search.
        replicas: of each part of the index.
        minutes: of training, on one machine.
        value_bytes: of a value of a vector, as it is stored: 4, or 2 for float16.
        options: of encoding.
        rates: of a core; if None they are measured on this machine, in a minute.
        progress: see `qinco.progress`.

    Example:
        >>> plan(1e9, 768, 16, machines=20, cores=16).hours
    """
    count = int(vectors)
    require_int("vectors", count)
    for name, value in (("dim", dim), ("bytes", bytes), ("machines", machines), ("replicas", replicas)):
        require_int(name, value)
    for name, value in (("nprobe", nprobe), ("value_bytes", value_bytes)):
        require_int(name, value)
    require_int("num_short", num_short, 0)
    require_number("minutes", minutes, above=0)
    cores = usable_cores() if cores is None else cores
    require_int("cores", cores)
    lists = choose_num_lists(num_lists, count)
    config = ModelConfig(dim=dim, num_steps=bytes, **find_preset(preset))
    if rates is None:
        rates = measure_rates(config, options, progress=progress)
    settings = {
        "vectors": count, "dim": dim, "bytes": bytes, "machines": machines, "cores": cores, "preset": preset,
        "num_lists": lists, "nprobe": nprobe, "num_short": num_short, "replicas": replicas, "minutes": minutes,
        "value_bytes": value_bytes,
    }  # fmt: skip
    job = _Job(rates=rates, **settings)
    stages = [job.train(), job.encode(), job.centroids(), job.build(), job.search()]
    hours = sum(stage.hours for stage in stages if stage.hours is not None)
    each = bytes + 1 + job.id_bytes
    return Plan(stages, hours, each, job.queries_per_second, job.query_ms, rates, settings)


@dataclass(frozen=True)
class _Job:
    rates: Rates
    vectors: int
    dim: int
    bytes: int
    machines: int
    cores: int
    preset: str
    num_lists: int
    nprobe: int
    num_short: int
    replicas: int
    minutes: float
    value_bytes: int

    @property
    def id_bytes(self) -> int:
        return 4 if self.vectors < 1 << 32 else 8

    @property
    def read_gb(self) -> float:
        """What each machine reads to see its share of the vectors."""
        return self.vectors * self.dim * self.value_bytes / self.machines / _GB

    @property
    def tables_gb(self) -> float:
        """Centroids and look-up tables."""
        return 4 * self.dim * (self.num_lists + 256 * self.bytes) / _GB

    def train(self) -> Stage:
        seen = min(self.vectors, 10_000_000) * self.dim * self.value_bytes / _GB
        return Stage("train", self.minutes / 60, 2.0, seen, seen, "cores", f"one machine, {self.minutes:g} minutes")

    def encode(self) -> Stage:
        hours, limit = self._hours(self.rates.encode_us)
        return Stage(
            "encode", hours, 0.5, self.vectors * self.bytes / self.machines / _GB, self.read_gb, limit,
            f"{self.rates.encode_us:.0f} us a vector and core",
        )  # fmt: skip

    def centroids(self) -> Stage:
        fitted = min(FIT_ROWS, self.vectors)  # what tables are fitted to; it is put into lists twice
        rows = min(fitted, CLUSTER_ROWS_EACH * self.num_lists)
        iteration_us = rows * self.num_lists * self.dim * self.rates.compare_ns / 1000
        us = COARSE_ITERATIONS * iteration_us + rows * self.rates.decode_us + 2 * fitted * self._assign_us
        hours = us / 1e6 / self.cores / 3600
        memory = rows * self.dim * 8 / _GB + self.tables_gb
        return Stage("centroids", hours, memory, 0.0, 0.0, "cores", f"one machine, {self.num_lists:,} lists")

    def build(self) -> Stage:
        hours, limit = self._hours(self._assign_us + self.rates.fill_us)
        shards = _SHARDS_EACH * self.machines
        disk = self.vectors * (self.bytes + 1 + self.id_bytes) / self.machines + 8 * self.num_lists * shards
        return Stage(
            "build", hours, self.tables_gb + 1.0, disk / _GB, self.read_gb, limit,
            f"{self._assign_us:.0f} us to find a vector's list, {self.rates.fill_us:.1f} to fill it",
        )  # fmt: skip

    def search(self) -> Stage:
        memory = self.vectors * (self.bytes + 1 + self.id_bytes) * self.replicas / self.machines / _GB + self.tables_gb
        detail = f"{self.queries_per_second:,.0f} queries/s, {self.query_ms:.1f} ms for one alone"
        return Stage("search", None, memory, memory, 0.0, "cores", detail)

    @property
    def _assign_us(self) -> float:
        """Of decoding a vector and finding its list."""
        compared = self.num_lists if self.num_lists <= _EXACT_LISTS else _GRAPH_COMPARED
        return self.rates.decode_us + compared * self.dim * self.rates.compare_ns / 1000

    @property
    def _scan_us(self) -> float:
        return self.nprobe * self.vectors / self.num_lists * self.rates.scan_ns / 1000

    @property
    def _others_us(self) -> float:
        return self.rates.query_us + self.num_short * self.rates.rank_us

    @property
    def queries_per_second(self) -> float:
        return self.machines * self.cores * 1e6 / (self._scan_us + self._others_us)

    @property
    def query_ms(self) -> float:
        parts = max(1, self.machines // self.replicas)
        return (self._scan_us / parts + self._others_us) / 1000

    def _hours(self, us: float) -> tuple[float, str]:
        """Of work on all vectors that reads them meanwhile, and what it waits for."""
        computing = self.vectors * us / 1e6 / (self.machines * self.cores) / 3600
        reading = self.read_gb * 1000 / max(self.rates.read_mb, 1e-9) / 3600
        return max(computing, reading), "cores" if computing >= reading else "disk"
