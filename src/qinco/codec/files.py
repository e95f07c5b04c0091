"""Encoding vectors of any number to a file or folder, resumed after an interruption."""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from qinco.atomic import (
    check_apart,
    check_output,
    exclusive,
    make_folder,
    remove_temporaries,
    require_local,
    user_path,
)
from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.codec.joining import Share
from qinco.codec.shard_encoder import ShardEncoder
from qinco.codec.to_bucket import encode_to_bucket
from qinco.config import EncodeOptions, accepts_keys, require_int
from qinco.errors import ConfigError, QincoError
from qinco.executors import Executor, run_parts
from qinco.progress import ProgressOption, reporting
from qinco.store.code_files import FILE_SUFFIXES, files_of, is_folder, lists_beside, write_codes_file
from qinco.store.code_folder import KIND, CodeFolder, CodePlan, default_shard_rows, remove_codes
from qinco.store.codes import Codes
from qinco.store.folder import LOCK, check_folder_output, remove_stale
from qinco.store.manifest import PENDING
from qinco.vectors.formats import input_files
from qinco.vectors.remote import RemotePath, is_remote
from qinco.vectors.rows import VectorSource, as_source, fingerprint

_LOG = logging.getLogger(__name__)
_ENCODED_AGAIN = 64  # vectors by which a finished file is recognised


@dataclass(frozen=True)
class FileResult:
    """What `encode_file` or `decode_file` has done."""

    output: Path | RemotePath
    num_vectors: int  # in the whole output
    num_done: int  # encoded or decoded by this call; earlier ones were kept
    complete: bool  # False while other shares are at work
    seconds: float
    lists: Path | None = None  # the file of list numbers beside the codes

    @property
    def us_per_vector(self) -> float | None:
        """Microseconds per vector; None if there was nothing left to do."""
        return self.seconds / self.num_done * 1e6 if self.num_done else None


@accepts_keys(EncodeOptions)
def encode_file(
    codec: CodecLike, source, output: str | os.PathLike, options: EncodeOptions | None = None, *,
    num_candidates: int | None = None, num_pairs: int | None = None, beam_width: int | None = None,
    precision: str | None = None, engine: str | None = None, resume: bool = False, overwrite: bool = False,
    shard: tuple[int, int] | None = None, shard_rows: int | None = None, inputs=(),
    executor: Executor | None = None, progress: ProgressOption = None,
) -> FileResult:  # fmt: skip
    """Encode vectors to a file or folder, in bounded memory, by one process or several.

    A file is assembled from a folder `NAME.shards` that is removed afterwards. What is complete stays readable until
    the new codes are. Memory: a block of vectors and the codes of two shards.

    Args:
        codec: a Codec, or the path of one.
        source: (N, D) vectors: path, array, tensor or VectorSource.
        output: a folder (a name without suffix), .npy, .ivecs, .raw (packed bits) or .npz (the authors' form). List
            numbers are within a folder or .npz, and beside other files as NAME.lists.npy. Or a folder in a bucket, such
            as s3://bucket/codes.
        options: encoding options; the codec's own by default.
        num_candidates: A, replaces that of `options`; so do the following four.
        num_pairs: C.
        beam_width: B.
        precision: "auto", "float32" or "bf16".
        engine: "auto", "native" or "torch".
        resume: continue after an interruption; finished shards are kept.
        overwrite: replace what is there. With `resume`: continue this very work if it has begun, or is done.
        shard: (i, n) encodes share i of n of the shards, i from 0; each is divided among torchrun's processes.
        shard_rows: vectors of a shard; chosen by N by default.
        inputs: further files that are read and must not be replaced.
        executor: maps a function over the shards in other processes, see `qinco.distributed.WorkerPool`; in this one if
            None.
        progress: see `qinco.progress`.

    Example:
        >>> encode_file(codec, "base.fvecs", "wide_codes", num_pairs=64, beam_width=32)
    """
    started, x = time.monotonic(), as_source(source)
    path = RemotePath(str(output)) if is_remote(output) else Path(user_path(output))
    own, codec = codec, as_codec(codec)
    codec.check_dim(x)
    options = options or codec.encode_options
    options = options.override(num_candidates, num_pairs, beam_width, precision, engine)
    options.check_model(codec.config)
    index, count = share_of_process(shard)
    if shard_rows is not None:
        require_int("shard_rows", shard_rows)
    plan = CodePlan(
        num_vectors=len(x), num_codes=codec.num_codes, codebook_size=codec.config.codebook_size,
        num_lists=codec.config.num_lists, dim=codec.dim, shard_rows=shard_rows or default_shard_rows(len(x)),
        codec=codec.fingerprint(), source=fingerprint(x), encode=asdict(options),
    )  # fmt: skip
    shards = range(index, plan.num_shards, count)
    if shard is not None and not shards:
        _LOG.warning("share %d/%d holds no shard (%d in all): it has nothing to do", index, count, plan.num_shards)
    num_done, complete = 0, False
    if isinstance(path, RemotePath) and path.suffix.lower() in FILE_SUFFIXES:
        raise ConfigError(f"output={output}: in a bucket codes are a folder, so give a name without {path.suffix}")
    has_work = shards or index == 0 or resume  # else nothing is left for this share, and others may be at work
    if isinstance(path, RemotePath):
        share = Share(plan, shards, count == 1, resume, overwrite)
        if has_work:
            with reporting(progress) as report, interruption("the finished shards are kept"):
                num_done, complete = encode_to_bucket(codec, x, options, share, path.url, executor, report)
        return FileResult(path, len(x), num_done, complete, time.monotonic() - started)
    require_local(output)
    is_file = not is_folder(output)
    if path.name in ("", "..") or (is_file and path.suffix.lower() not in FILE_SUFFIXES):
        forms = f"{', '.join(FILE_SUFFIXES)} files, or to a folder of shards (a name without suffix)"
        raise ConfigError(f"output={output}: codes are written to {forms}")
    folder = path.with_name(f"{path.name}.shards") if is_file else path
    if has_work:
        job = _Encoding(codec, x, options, plan, shards, count == 1, path, folder, is_file)
        read = [*input_files(source, own), *inputs]
        with reporting(progress) as report, interruption("the finished shards are kept"):
            num_done, complete = job.run(report, resume, overwrite, read, executor)
    lists = lists_beside(path)
    lists = lists if is_file and complete and lists in files_of(path, codec.is_ivf) else None
    return FileResult(path, len(x), num_done, complete, time.monotonic() - started, lists)


def share_of_process(shard: tuple[int, int] | None = None) -> tuple[int, int]:
    """Share i of n (n itself is 0) as (i, n), divided further among the processes that torchrun has started."""
    index, count = (0, 1) if shard is None else shard
    require_int("the number of shares", count)
    require_int("shard", index, 0, count)
    rank, world = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not rank.isdecimal() or not world.isdecimal() or int(rank) >= int(world):
        found = f"RANK={rank} WORLD_SIZE={world}"
        raise ConfigError(f"{found} in the environment: torchrun sets them; otherwise unset them")
    return index % count * int(world) + int(rank), count * int(world)


@dataclass(frozen=True)
class _Encoding:
    """One call of `encode_file`."""

    codec: Codec
    source: VectorSource
    options: EncodeOptions
    plan: CodePlan
    shards: range  # of this process
    is_alone: bool  # these are all shards
    output: Path
    folder: Path  # where shards are collected: the output, or a folder beside the file
    is_file: bool

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}{LOCK}") if self.is_file else self.folder / LOCK

    def run(self, report, resume: bool, overwrite: bool, inputs, executor: Executor | None) -> tuple[int, bool]:
        """Encode what is missing; how many vectors that were, and whether the output is complete."""
        is_new = self._prepare(inputs)
        with exclusive(self.lock):
            if self.is_file:
                is_started = any(CodeFolder.find(self.folder))
                if resume and not is_started and self.output.exists() and self._is_made(overwrite):
                    report("encoding", len(self.source), len(self.source), "vector")
                    if self.folder.is_dir():  # a kill came while the shards were removed
                        remove_codes(self.folder)
                    return 0, True
                for path in files_of(self.output, self.codec.is_ivf):
                    check_output(path, overwrite=overwrite or (resume and is_started), inputs=inputs)
                check_folder_output(self.folder, KIND)
                is_new = make_folder(self.folder)
            folder = self._join(resume, overwrite)
        try:
            num_done = self._encode(folder, report, executor)
        except BaseException:
            self._withdraw(folder, is_new)
            raise
        with exclusive(self.lock):
            if not folder.is_pending:
                folder.tidy()
            elif not self._is_current(folder):
                return num_done, True  # another process has made the output
            elif folder.missing():
                return num_done, False
            else:
                folder.commit()
            if self.is_file:
                whole, sizes = CodeFolder.open(self.folder), (self.plan.codebook_size, self.codec.dim)
                for path in write_codes_file(self.output, whole.codes, whole.lists, *sizes):
                    remove_temporaries(path)
                remove_codes(self.folder)
        return num_done, True

    def _prepare(self, inputs) -> bool:
        """Make an output folder, or raise ConfigError; whether there was none."""
        path = self.output
        check_apart(self.folder, inputs)
        if self.is_file:
            check_output(path, overwrite=True)
            return False
        check_folder_output(path, KIND)
        return make_folder(path)

    def _withdraw(self, folder: CodeFolder, is_new: bool) -> None:
        """Remove what this call has made, if it has no shard yet and nobody else works on it."""
        with suppress(OSError, QincoError), exclusive(self.lock):
            if not (self.is_alone and folder.is_current() and len(folder.missing()) == self.plan.num_shards):
                return
            (folder.path / PENDING).unlink()
            remove_stale(folder.path, KIND)
        if is_new:
            with suppress(OSError):  # something else is there
                folder.path.rmdir()

    def _join(self, resume: bool, overwrite: bool) -> CodeFolder:
        share = Share(self.plan, self.shards, self.is_alone, resume, overwrite)
        there = share.joined(self.folder, *CodeFolder.find(self.folder))
        return CodeFolder.create(self.folder, self.plan) if there is None else there

    def _is_made(self, overwrite: bool) -> bool:
        """Whether a finished output file holds what some vectors are encoded to; ConfigError if it must stay."""
        there, same = Codes.load(self.output, self.codec), 0
        shape, reason = (self.plan.num_vectors, self.plan.num_codes), None
        if there.shape != shape:
            reason = f"codes of shape {there.shape}, not {shape}"
        else:
            sample = self.source.window(0, min(_ENCODED_AGAIN, len(self.source)))
            for first, block in self.codec.encode_blocks(sample, self.options):
                found = there[first : first + len(block)]
                equal_N = (block.codes == found.codes).all(1)
                same += int((equal_N & (block.lists == found.lists) if block.has_lists else equal_N).sum())
            if 4 * same < 3 * len(sample):
                reason = f"other codes than this model and these options give {self.source.name}"
        if reason is not None and not overwrite:
            raise ConfigError(f"{self.output} holds {reason}: give overwrite=true to replace it")
        return reason is None

    def _is_current(self, folder: CodeFolder) -> bool:
        """Whether these codes are still being written; raises ConfigError if another run has taken their folder."""
        if folder.is_current():
            return True
        complete, pending = CodeFolder.find(folder.path)
        if (there := pending or complete) is not None:
            self.plan.check_same(folder.path, there.plan)
        return False

    def _encode(self, folder: CodeFolder, report, executor: Executor | None) -> int:
        """Encode the shards that are missing; how many vectors they hold."""
        plan = self.plan
        missing = [shard for shard in self.shards if not folder.has(shard)]
        if executor is None:
            self._encode_here(folder, missing, report)
        else:
            parts = [plan.rows(shard) for shard in range(plan.num_shards)]
            # Workers may have other working directories.
            job = replace(self, output=self.output.absolute(), folder=self.folder.absolute())
            there = replace(folder, path=job.folder)
            write = partial(job.write, there)
            encoder = ShardEncoder(self.codec, self.source, self.options, plan, there.has, write)
            run_parts(executor, encoder, missing, parts, "encoding", report)
        return sum(len(plan.rows(shard)) for shard in missing)

    def _encode_here(self, folder: CodeFolder, missing: list[int], report) -> None:
        """A thread writes each shard, also on Ctrl-C, while the next one is encoded."""
        plan, writing = self.plan, None
        total, left = (sum(len(plan.rows(shard)) for shard in shards) for shards in (self.shards, missing))
        done = total - left
        report("encoding", done, total, "vector")
        blocks = self.codec.encode_blocks(self.source, self.options, ranges=[plan.rows(shard) for shard in missing])
        with ThreadPoolExecutor(1, "write shards") as writer, closing(blocks):
            for shard in missing:
                rows, parts = plan.rows(shard), []
                while sum(map(len, parts)) < len(rows):
                    parts.append(next(blocks)[1])
                    done += len(parts[-1])
                    report("encoding", done, total, "vector")
                    if writing is not None and writing.done():
                        writing.result()
                codes = Codes.concatenate(parts)
                last, writing = writing, writer.submit(self.write, folder, shard, codes.codes, codes.lists)
                if last is not None:  # one shard may wait while another is written, and no more
                    last.result()
            if writing is not None:
                writing.result()

    def write(self, folder: CodeFolder, shard: int, codes_NM: np.ndarray, lists_N: np.ndarray | None) -> None:
        """Write a shard, unless another process that was given the same share has."""
        with exclusive(self.lock):
            if self._is_current(folder) and not folder.has(shard):
                folder.write(shard, codes_NM, lists_N)


@contextmanager
def interruption(what: str) -> Iterator[None]:
    """Let Ctrl-C say what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{what}; repeat it with resume=true to continue") from None
