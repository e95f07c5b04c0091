"""Stages of `Collection.optimize` whose results are kept on disk until the last one commits: training and encoding.

Shape suffixes: N vectors, n vectors of a piece, D dimension, M codes of a vector.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from qinco.atomic import flush_folder, make_folder, write_atomically
from qinco.codec.codec import Codec
from qinco.errors import DataError
from qinco.interrupts import held_back
from qinco.progress import Progress
from qinco.store.codes import Codes
from qinco.store.manifest import write_json
from qinco.store.run_state import state_path
from qinco.store.tensors import read_tensors, write_tensors
from qinco.vectors.binary import npy_header
from qinco.vectors.rows import VectorSource, as_source, stratified_rows

log = logging.getLogger(__name__)
WORK = "work"
PIECE_ROWS = 1 << 14  # vectors whose codes are written to disk at a time
_TRAIN_ROWS, _TRAIN_BYTES = 500_000, 1 << 30
_HELD_ROWS, _HELD_SHARE = 2000, 10  # vectors that are not trained on, and measured: at most, and one in so many
_ERROR_ROWS = 4096
# Of training, where neither minutes nor epochs are given: bounded on any machine, and little for few vectors.
_MINUTES, _ROWS_A_MINUTE = 10, 10_000
_FRESH, RETRAINED = "encoding", "retrained"  # RETRAINED: a setting that only retraining has
_CODES, _SETTINGS, _TRAIN, _HELD = "codes", "settings.json", "train.npy", "held.npy"


def is_begun(folder: Path, settings: dict) -> bool:
    """Whether there are files of a training with these settings; those of another are removed."""
    if _settings(folder) == json.loads(json.dumps(settings)):
        return True
    forget_training(folder)
    return False


def _settings(folder: Path) -> dict:
    """Of the training whose files there are, if there are any."""
    path = folder / WORK / _SETTINGS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def begin(folder: Path, source: VectorSource, settings: dict, report: Progress) -> None:
    """Write a sample of vectors, as they are encoded, to train on, and others to measure the error with."""
    work, most = folder / WORK, max(1, min(_TRAIN_ROWS, _TRAIN_BYTES // (4 * source.dim)))
    make_folder(work)
    is_held_N = np.zeros(len(source), bool)
    is_held_N[stratified_rows(len(source), min(_HELD_ROWS, len(source) // _HELD_SHARE))] = True
    others = np.flatnonzero(~is_held_N)
    _write_rows(work / _TRAIN, source.take(others[stratified_rows(len(others), most)]), report)
    _write_rows(work / _HELD, source.take(np.flatnonzero(is_held_N)), report)
    write_json(work / _SETTINGS, settings)


def train(folder: Path, settings: dict, report: Progress) -> tuple[Codec, float | None]:
    """Train a codec, or go on with it where it stopped; and its error on other vectors."""
    work = folder / WORK
    output = work / "codec.safetensors"
    if not settings.keys() & {"minutes", "epochs"}:
        num_rows = len(np.load(work / _TRAIN, mmap_mode="r"))
        settings = settings | {"minutes": usual_minutes(num_rows)}
    begun = output.exists() or state_path(output).exists()
    files = {"output": output, "resume": begun, "overwrite": True}  # a kill may have left too little to resume
    try:
        codec = Codec.fit(str(work / _TRAIN), **files, progress=report, **settings)
    except KeyboardInterrupt as stop:
        stop.args = ("the training so far is kept: the same call goes on",)
        raise
    return codec, error_of(codec, np.load(work / _HELD))


def usual_minutes(num_rows: int) -> float:
    """Of training on so many vectors, where neither minutes nor epochs are given."""
    return min(_MINUTES, num_rows / _ROWS_A_MINUTE)


def forget_training(folder: Path) -> None:
    """Remove all files of a training: first those settings without which the others are nothing to go on with."""
    with suppress(OSError):
        (folder / WORK / _SETTINGS).unlink()
        flush_folder(folder / WORK)
    shutil.rmtree(folder / WORK, ignore_errors=True)


def forget_encoding(folder: Path) -> None:
    """Remove the codes of fresh vectors and what is left of the first training, not what a retraining goes on with."""
    if RETRAINED not in _settings(folder):
        forget_training(folder)
    for path in (folder / WORK).glob(f"codes-{_FRESH}-*"):
        path.unlink(missing_ok=True)


def _write_rows(path: Path, source: VectorSource, report: Progress) -> None:
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(npy_header((len(source), source.dim), np.dtype(np.float32)))
        for first, block in source.blocks(PIECE_ROWS):
            file.write(np.ascontiguousarray(block, np.float32).data)
            report("copying training vectors", first + len(block), len(source))


def error_of(codec: Codec, x_ND: np.ndarray) -> float | None:
    """The mean of ‖x − x̂‖² / ‖x‖² of vectors as they are encoded; None where all are zero or there are none."""
    return mean_of(_relative_errors(codec, x_ND, codec.encode(x_ND, progress=False))) if len(x_ND) else None


def sample_errors(codec: Codec, source: VectorSource, codes: Codes) -> np.ndarray:
    """‖x − x̂‖² / ‖x‖² of some vectors whose codes are there, float64 (n,); zeros are left out."""
    rows_n = stratified_rows(len(source), _ERROR_ROWS)
    return _relative_errors(codec, source[rows_n], codes[rows_n])


def mean_of(errors_n: np.ndarray) -> float | None:
    return float(errors_n.mean()) if len(errors_n) else None


def _relative_errors(codec: Codec, x_nD: np.ndarray, codes: Codes) -> np.ndarray:
    decoded_nD = codec.decode(codes, precision="auto", progress=False)
    squares_n = np.square(x_nD, dtype=np.float64).sum(1)
    errors_n = np.square(x_nD - decoded_nD, dtype=np.float64).sum(1)
    return errors_n[squares_n > 0] / squares_n[squares_n > 0]


class EncodedPieces:
    """Codes of fresh vectors by the number of their row, in files that outlive an interrupted call."""

    def __init__(self, folder: Path, codec: Codec, purpose: str = _FRESH):
        self._folder, self._codec = folder / WORK, codec
        self._header = {"codec": codec.fingerprint(), "purpose": purpose}  # of which depends what the numbers are
        make_folder(self._folder)
        pieces = []
        for path in sorted(self._folder.glob("codes-*.safetensors")):
            try:
                header, arrays = read_tensors(path, _CODES)
            except DataError:
                continue
            if all(header.get(name) == value for name, value in self._header.items()):
                pieces.append((arrays["rows"], arrays["codes"], arrays.get("lists")))
        self._pieces = pieces

    def missing(self, rows_N: np.ndarray) -> np.ndarray:
        """Those of some rows whose codes are not there."""
        return rows_N[~np.isin(rows_N, np.concatenate([np.empty(0, np.int64), *(piece[0] for piece in self._pieces)]))]

    def encode(self, rows_N: np.ndarray, read: Callable[[np.ndarray], tuple], report: Progress) -> None:
        """Encode what is missing; `read` gives the rows that are still there, and their vectors."""
        left_n = self.missing(rows_N)
        known = len(rows_N) - len(left_n)
        report("encoding", known, len(rows_N))
        for start in range(0, len(left_n), PIECE_ROWS):
            some_n, x_nD = read(left_n[start : start + PIECE_ROWS])
            if not len(some_n):
                continue
            blocks, done = [], 0
            try:
                try:
                    for _, block in self._codec.encode_blocks(as_source(x_nD)):
                        blocks.append(block)
                        done += len(block)
                        report("encoding", known + start + done, len(rows_N))
                finally:
                    with held_back():
                        self._keep(some_n, blocks)
            except KeyboardInterrupt as stop:
                stop.args = ("the codes so far are kept: optimize goes on with them",)
                raise

    def codes(self, rows_N: np.ndarray) -> Codes:
        """The codes of rows, all of which are there."""
        rows, codes = (np.concatenate([piece[column] for piece in self._pieces]) for column in (0, 1))
        order = np.argsort(rows)
        places = order[np.searchsorted(rows, rows_N, sorter=order)]
        lists = np.concatenate([piece[2] for piece in self._pieces]) if self._codec.is_ivf else None
        return Codes(codes[places], None if lists is None else lists[places])

    def _keep(self, rows_n: np.ndarray, blocks: Sequence[Codes]) -> None:
        """Write the codes of the first of some rows."""
        if not blocks:
            return
        codes = Codes.concatenate(blocks)
        arrays = {"rows": rows_n[: len(codes)], "codes": codes.codes}
        if codes.has_lists:
            arrays["lists"] = np.asarray(codes.lists)
        name = f"codes-{self._header['purpose']}-{rows_n[0]}-{arrays['rows'][-1]}.safetensors"
        write_tensors(self._folder / name, _CODES, self._header, arrays)
        self._pieces.append((arrays["rows"], arrays["codes"], arrays.get("lists")))
