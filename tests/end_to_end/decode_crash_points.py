"""Ends a decoding at every single operation on files, as `kill -9` does, and resumes it.

A process is forked for each operation; an audit hook ends it without a word when it reaches its number, within writing
a block too. What is found then must be nothing, the old file or the new one, at most a block may be lost, and resuming
must give the file of an uninterrupted run.

Usage: decode_crash_points.py FOLDER OUTPUT fresh|overwrite; prints the number of points, or a traceback.
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

from qinco.codec.decode_file import decode_file
from qinco.errors import ConfigError
from qinco.store import decoded_part
from qinco.store.code_files import EncodedSet
from qinco.vectors.formats import VectorWriter, open_array

OPERATIONS = (*OPERATIONS, "os.truncate", "test.write")
ROWS, BLOCK_ROWS = 50, 8
RESUMED_TWICE = 5  # each so many-th resumption is ended, too
appended = mmap.mmap(-1, 1)  # rows that the last process had appended


class PlainCodec:
    """A codec without a network, for the files are what matters here: the vectors are the codes' values."""

    dim, num_codes, block_rows = 3, 3, BLOCK_ROWS
    config = SimpleNamespace(num_steps=3)
    encode_options = SimpleNamespace(engine="auto")

    def fingerprint(self):
        return "plain"

    def check_codes(self, codes, lists):
        assert codes.shape[1] == 3 and lists is None

    def decode_blocks(self, codes, precision):
        for first, block in codes.blocks(self.block_rows):
            yield first, block.codes.astype(np.float32)


def codes(seed):
    return EncodedSet(np.random.default_rng(seed).integers(0, 256, (ROWS, 3), dtype=np.uint8))


def decode(output, seed, **options):
    """Decode, and return how many rows an earlier call had done."""
    done = []
    decode_file(PlainCodec(), codes(seed), output, on_progress=done.append, **options)
    assert done[-1] == ROWS
    return done[0]


def append_in_pieces(writer, block, append=VectorWriter.append):
    """Begin with half a block and a piece of a row, and note when the block is there."""
    start = writer._file.tell()
    writer._file.write(b"\xff" * (len(block) // 2 * 12 + 5))
    writer._file.flush()
    sys.audit("test.write", "")
    writer._file.seek(start)
    append(writer, block)
    appended[0] = writer.rows_written


def ends_decoding(point, folder, output, **options) -> bool:
    """Decode in a process that ends before its operation number `point`; whether it came so far."""
    appended[0] = 0

    def work():
        VectorWriter.append = append_in_pieces
        with suppress(ConfigError):  # resuming what another run has left
            decode(output, 0, **options)

    return ends_at(point, folder, work, OPERATIONS, ["fsync"])


def found(output):
    """The seed of the codes whose vectors are there; None where there is nothing."""
    if not output.exists():
        return None
    seed = next((seed for seed in (0, 1) if np.array_equal(open_array(output), codes(seed).codes)), None)
    assert seed is not None, "vectors of no codes, or of several"
    return seed


def resume(output, scenario):
    begun = appended[0]
    try:
        first = decode(output, 0, resume=True)
    except ConfigError as error:
        assert scenario == "overwrite" and not begun and "overwrite=true" in str(error), error
        decode(output, 0, overwrite=True)
    else:
        assert first >= begun - BLOCK_ROWS, "more than a block was lost"


def main(folder: Path, name: str, scenario: str) -> int:
    decoded_part._SECONDS_BETWEEN_RECORDS = 0
    reference, work = folder / "reference", folder / "work"
    reference.mkdir()
    decode(reference / name, 0)
    expected, output = content(reference), work / name
    states = set()
    for point in range(10_000):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if scenario == "overwrite":
            decode(output, 1)
        if not ends_decoding(point, work, output, overwrite=scenario == "overwrite"):
            break
        states.add(found(output))
        if point % RESUMED_TWICE == 0:
            ends_decoding(max(3, point // 2), work, output, resume=True)
            found(output)
        resume(output, scenario)
        wrong = {name for name, _ in content(work).items() ^ expected.items()}
        assert not wrong, f"after the end at operation {point} these differ: {sorted(wrong)}"
    assert content(work) == expected
    assert states == ({None, 0} if scenario == "fresh" else {0, 1}), states
    return point


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
