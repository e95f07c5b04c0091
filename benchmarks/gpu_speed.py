"""Build, check and measure everything on one GPU: a Markdown report on stdout and in the output folder.

    python benchmarks/gpu_speed.py subset SIFT_FOLDER OUTPUT_FOLDER
    python benchmarks/gpu_speed.py data=FOLDER output=FOLDER [parts=PART,...] [device=cuda] [minutes=9] [model=PATH]
        [epochs=N] [commit=TEXT] [quick]

`subset` copies a small data set: 150,000 training and 50,000 base vectors, all queries, and their exact neighbours.

The parts are build, check, train, encode, decode, error and table, in this order; all of them by default. Each runs in
its own process, which is stopped when its share of the minutes is over. The report is written as it grows, so no result
is lost. Codecs stay in the output folder: `encode`, `decode` and `error` use the trained QINCo2-S from there (or
`model`, or random weights), and `table` continues its runs for `epochs` epochs, or as many as time allows. Each call
replaces the report of the previous one. `quick device=cpu` only checks that everything runs.

If a call is limited to ten minutes, three calls measure more than one: `parts=train`, then all parts but `train` and
`table` with `model=trained.safetensors`, then `parts=table`.

Needs only the package's own requirements and no installation: it runs the code of this checkout.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Weight of each part's share of the remaining time, and its heading.
PARTS = {
    "build": (4, "Native kernels"),
    "check": (3, "Tests on the device"),
    "train": (7, "Training QINCo2-S, compared with plain torch"),
    "encode": (4, "Encoding"),
    "decode": (1, "Decoding"),
    "error": (1, "Error compared with float32 on the CPU"),
    "table": (6, "Codecs of the SIFT subset"),
}
KEYS = {"data", "output", "parts", "device", "minutes", "model", "epochs", "commit", "quick"}
OWN_KEYS = {"part", "seconds"}  # added for a part's process
GRACE = 15
TRAINING_ROWS, BASE_ROWS, NEIGHBOURS = 150_000, 50_000, 100


class Report:
    """Writes to stdout and to a file."""

    def __init__(self, path: Path):
        self._file = path.open("w")

    def add(self, text: str) -> None:
        for file in (sys.stdout, self._file):
            file.write(text)
            file.flush()


def run_part(part: str, words: list[str], seconds: float, report: Report) -> int:
    """Run a part in its own process and add its output to the report; kill it when its time is over."""
    command = [sys.executable, __file__, *words, f"part={part}", f"seconds={seconds:.0f}"]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watch = threading.Timer(seconds + GRACE, process.kill)
    watch.start()
    try:
        for line in process.stdout:
            report.add(line)
        process.wait()
    finally:
        watch.cancel()
        process.kill()
    if process.returncode < 0:
        report.add(f"\n**Stopped by signal {-process.returncode} after at most {seconds + GRACE:.0f} s.**\n")
    return process.returncode


def measure(given: dict[str, str], words: list[str]) -> int:
    """Run all parts in order; returns 0, 1 if one failed, or 2 if none can run."""
    parts = given.get("parts", ",".join(PARTS)).split(",")
    if unknown := set(parts) - set(PARTS):
        print(f"unknown part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    output, end = Path(given["output"]), time.monotonic() + 60 * float(given.get("minutes", 9))
    output.mkdir(parents=True, exist_ok=True)
    report = Report(output / "gpu_speed.md")
    if code := run_part("machine", words, 120, report):
        return code
    ordered, failed = [part for part in PARTS if part in parts], False
    for number, part in enumerate(ordered):
        left = end - time.monotonic()
        share = left * PARTS[part][0] / sum(PARTS[name][0] for name in ordered[number:])
        report.add(f"\n## {PARTS[part][1]}\n\n")
        if share < 5:
            report.add("Not reached in time.\n")
            continue
        failed |= run_part(part, words, share, report) != 0
    return int(failed)


# In a part's process


def work(given: dict[str, str], words: list[str]) -> int:
    """Run one part and print its section; returns 2 without the device."""
    import torch
    from gpu_device import brief, peak_memory
    from gpu_setting import Setting, report_machine

    begun, device = time.monotonic(), torch.device(given.get("device", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU on this machine. To try the script without one, add device=cpu quick")
        return 2
    setting = Setting(
        data=Path(given["data"]), output=Path(given["output"]), device=device, quick="quick" in given,
        until=begun + float(given["seconds"]), model=given.get("model"),
        epochs=int(given["epochs"]) if "epochs" in given else None,
    )  # fmt: skip
    if given["part"] == "machine":
        report_machine(setting, [word for word in words if word.partition("=")[0] in KEYS], given.get("commit"))
        return 0
    try:
        part_of(given["part"])(setting)
    except Exception as error:
        print(f"\n**Failed: {brief(error)}**", flush=True)
        raise
    finally:
        print(f"\n{time.monotonic() - begun:.0f} s; device memory at most: {peak_memory(device)}.")
    return 0


def part_of(name: str):
    """The function of a part; imports the modules that only this part needs."""
    if name in ("train", "table"):
        import gpu_training

        return {"train": gpu_training.train, "table": gpu_training.table_of_codecs}[name]
    if name in ("build", "check"):
        return {"build": build, "check": check}[name]
    import gpu_coding

    return getattr(gpu_coding, name)


def build(setting) -> None:
    """Compile the native engine in place; without a compiler, torch is used on the CPU."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        print(f"There is no C++ compiler ({compiler}): torch is used on the processor.")
        return
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    log = setting.output / "build.log"
    code = ended(command, log, setting.left)
    ask = "from qinco.native import library as l; print(l.level() if l.is_available() else 'not built')"
    level = subprocess.check_output([sys.executable, "-c", ask], text=True).strip()
    how = "did not end in time" if code is None else f"ended with {code}"
    print(f"`setup.py build_ext --inplace` {how}; native level: {level}. See build.log.")


def check(setting) -> None:
    """Run the GPU tests, without turning warnings into errors: libraries may be newer than the pinned ones."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "tests"]
    log = setting.output / "check.log"
    code = ended(command, log, setting.left)
    lines = log.read_text(errors="replace").splitlines() or [""]
    counted = f"`pytest -m gpu`: {lines[-1].strip(' =')}"
    print(counted if code is not None else f"`pytest -m gpu`: **not finished in time**; last line: {lines[-1]}")
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(f"- {line[:200]}" for line in failures[:20]))
    print({0: "All passed.", 5: "No test is marked."}.get(code, "**Not all passed: see check.log.**"))
    if code not in (0, 5):
        sys.exit(1)


def ended(command: list[str], log: Path, seconds: float) -> int | None:
    """Run a command in the checkout, with its output in a file; returns its exit code, None if it took too long."""
    with log.open("w") as file:
        try:
            return subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return None


def subset(source: Path, target: Path) -> None:
    """Copy the first vectors of a SIFT folder and compute the exact neighbours among them."""
    sys.path.insert(0, str(ROOT / "src"))
    from qinco.search.exhaustive import exhaustive_search
    from qinco.vectors.formats import write_vectors
    from qinco.vectors.rows import open_vectors

    target.mkdir(parents=True, exist_ok=True)
    rows = {"train": TRAINING_ROWS, "base": BASE_ROWS, "query": BASE_ROWS}
    found = {name: open_vectors(source / f"{name}.bvecs").limit(count)[:] for name, count in rows.items()}
    for name, vectors_ND in found.items():
        write_vectors(target / f"{name}.bvecs", vectors_ND)
    nearest = exhaustive_search(found["query"], found["base"], NEIGHBOURS)[1]
    write_vectors(target / "gt.ivecs", nearest)


def is_number(text) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def main(words: list[str]) -> int:
    if words[:1] == ["subset"] and len(words) == 3:
        if missing := [name for name in ("train", "base", "query") if not (Path(words[1]) / f"{name}.bvecs").exists()]:
            print(f"{words[1]} has no {missing[0]}.bvecs: give a folder of SIFT vectors", file=sys.stderr)
            return 2
        subset(Path(words[1]), Path(words[2]))
        return 0
    given = dict(word.partition("=")[::2] for word in words)
    wrong = [f"unknown: {name}" for name in given if name not in KEYS | OWN_KEYS]
    wrong += [f"missing: {name}=" for name in ("data", "output") if name not in given]
    wrong += [f"no number: {name}={given[name]}" for name in ("minutes", "epochs") if not is_number(given.get(name, 1))]
    if wrong:
        print("\n".join([*wrong, __doc__.partition("\n\n")[2].partition("\n\n")[0]]), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also stops the part's process
    return work(given, words) if "part" in given else measure(given, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
