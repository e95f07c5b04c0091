"""`ShardedIndex`: one index whose shards are searched by actors of a cluster.

Shape suffixes: Q queries, L lists of a query, S shortlist, A actors, D dimension, V lists.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from weakref import finalize

import numpy as np

from qinco.atomic import user_path
from qinco.codec.codec import Codec
from qinco.config import accepts_keys, require_int, require_number
from qinco.distributed.cluster import connected, cores_of, places_of
from qinco.distributed.servers import Servers
from qinco.distributed.shard import Columns, generation_of
from qinco.errors import ConfigError, ResourceError
from qinco.progress import counted
from qinco.search.index import Index
from qinco.search.index_file import load_parts
from qinco.search.lists import InvertedLists, ListsBuilder, id_dtype
from qinco.search.names import Names
from qinco.search.options import SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.pipeline import Pipeline
from qinco.search.scan import Shortlist
from qinco.search.selection import FEW, Selection

_FEW_RANKED = 2000  # vectors that are not worth sending


class Found(tuple):
    """Distances and ids, as `Index.search` returns them; `missing` are the rows of shards that did not answer in time.

    `names` are those of the index that was searched, as `Index.names`.

    Example:
        >>> distances, ids = found = index.search(queries, k=10, timeout=0.5)
        >>> found.is_partial, found.missing
        (True, [range(0, 50000)])
    """

    missing: list[range]
    names: Names | None  # of the version that was searched: a reload may give the index others at any time

    def __new__(cls, values, missing: Sequence[range] = (), names: Names | None = None):
        found = super().__new__(cls, values)
        found.missing, found.names = list(missing), names
        return found

    @property
    def is_partial(self) -> bool:
        return bool(self.missing)


class ShardedIndex:
    """An index whose shards lie in several processes or machines, searched as one: it finds what `Index` finds.

    Lists are chosen once, and scanned by the actors that hold the shards. The vectors that are nearest by the tables
    are decoded and ranked by the same actors, some queries each, and here where there are few or one actor. Replicas
    take turns, and stand in for one another.

    Args:
        folder: an index that `build_index` wrote with `num_shards`. All machines must see it at the same path.
        cluster: see `qinco.distributed.encode`.
        num_actors: groups of shards; None: as many as the cluster has machines for, each of which holds one actor.
        num_replicas: actors of each group, on different machines if there are several.
        threads: of each actor; None: the cores of its machine. Actors reserve none: `reload` starts new ones before the
            old ones end.
        timeout: seconds after which a search returns what it has, marked as partial; None: it waits.

    Example:
        >>> with qinco.distributed.ShardedIndex("index", num_replicas=2) as index:
        ...     distances, ids = index.search(queries, k=10)
    """

    def __init__(
        self, folder: str | os.PathLike, *, cluster: str = "auto", num_actors: int | None = None, num_replicas: int = 1,
        threads: int | None = None, timeout: float | None = None,
    ):  # fmt: skip
        require_int("num_replicas", num_replicas)
        for name, given in (("num_actors", num_actors), ("threads", threads)):
            if given is not None:
                require_int(name, given)
        if timeout is not None:
            require_number("timeout", timeout, above=0)
        self.folder, self.timeout = Path(user_path(folder)).absolute(), timeout
        self._settings = num_actors, num_replicas, threads
        codec, parts = load_parts(self.folder, True, None, "cpu")
        self._closing = ExitStack()
        self._ray = self._closing.enter_context(connected(cluster))
        try:
            self._version = self._open(codec, parts)
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> "ShardedIndex":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._version)

    def __repr__(self) -> str:
        groups = self._version.servers.groups
        actors = counted(len(groups), "actor") + (f" of {len(groups[0])} replicas" if len(groups[0]) > 1 else "")
        return f"ShardedIndex({counted(len(self), 'vector')}, dim={self.dim}, metric={self.metric!r}, {actors})"

    dim = d = property(lambda self: self._version.index.dim, doc="Dimension of the vectors.")
    ntotal = property(__len__, doc="Number of vectors.")
    num_lists = property(lambda self: self._version.index.num_lists, doc="Number of inverted lists.")
    metric = property(lambda self: self._version.index.metric, doc='"l2", "inner_product" or "cosine".')
    names = property(lambda self: self._version.index.names, doc="As of `Index`.")
    options = property(lambda self: self._version.index.options, doc="SearchOptions of a search that is given none.")

    @accepts_keys(SearchOptions)
    def search(
        self, queries, k: int = 10, nprobe: int | None = None, num_short: int | None = None, filter=None, *,
        exclude=None, num_mid: int | None = None, ef_search: int | None = None, ranking: str = "calibrated",
        precision: str = "auto", refine=None, num_refine: int | None = None, timeout: float | None = None,
    ) -> Found:  # fmt: skip
        """`Index.search`, with the same arguments, but that a Selection is of one index in one process.

        Args:
            timeout: seconds, instead of that of the index.

        Returns:
            Distances and ids, as `Index.search` returns them; see `Found`.
        """
        given = {"nprobe": nprobe, "num_short": num_short, "num_mid": num_mid, "ef_search": ef_search}
        version, stages = self._version, {"ranking": ranking, "precision": precision}
        asked = Asked(version, self.timeout if timeout is None else timeout)
        found = version.index.search_lists(asked, queries, k, given, (filter, exclude), (refine, num_refine), stages)
        return Found(found, [version.servers.rows[number] for number in sorted(asked.missing)], version.index.names)

    def reload(self) -> None:
        """Search what the folder holds now. Searches that have begun end with what it held before."""
        self._version = self._open(*load_parts(self.folder, True, None, "cpu"))

    def close(self) -> None:
        """Stop the actors, and the cluster if it was started here and nothing else of this process uses it."""
        self._stop()
        self._closing.close()

    def _open(self, codec: Codec | None, parts: IndexParts) -> "Version":
        num_actors, num_replicas, threads = self._settings
        if threads is not None:
            places_of(self._ray, threads)  # a machine has as many
        count = min(num_actors or max(1, len(cores_of(self._ray)) // num_replicas), len(parts.segments))
        shards = [list(map(int, some)) for some in np.array_split(np.arange(len(parts.segments)), count)]
        ends = np.cumsum([0, *map(len, parts.segments)]).tolist()
        rows = [range(ends[some[0]], ends[some[-1] + 1]) for some in shards]
        given = str(self.folder), generation_of(parts), shards, rows, num_replicas, threads
        servers = Servers.start(self._ray, *given)
        sizes_V = np.sum([np.diff(segment.starts) for segment in parts.segments], axis=0)
        version = Version(Index(codec, replace(parts, segments=())), servers, sizes_V)
        self._stop = finalize(version, servers.stop)  # once no search holds it any more
        return version


@dataclass(eq=False)
class Version:
    """What the folder of an index held at one moment."""

    index: Index  # tables and codec
    servers: Servers
    sizes_V: np.ndarray  # vectors of each list, int64

    def __len__(self) -> int:
        return int(self.sizes_V.sum())


class _Chosen:
    """Stands for the Selection of vectors that lie in the actors."""

    is_small = False

    def __init__(self, chosen: tuple, counts_V: np.ndarray):
        self.words, self.counts_V, self.count = chosen, counts_V, int(counts_V.sum())


class Asked:
    """The lists of one search: `ListsElsewhere`."""

    def __init__(self, version: Version, timeout: float | None):
        self._version, self._sizes_V = version, version.sizes_V
        self._end = None if timeout is None else time.monotonic() + timeout
        self.missing: set[int] = set()
        self._has_scanned, self._width = False, 0  # lists of each query in the first scan of a batch

    def __len__(self) -> int:
        return len(self._version)

    def select(self, parts: IndexParts, ids, exclude):
        if ids is None and exclude is None:
            return self, parts, None
        if isinstance(ids, Selection) or isinstance(exclude, Selection):
            raise ConfigError("a Selection is of an index in one process: give filter= and exclude= as ids")
        answers = self._ask("count", (ids, exclude))
        if not answers:
            raise self._unanswered()
        self._sizes_V = np.sum([counts_V for counts_V, _ in answers], axis=0, initial=0) + np.zeros_like(self._sizes_V)
        chosen = _Chosen((ids, exclude), self._sizes_V)
        if chosen.count > FEW:
            return self, parts, cast(Selection, chosen)
        blocks = [block for _, some in answers for block in some]
        lists = lists_of_blocks(blocks, parts.tables.num_lists, parts.tables.lookup.num_codes)
        return None, replace(parts, segments=(lists,)), Selection.from_masks([None], (lists,))

    def scan(
        self, queries_QD, probes_QL, bases_QL, segments, num_short: int, *, nprobe: int, admitted, threads: int
    ) -> Shortlist | None:
        """As `Scanner.scan`; it is known beforehand which lists that visits, by how many vectors each holds.

        None where no shard answers, but some have answered a scan of this search before.
        """
        self._width = self._width or probes_QL.shape[1]
        is_wider = probes_QL.shape[1] > self._width  # of queries that have been scanned for
        sizes_QL = self._sizes_V[probes_QL] * (probes_QL >= 0)
        before_QL = np.cumsum(sizes_QL, axis=1) - sizes_QL
        is_visited_QL = (np.arange(probes_QL.shape[1]) < nprobe) | (before_QL < num_short)
        width = int(is_visited_QL.any(0).sum())
        probes_QL = np.where(is_visited_QL, probes_QL, -1)[:, :width]
        given = queries_QD, np.ascontiguousarray(probes_QL, np.int32), np.ascontiguousarray(bases_QL[:, :width])
        answers = self._ask("scan", *given, num_short, admitted, is_wider=is_wider)
        if not answers and not self._has_scanned:
            raise self._unanswered()
        if not answers:
            return None
        self._has_scanned = True
        return merged([Shortlist(*columns) for columns in answers], probes_QL, num_short)

    def ranker(
        self, options: SearchOptions, k: int, ranking: str, precision: str, is_refined: bool
    ) -> Callable[[Pipeline, np.ndarray, Shortlist], Shortlist] | None:
        """Ranks some queries by each actor, and those of actors that are late here."""
        asked = options, k, ranking, precision, is_refined

        def rank(pipeline: Pipeline, queries_QD: np.ndarray, shortlist: Shortlist) -> Shortlist:
            servers, columns = self._version.servers, tuple(vars(shortlist).values())
            is_few = shortlist.ids.size < _FEW_RANKED or len(servers.groups) == 1
            if is_few or not pipeline.stages:
                return pipeline.ranked(queries_QD, shortlist)
            parts = np.array_split(np.arange(len(queries_QD)), len(servers.groups))
            given = [(queries_QD[part], tuple(column[part] for column in columns), asked) for part in parts]
            answers = servers.ask_each("rank", given, timeout=self._left())
            for number, (own_QD, own, _) in enumerate(given):
                if answers[number] is None:
                    answers[number] = vars(pipeline.ranked(own_QD, Shortlist(*own))).values()
            return Shortlist(*map(np.concatenate, zip(*answers, strict=True)))

        return rank

    def _left(self) -> float | None:
        """Seconds until the search must have an answer."""
        return None if self._end is None else max(1e-3, self._end - time.monotonic())

    def _ask(self, method: str, *arguments, is_wider: bool = False) -> list:
        """The answers of those that answer in time, in the order of their shards.

        Where none does in a scan of more lists, what was found before stays, and so does what was missing, if any.
        """
        answers = self._version.servers.ask(method, *arguments, timeout=self._left())
        missing = {number for number, answer in enumerate(answers) if answer is None}
        if not (is_wider and self.missing and len(missing) == len(answers)):
            self.missing |= missing
        return [answer for answer in answers if answer is not None]

    def _unanswered(self) -> ResourceError:
        servers = self._version.servers
        for number in range(len(servers.groups)):
            if (reason := servers.lost_for_good(number)) is not None:
                return ResourceError(f"no shard of the index has answered: {reason}: reload() starts new actors")
        return ResourceError("no shard of the index has answered in time: give a longer timeout")


def merged(several: Sequence[Shortlist], probes_QL: np.ndarray, num_short: int) -> Shortlist:
    """The shortlists of one scan of all lists, from those of scans of parts of them, in the order of their vectors.

    Of equal values the first one scanned is first: that of the first list, and in it of the first part.
    """
    if len(several) == 1:  # as of others it is a copy, which may be written to: what Ray gives may not
        return Shortlist(*map(np.array, vars(several[0]).values()))
    values_QS, ids_QS, lists_QS, codes_QSM, norm_codes_QS = (
        np.concatenate([getattr(one, name) for one in several], axis=1)
        for name in ("values", "ids", "lists", "codes", "norm_codes")
    )
    whole = Shortlist(
        values_QS, ids_QS, lists_QS, codes_QSM, norm_codes_QS, np.sum([one.scanned for one in several], axis=0)
    )
    found = whole.ranked(values_QS, min(num_short + 1, values_QS.shape[1]))
    is_equal_Q = (np.diff(found.values, axis=1) == 0).any(1)
    found = found.first(num_short)
    for query in np.flatnonzero(is_equal_Q):
        places_V = np.full(int(max(probes_QL[query].max(), lists_QS[query].max())) + 2, probes_QL.shape[1])
        places_V[probes_QL[query][::-1]] = np.arange(probes_QL.shape[1])[::-1]
        places_V[-1] = probes_QL.shape[1]
        order_S = np.lexsort((places_V[lists_QS[query]], values_QS[query]))[:num_short]
        for name, column in (
            ("values", values_QS), ("ids", ids_QS), ("lists", lists_QS), ("codes", codes_QSM),
            ("norm_codes", norm_codes_QS),
        ):  # fmt: skip
            getattr(found, name)[query] = column[query][order_S]
    return found


def lists_of_blocks(blocks: Sequence[Columns], num_lists: int, num_codes: int) -> InvertedLists:
    """Inverted lists of blocks of vectors, as `InvertedLists.blocks` gives them."""
    empty = np.empty((0, num_codes), np.uint8), *(np.empty(0, kind) for kind in (np.uint8, np.int32, np.int64))
    codes, norm_codes, lists, ids = (np.concatenate(columns) for columns in zip(empty, *blocks, strict=True))
    builder = ListsBuilder(num_lists, num_codes)
    builder.add_counts(lists)
    builder.allocate(id_dtype(ids))
    builder.fill(codes, norm_codes, lists, ids)
    return builder.finish()
