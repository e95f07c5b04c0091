"""Compare rules of encoding by error and time, one thread: a Markdown table on stdout.

    python benchmarks/preselection.py model=CODEC db=PATH [rules="A=16 B=32,C=80 B=40"] [count=10000 timed=2000]
        [baseline=CHECKOUT baseline_model=CODEC baseline_rules="C=128 B=64"]

Errors are those of the last `count` vectors of the file, which training with num_valid=count and rows in random order
(rows_shuffled=true) holds out. Times are the least of three passes over `timed` of them. With `baseline`, another
checkout with its engine built encodes with its own rules in between, and all times are given as ratios to the time of
the first of those too. QINCO_NATIVE_LEVEL forces a level.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import qinco

RULES, BASELINE_RULES, PASSES = "A=16 B=32,C=64 B=32,C=64 B=48,C=80 B=40,C=128 B=64", "C=128 B=64", 3
NAMES = {"A": "num_candidates", "B": "beam_width", "C": "num_pairs"}


def parsed(rule: str) -> dict[str, int]:
    return {NAMES[key]: int(value) for key, value in (word.split("=") for word in rule.split())}


def measure(model: str, db: str, rules: str, count: int, timed: int) -> None:
    """Print a line of error and microseconds a vector for each rule; an error is only computed where count > 0."""
    codec, vectors = qinco.Codec.load(model), qinco.open_vectors(db)
    x_ND = np.asarray(vectors[len(vectors) - max(count, timed) :], np.float32)
    for rule in rules.split(","):
        options, seconds = parsed(rule), []
        for _ in range(PASSES):
            begun = time.process_time()
            codec.encode(x_ND[:timed], **options)
            seconds.append(time.process_time() - begun)
        error = np.square(codec.decode(codec.encode(x_ND[-count:], **options)) - x_ND[-count:]) if count else np.nan
        print(np.mean(np.sum(error, -1), dtype=np.float64), min(seconds) / timed * 1e6, flush=True)


def in_checkout(source: Path, *words: object) -> list[tuple[float, float]]:
    """The errors and microseconds that another process measures, with the qinco in `source`."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "measure", *map(str, words)]
    lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [(float(error), float(us)) for error, us in map(str.split, lines)]


def main() -> None:
    from report import commit

    from qinco.machine import processor_name

    given = dict(word.split("=", 1) for word in sys.argv[1:])
    rules, others = given.get("rules", RULES), given.get("baseline_rules", BASELINE_RULES)
    count, timed, db = int(given.get("count", 10_000)), int(given.get("timed", 2000)), given["db"]
    own = Path(qinco.__file__).parents[1]
    rows = [
        (rule, *figures)
        for rule, figures in zip(
            rules.split(","), in_checkout(own, given["model"], db, rules, count, timed), strict=True
        )
    ]
    if "baseline" in given:
        found = in_checkout(Path(given["baseline"], "src"), given["baseline_model"], db, others, count, timed)
        rows = [
            (f"{rule} of the baseline", *figures) for rule, figures in zip(others.split(","), found, strict=True)
        ] + rows
    level = os.environ.get("QINCO_NATIVE_LEVEL", "the best level")
    print(f"{processor_name()}, {level}, one thread, commit {commit()}, {Path(db).name}, {Path(given['model']).name}\n")
    print("| rule | MSE | µs a vector | ratio |\n|---|---:|---:|---:|")
    for rule, error, us in rows:
        print(f"| {rule} | {error:.6g} | {us:.1f} | {us / rows[0][2]:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:5], *map(int, sys.argv[5:7]))
    else:
        main()
