"""Building an index: from vectors in memory (`Index.build`), and from codes of any size on disk (`build_index`)."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from qinco.atomic import check_output, user_path
from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.config import MAX_LISTS, accepts_keys, require_int
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError
from qinco.machine import num_threads
from qinco.maths.clustering import coarse_kmeans
from qinco.progress import Progress, ProgressOption, reporting, silent
from qinco.search.calibrate import calibrated, corrections_of, mean_of, with_spread
from qinco.search.code_file import CodeFile, check_same_codec, open_codes, training_vectors
from qinco.search.fit import fit_lookup, open_pairwise
from qinco.search.index_file import put_parts
from qinco.search.lists import InvertedLists, ListsBuilder, id_dtype
from qinco.search.metric import L2, Metric, choose_metric
from qinco.search.options import SearchOptions
from qinco.search.parts import Fitted, IndexParts
from qinco.search.sample import FitSample, assign_decoded, draw_sample, sample_rows
from qinco.search.scan import ENTRIES
from qinco.search.tables import SearchTables
from qinco.store.code_files import is_directory, is_folder
from qinco.store.codes import Codes
from qinco.store.decoder import load_pairwise
from qinco.store.folder import check_folder_output, write_folder
from qinco.store.manifest import MANIFEST, is_kind
from qinco.vectors.rows import VectorSource, as_source

log = logging.getLogger(__name__)
FAISS_SUFFIX = ".faissindex"
CLUSTER_ROWS_EACH, MIN_ROWS_EACH = 256, 39  # vectors of a list
FIT_ROWS = 1_000_000
_CALIBRATION_ROWS = 1 << 17
_MEASURED_ROWS, _UNRELATED = 10_000, 0.9  # the share of what vectors are that their codes lose
_MIN_LENGTH, _MAX_LENGTH = 2.0**-60, 2.0**60
_MAX_LENGTH_SPREAD = 0.01  # of vectors that count as of one length


def choose_num_lists(num_lists: int | None, num_vectors: int) -> int:
    """`num_lists` if given, else about 4 √N, with at least 39 vectors per list."""
    if num_lists is None:
        wanted = 1 << max(0, round(np.log2(4 * np.sqrt(max(num_vectors, 1)))))
        return max(1, min(wanted, num_vectors // MIN_ROWS_EACH))
    require_int("num_lists", num_lists, 1, MAX_LISTS)
    if num_lists > num_vectors:
        raise ConfigError(f"num_lists must be at most {num_vectors}, the number of vectors, not {num_lists}")
    return num_lists


def partition(
    codec: Codec, codes: Codes, num_lists: int, seed: int, report: Progress = silent, rows_each: int = CLUSTER_ROWS_EACH
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids float32 (V, D) of reconstructions, and the list of each, int32 (N,); without lists that are empty."""
    rows = sample_rows(len(codes), rows_each * num_lists, seed)
    if len(rows) < MIN_ROWS_EACH * num_lists and num_lists > 1:
        log.warning("%d vectors for %d lists: %d or more are better", len(rows), num_lists, MIN_ROWS_EACH * num_lists)
    decoded_ND = np.concatenate([block for _, block in codec.decode_blocks(codes[rows], "auto")])
    report("partitioning", 0, num_lists, "list")
    if num_lists == 1:
        centroids_VD = decoded_ND.mean(0, keepdims=True)
    else:
        centroids_VD = coarse_kmeans(decoded_ND, num_lists, seed=seed, device=codec.device)
    report("partitioning", num_lists, num_lists, "list")
    used_V, lists_N = np.unique(assign_decoded(codec, codes, centroids_VD, report), return_inverse=True)
    return centroids_VD[used_V], lists_N.astype(np.int32)


def fit_tables(
    sample: FitSample, codebook_size: int, centroids_VD, metric: Metric, adds_centroids: bool,
    report: Progress = silent, lookup: LookupDecoder | None = None,
) -> SearchTables:  # fmt: skip
    """Fitted parts of an index; with `adds_centroids` (IVF codecs) codes say what the centroids do not."""
    if lookup is None:
        lookup = fit_lookup(sample, codebook_size, centroids_VD if adds_centroids else None, report=report)
    codes, partition_VD = sample.codes, None if adds_centroids else centroids_VD
    return SearchTables.fit(lookup, codes.codes, codes.lists, metric, partition_VD)


def fill_lists(
    tables: SearchTables, codes: Codes | CodeFile, ids: np.ndarray | range, report: Progress = silent, create=None,
    block_rows: int = 1 << 17, corrections: Callable[[int, Codes], np.ndarray] | None = None,
) -> InvertedLists:  # fmt: skip
    """Inverted lists of codes that have list numbers, read twice in blocks; `create` as in `ListsBuilder.allocate`.

    `corrections` gives those of a block, by the number of its first vector and its codes.
    """
    builder = ListsBuilder(tables.num_lists, tables.lookup.num_codes)
    for _, block in codes.blocks(block_rows):
        builder.add_counts(block.lists)
    edges = np.array([ids[0], ids[-1]], np.int64) if isinstance(ids, range) and len(ids) else np.asarray(ids, np.int64)
    builder.allocate(id_dtype(edges), create)
    for first, block in codes.blocks(block_rows):
        codes_NM, lists_N = np.ascontiguousarray(block.codes, np.uint8), np.asarray(block.lists)
        own_N = None if corrections is None else corrections(first, block)
        norm_codes_N = tables.norm_codes(codes_NM, lists_N, num_threads(), own_N)
        builder.fill(codes_NM, norm_codes_N, lists_N, np.asarray(ids[first : first + len(block)], np.int64))
        report("filling lists", first + len(block), len(codes))
    return builder.finish()


def metric_of_codec(name: str, codec: Codec) -> Metric:
    """The metric of this name, for vectors of a codec; raises ConfigError where float32 cannot hold its values."""
    spreads = [part.config.dim * float(part.scale) ** 2 for part in codec.weights]
    means = [float(np.square(part.mean_D, dtype=np.float64).sum()) for part in codec.weights]
    squares = [square + spread for square, spread in zip(means, spreads, strict=True)]
    length = float(np.sqrt(sum(map(float, spreads) if name == "l2" else squares)))
    if not _MIN_LENGTH < length < _MAX_LENGTH:
        raise ConfigError(f"the codec's vectors have lengths of about {length:.2g}, whose squares float32 cannot hold: "
                          f"multiply vectors by {1 / length:.1g} before a codec is trained on them")  # fmt: skip
    return Metric(name, length if name == "cosine" else 1.0)


def prepared(source: VectorSource, metric: Metric) -> VectorSource:
    """The vectors as they are encoded for a metric."""
    return source.map(metric.prepare) if metric.name == "cosine" else source


def zero_rows(source: VectorSource, metric: Metric) -> np.ndarray:
    """The numbers of vectors that are zero, int64, for "cosine", by which these are similar to nothing; else none."""
    blocks = source.blocks(1 << 16) if metric.name == "cosine" else ()
    return np.concatenate([np.empty(0, np.int64), *(first + np.flatnonzero(~x.any(1)) for first, x in blocks)])


@dataclass(frozen=True)
class BuiltIndex:
    """What `build_index` wrote: `bytes_per_vector` is of codes, norm codes, ids and list boundaries, `mse_lookup` of
    vectors that the look-up tables were not fitted to, and `seconds_by_stage` of "tables" and "vectors".
    """

    output: str
    num_vectors: int
    num_lists: int
    bytes_per_vector: float
    mse_lookup: float
    seconds_by_stage: dict[str, float]
    metric: str


@accepts_keys(M="num_codes", K="codebook_size")
def build_index(
    codes, output: str | os.PathLike, *, codec: CodecLike | None = None, train_codes=None, train_vectors=None,
    vectors=None, centroids=None, num_lists: int | None = None, num_codes: int | None = None,
    codebook_size: int | None = None, metric: str | None = None, pairwise=None, num_training: int | None = None,
    index_key: str | None = None,
    overwrite: bool = False, seed: int = 0, progress: ProgressOption = None,
) -> BuiltIndex:  # fmt: skip
    """Build an index from codes of any size, in bounded memory: lists are written straight to disk.

    Ids are the row numbers. Codes without lists are put into those of the centroids nearest to their reconstructions,
    or into a single list.

    Args:
        codes: of the database: path, Codes, array or CodeFile.
        output: a folder (a name without suffix), or a .faissindex file for faiss, which is made in memory.
        codec: the Codec of the codes, or its path, stored in the folder; if None tables alone search the index.
        train_codes: codes that look-up tables are fitted to; `codes` if None.
        train_vectors: (N, D) vectors of the train_codes: array, path or VectorSource; their reconstructions if None.
        vectors: (N, D) vectors of the database: array, path or VectorSource. Distances are then calibrated for them
            (docs/ranking.md), in the same bytes; else they are those of what codes decode to.
        centroids: (V, D) of the lists, or a path; those of an IVF codec if None.
        num_lists: V: partition the reconstructions by k-means instead. For codes without lists.
        num_codes, codebook_size: M and K, for files that do not say them.
        metric: "l2", "inner_product", or "cosine", for which vectors must have one length; if None what the file of the
            training vectors states, else "cosine" in a folder if these have length 1, and "l2" otherwise.
        pairwise: PairwiseDecoder or the path of one, for the pairwise stage.
        num_training: training vectors drawn to fit to; a million if None.
        index_key: faiss's name of the .faissindex file's kind; `${ivf_K}`, `${M}` and `${K}` are replaced.
        overwrite: replace an index that is there.
        seed: of the drawing and of k-means.
        progress: see `qinco.progress`.

    Example:
        >>> qinco.encode_file(codec, "base.fvecs", "base_codes")
        >>> qinco.build_index("base_codes", "ix", codec=codec, train_codes="train_codes", train_vectors="train.fvecs")
        >>> index = qinco.Index.load("ix")
    """
    codec, output = None if codec is None else as_codec(codec), Path(user_path(output))
    train_vectors = None if train_vectors is None else as_source(train_vectors)
    vectors = None if vectors is None else as_source(vectors)
    metric, is_default = _choose_metric(metric, train_vectors if vectors is None else vectors, output)
    is_faiss = _check_output(output, metric, pairwise, index_key, overwrite)
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
    begun = time.monotonic()
    with reporting(progress) as report, TemporaryFile(dir=output.absolute().parent) as scratch:
        if num_clustered is not None and codec is not None and num_lists is not None:
            if train_vectors is not None:  # what may be refused is refused before lists are made
                training_vectors(train, train_vectors)
            if isinstance(pairwise, str | os.PathLike):
                load_pairwise(user_path(pairwise), database.num_codes)
            if is_faiss:
                _index_key(index_key, num_lists, database)
            some = train.rows(sample_rows(len(train), FIT_ROWS, seed))
            centroids = partition(codec, some, num_lists, seed, report)[0]
        sample, centroids_VD = draw_sample(train, train_vectors, codec, centroids, num_training, seed, report)
        pairs = open_pairwise(pairwise, database.num_codes, database.codebook_size, sample.dim, centroids_VD)
        key = _index_key(index_key, 1 if centroids_VD is None else len(centroids_VD), database) if is_faiss else ""
        measure = _metric_of(sample, metric, is_default)
        # Codes without lists describe whole vectors, and centroids only where to find them; faiss adds them to all.
        adds_centroids = train.codes.has_lists or is_faiss
        if centroids_VD is None:
            centroids_VD = sample.mean()
            sample = replace(sample, codes=sample.codes.with_lists(np.zeros(len(sample.codes), np.int32)))
        if not database.codes.has_lists:
            database = _assigned(database, codec, centroids_VD, scratch, report)
        for first, block in database.blocks(num_lists=len(centroids_VD)):
            report("checking codes", first + len(block), len(database))
        fit = (sample, database.codebook_size, centroids_VD)
        tables, filled = None, sample
        if codec is not None and train_vectors is None:
            filled = sample.with_any_codes(codec, centroids_VD if adds_centroids else None, seed)
        else:
            sample.warn_of_few(database.codebook_size)
        if not is_faiss:
            tables = fit_tables(filled, *fit[1:], measure, adds_centroids, report)
        if tables is not None and codec is not None and base is not None:
            tables = _calibrated(tables, codec, database, base, pairs, seed, report)
        lookup = fit_lookup(*fit, moves_centroids=False, report=report) if tables is None else tables.lookup
        mse, fitted = sample.validated_mse(lookup), time.monotonic()
        if tables is None:
            from qinco.compat.faiss_files import FaissIndex, write_faiss

            write_faiss(output, key, lookup, database, inner_product=measure.scans_inner_products, progress=report)
            bytes_each = FaissIndex(output).bytes_per_vector
        else:
            counts = len(sample.codes), num_clustered, None, num_lists, seed
            facts = SearchOptions(), len(database), database.fingerprint, Fitted(*counts)
            parts = IndexParts(tables, (), pairs, *facts)
            with write_folder(output, "index", {}) as writer:
                put_parts(writer, codec, parts)
                own = _corrections(tables, codec, base)
                lists = fill_lists(tables, database, range(len(database)), report, writer.array, corrections=own)
                writer.put("starts", lists.starts)
            bytes_each = lists.nbytes / len(lists)
    seconds = {"tables": fitted - begun, "vectors": time.monotonic() - fitted}
    return BuiltIndex(str(output), len(database), len(centroids_VD), bytes_each, mse, seconds, measure.name)


def _assigned(database: CodeFile, codec: Codec | None, centroids_VD: np.ndarray, scratch, report: Progress) -> CodeFile:
    """The codes in the lists of the centroids nearest to their reconstructions; the list numbers lie in a file."""
    lists = np.broadcast_to(np.int32(0), len(database))  # takes no memory
    if len(centroids_VD) > 1:
        for first, block in database.blocks():
            scratch.write(assign_decoded(codec, block, centroids_VD).tobytes())
            report("assigning vectors to lists", first + len(block), len(database))
        scratch.flush()
        lists = np.memmap(scratch, np.int32, "r", shape=(len(database),))
    return replace(database, codes=database.codes.with_lists(lists))


def _calibrated(
    tables: SearchTables, codec: Codec, database: CodeFile, base: VectorSource, pairwise, seed: int, report: Progress
) -> SearchTables:
    rows_n, mean_D = sample_rows(len(database), _CALIBRATION_ROWS, seed), mean_of(codec, tables)
    codes, source = database.rows(rows_n, tables.num_lists), base.take(rows_n)
    corrections_n = corrections_of(codec, tables.lookup, codes, source, mean_D, report)
    spread = np.square(source[:_MEASURED_ROWS] - mean_D, dtype=np.float64).sum(1).mean()
    if corrections_n[:_MEASURED_ROWS].mean(dtype=np.float64) > _UNRELATED * spread > 0:
        log.warning("what %s decode to tells nothing of %s: are they the codes of these vectors, in this order?",
                    database.name, base.name)  # fmt: skip
    leveled = codes, with_spread(corrections_n, 0, seed)
    return calibrated(tables, codec, codes, corrections_n, source, mean_D, leveled, seed, pairwise, report)


def _corrections(tables: SearchTables, codec: Codec | None, base: VectorSource | None):
    """Gives the corrections of a block of codes, for `fill_lists`; None without vectors."""
    if codec is None or base is None or tables.ranking is None:
        return None
    given, mean_D = (codec, tables.lookup), tables.ranking.mean_D
    return lambda first, codes: corrections_of(*given, codes, base.window(first, first + len(codes)), mean_D)


def _choose_metric(given: str | None, vectors: VectorSource | None, output: Path) -> tuple[str, bool]:
    """The metric of an index, and whether it is "cosine" only because vectors have length 1; faiss's files lack it."""
    is_faiss = output.suffix.lower() == FAISS_SUFFIX
    metric = choose_metric(given, vectors, compared=None if is_faiss else vectors)
    return metric, given is None and metric != choose_metric(None, vectors)


def _metric_of(sample: FitSample, name: str, is_default: bool) -> Metric:
    """The metric of vectors. Where their lengths differ, "cosine" is "l2" if it is only a default, else an error."""
    if name != "cosine":
        return Metric(name)
    lengths = np.concatenate([np.linalg.norm(x_nD, axis=1) for *_, x_nD in sample.blocks(held=None)])
    low, high = float(lengths.min()), float(lengths.max())
    if not 0 < high * (1 - _MAX_LENGTH_SPREAD) <= low and is_default:
        log.info("others of %s have other lengths, and metric=l2 is used", sample.name)
        return L2
    if not 0 < high * (1 - _MAX_LENGTH_SPREAD) <= low:
        raise ConfigError(f"metric=cosine is for codes of vectors of one length, not of {low:.4g} to {high:.4g} "
                          f"as in {sample.name}: encode vectors of one length, or give metric=l2")  # fmt: skip
    return Metric(name, float(lengths.mean()))


def _index_key(index_key: str | None, num_lists: int, file: CodeFile) -> str:
    from qinco.compat.faiss_files import check_index_key

    key = index_key or f"IVF{num_lists}_HNSW32,RQ{file.num_codes}x{file.codebook_size.bit_length() - 1}_Nqint8"
    for name, value in (("ivf_K", num_lists), ("M", file.num_codes), ("K", file.codebook_size)):
        key = key.replace(f"${{{name}}}", str(value))
    check_index_key(key, num_lists, file.num_codes, file.codebook_size)
    return key


def _check_output(output: Path, metric: str, pairwise, index_key: str | None, overwrite: bool) -> bool:
    """Whether the index is to be a faiss file; raises ConfigError unless `output` can be that or a folder."""
    if output.suffix.lower() == FAISS_SUFFIX and not is_directory(output):
        if metric == "cosine" or pairwise is not None:
            raise ConfigError("faiss files store no metric=cosine or pairwise_decoder=: write a folder, output=NAME")
        check_output(output, overwrite=overwrite)
        return True
    if not is_folder(output) and not is_kind(output, "index"):
        raise ConfigError(f"output={output}: an index is written to a folder, NAME, or a file NAME{FAISS_SUFFIX}")
    if index_key is not None:
        raise ConfigError(f"index_key= is the kind of a {FAISS_SUFFIX} file, and output={output} is a folder")
    check_output(output / MANIFEST if is_directory(output) else output, overwrite=True)
    check_folder_output(output, "index")
    if is_kind(output, "index") and not overwrite:
        raise ConfigError(f"{output} holds an index: give overwrite=true to replace it")
    return False
