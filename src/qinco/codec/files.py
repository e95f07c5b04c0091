"""Encoding vectors of any number to a file or folder, resumed after an interruption.

Shape suffixes: N vectors, D dimension, M codes of a vector.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import check_output, exclusive, remove_temporaries, require_folder
from qinco.codec.codec import Codec
from qinco.config import EncodeOptions, require_int
from qinco.errors import ConfigError
from qinco.packing import code_dtype
from qinco.progress import ProgressOption, reporting
from qinco.store.code_files import FILE_SUFFIXES, files_of, is_folder, lists_beside, write_codes_file
from qinco.store.code_folder import CodeFolder, CodePlan, default_shard_rows, remove_codes
from qinco.store.codes import Codes
from qinco.store.folder import LOCK, check_folder_output
from qinco.vectors.rows import VectorSource, as_source, fingerprint

_ENCODED_AGAIN = 64  # vectors by which a finished file is recognised


@dataclass(frozen=True)
class FileResult:
    """What `encode_file` or `decode_file` has done.

    Attributes:
        output: the file or folder.
        num_vectors: vectors in the whole output.
        num_done: vectors that this call encoded or decoded; earlier ones were kept.
        complete: whether the output is there; False while other shares are at work.
        seconds: time that this call took.
        lists: the file of list numbers that was written beside the codes, or None.
    """

    output: Path
    num_vectors: int
    num_done: int
    complete: bool
    seconds: float
    lists: Path | None = None

    @property
    def us_per_vector(self) -> float | None:
        """Microseconds per vector; None if there was nothing left to do."""
        return self.seconds / self.num_done * 1e6 if self.num_done else None


def encode_file(
    codec: Codec,
    source,
    output: str | os.PathLike,
    options: EncodeOptions | None = None,
    *,
    num_candidates: int | None = None,
    num_pairs: int | None = None,
    beam_width: int | None = None,
    precision: str | None = None,
    engine: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    shard_rows: int | None = None,
    inputs=(),
    progress: ProgressOption = None,
) -> FileResult:
    """Encode vectors to a file or folder, in bounded memory, by one process or several.

    Vectors are encoded in shards. A file is assembled from a folder `NAME.shards` that is removed afterwards. What is
    complete stays readable until the new codes are. Memory: a block of vectors and the codes of two shards.

    Args:
        codec: the codec.
        source: (N, D) vectors: path, array, tensor or VectorSource.
        output: a folder (a name without suffix), .npy, .ivecs, .raw (packed bits) or .npz (the authors' form). List
            numbers are within a folder or .npz, and beside other files as NAME.lists.npy.
        options: encoding options; the codec's own by default.
        num_candidates: A, replaces that of `options`; so do the following four.
        num_pairs: C.
        beam_width: B.
        precision: "auto", "float32" or "bf16".
        engine: "auto", "native" or "torch".
        resume: continue after an interruption; finished shards are kept.
        overwrite: replace what is there. With `resume`: continue this very work if it has begun, or is done.
        shard: (i, n) encodes share i of n of the shards, i from 0; each is divided among torchrun's processes. Whoever
            encodes the last shard makes the output.
        shard_rows: vectors of a shard; chosen by N by default.
        inputs: further files that are read and must not be replaced.
        progress: see `qinco.progress`.

    Returns:
        A FileResult.

    Raises:
        ConfigError: the output cannot be written, or holds other work.
        DataError: the vectors have another dimension or are not finite.
        ResourceError: a shard cannot be written; the finished ones are kept.

    Example:
        >>> encode_file(codec, "base.fvecs", "codes", num_pairs=64, beam_width=32)
        >>> codes = Codes.load("codes")
    """
    started, x = time.monotonic(), as_source(source)
    codec.check_dim(x)
    options = options or codec.encode_options
    options = options.override(num_candidates, num_pairs, beam_width, precision, engine)
    options.check_model(codec.config)
    index, count = share_of_process(shard)
    plan = CodePlan(
        num_vectors=len(x),
        num_codes=codec.num_codes,
        codebook_size=codec.config.codebook_size,
        num_lists=codec.config.num_lists,
        dim=codec.dim,
        shard_rows=shard_rows or default_shard_rows(len(x)),
        codec=codec.fingerprint(),
        source=fingerprint(x),
        encode=asdict(options),
    )
    job = _Encoding(codec, x, options, plan, range(index, plan.num_shards, count), count == 1, _target(output))
    num_done, complete = 0, False
    if job.shards or index == 0 or resume:  # else nothing is left for this share, and others may be at work
        paths = [source] if isinstance(source, str | os.PathLike) else []
        with reporting(progress) as report, interruption("the finished shards are kept"):
            num_done, complete = job.run(report, resume, overwrite, [*paths, *inputs])
    beside = files_of(job.target.path, codec.is_ivf)[1:] if job.target.is_file and complete else []
    lists = next((path for path in beside if path == lists_beside(job.target.path)), None)
    return FileResult(job.target.path, len(x), num_done, complete, time.monotonic() - started, lists)


def share_of_process(shard: tuple[int, int] | None = None) -> tuple[int, int]:
    """Share i of n (n itself is 0) as (i, n), divided further among the processes that torchrun has started."""
    index, count = (0, 1) if shard is None else shard
    require_int("the number of shares", count)
    require_int("shard", index, 0, count)
    found = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(map(str.isdecimal, found)) or int(found[0]) >= int(found[1]):
        raise ConfigError(
            f"RANK={found[0]} WORLD_SIZE={found[1]} in the environment: torchrun sets them; otherwise unset them"
        )
    rank, world = map(int, found)
    return index % count * world + rank, count * world


@dataclass(frozen=True)
class _Target:
    """An output, the folder in which its shards are collected (the output itself, or one beside a file), its lock."""

    path: Path
    is_file: bool
    folder: Path
    lock: Path


def _target(output: str | os.PathLike) -> _Target:
    path, is_file = Path(output), not is_folder(output)
    if path.name in ("", ".."):
        raise ConfigError(f"output={output}: give the name of a new folder or file")
    if is_file and path.suffix.lower() not in FILE_SUFFIXES:
        raise ConfigError(
            f"output={output}: codes are written to {', '.join(FILE_SUFFIXES)} files, or to a folder of shards (a name "
            "without suffix)"
        )
    folder = path.with_name(f"{path.name}.shards") if is_file else path
    return _Target(path, is_file, folder, folder.with_name(f".{folder.name}{LOCK}") if is_file else folder / LOCK)


@dataclass(frozen=True)
class _Encoding:
    """One call of `encode_file`: `shards` are those of this process, all of them if it `is_alone`."""

    codec: Codec
    source: VectorSource
    options: EncodeOptions
    plan: CodePlan
    shards: range
    is_alone: bool
    target: _Target

    def run(self, report, resume: bool, overwrite: bool, inputs) -> tuple[int, bool]:
        """Encode what is missing; how many vectors that were, and whether the output is complete."""
        target = self.target
        self._prepare(inputs)
        with exclusive(target.lock):
            if target.is_file:
                is_started = any(CodeFolder.find(target.folder))
                if resume and not is_started and target.path.exists() and self._is_made(overwrite):
                    report("encoding", len(self.source), len(self.source), "vector")
                    self._remove_leftovers()
                    return 0, True
                for path in files_of(target.path, self.codec.is_ivf):
                    check_output(path, overwrite=overwrite or (resume and is_started), inputs=inputs)
                check_folder_output(target.folder, "codes")
                target.folder.mkdir(exist_ok=True)
            folder = self._join(resume, overwrite)
        num_done = self._encode(folder, report)
        with exclusive(target.lock):
            if not folder.is_pending:
                folder.tidy()
            elif not self._is_current(folder):
                return num_done, True  # another process has made the output
            elif folder.missing():
                return num_done, False
            else:
                folder.commit()
            if target.is_file:
                whole = CodeFolder.open(target.folder)
                for path in write_codes_file(
                    target.path, whole.codes, whole.lists, self.plan.codebook_size, self.codec.dim
                ):
                    remove_temporaries(path)
                remove_codes(target.folder)
        return num_done, True

    def _remove_leftovers(self) -> None:
        """Remove what is left of the shards of a finished file, if a kill came while they were removed."""
        if self.target.folder.is_dir():
            with suppress(ConfigError):  # it is a folder of somebody else
                check_folder_output(self.target.folder, "codes")
                remove_codes(self.target.folder)

    def _prepare(self, inputs) -> None:
        """Make an output folder; raises ConfigError where nothing can be written, or an input would be replaced."""
        path, folder = self.target.path, self.target.folder
        real = os.path.realpath(folder)
        for name in inputs:
            if name is not None and Path(os.path.realpath(name)).is_relative_to(real):
                raise ConfigError(f"{name} is read and lies in {folder}, which would be replaced: give another output")
        if self.target.is_file:
            check_output(path, overwrite=True)
            return
        try:
            require_folder(path, Path(os.path.realpath(path)).parent)
            check_folder_output(path, "codes")
            path.mkdir(exist_ok=True)
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error

    def _join(self, resume: bool, overwrite: bool) -> CodeFolder:
        """The codes to go on with: pending ones, new or begun earlier, or complete ones; with the lock held.

        Raises ConfigError if what is there is other work, or neither `resume` nor `overwrite` is given.
        """
        path, plan = self.target.folder, self.plan
        complete, pending = CodeFolder.find(path)
        if pending is not None and self.is_alone:
            is_empty = not any(map(pending.has, range(pending.plan.num_shards)))
            if is_empty or (overwrite and not resume):
                return CodeFolder.create(path, plan)
        there = pending or complete
        if there is None:
            return CodeFolder.create(path, plan)
        if there is complete and overwrite and not (resume and complete.plan == plan):
            return CodeFolder.create(path, plan)
        plan.check_same(path, there.plan)
        if not resume and (there is complete or self.is_alone or any(map(there.has, self.shards))):
            count = plan.num_shards - len(there.missing())
            raise ConfigError(
                f"{path} holds {count} of {plan.num_shards} shards: give resume=true to continue, or overwrite=true in "
                "one process to begin anew"
            )
        return there if there is complete else there.adopt()

    def _is_made(self, overwrite: bool) -> bool:
        """Whether a finished output file is this work; raises ConfigError if it is not and cannot be replaced.

        The file does not say of which vectors and codec it is, so some are encoded again; machines differ in a few.
        """
        output, plan = self.target.path, self.plan
        there = Codes.load(output, self.codec)
        shape, remedy = (plan.num_vectors, plan.num_codes), "give overwrite=true to replace it"
        reason = None
        if there.shape != shape:
            reason = f"{output} holds codes of shape {there.shape}, not {shape}"
        else:
            sample = self.source.window(0, min(_ENCODED_AGAIN, len(self.source)))
            same, total = 0, len(sample)
            for first, block in self.codec.encode_blocks(sample, self.options):
                found = there[first : first + len(block)]
                equal_N = (block.codes == found.codes).all(1)
                if block.has_lists:
                    equal_N &= block.lists == found.lists
                same += int(equal_N.sum())
            if 4 * same < 3 * total:
                reason = f"{output} holds other codes than this model and these options give {self.source.name}"
        if reason is not None and not overwrite:
            raise ConfigError(f"{reason}: {remedy}")
        return reason is None

    def _is_current(self, folder: CodeFolder) -> bool:
        """Whether these codes are still being written; raises ConfigError if another run has taken their folder."""
        if folder.is_current():
            return True
        complete, pending = CodeFolder.find(folder.path)
        if (there := pending or complete) is not None:
            self.plan.check_same(folder.path, there.plan)
        return False

    def _encode(self, folder: CodeFolder, report) -> int:
        """Encode the shards that are missing; a thread writes each while the next one is encoded.

        A shard given to the thread is written even if an exception, or Ctrl-C, ends the work meanwhile.
        """
        plan = self.plan
        missing = [shard for shard in self.shards if not folder.has(shard)]
        total = sum(len(plan.rows(shard)) for shard in self.shards)
        begun = done = total - sum(len(plan.rows(shard)) for shard in missing)
        report("encoding", done, total, "vector")
        writing: Future | None = None
        blocks = self.codec.encode_blocks(self.source, self.options, ranges=[plan.rows(shard) for shard in missing])
        with ThreadPoolExecutor(1, "write shards") as writer, closing(blocks):
            for shard in missing:
                rows = plan.rows(shard)
                codes_NM = np.empty((len(rows), plan.num_codes), code_dtype(plan.codebook_size))
                lists_N = np.empty(len(rows), np.int32) if plan.num_lists else None
                stop = 0
                while stop < len(rows):
                    first, block = next(blocks)
                    part = slice(first - rows.start, stop := first - rows.start + len(block))
                    codes_NM[part] = block.codes
                    if lists_N is not None:
                        lists_N[part] = block.lists
                    report("encoding", done + stop, total, "vector")
                    if writing is not None and writing.done() and not writing.result():
                        return done + stop - begun
                done += len(rows)
                last, writing = writing, writer.submit(self._write, folder, shard, codes_NM, lists_N)
                if last is not None and not last.result():  # one shard may wait while another is written, and no more
                    return done - begun
            if writing is not None:
                writing.result()
        return done - begun

    def _write(self, folder: CodeFolder, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> bool:
        """Write a shard; returns False if another process has made the output already."""
        with exclusive(self.target.lock):
            if not self._is_current(folder):
                return False
            if not folder.has(shard):  # another process may have been given the same share
                folder.write(shard, codes_NM, lists_N)
            return True


@contextmanager
def interruption(what: str) -> Iterator[None]:
    """Let Ctrl-C say what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{what}; repeat it with resume=true to continue") from None
