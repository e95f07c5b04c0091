"""Building an index from codes of any size on disk: `build_index`."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from qinco.atomic import require_local, user_path
from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.config import accepts_keys
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError
from qinco.executors import Executor
from qinco.maths.assignment import assigner
from qinco.progress import Progress, ProgressOption, reporting
from qinco.search.build import FAISS_SUFFIX, FIT_ROWS, choose_num_lists, fit_tables, partition
from qinco.search.build_checks import check_index_output, faiss_key, measured_metric, stated_metric
from qinco.search.calibrate import calibrated, corrections_of, mean_of, with_spread
from qinco.search.code_file import CodeFile, check_same_codec, open_codes, training_vectors
from qinco.search.fill import corrections_by, fill_lists
from qinco.search.fit import fit_lookup, open_pairwise
from qinco.search.ids import as_ids
from qinco.search.index_file import load_parts, put_parts
from qinco.search.metric import Metric
from qinco.search.names import put_names
from qinco.search.options import SearchOptions
from qinco.search.parts import Fitted, IndexParts
from qinco.search.sample import FitSample, assign_decoded, draw_sample, sample_rows
from qinco.search.scan import ENTRIES
from qinco.search.shards import ShardedBuild, ShardFiller, digest_of_codes, digest_of_pairwise, shard_edges
from qinco.search.tables import SearchTables
from qinco.store.decoder import load_pairwise
from qinco.store.folder import write_folder
from qinco.vectors.id_columns import IdColumn, open_ids
from qinco.vectors.rows import VectorSource, as_source, fingerprint

log = logging.getLogger(__name__)
_CALIBRATION_ROWS = 1 << 17
_MEASURED_ROWS, _UNRELATED = 10_000, 0.9  # the share of what vectors are that their codes lose


@dataclass(frozen=True)
class BuiltIndex:
    """What `build_index` wrote: `bytes_per_vector` is of codes, norm codes, ids and list boundaries, `mse_lookup` of
    vectors that the look-up tables were not fitted to (None where they were there), and `seconds_by_stage` of "tables"
    and "vectors".
    """

    output: str
    num_vectors: int
    num_lists: int
    bytes_per_vector: float
    mse_lookup: float | None
    seconds_by_stage: dict[str, float]
    metric: str


@accepts_keys(M="num_codes", K="codebook_size")
def build_index(
    codes, output: str | os.PathLike, *, codec: CodecLike | None = None, train_codes=None, train_vectors=None,
    vectors=None, ids=None, centroids=None, num_lists: int | None = None, num_codes: int | None = None,
    codebook_size: int | None = None, metric: str | None = None, pairwise=None, num_training: int | None = None,
    index_key: str | None = None, num_shards: int | None = None, executor: Executor | None = None,
    overwrite: bool = False, resume: bool = False, seed: int = 0, progress: ProgressOption = None,
) -> BuiltIndex:  # fmt: skip
    """Build an index from codes of any size, in bounded memory: lists are written straight to disk.

    Ids are the row numbers unless others are given. Codes without lists are put into those of the centroids nearest to
    their reconstructions, or into a single list.

    Args:
        codes: of the database: path, Codes, array or CodeFile.
        output: a folder (NAME or NAME.index), or a .faissindex file for faiss, which is made in memory.
        codec: the Codec of the codes, or its path, stored in the folder; if None tables alone search the index.
        train_codes: codes that look-up tables are fitted to; `codes` if None.
        train_vectors: (N, D) vectors of the train_codes: array, path or VectorSource; their reconstructions if None.
        vectors: (N, D) vectors of the database: array, path or VectorSource. Distances are then calibrated for them
            (docs/ranking.md), in the same bytes; else they are those of what codes decode to.
        ids: (N,) integers, or strings (see `Index.names`): an array, an .npy file, a column of Parquet or Arrow files
            as in `emb/*.parquet:id`, or the name of a column of the files that `vectors` are in. They are read in
            parts; each must be another one.
        centroids: (V, D) of the lists, or a path; those of an IVF codec if None.
        num_lists: V: partition the reconstructions by k-means instead. For codes without lists.
        num_codes, codebook_size: M and K, for files that do not say them.
        metric: "l2", "inner_product", or "cosine", for which vectors must have one length; if None what the file of the
            training vectors states, else "cosine" in a folder if these have length 1, and "l2" otherwise.
        pairwise: PairwiseDecoder or the path of one, for the pairwise stage.
        num_training: training vectors drawn to fit to; a million if None.
        index_key: faiss's name of the .faissindex file's kind; `${ivf_K}`, `${M}` and `${K}` are replaced.
        num_shards: write the lists in shards of rows of about equal sizes, which `executor` fills; by default of four
            million rows where there is one.
        executor: maps a function over the shards in other processes, see `qinco.distributed.WorkerPool`.
        overwrite: replace an index that is there.
        resume: of shards: those that are there stay. With `overwrite`: go on with what has begun to replace an index.
        seed: of the drawing and of k-means.
        progress: see `qinco.progress`.

    Example:
        >>> qinco.encode_file(codec, "base.fvecs", "base_codes")
        >>> qinco.build_index("base_codes", "ix", codec=codec, train_codes="train_codes", train_vectors="train.fvecs")
        >>> index = qinco.Index.load("ix")
    """
    in_shards = num_shards is not None or executor is not None
    if resume and not in_shards:
        raise ConfigError("resume=true goes on with the shards of an index: give num_shards= or cluster=, or build it "
                          "again with overwrite=true")  # fmt: skip
    require_local(output)
    codec, output = None if codec is None else as_codec(codec), Path(user_path(output))
    train_vectors = None if train_vectors is None else as_source(train_vectors)
    files, vectors = vectors, None if vectors is None else as_source(vectors)
    metric, is_default = stated_metric(metric, train_vectors if vectors is None else vectors, output)
    is_faiss = check_index_output(output, metric, pairwise, index_key, overwrite or (resume and in_shards))
    database = open_codes(codes, codec, num_codes, codebook_size)
    train = database if train_codes is None else open_codes(train_codes, codec, num_codes, codebook_size)
    check_same_codec(database, train)
    if vectors is not None and (codec is None or is_faiss):
        raise ConfigError("vectors= needs the codec (model=), and a folder as output, not a faiss file")
    base = None
    if vectors is not None and codec is not None:
        codec.check_dim(vectors)
        base = training_vectors(database, vectors)
    if not is_faiss and database.codebook_size > ENTRIES:
        raise ConfigError(f"{database.name} holds codes of K={database.codebook_size}, and an index folder those of "
                          f"one byte: write a faiss file, NAME{FAISS_SUFFIX}")  # fmt: skip
    names = None
    if ids is not None:
        if is_faiss:
            raise ConfigError(f"{output} is a faiss file, whose ids are row numbers: write a folder, or leave out ids=")
        ids = open_ids(ids, len(database), files)
        ids, names = (None, ids) if ids.are_strings else (ids, None)
    num_clustered = None
    if num_lists is not None and codec is not None and codec.is_ivf:
        if num_lists != codec.config.num_lists:
            raise ConfigError(f"num_lists={num_lists} is not the codec's {codec.config.num_lists}: leave num_lists out")
    elif num_lists is not None:
        if centroids is not None or database.codes.has_lists or codec is None:
            raise ConfigError("num_lists (ivf_K) is for codes without lists, needs their codec (model=), and replaces "
                              "centroids (ivf_centroids=)")  # fmt: skip
        num_clustered = min(len(train), FIT_ROWS)
        choose_num_lists(num_lists, num_clustered)
    key_of = partial(faiss_key, index_key, file=database) if is_faiss else None
    job = _Build(codec, output, database, base, ids, train, train_vectors, pairwise, num_training, seed, key_of)
    lists = {"num_lists": num_lists, "num_clustered": num_clustered}
    job = replace(job, metric=metric, is_default=is_default, names=names, **lists)
    with reporting(progress) as report:
        if (given := ids or names) is not None:  # before anything is fitted
            job = replace(job, ids_digest=given.check_different(report))
        if not in_shards:
            with TemporaryFile(dir=output.absolute().parent) as scratch:
                return job.run(centroids, scratch, report)
        if is_faiss:
            raise ConfigError(f"{output} is a file for faiss, which has no shards: write a folder")
        edges = shard_edges(len(database), num_shards)
        return job.run_in_shards(centroids, edges, executor, resume, overwrite, report)


@dataclass(frozen=True)
class _Build:
    """One call of `build_index`, whose arguments are checked."""

    codec: Codec | None
    output: Path
    database: CodeFile
    vectors: VectorSource | None  # of the database
    ids: IdColumn | None  # or row numbers
    train: CodeFile
    train_vectors: VectorSource | None
    pairwise: Any
    num_training: int | None
    seed: int
    key_of: Callable[[int], str] | None  # faiss's key by the number of lists, for a file of faiss
    metric: str = "l2"
    is_default: bool = False
    num_lists: int | None = None
    num_clustered: int | None = None  # training vectors that lists are made of, if any
    names: IdColumn | None = None  # strings of the rows
    ids_digest: str | None = None

    def run(self, centroids, scratch, report: Progress) -> BuiltIndex:
        """Fit, and fill the lists of one index, whose numbers of lists may be put in a scratch file."""
        begun = time.monotonic()
        fitted = self._fit(centroids, report)
        centroids_VD, database = fitted.centroids_VD, self.database
        if not database.codes.has_lists:
            database = _assigned(database, self.codec, centroids_VD, scratch, report)
        for first, block in database.blocks(num_lists=len(centroids_VD)):
            report("checking codes", first + len(block), len(database))
        mse, middle = fitted.sample.validated_mse(fitted.lookup), time.monotonic()
        if fitted.tables is None:
            from qinco.compat.faiss_files import FaissIndex, write_faiss

            inner_product = fitted.metric.scans_inner_products
            write_faiss(self.output, fitted.key, fitted.lookup, database, inner_product=inner_product, progress=report)
            bytes_each = FaissIndex(self.output).bytes_per_vector
        else:
            rows = range(len(database))
            ids = rows if self.ids is None else as_ids(self.ids[:], len(database))
            parts = replace(
                self._parts(fitted), next_id=max(0, ids[-1] + 1 if isinstance(ids, range) else int(ids.max()) + 1)
            )
            with write_folder(self.output, "index", {}) as writer:
                put_parts(writer, self.codec, parts)
                if self.names is not None:
                    put_names(writer, self.names, report)
                own = corrections_by(fitted.tables, self.codec, self.vectors)
                lists = fill_lists(fitted.tables, database, ids, report, writer.array, corrections=own)
                writer.put("starts", lists.starts)
            bytes_each = lists.nbytes / len(lists)
        seconds = {"tables": middle - begun, "vectors": time.monotonic() - middle}
        return self._built(len(centroids_VD), bytes_each, mse, seconds, fitted.metric)

    def run_in_shards(
        self, centroids, edges: tuple[int, ...], executor: Executor | None, resume: bool, overwrite: bool,
        report: Progress,
    ) -> BuiltIndex:  # fmt: skip
        """Fit, and let an executor fill the shards of an index."""
        begun, mse = time.monotonic(), []
        middle, build = begun, ShardedBuild(self.output, self._facts(edges, centroids), len(edges) - 1)

        def fit() -> tuple[Codec | None, IndexParts]:
            fitted = self._fit(centroids, report)
            mse.append(fitted.sample.validated_mse(fitted.lookup))
            return self.codec, self._parts(fitted)

        if not (resume and build.is_done()):
            token = build.begin(resume, overwrite)
            tables, folder = build.fitted(fit, token).absolute(), self.output.absolute()
            middle = time.monotonic()
            build.fill(
                ShardFiller(folder, token, tables, self.database, self.vectors, self.ids, edges), executor, report
            )
            build.commit(token, edges, self.names, report)
        build.remove_tables()
        _, parts = load_parts(self.output, True, None, "cpu")
        seconds = {"tables": middle - begun, "vectors": time.monotonic() - middle}
        bytes_each = sum(segment.nbytes for segment in parts.segments) / edges[-1]
        return self._built(parts.tables.num_lists, bytes_each, mse[0] if mse else None, seconds, parts.tables.metric)

    def _fit(self, centroids, report: Progress) -> "_Fitted":
        """What vectors are put into lists by."""
        codec, database, train, seed = self.codec, self.database, self.train, self.seed
        if self.num_clustered is not None and codec is not None and self.num_lists is not None:
            if self.train_vectors is not None:  # what may be refused is refused before lists are made
                training_vectors(train, self.train_vectors)
            if isinstance(self.pairwise, str | os.PathLike):
                load_pairwise(user_path(self.pairwise), database.num_codes)
            if self.key_of is not None:
                self.key_of(self.num_lists)
            some = train.rows(sample_rows(len(train), FIT_ROWS, seed))
            centroids = partition(codec, some, self.num_lists, seed, report)[0]
        given = self.train_vectors, codec, centroids, self.num_training, seed, report
        sample, centroids_VD = draw_sample(train, *given)
        pairs = open_pairwise(self.pairwise, database.num_codes, database.codebook_size, sample.dim, centroids_VD)
        key = "" if self.key_of is None else self.key_of(1 if centroids_VD is None else len(centroids_VD))
        measure = measured_metric(sample, self.metric, self.is_default)
        # Codes without lists describe whole vectors, and centroids only where to find them; faiss adds them to all.
        adds_centroids = train.codes.has_lists or self.key_of is not None
        if centroids_VD is None:
            centroids_VD = sample.mean()
            sample = replace(sample, codes=sample.codes.with_lists(np.zeros(len(sample.codes), np.int32)))
        fit = (sample, database.codebook_size, centroids_VD)
        tables, filled = None, sample
        if codec is not None and self.train_vectors is None:
            filled = sample.with_any_codes(codec, centroids_VD if adds_centroids else None, seed)
        else:
            sample.warn_of_few(database.codebook_size)
        if self.key_of is None:
            tables = fit_tables(filled, *fit[1:], measure, adds_centroids, report)
        if tables is not None and codec is not None and self.vectors is not None:
            tables = _calibrated(tables, codec, database, self.vectors, pairs, seed, report)
        lookup = fit_lookup(*fit, moves_centroids=False, report=report) if tables is None else tables.lookup
        return _Fitted(sample, centroids_VD, measure, lookup, tables, pairs, key)

    def _parts(self, fitted: "_Fitted") -> IndexParts:
        """The index without its vectors."""
        assert fitted.tables is not None
        counts = Fitted(len(fitted.sample.codes), self.num_clustered, None, self.num_lists, self.seed)
        facts = SearchOptions(), len(self.database), self.database.fingerprint, counts
        return IndexParts(fitted.tables, (), fitted.pairs, *facts)

    def _facts(self, edges: tuple[int, ...], centroids) -> dict:
        """What tells a build in shards from others."""
        sources = {"vectors": self.vectors, "train_vectors": self.train_vectors, "centroids": centroids}
        return {
            "codes": digest_of_codes(self.database), "train_codes": digest_of_codes(self.train),
            "num_vectors": len(self.database), "num_shards": len(edges) - 1, "ids": self.ids_digest,
            "codec": None if self.codec is None else self.codec.fingerprint(), "metric": self.metric,
            "num_lists": self.num_lists, "num_training": self.num_training, "seed": self.seed,
            "pairwise": digest_of_pairwise(self.pairwise),
            **{name: None if source is None else fingerprint(as_source(source)) for name, source in sources.items()},
        }  # fmt: skip

    def _built(self, num_lists: int, bytes_each: float, mse: float | None, seconds: dict, metric: Metric) -> BuiltIndex:
        return BuiltIndex(str(self.output), len(self.database), num_lists, bytes_each, mse, seconds, metric.name)


@dataclass(frozen=True)
class _Fitted:
    """What an index is filled by: `tables`, or a look-up decoder and a key for a file of faiss."""

    sample: FitSample
    centroids_VD: np.ndarray
    metric: Metric
    lookup: LookupDecoder
    tables: SearchTables | None
    pairs: PairwiseDecoder | None
    key: str


def _assigned(database: CodeFile, codec: Codec | None, centroids_VD: np.ndarray, scratch, report: Progress) -> CodeFile:
    """The codes in the lists of the centroids nearest to their reconstructions; the list numbers lie in a file."""
    lists = np.broadcast_to(np.int32(0), len(database))  # takes no memory
    if len(centroids_VD) > 1 and codec is not None:
        find = assigner(centroids_VD, codec.device)
        for first, block in database.blocks():
            scratch.write(assign_decoded(codec, block, centroids_VD, find=find).tobytes())
            report("assigning vectors to lists", first + len(block), len(database))
        scratch.flush()
        lists = np.memmap(scratch, np.int32, "r", shape=(len(database),))
    return replace(database, codes=database.codes.with_lists(lists))


def _calibrated(
    tables: SearchTables, codec: Codec, database: CodeFile, base: VectorSource, pairwise, seed: int, report: Progress
) -> SearchTables:
    rows_n, mean_D = sample_rows(len(database), _CALIBRATION_ROWS, seed), mean_of(codec, tables)
    codes, source = database.rows(rows_n, tables.num_lists), base.take(rows_n)
    if not codes.has_lists:
        codes = codes.with_lists(assign_decoded(codec, codes, tables.centroids_VD))
    corrections_n = corrections_of(codec, tables.lookup, codes, source, mean_D, report)
    spread = np.square(source[:_MEASURED_ROWS] - mean_D, dtype=np.float64).sum(1).mean()
    if corrections_n[:_MEASURED_ROWS].mean(dtype=np.float64) > _UNRELATED * spread > 0:
        log.warning("what %s decode to tells nothing of %s: are they the codes of these vectors, in this order?",
                    database.name, base.name)  # fmt: skip
    leveled = codes, with_spread(corrections_n, 0, seed)
    return calibrated(tables, codec, codes, corrections_n, source, mean_D, leveled, seed, pairwise, report)
