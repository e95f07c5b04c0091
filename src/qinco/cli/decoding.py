"""The cheap decoders, for the tasks that make, measure or use them: look-up tables and pairs of codes.

Shape suffixes: N vectors, S of them drawn at random, D dimension, M codes of a vector, V lists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from qinco.cli import inputs
from qinco.cli.console import Console
from qinco.cli.encoded import Encoded, same_centroids
from qinco.cli.overrides import Settings
from qinco.codec import Codec
from qinco.codec.plan import check_values
from qinco.compat.faiss_files import FaissIndex
from qinco.datasets.catalogue import find_dataset
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.search import build as building
from qinco.search.index import Index
from qinco.store.code_files import is_directory
from qinco.store.decoder import load_pairwise
from qinco.vectors.rows import VectorSource

_HELD_OUT = 20  # of so many training vectors one tells how well the tables decode vectors that they were not fitted to
_FEWEST_HELD_OUT = 50
_MOVED = 0.25  # of the centroids' variance: by more none are moved that are fitted to the same lists
_ENCODED_ROWS = 100_000  # that are encoded to fit tables to, unless more are asked for

Decode = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """Training vectors drawn at random, with their codes and lists; the vectors are read when they are asked for.

    rows_S: their numbers in the source     codes_SM: uint8     lists_S: int32, None where there are no lists
    is_held_S: bool, those that nothing is fitted to
    """

    source: VectorSource
    rows_S: np.ndarray
    codes_SM: np.ndarray
    lists_S: np.ndarray | None
    is_held_S: np.ndarray

    def blocks(self, chosen_S: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> Iterator[tuple]:
        """Codes (n, M), lists (n,) or None, and vectors float32 (n, D) of the chosen ones, a mask."""
        places = np.flatnonzero(chosen_S)
        for start in range(0, len(places), building.BLOCK_ROWS):
            part = places[start : start + building.BLOCK_ROWS]
            lists = None if self.lists_S is None else self.lists_S[part]
            x_nD = self.source[self.rows_S[part]]
            if not np.isfinite(x_nD).all():
                check_values(self.source)  # it names the row
            yield self.codes_SM[part], lists, x_nD
            progress(start + len(part))

    def decoded(self, codec: Codec) -> "Sample":
        """The same codes, for what their codec decodes in the place of the vectors."""
        source = building.decoded_source(codec, self.codes_SM, self.lists_S, self.source.name)
        return replace(self, source=source, rows_S=np.arange(len(self.rows_S)))

    def mse(self, decode: Decode) -> tuple[float, float]:
        """The mean squared error of `decode`, and of the mean, on vectors held out; on all where they are few."""
        chosen_S = self.is_held_S if self.is_held_S.any() else np.ones_like(self.is_held_S)
        error, sum_D, squares, count = 0.0, 0.0, 0.0, int(chosen_S.sum())
        for codes, lists, x_nD in self.blocks(chosen_S):
            error += np.square(decode(codes, lists) - x_nD, dtype=np.float64).sum()
            sum_D = sum_D + x_nD.sum(0, dtype=np.float64)
            squares += np.square(x_nD, dtype=np.float64).sum()
        return error / count, (squares - (np.square(sum_D) / count).sum()) / count

    def mean(self) -> np.ndarray:
        """Of all of them, float32 (1, D): the centroid of a single list."""
        sums = [x_nD.sum(0, dtype=np.float64) for _, _, x_nD in self.blocks(np.ones_like(self.is_held_S))]
        return (sum(sums) / len(self.rows_S)).astype(np.float32)[None]


def draw(
    settings: Settings, console: Console, codec, source: VectorSource, train: Encoded, centroids_VD: np.ndarray | None
) -> Sample:
    """At most `search.aq_training_samples` training vectors; codes without lists get those of their decoded vectors."""
    num_lists = 0 if centroids_VD is None else len(centroids_VD)
    rows_S = building.sample_rows(len(train), settings["search.aq_training_samples"], settings["seed"])
    codes_SM, lists_S = train.rows(rows_S, num_lists)
    if lists_S is None and centroids_VD is not None:
        with console.progress(len(rows_S), "vector", "assigning training vectors to lists") as progress:
            lists_S = building.lists_of_decoded(
                codec, codes_SM, centroids_VD, lambda _, done, __: progress.update(done)
            )
    return Sample(source, rows_S, codes_SM, lists_S, _held_out(len(rows_S)))


def _held_out(count: int) -> np.ndarray:
    is_held_S = np.zeros(count, bool)
    if count >= _FEWEST_HELD_OUT * _HELD_OUT:
        is_held_S[::_HELD_OUT] = True
    return is_held_S


def fit_lookup(
    settings: Settings,
    console: Console,
    sample: Sample,
    sizes: tuple[int, int],
    centroids_VD: np.ndarray | None,
    *,
    moves_centroids: bool,
) -> tuple[LookupDecoder, float]:
    """Look-up tables, added to centroids where there are some, and their mean squared error on vectors held out.

    moves_centroids: whether the centroids may be fitted, too
    """
    chosen_S = ~sample.is_held_S
    with console.progress(int(chosen_S.sum()), "vector", "fitting look-up tables") as progress:

        def blocks() -> Iterator[tuple]:
            return sample.blocks(chosen_S, progress.update)

        fit = building.fit_lookup if moves_centroids else _fit_to_centroids
        lookup = fit(blocks, *sizes, centroids_VD)
    mse, variance = sample.mse(lookup.decode)
    if mse >= variance > 0:
        console.warn(
            f"the look-up tables explain nothing of {sample.source.name} (mean squared error {mse:.4g}, of the mean "
            f"{variance:.4g}): are the codes of these vectors, in this order?"
        )
    return lookup, mse * inputs.mse_scale(settings)


def _fit_to_centroids(blocks: Callable, code_size: int, codebook_size: int, centroids_VD) -> LookupDecoder:
    return LookupDecoder.fit(blocks(), code_size, codebook_size, centroids_VD)


def joined(blocks: Iterator[tuple]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    codes, lists, vectors = zip(*blocks, strict=True)
    return np.concatenate(codes), None if lists[0] is None else np.concatenate(lists), np.concatenate(vectors)


def open_pairwise(
    settings: Settings,
    code_size: int,
    codebook_size: int,
    dim: int,
    centroids_VD: np.ndarray | None,
) -> PairwiseDecoder | None:
    """The decoder of `pairwise_decoder=`, None where that is not given.

    centroids_VD: of the lists; a file of the authors' form has none, one of ours has its own, fitted to vectors

    Raises DataError where it is not one of such codes in lists of such centroids.
    """
    path = settings["pairwise_decoder"]
    if path is None:
        return None
    decoder = load_pairwise(path, code_size)
    num_lists = 0 if centroids_VD is None else len(centroids_VD)
    pairs = [("K", decoder.codebook_size, codebook_size), ("D", decoder.dim, dim)]
    pairs += [("number of lists", decoder.num_lists, num_lists)] if decoder.num_lists else []
    for name, found, wanted in pairs:
        if found != wanted:
            raise DataError(f"{path} decodes other codes: its {name} is {found}, not {wanted}: give this codec's own")
    if decoder.centroids_VD is not None:
        if np.square(decoder.centroids_VD - centroids_VD).mean() > _MOVED * centroids_VD.var(0).mean():
            raise DataError(f"{path} decodes other codes: its lists have other centroids: give this codec's own")
        return decoder
    return replace(decoder, centroids_VD=centroids_VD) if decoder.num_lists else decoder


# Decoders of the tasks that measure


def open_index(path: str, codec: Codec | None, device="cpu") -> Index | FaissIndex:
    """An index of ours or a faiss file; raises DataError where it is not of the codec that is given."""
    if is_directory(path):
        return Index.load(path, codec=codec, device=device)
    index = FaissIndex.open(path)
    if codec is None:
        return index
    for name, found, wanted in (
        ("D", index.dim, codec.dim),
        ("M", index.num_codes, codec.num_codes),
        ("K", index.codebook_size, codec.config.codebook_size),
    ):
        if found != wanted:
            raise DataError(f"{path} holds codes of another codec: {name} is {found} there, {wanted} in the model")
    if codec.is_ivf and not same_centroids(index.centroids, codec.coarse_centroids):
        raise DataError(f"{path} holds codes of another codec: its centroids are not the model's")
    return index


def open_decoder(settings: Settings, console: Console, codec: Codec) -> Decode:
    """What `decoder=` names, as a function of codes (n, M) and the codec's lists (n,) or None.

    Look-up tables are those of `index=`, or are fitted to training vectors; pairs come from `pairwise_decoder=` or from
    the index. Raises ConfigError where these are missing.
    """
    name = settings["decoder"]
    if name == "neural":
        for key in ("index", "pairwise_decoder"):
            if settings[key] is not None:
                raise ConfigError(f"{key}= has no part in decoder=neural: give decoder=lookup or decoder=pairwise")
        precision = inputs.decode_precision(settings)
        return lambda codes, lists: codec.decode(codes, lists, precision=precision)
    if settings["prefix"] is not None:
        raise ConfigError(f"prefix= shortens codes for the network, and decoder={name} takes whole ones: leave it out")
    index = None if settings["index"] is None else open_index(settings["index"], codec)
    if name == "pairwise":
        decoder = _pairwise_of(settings, codec, index)
    elif index is None:
        decoder = _fit_to_trainset(settings, console, codec)
    else:
        decoder = lookup_of(index)

    def decode(codes: np.ndarray, lists: np.ndarray | None) -> np.ndarray:
        if lists is None and decoder.num_lists:
            lists = building.lists_of_decoded(codec, codes, decoder.centroids_VD, building.silent)
        return decoder.decode(codes, lists)

    return decode


def lookup_of(index: Index | FaissIndex) -> LookupDecoder:
    """The look-up tables of an index."""
    return index.tables.lookup if isinstance(index, Index) else LookupDecoder(index.tables, index.centroids)


def open_pairwise_of_index(
    settings: Settings, sizes: tuple[int, int, int], codec, index: Index | FaissIndex | None
) -> PairwiseDecoder | None:
    """The decoder of `pairwise_decoder=` for the codes (M, K, D) of an index; the codec knows the centroids best."""
    if codec is not None and codec.is_ivf:
        return open_pairwise(settings, *sizes, codec.coarse_centroids)
    centroids_VD = None if index is None else index.tables.centroids_VD if isinstance(index, Index) else index.centroids
    return open_pairwise(settings, *sizes, centroids_VD)


def _pairwise_of(settings: Settings, codec, index: Index | FaissIndex | None) -> PairwiseDecoder:
    sizes = codec.num_codes, codec.config.codebook_size, codec.dim
    decoder = open_pairwise_of_index(settings, sizes, codec, index)
    if decoder is None and isinstance(index, Index):
        decoder = index.pairwise
    if decoder is None:
        raise ConfigError("decoder=pairwise needs pairwise_decoder=FILE, which task train_pairwise_decoder writes")
    return decoder


def _fit_to_trainset(settings: Settings, console: Console, codec) -> LookupDecoder:
    """Look-up tables fitted to training vectors that are encoded for it."""
    if settings["trainset"] is None and find_dataset(settings["db"]) is None:
        raise ConfigError("decoder=lookup needs index=, whose tables are taken, or trainset=, vectors to fit tables to")
    source = inputs.open_trainset(settings)
    codec.check_dim(source)
    most = settings["search.aq_training_samples"] if settings.given("search.aq_training_samples") else _ENCODED_ROWS
    rows_S = building.sample_rows(len(source), most, settings["seed"])
    if not len(rows_S):
        raise DataError(f"{source.name} holds no vectors that look-up tables could be fitted to")
    console.info(f"fitting look-up tables to {len(rows_S):,} of {len(source):,} vectors in {source.name}")
    drawn = source.take(rows_S)
    with console.progress(len(rows_S), "vector", "encoding training vectors") as progress:
        codes_SM, lists_S = building.encode_all(codec, drawn, lambda _, done, __: progress.update(done))
    sample = Sample(source, rows_S, codes_SM, lists_S, _held_out(len(rows_S)))
    sizes = codec.num_codes, codec.config.codebook_size
    return fit_lookup(settings, console, sample, sizes, codec.coarse_centroids, moves_centroids=True)[0]
