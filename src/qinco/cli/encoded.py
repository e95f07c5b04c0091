"""Encoded vectors of any form for the tasks that index them: what is known of codes, and the vectors they stand for.

Shape suffixes: N vectors, S of them drawn at random, D dimension, M codes of a vector, V lists.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qinco.cli import inputs
from qinco.cli.overrides import Settings
from qinco.codec import Codec
from qinco.codec.plan import read_centroids
from qinco.compat.encoded_sets import npz_part, npz_rows, read_npz_sizes
from qinco.errors import ConfigError, DataError
from qinco.packing import check_codes, check_lists
from qinco.search import build as building
from qinco.store.code_files import is_directory, lists_beside, open_codes_file
from qinco.store.code_folder import CodeFolder
from qinco.store.codes import Codes
from qinco.vectors.mapped import missing_file, release_pages
from qinco.vectors.rows import VectorSource, fingerprint

_SAME_CENTROIDS = 1e-3  # of their spread: what normalising and back costs in float32


@dataclass(frozen=True)
class Encoded:
    """Codes in a file or folder, and what that says of them; None where it says nothing.

    stored:      codes (N, M), and lists (N, 1) where there are some
    fingerprint: of the codec     source: of the vectors     dim: D     num_lists: V
    """

    path: str
    stored: Codes
    code_size: int
    codebook_size: int
    dim: int | None = None
    num_lists: int | None = None
    fingerprint: str | None = None
    source: str | None = None

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def sizes(self) -> tuple[int, int]:
        """M and K."""
        return self.code_size, self.codebook_size

    @property
    def has_lists(self) -> bool:
        return self.stored.has_lists

    def limit(self, count: int | None) -> "Encoded":
        """The first `count` vectors, or all where there are fewer."""
        if count is None or count >= len(self):
            return self
        return replace(self, stored=self.stored.limit(count))

    def with_lists(self, lists_N1) -> "Encoded":
        """The same codes in other lists, rows (N, 1)."""
        return replace(self, stored=self.stored.with_lists(lists_N1))

    def blocks(self, num_lists: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Codes (n, M) and lists (n,) of consecutive vectors; raises DataError where one is out of range."""
        for _, block in self.stored.blocks(building.BLOCK_ROWS):
            yield self._checked(block.codes, block.lists, num_lists)
            release_pages(block.codes)

    def rows(self, rows_S: np.ndarray, num_lists: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes (S, M) and lists (S,) of chosen vectors; raises DataError as `blocks` does."""
        block = self.stored[rows_S]
        return self._checked(block.codes, block.lists, num_lists)

    def _checked(self, codes_NM, lists_N, num_lists: int) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            check_codes(codes_NM, self.code_size, self.codebook_size)
            if lists_N is not None and num_lists:
                check_lists(lists_N, len(codes_NM), num_lists)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        return codes_NM, lists_N


def open_encoded(settings: Settings, name: str, codec: Codec | None) -> Encoded:
    """The codes that the key `name` names. Where neither they nor a codec say how many there are, `M` and `K` do."""
    path = settings[name]
    encoded = _known(settings, name, codec)
    has_lists = encoded.num_lists != 0 if codec is None else codec.is_ivf
    if codec is not None and encoded.fingerprint not in (None, codec.fingerprint()):
        raise DataError(f"{path} holds codes of another codec than {settings['model']}: give their own")
    size = (
        (encoded.code_size, encoded.codebook_size) if codec is None else (codec.num_codes, codec.config.codebook_size)
    )
    if has_lists and encoded.num_lists == 0 and not is_directory(path) and not lists_beside(path).exists():
        raise DataError(
            f"{path} holds codes without lists, and {lists_beside(path)} is missing: {settings['model']} has lists"
        )
    stored = Codes(*open_codes_file(path, *size, has_lists), name=str(path))
    if stored.dtype.kind not in "iu" or stored.shape[1] != size[0]:
        raise DataError(
            f"{path} holds {stored.dtype} of {stored.shape[1]} columns: codes are integers, {size[0]} for each vector"
        )
    for key, found in (("M", size[0]), ("K", size[1])):
        if settings[key] not in (None, found):
            raise ConfigError(f"{key}={settings[key]}, but {path} holds codes of {key}={found}: leave it out")
    if not len(stored):
        raise DataError(f"{path} holds no codes")
    return replace(encoded, stored=stored, code_size=size[0], codebook_size=size[1])


def _known(settings: Settings, name: str, codec: Codec | None) -> Encoded:
    """What a file or folder says of its codes, which are not opened yet."""
    path = settings[name]
    nothing = Codes(np.empty((0, 0), np.uint8))
    if is_directory(path):
        plan = CodeFolder.read(path).plan
        return Encoded(
            path, nothing, plan.num_codes, plan.codebook_size, plan.dim, plan.num_lists, plan.codec, plan.source,
        )  # fmt: skip
    if Path(path).suffix.lower() == ".npz":
        sizes = read_npz_sizes(path)
        columns = npz_rows(npz_part(Path(path), 0))[1] if sizes["n_parts"] else sizes["M"]
        return Encoded(path, nothing, sizes["M"], sizes["K"], sizes["D"], None if columns > sizes["M"] else 0)
    if not os.access(path, os.F_OK):
        raise missing_file(path)
    if codec is None and (settings["M"] is None or settings["K"] is None):
        raise ConfigError(f"{name}={path} does not say of what codec its codes are: give model=, or M= and K=")
    size = (settings["M"], settings["K"]) if codec is None else (codec.num_codes, codec.config.codebook_size)
    return Encoded(path, nothing, *size, None, None if lists_beside(path).exists() else 0)


def check_same_codec(first: Encoded, second: Encoded) -> None:
    """Raise DataError where two sets of codes cannot be of one codec."""
    for name in ("code_size", "codebook_size", "dim", "num_lists", "fingerprint", "has_lists"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other and (name == "has_lists" or None not in (one, other)):
            detail = f" ({name} is {one} and {other})" if isinstance(one, int) else ""
            raise DataError(f"{first.path} and {second.path} hold codes of different codecs{detail}: give those of one")


def open_encoded_vectors(settings: Settings, train: Encoded) -> tuple[VectorSource, Encoded]:
    """The training vectors of which there are codes, and their codes; raises DataError where they do not match."""
    train = train.limit(settings["ds.trainset"])
    source = inputs.open_trainset(settings)
    if train.dim not in (None, source.dim):
        raise DataError(f"{source.name} has vectors of {source.dim} dimensions, {train.path} is of {train.dim}")
    if len(train) > len(source):
        raise DataError(
            f"{train.path} holds codes of {len(train)} vectors, {source.name} has {len(source)}: give its own"
        )
    whole = train.source is not None and settings["ds.trainset"] is None
    if whole and fingerprint(source.limit(len(train))) != train.source:
        raise DataError(f"{train.path} holds codes of other vectors than {source.name}: give the encoded ones")
    return source.limit(len(train)), train


def read_list_centroids(settings: Settings, codec: Codec | None, encoded: Encoded, dim: int) -> np.ndarray | None:
    """The centroids of the lists, float32 (V, D); None for codes without lists where no centroids are given."""
    path = settings["ivf_centroids"]
    given_VD = None if path is None else read_centroids(path, dim)
    wanted = settings["ivf_K"]
    if given_VD is not None and settings.given("ivf_K") and wanted not in (None, len(given_VD)):
        raise ConfigError(f"ivf_K={wanted}, but {path} holds {len(given_VD)} centroids")
    if not encoded.has_lists:
        if given_VD is not None and codec is None and len(given_VD) > 1:
            raise ConfigError(
                f"{encoded.path} holds codes without lists: model= is needed, whose decoded vectors {path} is to "
                "partition; without ivf_centroids= all are in one list"
            )
        return given_VD
    if codec is None:
        if given_VD is None:
            raise ConfigError(f"{encoded.path} holds codes of an IVF codec: give its ivf_centroids=, or model=")
        if encoded.num_lists not in (None, len(given_VD)):
            raise DataError(f"{path} holds {len(given_VD)} centroids, {encoded.path} is of {encoded.num_lists} lists")
        return given_VD
    own_VD = codec.coarse_centroids
    if given_VD is not None and not same_centroids(given_VD, own_VD):
        raise DataError(f"{path} holds other centroids than {settings['model']} was trained with: leave it out")
    return own_VD


def same_centroids(one_VD: np.ndarray, other_VD: np.ndarray) -> bool:
    """Whether centroids are the same but for rounding."""
    return one_VD.shape == other_VD.shape and np.abs(one_VD - other_VD).max() <= _SAME_CENTROIDS * other_VD.std()


def single_list(count: int) -> np.ndarray:
    """The lists, rows (N, 1), of vectors that are all in list 0; they take no memory."""
    return np.broadcast_to(np.int32(0), (count, 1))


def write_lists_of_decoded(
    encoded: Encoded, codec: Codec, centroids_VD: np.ndarray, file: BinaryIO, on_progress: Callable
) -> np.ndarray:
    """Write the nearest centroids of the decoded vectors to an empty file, and map it: lists (N, 1)."""
    done = 0
    for codes_NM, _ in encoded.blocks():
        lists_N = building.lists_of_decoded(codec, codes_NM, centroids_VD, building.silent)
        file.write(lists_N.tobytes())
        done += len(lists_N)
        on_progress(done)
    file.flush()
    return np.memmap(file, np.int32, "r", shape=(len(encoded), 1))
