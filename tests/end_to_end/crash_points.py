"""Ends an encoding at every single operation on files, as `kill -9` does, and resumes it.

A process is forked for each operation; an audit hook ends it without a word when it reaches its number. What is found
then must be nothing, the old set or the new one, and resuming must give the files of an uninterrupted run. Where a
folder is overwritten it must be one of the two sets at every instant, and whatever else is in it must stay.

Usage: crash_points.py FOLDER OUTPUT fresh|overwrite|both|renames; prints the number of points, or a traceback.
  both:    overwrite=true resume=true at each try
  renames: on a file system that cannot exchange names; the old and the new set must be there then, under any name
"""

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from endings import OPERATIONS, content, ends_at

from qinco.codec import encode_file as module
from qinco.codec import encode_place
from qinco.codec.encode_file import encode_file
from qinco.compat import encoded_sets as npz
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError
from qinco.store.code_files import open_encoded_set
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source

OPERATIONS = (*OPERATIONS, "shutil.rmtree")
ROWS, SHARD_ROWS, PART_ROWS = 50, 20, 30
RESUMED_TWICE = 7  # each so many-th resumption is ended, too


class RoundingCodec:
    """An IVF codec without a network, for the files are what matters here: the codes are the vectors' values."""

    dim, num_codes, is_ivf = 3, 3, True
    config = SimpleNamespace(codebook_size=1024, num_lists=100, has_preselector=True)
    encode_options = SimpleNamespace(check_model=lambda config: None)

    def check_dim(self, source):
        assert source.dim == self.dim

    def fingerprint(self):
        return "rounding"

    def encode_blocks(self, source, options, ranges=None):
        for rows in ranges or [range(len(source))]:
            for first, block in source.window(rows.start, rows.stop).blocks(16):
                yield rows.start + first, Codes(block.astype(np.uint16), block[:, 0].astype(np.int32) % 100)


def vectors(seed):
    return as_source(np.random.default_rng(seed).integers(0, 1024, (ROWS, 3)).astype(np.float32))


def encode(output, seed, **options):
    return encode_file(RoundingCodec(), vectors(seed), output, EncodeOptions(num_pairs=4), **options)


def ends_encoding(point, folder, output, seed, **options) -> bool:
    """Encode in a process that ends before its operation number `point`; whether it came so far."""

    def work():
        with suppress(ConfigError):  # resuming what another run has left
            encode(output, seed, **options)

    return ends_at(point, folder, work, OPERATIONS)


def found_beside(output):
    """The seed of the complete codes of a folder, under any of the names that it has in its life."""
    names = (output.name, f"{output.name}.shards", f".{output.name}.shards.done")
    return {found(output.with_name(name)) for name in names} - {None}


def found(output):
    """The seed of the vectors whose codes are there; None where nothing can be read."""
    try:
        there = open_encoded_set(output, 3, 1024, True)
        blocks = list(there.blocks(16))
    except DataError:
        return None
    codes, lists = (np.concatenate(column) for column in zip(*blocks, strict=True))
    assert np.array_equal(lists, codes[:, 0].astype(np.int32) % 100), "codes and lists of different sets"
    seed = next((seed for seed in (0, 1) if np.array_equal(codes, vectors(seed)[:])), None)
    assert seed is not None, "codes of no set, or of several"
    return seed


def resume(output, **options):
    try:
        assert encode(output, 0, resume=True, **options)
    except ConfigError as error:
        assert not options, "both settings at once are never refused"
        assert "overwrite=true" in str(error)
        assert encode(output, 0, overwrite=True)


def main(folder: Path, name: str, scenario: str) -> int:
    module.shard_rows = lambda num_vectors: SHARD_ROWS
    npz._PART_ROWS = PART_ROWS
    if scenario == "renames":
        encode_place._exchange = lambda one, other: False
    reference, work = folder / "reference", folder / "work"
    reference.mkdir()
    assert encode(reference / name, 0)
    output, is_folder, is_fresh = work / name, name == "codes", scenario == "fresh"
    if is_folder and not is_fresh:
        (reference / name / "notes").write_text("mine")
    expected = content(reference)
    first = {"overwrite": not is_fresh, "resume": scenario == "both"}
    again = {"overwrite": True} if scenario == "both" else {}
    states = set()
    for point in range(10_000):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if not is_fresh:
            encode(output, 1)
            if is_folder:
                (output / "notes").write_text("mine")
        if not ends_encoding(point, work, output, 0, **first):
            break
        states.add(found(output))
        if is_folder and not is_fresh:
            assert found_beside(output), "neither the old codes nor the new ones are there"
        if point % RESUMED_TWICE == 0:
            ends_encoding(point // 2, work, output, 0, resume=True, **again)
            found(output)
        resume(output, **again)
        assert found(output) == 0
        wrong = {name for name, _ in content(work).items() ^ expected.items()}
        assert not wrong, f"after the end at operation {point} these differ: {sorted(wrong)}"
    assert content(work) == expected
    kept = is_folder and scenario in ("overwrite", "both")
    assert states == ({None, 0} if is_fresh else {0, 1} if kept else {None, 0, 1}), states
    return point


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
