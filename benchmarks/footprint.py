"""Measure what qinco costs to have and to start: disk, memory and time of the environment that runs this.

    python benchmarks/footprint.py [INDEX]

Install the wheel alone into an environment of its own, and run this by its Python: a Markdown report on stdout. INDEX
is a folder; by default the small one of tests/data. Takes a minute.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

import qinco
from qinco.machine import processor_name

ROOT = Path(__file__).parents[1]
RUNS = 9
TOOLS = ("pip", "setuptools", "wheel")  # that environments begin with
CHILD = """
import time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * {page} / 1e6
before, begun = resident(), time.monotonic()
{work}
seconds, after = time.monotonic() - begun, resident()
import sys
print(seconds, after - before, *sorted({{"torch", "faiss"}} & set(sys.modules)))
"""
WORKS = {
    "import numpy": "import numpy",
    "import qinco": "import qinco",
    "import qinco, load an index, search": "import qinco\nqinco.Index.load({index!r}).search({query}, k=3)",
}


def installed_megabytes() -> Iterator[tuple[str, float]]:
    """Each package and what its files take on disk."""
    for found in metadata.distributions():
        if found.name.lower() not in TOOLS:
            paths = {Path(str(found.locate_file(file))) for file in found.files or ()}
            blocks = sum(path.stat().st_blocks for path in paths if path.exists())
            yield f"{found.name} {found.version}", blocks * 512 / 1e6


def in_children(work: str) -> tuple[float, float, str]:
    """Seconds and megabytes that a fresh process takes for it, and what of torch and faiss it imports."""
    script = CHILD.format(work=work, page=os.sysconf("SC_PAGE_SIZE"))
    runs = [subprocess.check_output([sys.executable, "-c", script], text=True).split() for _ in range(RUNS)]
    seconds, megabytes = (statistics.median(float(run[column]) for run in runs) for column in (0, 1))
    return seconds, megabytes, ", ".join(runs[0][2:]) or "none"


def command_seconds(words: list[str]) -> float:
    """The wall time of a command, with the start of the interpreter."""
    seconds = []
    for _ in range(RUNS):
        begun = time.monotonic()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - begun)
    return statistics.median(seconds)


def main(arguments: list[str]) -> None:
    folder = arguments[0] if arguments else str(ROOT / "tests/data/golden-index-v1")
    index = qinco.Index.load(folder)
    queries = np.random.default_rng(0).standard_normal((5, index.d)).astype(np.float32)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    print(f"# What qinco costs to have and to start\n\nMachine: {processor_name()}, Python {sys.version.split()[0]}.")
    print(f"Commit: {commit.strip()}. Command: `python benchmarks/footprint.py`.")
    print(f"Medians of {RUNS} processes each, files cached.")
    print(f"\nThe index: {len(index)} vectors of {index.d} dimensions.\n")
    sizes = sorted(installed_megabytes(), key=lambda size: -size[1])
    print("| package | MB on disk |\n| --- | --- |")
    for name, megabytes in [*sizes[:12], ("all", sum(megabytes for _, megabytes in sizes))]:
        print(f"| {name} | {megabytes:.1f} |")
    print("\n| what | seconds | MB resident above the interpreter | of torch and faiss |\n| --- | --- | --- | --- |")
    for name, work in WORKS.items():
        seconds, megabytes, others = in_children(work.format(index=folder, query=queries[0].tolist()))
        print(f"| {name} | {seconds:.3f} | {megabytes:.1f} | {others} |")
    command = str(Path(sys.executable).with_name("qinco"))
    queries_file = Path(os.environ.get("TMPDIR", "/tmp")) / f"footprint-{os.getpid()}.fvecs"
    qinco.write_vectors(queries_file, queries)
    print("\n| command | seconds |\n| --- | --- |")
    print(f"| `python -c pass` | {command_seconds([sys.executable, '-c', 'pass']):.3f} |")
    print(f"| `qinco --help` | {command_seconds([command, '--help']):.3f} |")
    seconds = command_seconds([command, "search", f"index={folder}", f"queries={queries_file}"])
    print(f"| `qinco search index=... queries=...` | {seconds:.3f} |")
    queries_file.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
