"""Check and measure everything on one GPU, in one call: a line of JSON for each result, written as it comes.

    python benchmarks/gpu.py pack SIFT_FOLDER DATA_FOLDER
    python benchmarks/gpu.py data=FOLDER output=FOLDER [parts=PART,...] [minutes=9] [device=cuda] [model=PATH]
        [epochs=N] [mse=NUMBER] [commit=TEXT]
    python benchmarks/gpu.py rehearse output=FOLDER [parts=PART,...]

`pack` makes a folder of at most 64 MiB to carry to the machine: 150,000 training and 50,000 base vectors, all queries,
their exact neighbours, and the wheels that a machine with torch alone lacks.

The parts are, in this order, machine, check, encode, step, decode, train, error, assign, search, build, tests and
table. Each has a process of its own, which is stopped when its share of the minutes is over: what fails is recorded,
and the next part runs. Results are in OUTPUT/gpu.jsonl. Codecs stay in the output folder: `encode`, `decode` and
`error` use the trained QINCo2-S from there (or `model`, or random weights), `search` needs one, and `table` continues
its runs for `epochs` epochs, or as many as time allows. `mse` is the validation error that the processor reached on
the same vectors in 15 minutes, which `train` says the card's seconds to.

`rehearse` runs the same lines on the processor, on tiny models and drawn vectors, with the kernels in Triton's
interpreter; its figures mean nothing. Needs no installation: it runs the code of this checkout.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Each part's share of the remaining time, and the module and function that it runs.
PARTS = {
    "machine": (1, "gpu_setting", "report_machine"),
    "check": (5, "gpu_steps", "check"),
    "encode": (5, "gpu_coding", "encode"),
    "step": (3, "gpu_steps", "time_steps"),
    "decode": (1, "gpu_coding", "decode"),
    "train": (7, "gpu_training", "train"),
    "error": (1, "gpu_coding", "error"),
    "assign": (1, "gpu_search", "assign"),
    "search": (3, "gpu_search", "search"),
    "build": (2, "gpu_checkout", "build"),
    "tests": (3, "gpu_checkout", "run_tests"),
    "table": (6, "gpu_training", "table_of_codecs"),
}
NOT_REHEARSED = {"build", "tests"}
KEYS = {"data", "output", "parts", "device", "minutes", "model", "epochs", "mse", "commit", "rehearse"}
OWN_KEYS = {"part", "seconds"}  # added for a part's process
GRACE, LEAST_SECONDS = 15, 5


class Results:
    """Lines of JSON, on stdout and in a file."""

    def __init__(self, path: Path):
        self._file = path.open("w")

    def add(self, **values) -> None:
        line = json.dumps(values)
        for file in (sys.stdout, self._file):
            print(line, file=file, flush=True)

    def add_line(self, part: str, line: str) -> None:
        """What a part has printed: an object of its own, or text."""
        try:
            values = json.loads(line)
        except ValueError:
            values = {"text": line}
        self.add(part=part, **(values if isinstance(values, dict) else {"text": line}))


def run_part(part: str, words: list[str], seconds: float, results: Results) -> bool:
    """Run a part in its own process, killed when its time is over; returns whether it succeeded."""
    command = [sys.executable, __file__, *words, f"part={part}", f"seconds={seconds:.0f}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(words))
    assert process.stdout is not None
    watch, begun = threading.Timer(seconds + GRACE, process.kill), time.monotonic()
    watch.start()
    try:
        for line in filter(None, map(str.strip, process.stdout)):
            results.add_line(part, line)
        process.wait()
    finally:
        watch.cancel()
        process.kill()
    taken = round(time.monotonic() - begun, 1)
    if process.returncode:
        how = f"ended with {process.returncode}" if process.returncode > 0 else f"stopped after {taken} s"
        results.add(part=part, failed=how, seconds=taken)
    else:
        results.add(part=part, done=True, seconds=taken)
    return not process.returncode


def environment(words: list[str]) -> dict[str, str]:
    """That of a part's process: the checkout's code, wheels that were carried, and where kernels run."""
    given = settings_of(words)
    site = Path(given["output"], "site")
    paths = [str(ROOT / "src"), *([str(site)] if site.exists() else []), os.environ.get("PYTHONPATH", "")]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    # What was compiled comes back with the results.
    found |= {"TRITON_CACHE_DIR": str(Path(given["output"], "compiled").absolute())}
    if "rehearse" in given:
        found |= {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{found['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"}
    return found


def measure(words: list[str]) -> int:
    """Run all parts in order; returns 0, or 1 if one failed or did not fit the time."""
    given = settings_of(words)
    output, end = Path(given["output"]), time.monotonic() + 60 * float(given.get("minutes", 9))
    output.mkdir(parents=True, exist_ok=True)
    results = Results(output / "gpu.jsonl")
    install(Path(given["data"], "wheels"), output / "site", results)
    wanted = given.get("parts", ",".join(PARTS)).split(",")
    parts = [part for part in PARTS if part in wanted and not ("rehearse" in given and part in NOT_REHEARSED)]
    succeeded = True
    for number, part in enumerate(parts):
        left = end - time.monotonic()
        share = left * PARTS[part][0] / sum(PARTS[name][0] for name in parts[number:])
        if share < LEAST_SECONDS and part != "machine":
            results.add(part=part, failed="not reached in time")
            succeeded = False
            continue
        succeeded &= run_part(part, words, max(share, LEAST_SECONDS), results)
    return int(not succeeded)


def install(wheels: Path, site: Path, results: Results) -> None:
    """Unpack the wheels that were carried, if any, where the parts' processes look for packages."""
    if found := sorted(map(str, wheels.glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--upgrade"]
        done = subprocess.run([*command, "--target", site, *found], capture_output=True, text=True)
        results.add(part="install", wheels=len(found), **({"failed": done.stderr[-500:]} if done.returncode else {}))


# In a part's process


def work(words: list[str]) -> int:
    """Run one part; returns 1 if it fails, 2 without the device."""
    given, begun = settings_of(words), time.monotonic()
    from importlib import import_module

    import torch
    from gpu_device import brief, peak_memory
    from gpu_setting import Setting, say

    if "rehearse" in given:
        torch.set_num_threads(1)
        repair_interpreter()
    device = torch.device(given.get("device", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        say(failed="torch sees no GPU on this machine: to try the script without one, give rehearse")
        return 2
    setting = Setting(
        data=Path(given["data"]), output=Path(given["output"]), device=device, quick="rehearse" in given,
        until=begun + float(given["seconds"]), model=given.get("model"),
        epochs=int(given["epochs"]) if "epochs" in given else None, mse=float(given["mse"]) if "mse" in given else None,
    )  # fmt: skip
    _, module, function = PARTS[given["part"]]
    run = getattr(import_module(module), function)
    try:
        if given["part"] == "machine":
            run(setting, [word for word in words if word.partition("=")[0] in KEYS], given.get("commit"))
        else:
            run(setting)
    except Exception as error:
        import traceback

        traceback.print_exc()
        say(failed=brief(error))
        return 1
    say(device_memory_at_most=peak_memory(device))
    return 0


def repair_interpreter() -> None:
    """Mend Triton's interpreter, where there is one (see tests/triton_interpreter.py)."""
    try:
        import triton_interpreter
    except ImportError:
        return
    triton_interpreter.repair()


# The command line


def settings_of(words: list[str]) -> dict[str, str]:
    given = dict(word.partition("=")[::2] for word in words)
    if "rehearse" in given:
        given = {"data": str(Path(given.get("output", ""), "data")), "device": "cpu"} | given
    return given


def is_number(text) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def main(words: list[str]) -> int:
    sys.path.insert(0, str(ROOT / "src"))
    if words[:1] == ["pack"] and len(words) == 3:
        from gpu_checkout import carry

        return carry(Path(words[1]), Path(words[2]))
    given = settings_of(words)
    wrong = [f"unknown: {name}" for name in given if name not in KEYS | OWN_KEYS]
    wrong += [f"missing: {name}=" for name in ("data", "output") if name not in given]
    wrong += [
        f"no number: {name}={given[name]}" for name in ("minutes", "epochs", "mse") if not is_number(given.get(name, 1))
    ]
    unknown = set(given.get("parts", "check").split(",")) - set(PARTS)
    wrong += [f"unknown part {name}: there are {', '.join(PARTS)}" for name in sorted(unknown)]
    if wrong:
        print("\n".join([*wrong, __doc__.partition("\n\n")[2].partition("\n\n")[0]]), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also stops the part's process
    if "part" in given:
        return work(words)
    if "rehearse" in given:
        from gpu_checkout import drawn

        drawn(Path(given["data"]))
    return measure(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
