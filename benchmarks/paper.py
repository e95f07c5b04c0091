"""Make a table of the papers again, ours beside theirs: Markdown on stdout, progress and log on stderr.

    python benchmarks/paper.py table=1|qinco2 [folder=.] [datasets=bigann1M,deep1M,contriever1M,FB_ssnpp1M] [bytes=8,16]
        [models=published|train] [preset=NAME] [minutes=N|epochs=N] [device=auto] [mirror=ADDRESS]

table=1 is Table 1 of QINCo, table=qinco2 the same of QINCo2. For each data set and size: what is missing in `folder` is
downloaded, the authors' checkpoint is taken (or with models=train a codec is trained, by the papers' recipe unless
`minutes` are given), the database is encoded, decoded, and searched exhaustively. The same command goes on where it was
interrupted: downloads, training and encoding at their last parts, and what is measured is kept in
`FOLDER/paper/TABLE.json`. Remove that file to measure anew.

Shape suffixes: N vectors, Q queries, D dimension, R results, M steps.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paper_tables import DATA_SETS, SIZES, TABLES, Table

import qinco
from qinco.atomic import write_atomically
from qinco.config import EncodeOptions
from qinco.datasets.catalogue import DATASETS, find_files
from qinco.errors import ConfigError, QincoError
from qinco.maths.metrics import recall
from qinco.search.measure.truth import open_queries_among

KEYS = ("table", "folder", "datasets", "bytes", "models", "preset", "minutes", "epochs", "device", "mirror")
OF_TRAINING = {"preset": str, "minutes": float, "epochs": int}
BLOCK = 1 << 14


@dataclass(frozen=True)
class Run:
    """What is asked for; `training` is None for the authors' checkpoints."""

    table: Table
    name: str
    folder: Path
    data_sets: list[str]
    sizes: list[int]
    training: dict | None
    device: str
    mirror: str | None

    @property
    def tag(self) -> str:
        """What tells these models from others of the same table."""
        if self.training is None:
            return "published"
        return "-".join(["trained", *(f"{key}={value}" for key, value in self.training.items())])


def read(words: list[str]) -> Run:
    """The settings of a command line; raises ConfigError."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for word in words:
        if word not in [f"{key}={given[key]}" for key in KEYS if key in given]:
            raise ConfigError(f"{word} is no setting, or is given twice: there are {', '.join(KEYS)}, as KEY=VALUE")
    table = TABLES[choice("table", given.get("table", ""), list(TABLES))]
    models = choice("models", given.get("models", "published"), ["published", "train"])
    training = {key: number(key, given[key], kind) for key, kind in OF_TRAINING.items() if key in given}
    if training and models == "published":
        raise ConfigError(f"{next(iter(training))}= is of training: give models=train, or leave it out")
    data_sets = [
        choice("datasets", name, list(DATA_SETS)) for name in given.get("datasets", ",".join(DATA_SETS)).split(",")
    ]
    sizes = [int(choice("bytes", size, list(map(str, SIZES)))) for size in given.get("bytes", "8,16").split(",")]
    return Run(table, given["table"], Path(given.get("folder", ".")), data_sets, sizes,
               {"preset": table.preset} | training if models == "train" else None,
               given.get("device", "auto"), given.get("mirror"))  # fmt: skip


def number(key: str, value: str, kind):
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{key}={value} is no number") from None


def choice(key: str, value: str, known: list[str]) -> str:
    if value not in known:
        raise ConfigError(f"{key}={value} must be one of {', '.join(known)}")
    return value


def fetch(run: Run, data_set: str, size: int) -> None:
    """Download the files that are missing; where all are there, no server is asked."""
    names = [data_set, *([run.table.checkpoint(data_set, size)] if run.training is None else [])]
    missing = [name for name in names if not all((run.folder / file.target).exists() for file in find_files([name]))]
    if missing:
        qinco.download(missing, run.folder, mirror=run.mirror)


def open_codec(run: Run, data_set: str, size: int) -> tuple[qinco.Codec, str]:
    """The authors' codec, or one trained here, and its name."""
    if run.training is None:
        name = run.table.checkpoint(data_set, size)
        path = run.folder / find_files([name])[0].target
        codec = qinco.Codec.load(path, run.device)
    else:
        name = f"{data_set}-{size}x8-{run.tag}"
        path = run.folder / "paper" / f"{name}.safetensors"
        recipe = "default" if "minutes" in run.training else "paper"
        codec = qinco.Codec.fit(
            run.folder / DATASETS[data_set].trainset, output=path, resume=True, recipe=recipe, num_steps=size,
            device=run.device, rows_shuffled=True, mse_scale=DATASETS[data_set].mse_scale, **run.training,
        )  # fmt: skip
    if codec.num_codes != size:
        raise ConfigError(f"{path} has codes of {codec.num_codes} bytes, not {size}: move it, and it is fetched anew")
    return codec, name


def measure(run: Run, data_set: str, size: int) -> dict:
    """MSE in the paper's units and recall of one model on one data set."""
    begun, files = time.monotonic(), DATASETS[data_set]
    codec, name = open_codec(run, data_set, size)
    base = qinco.open_vectors(run.folder / files.database)
    base = base if files.database_limit is None else base.limit(min(len(base), files.database_limit))
    queries_QD, nearest_Q = open_queries_among(base, run.folder / files.queries, run.folder / files.ground_truth, "l2")
    options = run.table.options or codec.encode_options
    count = min(options.num_candidates or codec.config.codebook_size, codec.config.codebook_size)
    options = options.override(num_candidates=count) if codec.config.has_preselector else EncodeOptions()
    place = run.folder / "paper" / f"codes-{run.name}-{name}"
    qinco.encode_file(codec, base, place, options, precision="float32", resume=True, overwrite=True)
    codes = qinco.Codes.load(place, codec)
    squares = 0.0
    for start in range(0, len(base), BLOCK):
        decoded_ND = codec.decode(codes[start : start + BLOCK])
        squares += np.square(decoded_ND - base[start : start + BLOCK], dtype=np.float64).sum()
    _, ids_QR = qinco.exhaustive_search(queries_QD, (codec, codes), min(100, len(base)), metric="l2")
    shares = recall(ids_QR, nearest_Q)
    return {
        "model": name, "mse": squares / len(base) * files.mse_scale,
        "recall": {str(rank): share for rank, share in shares.items()},
        "vectors": len(base), "queries": len(queries_QD), "A": options.num_candidates, "B": options.beam_width,
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def kept(run: Run) -> Path:
    return run.folder / "paper" / f"{run.name}.json"


def measure_all(run: Run) -> dict[str, dict]:
    """Every cell by its key; those that an earlier run measured are read."""
    (run.folder / "paper").mkdir(parents=True, exist_ok=True)
    cells = json.loads(kept(run).read_text()) if kept(run).exists() else {}
    for data_set in run.data_sets:
        for size in run.sizes:
            key = cell(run, data_set, size)
            if key not in cells:
                fetch(run, data_set, size)
                cells[key] = measure(run, data_set, size)
                with write_atomically(kept(run)) as temporary:
                    temporary.write_text(json.dumps(cells, indent=1))
            print(f"{key}: MSE {cells[key]['mse']:.4g}, R@1 {cells[key]['recall']['1']:.4f}", file=sys.stderr)
    return cells


def cell(run: Run, data_set: str, size: int) -> str:
    return f"{data_set} {size} bytes {run.tag}"


def report(run: Run, cells: dict[str, dict]) -> str:
    """A Markdown table: the paper's figures, and ours beside those of the same method."""
    ours = (
        f"{run.table.method}, their checkpoint" if run.training is None else f"{run.training['preset']}, trained here"
    )
    lines = [
        f"# {run.table.title}", "",
        "MSE in the paper's units; R@1 in percent, found exhaustively among the decoded vectors.", "",
        "| data set | bytes | method | MSE, paper | MSE, here | R@1, paper | R@1, here | vectors |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for data_set in run.data_sets:
        for size in run.sizes:
            start = f"| {DATA_SETS[data_set]} | {size} |"
            others = [method for method in run.table.figures if method != run.table.method]
            theirs = [(method, run.table.paper(method, data_set, size)) for method in others]
            lines += [
                f"{start} {method} | {row[0]:.2f} | | {row[1]:.1f} | | 1,000,000 |" for method, row in theirs if row
            ]
            found, figures = cells[cell(run, data_set, size)], run.table.paper(run.table.method, data_set, size)
            mse, share = (f"{figures[0]:.2f}", f"{figures[1]:.1f}") if figures else ("", "")
            lines.append(
                f"{start} **{ours}** | {mse} | **{found['mse']:.4g}** | {share} | **{100 * found['recall']['1']:.1f}** "
                f"| {found['vectors']:,} |"
            )
    return "\n".join([*lines, *(["", run.table.note] if run.table.note else [])])


def main(words: list[str]) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        run = read(words)
        print(report(run, measure_all(run)))
    except QincoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
