"""Changes of an index: `EditableIndex` has the methods of `Index` that add, replace, remove and merge vectors."""

from dataclasses import replace

import numpy as np

from qinco.codec.codec import Codec
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.forking import new_lock
from qinco.progress import ProgressOption, reporting
from qinco.search.build import prepared, zero_rows
from qinco.search.calibrate import corrections_of, with_other_tables
from qinco.search.grow import encoded, extended
from qinco.search.ids import MISSING, admitted_ids, as_ids, check_new, id_array, next_ids, range_size
from qinco.search.lists import InvertedLists
from qinco.search.metric import choose_metric
from qinco.search.parts import IndexParts
from qinco.search.pipeline import NeuralDecoder
from qinco.store.codes import Codes
from qinco.vectors.rows import as_source


class EditableIndex:
    """The vectors of an index and how they change; what may be refused is refused before anything is encoded."""

    def __init__(self, codec: Codec | None, parts: IndexParts):
        if codec is not None and parts.codec_fingerprint is None:
            parts = replace(parts, codec_fingerprint=codec.fingerprint())
        self.codec, self.parts, self._saved = codec, parts, parts.segments
        self._changing = new_lock()

    @property
    def ids(self) -> np.ndarray:
        """The ids of all vectors, int64 (N,), in ascending order."""
        return np.sort(np.concatenate(self.parts.ids, dtype=np.int64))

    def add(self, vectors, ids=None, *, codes=None, progress: ProgressOption = None) -> np.ndarray:
        """Encode vectors and add them. They are on disk when `save` is called.

        An index that has grown to twice the vectors that its tables were fitted to (lists and pairs of `build`: four
        times, lists of more than 40,000 vectors: by half) fits these anew to all: it finds what one finds that was
        built at once.

        Args:
            vectors: (N, D) array, tensor, path or VectorSource.
            ids: (N,) different integers that the index does not hold, of the type int64 but for -1; the next free ones
                if None.
            codes: of the first vectors, which are not encoded again: those of an interrupted call.
            progress: see `qinco.progress`.

        Returns:
            The ids, int64 (N,).

        Raises:
            KeyboardInterrupt: with an attribute `codes`, those of the first vectors; none is added.
        """
        return self._insert(vectors, ids, False, codes, progress)

    def upsert(self, vectors, ids, *, codes=None, progress: ProgressOption = None) -> np.ndarray:
        """Add vectors as `add` does, and let each whose id is there replace that vector: all of them, or none."""
        if ids is None:
            raise ConfigError("upsert needs ids, of which those that are there are replaced: give ids, or use add")
        return self._insert(vectors, ids, True, codes, progress)

    def _insert(self, vectors, ids, replaces: bool, codes, progress: ProgressOption) -> np.ndarray:
        if self.codec is None:
            raise ConfigError("the index has no codec to encode with: load it with codec=")
        _check_unnamed(self.parts)
        source, metric = as_source(vectors), self.parts.tables.metric
        self.codec.check_dim(source)
        choose_metric(None, vectors, own=metric.name)
        given = None if ids is None else as_ids(ids, len(source))
        _free_ids(self.parts, given, len(source), replaces)
        zeros = zero_rows(source, metric)
        with (
            reporting(progress) as report,
            encoded(self.codec, source, metric, codes, report) as codes,
            self._changing,
        ):
            given = _free_ids(self.parts, given, len(source), replaces)  # another thread may have added some
            kept = self.parts.without(given) if replaces else self.parts
            ranking, source = kept.tables.ranking, prepared(source, metric)
            found_N = None
            if ranking is not None:
                found_N = corrections_of(self.codec, kept.tables.lookup, codes, source, ranking.mean_D, report)
            parts = extended(self.codec, kept, codes, found_N, given, report, source)
            self.parts = parts.with_zeros(given[zeros]).with_recent(given, source)
        return given

    def merge_from(self, other: "EditableIndex", add_id: int = 0, *, progress: ProgressOption = None) -> None:
        """Add the vectors of another index of the same codec and metric, which stays as it is. Nothing is encoded.

        They keep their lists if these are the same, and else come into those nearest to the decoded vectors.

        Args:
            add_id: what is added to their ids, none of which this index may hold.
            progress: see `qinco.progress`.
        """
        if not isinstance(other, EditableIndex):
            raise ConfigError(f"an Index is merged from another Index, not from a {type(other).__name__}")
        require_int("add_id", add_id, -(1 << 62), 1 << 62)
        _check_unnamed(self.parts)
        _check_unnamed(other.parts)
        parts, added = self.parts, other.parts
        _keeps_lists(self.codec, parts, added)
        ids, codes, corrections_N = _vectors_of(added, add_id)
        check_new(ids, parts.ids, parts.next_id, f"give add_id={parts.next_id} to shift those of the other")
        with reporting(progress) as report, self._changing:
            check_new(ids, self.parts.ids, self.parts.next_id)
            parts = self.parts
            if corrections_N is not None and (ranking := parts.tables.ranking) is not None:
                given = added.tables.lookup, parts.tables.lookup, ranking.mean_D
                corrections_N = with_other_tables(corrections_N, codes, *given)
            if not _keeps_lists(self.codec, parts, added):
                codes = codes.with_lists(None)
            elif np.array_equal(parts.tables.lookup.tables_MKD, added.tables.lookup.tables_MKD):
                parts = replace(parts, fitted=parts.fitted.merged(added.fitted))
            parts = extended(self.codec, parts, codes, corrections_N, ids, report)
            self.parts = parts.with_zeros(added.zeros + add_id)

    def remove(self, ids) -> int:
        """Remove vectors and return their number; the change is on disk when `save` is called.

        Args:
            ids: one id, or as `filter` of `search`, also (Q, k) ids that a search returned. Ids that the index does not
                hold, such as -1, are ignored.
        """
        with self._changing:
            before = len(self.parts)
            chosen = admitted_ids(ids, self.parts.ids, self.parts.next_id, any_shape=True)
            self.parts = self.parts.without(chosen)
            return before - len(self.parts)

    add_with_ids, remove_ids = add, remove  # as faiss calls them

    def reset(self) -> None:
        """Remove all vectors; codec, tables and options stay, and ids begin at 0 again."""
        with self._changing:
            self.parts = self.parts.emptied()

    def reconstruct(self, id) -> np.ndarray:
        """Decode the vector of an id, float32 (D,), or those of n ids, (n, D), or of ids (Q, k), (Q, k, D).

        Raises DataError for ids that the index does not hold, also for -1 (see `search_and_reconstruct`). With metric
        "cosine" vectors have the length of the codec's training vectors.
        """
        if isinstance(id, range) and range_size(id) > len(self.parts):
            raise DataError(f"ids must be in the index (of {len(self.parts)}), not {id}")
        if isinstance(id, slice):
            id = admitted_ids(id, self.parts.ids, self.parts.next_id)
        return decode_ids(self.codec, self.parts, id_array(id, chooses=True, any_shape=True))

    def missing_ids(self, ids_N: np.ndarray) -> np.ndarray:
        """Those of some ids that no vector has."""
        for ids in self.parts.ids:
            ids_N = ids_N[~np.isin(ids_N, ids)]
        return ids_N


def decode_ids(codec: Codec | None, parts: IndexParts, ids: np.ndarray, *, skips_unknown: bool = False) -> np.ndarray:
    """The decoded vectors of ids of any shape, float32 (..., D); unknown ones are a DataError, or NaN if skipped."""
    wanted, places, is_known = ids.ravel(), [], np.zeros(ids.size, bool)
    for segment in parts.segments:
        positions = np.flatnonzero(np.isin(segment.ids, wanted))
        positions = positions[np.argsort(segment.ids[positions])]
        here = np.isin(wanted, segment.ids[positions])
        places.append(
            (segment, here, positions[np.searchsorted(segment.ids[positions].astype(np.int64), wanted[here])])
        )
        is_known |= here
    if not (is_known.all() or skips_unknown):
        raise DataError(f"id {wanted[~is_known][0]} is not in the index (of {len(parts)})")
    decoder = parts.tables.lookup if codec is None else NeuralDecoder(codec, "float32", keeps=False)
    decoded_ND = np.full((len(wanted), parts.tables.lookup.dim), np.nan, np.float32)
    for segment, here, rows in places:
        decoded_ND[here] = decoder.decode(segment.rows(rows)[0], segment.lists_of(rows))
    decoded_ND[np.isin(wanted, parts.zeros)] = 0
    return decoded_ND.reshape(*ids.shape, -1) if ids.size else np.empty((*ids.shape, decoded_ND.shape[1]), np.float32)


def _check_unnamed(parts: IndexParts) -> None:
    if parts.names is not None:
        raise ConfigError("the index has a string for each row: build it again of all vectors (build_index), or keep "
                          "vectors that come and go in a Collection")  # fmt: skip


def _free_ids(parts: IndexParts, ids: np.ndarray | None, count: int, replaces: bool) -> np.ndarray:
    """The ids of vectors to come: those given, which must be new unless they replace others, or the next ones."""
    if ids is None:
        return next_ids(parts.next_id, count)
    if not replaces:
        check_new(ids, parts.ids, parts.next_id)
    return ids


def _keeps_lists(codec: Codec | None, parts: IndexParts, other: IndexParts) -> bool:
    """Whether merged vectors stay in their lists; raises DataError for indexes of another codec, metric or kind."""
    one, two = parts.tables, other.tables
    names, owned = {one.metric.name, two.metric.name}, one.partition_VD is None
    if parts.codec_fingerprint is None or other.codec_fingerprint != parts.codec_fingerprint or len(names) > 1:
        raise DataError("the other index is of another codec or metric, or that is unknown: add its vectors instead")
    if owned != (two.partition_VD is None) or (owned and one.num_lists != two.num_lists):
        sizes = f"num_lists is {one.num_lists} and {two.num_lists}"
        raise DataError(f"lists belong to the codes of one of the indexes ({sizes}): add the other's vectors instead")
    if owned or np.array_equal(one.centroids_VD, two.centroids_VD):
        return True
    if codec is None:
        raise ConfigError("the other index has other lists, and this one no codec to decode with: load it with codec=")
    return False


def _vectors_of(parts: IndexParts, add_id: int) -> tuple[np.ndarray, Codes, np.ndarray | None]:
    """Ids, with a number added, codes with their lists, and corrections if they are known."""
    lists = InvertedLists.merged(parts.segments)
    ids_N, positions_N = lists.ids.astype(np.int64) + add_id, np.arange(len(lists))
    if MISSING in ids_N or (add_id and ((ids_N < lists.ids) != (add_id < 0)).any()):
        raise DataError(f"add_id={add_id} makes -1, or numbers beyond 64 bits, of ids of the other: give another")
    lists_N, (codes_NM, norm_codes_N) = lists.lists_of(positions_N), lists.rows(positions_N)
    is_ranked = parts.tables.ranking is not None and bool(parts.tables.ranking.lookup.correction)
    corrections_N = parts.tables.corrections(codes_NM, norm_codes_N, lists_N) if is_ranked else None
    return ids_N, Codes(codes_NM, lists_N), corrections_N
