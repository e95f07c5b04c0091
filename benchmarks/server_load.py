"""Queries a second and latencies of `qinco serve`, beside the library called directly, and beside LanceDB.

python benchmarks/server_load.py BASE QUERIES CODEC --count 200000 --folder load [--peer PYTHON] [--rounds 3]

Client and server are processes of this machine and talk over loopback; the settings take turns. LanceDB
(IVF_PQ, 8 bytes a vector) runs behind a route of FastAPI in the environment of PYTHON, which has lancedb, fastapi and
uvicorn. There must be 1,000 queries at least.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HEADERS = "{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
NPY, JSON = "application/x-npy", "application/json"
CONNECTIONS = (1, 8, 64)
PEER = """
import sys
import numpy as np, lancedb, uvicorn, pyarrow as pa
from pathlib import Path
from fastapi import FastAPI
from pydantic import BaseModel
folder, base, port, probes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
db = lancedb.connect(folder)
if "sift" not in db.table_names():
    x = np.load(base)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    table = db.create_table("sift", pa.table({"id": np.arange(len(x)), "vector": column}))
    table.create_index(metric="l2", num_partitions=512, num_sub_vectors=8, vector_column_name="vector")
table = db.open_table("sift")
class Query(BaseModel):
    vector: list[float]
    limit: int = 10
app = FastAPI()
@app.post("/query")
def query(body: Query):
    found = table.search(np.array(body.vector, np.float32)).nprobes(probes).limit(body.limit)
    return found.select(["id", "_distance"]).to_list()
print(f"http://127.0.0.1:{port}", file=sys.stderr, flush=True)
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
"""  # the address is told before it listens: the first requests are tried again


class Client(asyncio.Protocol):
    """One connection, which sends a request when the one before it was answered."""

    def __init__(self, requests: list[bytes], first: int, until: float, seconds: list[float]):
        self.requests, self.next, self.until, self.seconds = requests, first, until, seconds
        self.ended = asyncio.get_running_loop().create_future()
        self.buffer, self.last = b"", b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
        if len(body) < length:
            return
        assert head.startswith(b"HTTP/1.1 200"), self.buffer[:1000]
        self.seconds.append(time.perf_counter() - self.begun)
        self.buffer, self.last = b"", body
        if time.perf_counter() < self.until:
            self.send()
        else:
            self.transport.close()
            self.ended.set_result(None)


async def drive(port: int, requests: list[bytes], connections: int, seconds: float) -> dict:
    loop, latencies = asyncio.get_running_loop(), []
    begun = time.perf_counter()
    spread = len(requests) // connections or 1
    clients = [
        (await loop.create_connection(lambda n=n: Client(requests, n * spread, begun + seconds, latencies),
                                      "127.0.0.1", port))[1] for n in range(connections)
    ]  # fmt: skip
    await asyncio.gather(*(client.ended for client in clients))
    took = time.perf_counter() - begun
    p50, p95, p99 = 1000 * np.percentile(latencies, [50, 95, 99])
    return {"rate": len(latencies) / took, "number": len(latencies), "p50": p50, "p95": p95, "p99": p99}


def request(method: str, path: str, kind: str, body: bytes) -> bytes:
    return HEADERS.format(method, path, kind, len(body)).encode() + body


def saved(x: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


def started(command: list[str]) -> tuple[subprocess.Popen, int]:
    """A server, when it answers, and its port."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
            for _ in range(600):
                try:
                    asyncio.run(asyncio.wait_for(connect(port), 5))
                    return process, port
                except OSError:
                    time.sleep(0.5)
    raise SystemExit(f"{command} did not start")


async def connect(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def measured(server: tuple, requests: list[bytes], connections: int, seconds: float, queries: int = 1) -> dict:
    """Driven from a process of its own, as clients do; "cpu" is the server's milliseconds of processor a query."""
    process, port = server
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder, "requests.npy")
        np.save(packed, np.array(requests, object), allow_pickle=True)  # our own file
        command = [sys.executable, __file__, "client", str(port), str(packed), str(connections), str(seconds)]
        before = processor_seconds(process.pid)
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    used = processor_seconds(process.pid) - before
    return {"queries": found["rate"] * queries, **found, "cpu": 1000 * used / (found["number"] * queries)}


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def library(folder: Path, queries: np.ndarray, seconds: float) -> dict:
    """One query at a time, and batches of 1,000, without a server."""
    from qinco.collection.collection import Collection

    with Collection.open(folder, read_only=True) as docs:
        docs.search(queries[:1000], 10, with_payload=False)
        latencies, number, begun, used = [], 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < begun + seconds:
            now = time.perf_counter()
            docs.search(queries[number % len(queries)], 10, with_payload=False)
            latencies.append(time.perf_counter() - now)
            number += 1
        p50, p95, p99 = 1000 * np.percentile(latencies, [50, 95, 99])
        single = {"queries": len(latencies) / sum(latencies), "p50": p50, "p95": p95, "p99": p99,
                  "cpu": 1000 * (time.process_time() - used) / number}  # fmt: skip
        batches, begun, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < begun + seconds:
            docs.search(queries[1000 * (batches % (len(queries) // 1000)) :][:1000], 10, with_payload=False)
            batches += 1
        batch = {"queries": 1000 * batches / (time.perf_counter() - begun),
                 "cpu": (time.process_time() - used) / batches}  # fmt: skip
        return {"library, one at a time": single, "library, 1,000 at a time": batch}


def main() -> None:
    if sys.argv[1] == "client":
        port, packed, connections, seconds = sys.argv[2:]
        requests = np.load(packed, allow_pickle=True).tolist()
        print(json.dumps(asyncio.run(drive(int(port), requests, int(connections), float(seconds)))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "queries", "codec"):
        parser.add_argument(name)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--peer", help="python with lancedb, fastapi and uvicorn")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are printed")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    folder, base = made(options)
    import qinco

    queries = np.concatenate([block for _, block in qinco.open_vectors(options.queries).blocks(1 << 14)])
    servers = [(started([sys.executable, "-m", "qinco", "serve", str(folder), "port=0", "auto_optimize=false"]),
                settings(folder.stem, queries))]  # fmt: skip
    if options.peer:
        ones = [request("POST", "/query", JSON, json.dumps({"vector": x.tolist()}).encode()) for x in queries]
        for port, probes in ((6398, 5), (6399, 20)):
            command = [options.peer, "-c", PEER, str(options.folder / "lance"), str(base), str(port), str(probes)]
            servers.append((started(command), {f"LanceDB, {probes} probes, JSON, {n} connections": (ones, n, 1)
                                               for n in CONNECTIONS}))  # fmt: skip
    found: dict[str, list[dict]] = {}
    try:
        for number in range(options.rounds + 1):
            for name, one in library(folder, queries, options.seconds).items():
                found.setdefault(name, []).append(one)
            for server, sets in servers:
                for name, (requests, connections, count) in sets.items():
                    one = measured(server, requests, connections, options.seconds, count)
                    found.setdefault(name, []).append(one)
            if not number:
                found.clear()  # all have warmed up
    finally:
        for server, _ in servers:
            server[0].send_signal(signal.SIGTERM)
            server[0].wait()
    print("| | queries a second | p50, ms | p95, ms | p99, ms | processor, ms a query |\n|---|---|---|---|---|---|")
    for name, several in found.items():
        report(name, {key: float(np.median([one[key] for one in several])) for key in several[0]})


def made(options) -> tuple[Path, Path]:
    """The collection, and the vectors as .npy for the peer."""
    import qinco

    options.folder.mkdir(parents=True, exist_ok=True)
    folder, base = options.folder / "sift.qinco", options.folder / "base.npy"
    source = qinco.open_vectors(options.base).limit(options.count)
    if not base.exists():
        np.save(base, np.concatenate([block for _, block in source.blocks(1 << 14)]))
    if not (folder / "collection.sqlite").exists():
        qinco.Collection.create(folder, source, payload=True, metric="l2", codec=options.codec).close()
    return folder, base


def settings(name: str, queries: np.ndarray) -> dict[str, tuple[list[bytes], int, int]]:
    """Requests, connections, and queries of each request, by what they are called."""
    path = f"/collections/{name}/points/query"
    ones = [request("POST", path, JSON, json.dumps({"query": x.tolist(), "limit": 10}).encode()) for x in queries]
    path = f"/v1/{name}/search?k=10"
    arrays = [request("POST", path, NPY, saved(x)) for x in queries]
    starts = range(0, len(queries) - 999, 1000)
    batches = [request("POST", path, NPY, saved(queries[first : first + 1000])) for first in starts]
    return {
        **{f"JSON, {n} connections": (ones, n, 1) for n in CONNECTIONS},
        **{f"npy of 1 query, {n} connections": (arrays, n, 1) for n in CONNECTIONS},
        **{f"npy of 1,000 queries, {n} connections": (batches, n, 1000) for n in (1, 2)},
    }


def report(name: str, found: dict) -> None:
    times = [f"{found[name]:.3f}" if name in found else "" for name in ("p50", "p95", "p99", "cpu")]
    print(f"| {name} | {found['queries']:,.0f} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()
