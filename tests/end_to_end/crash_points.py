"""Ends an encoding or a decoding at operations on files, as `kill -9` does, and resumes it.

A process is forked for each EVERY-th operation; an audit hook ends it without a word when it reaches its number,
within writing a block of vectors too. What is found then must be nothing, the old output or the new one, and resuming
must give the files of an uninterrupted run. A folder that is overwritten must be one of the two sets at every instant,
and whatever else is in it must stay. Of a decoding at most one block may be lost.

Usage: crash_points.py FOLDER OUTPUT encode|decode fresh|overwrite|both EVERY
  both: overwrite and resume at each try
Prints the number of points, or a traceback.
"""

import mmap
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from endings import OPERATIONS, content, ends_at

from qinco.codec.codec import Codec
from qinco.codec.decode_file import decode_file
from qinco.codec.files import encode_file
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError
from qinco.store.codes import Codes
from qinco.vectors.formats import VectorWriter, open_array
from qinco.vectors.rows import as_source

ROWS, SHARD_ROWS, BLOCK_ROWS = 50, 20, 8
RESUMED_TWICE = 7  # each so many-th resumption is ended, too
appended = mmap.mmap(-1, 1)  # rows that the last decoding had appended


class RoundingCodec(Codec):
    """An IVF codec without a network, for the files are what matters here: the codes are the vectors' values."""

    dim, num_codes, is_ivf, block_rows = 3, 3, True, BLOCK_ROWS
    config = SimpleNamespace(codebook_size=1024, num_lists=100, num_steps=3, has_preselector=True)
    encode_options = EncodeOptions(num_pairs=4)

    def __init__(self):
        pass

    def check_dim(self, source):
        assert source.dim == self.dim

    def check_steps(self, num_steps):
        return self.config.num_steps

    def fingerprint(self):
        return "rounding"

    def encode_blocks(self, source, options, num_steps=None, ranges=None):
        for rows in ranges or [range(len(source))]:
            for first, block in source.window(rows.start, rows.stop).blocks(16):
                yield rows.start + first, Codes(block.astype(np.uint16), block[:, 0].astype(np.int32) % 100)

    def check_codes(self, codes):
        assert np.array_equal(codes.lists, codes.codes[:, 0].astype(np.int32) % 100), "codes and lists of several sets"

    def decode_blocks(self, codes, precision):
        for first, block in codes.blocks(self.block_rows):
            yield first, block.codes.astype(np.float32)


def vectors(seed) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (ROWS, 3)).astype(np.float32)


class Encoding:
    """Vectors to codes; in a folder that is overwritten there are notes, too."""

    functions = ()
    operations = OPERATIONS

    def __init__(self, output: Path):
        self.has_notes = output.suffix == ""

    def run(self, output, seed, **settings):
        done = encode_file(RoundingCodec(), vectors(seed), output, shard_rows=SHARD_ROWS, progress=False, **settings)
        assert done.complete and done.num_vectors == ROWS

    def found(self, output) -> np.ndarray | None:
        with suppress(DataError):
            codes = Codes.load(output, RoundingCodec())
            RoundingCodec().check_codes(codes)
            return codes.codes
        return None


class Decoding:
    """Codes to vectors, of which each block is begun with half of it and a piece of a row."""

    functions = ("fsync",)
    operations = (*OPERATIONS, "os.truncate", "test.write")
    has_notes = False

    def __init__(self, output: Path):
        append = VectorWriter.append

        def append_in_pieces(writer, block):
            start = writer._file.tell()
            writer._file.write(b"\xff" * (len(block) // 2 * 12 + 5))
            writer._file.flush()
            sys.audit("test.write", "")
            writer._file.seek(start)
            append(writer, block)
            appended[0] = writer.rows_written

        VectorWriter.append = append_in_pieces

    def run(self, output, seed, **settings):
        codes = as_source(vectors(seed))[:].astype(np.uint16)
        done = []
        decode_file(
            RoundingCodec(), codes, output, lists=codes[:, 0].astype(np.int32) % 100, save_seconds=0,
            progress=lambda stage, rows, *_: done.append(rows), **settings,
        )  # fmt: skip
        assert done[-1] == ROWS
        if settings.get("resume"):
            assert done[0] >= begun - BLOCK_ROWS, "more than a block was lost"

    def found(self, output) -> np.ndarray | None:
        return open_array(output)[:] if output.exists() else None


begun = 0  # rows that had been appended when a decoding was ended


def seed_of(work, output) -> int | None:
    """The seed of the vectors whose codes, or which, are there; None where nothing can be read."""
    values = work.found(output)
    if values is None:
        return None
    seed = next((seed for seed in (0, 1) if np.array_equal(values, vectors(seed))), None)
    assert seed is not None, "an output of no vectors, or of several"
    return seed


def end(work, point, folder, output, **settings) -> bool:
    """Work in a process that ends before its operation number `point`; whether it came so far."""
    global begun
    appended[0] = 0

    def attempt():
        with suppress(ConfigError):  # resuming what another run has left
            work.run(output, 0, **settings)

    is_ended = ends_at(point, folder, attempt, work.operations, work.functions)
    begun = appended[0]
    return is_ended


def resume(work, output, **settings):
    try:
        work.run(output, 0, resume=True, **settings)
    except ConfigError as error:
        assert not settings, "both settings at once are never refused"
        assert "overwrite=true" in str(error)
        work.run(output, 0, overwrite=True)


def main(folder: Path, name: str, kind: str, scenario: str, every: int) -> int:
    work = {"encode": Encoding, "decode": Decoding}[kind](Path(name))
    reference, place = folder / "reference", folder / "work"
    output, is_fresh = place / name, scenario == "fresh"
    reference.mkdir()
    work.run(reference / name, 0)
    if work.has_notes and not is_fresh:
        (reference / name / "notes").write_text("mine")
    expected = content(reference)
    first = {"overwrite": not is_fresh, "resume": scenario == "both"}
    again = {"overwrite": True} if scenario == "both" else {}
    states = set()
    for number, point in enumerate(range(0, 10_000, every)):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if not is_fresh:
            work.run(output, 1)
            if work.has_notes:
                (output / "notes").write_text("mine")
        if not end(work, point, place, output, **first):
            break
        states.add(seed_of(work, output))
        if number % RESUMED_TWICE == 0:
            end(work, max(3, point // 2), place, output, resume=True, **again)
            seed_of(work, output)
        resume(work, output, **again)
        assert seed_of(work, output) == 0
        wrong = {name for name, _ in content(place).items() ^ expected.items()}
        assert not wrong, f"after the end at operation {point} these differ: {sorted(wrong)}"
    assert content(place) == expected
    keeps = work.has_notes or kind == "decode"
    assert states == ({None, 0} if is_fresh else {0, 1} if keeps else {None, 0, 1}), states
    return point


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:-1], int(sys.argv[-1])))
