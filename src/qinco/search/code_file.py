"""Codes with what is known of the codec that made them, and checks of what belongs to them.

Shape suffixes: T vectors of a sample, D dimension, V lists.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.plan import read_centroids
from qinco.compat.encoded_sets import read_npz_sizes
from qinco.errors import ConfigError, DataError
from qinco.packing import check_codes, check_lists
from qinco.store.code_files import is_directory, lists_beside, open_codes_file
from qinco.store.code_folder import CodeFolder
from qinco.store.codes import Codes
from qinco.vectors.mapped import release_pages
from qinco.vectors.rows import VectorSource, as_source, fingerprint

BLOCK_ROWS = 1 << 17
_MAX_ROUNDING = 1e-3  # of the centroids' spread: what normalising and back costs in float32


@dataclass(frozen=True)
class CodeFile:
    """Codes in memory or on disk, and what their file says of the codec; None where it does not.

    Attributes:
        codes: Codes.
        codebook_size: K.
        dim: D.
        num_lists: V; 0 for codes without lists.
        fingerprint: of the codec.
        source: fingerprint of the vectors that were encoded.
    """

    codes: Codes
    codebook_size: int
    dim: int | None = None
    num_lists: int | None = None
    fingerprint: str | None = None
    source: str | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def name(self) -> str:
        return self.codes.name

    @property
    def num_codes(self) -> int:
        return self.codes.shape[1]

    def limit(self, count: int | None) -> "CodeFile":
        """The first `count` vectors, or all for None or where there are fewer."""
        return self if count is None else replace(self, codes=self.codes.limit(count), source=None)

    def with_lists(self, lists) -> "CodeFile":
        """The same codes in other lists."""
        return replace(self, codes=self.codes.with_lists(lists))

    def blocks(self, rows: int = BLOCK_ROWS, num_lists: int = 0) -> Iterator[tuple[int, Codes]]:
        """Yield (first row, Codes) for consecutive blocks; raises DataError for codes or lists out of range."""
        for first, block in self.codes.blocks(rows):
            yield first, self._checked(block, num_lists)
            release_pages(block.codes)

    def rows(self, rows_T: np.ndarray, num_lists: int = 0) -> Codes:
        """Codes of chosen vectors; raises DataError as `blocks` does."""
        return self._checked(self.codes[rows_T], num_lists)

    def _checked(self, block: Codes, num_lists: int) -> Codes:
        try:
            check_codes(block.codes, self.num_codes, self.codebook_size)
            if block.has_lists and num_lists:
                check_lists(block.lists, len(block), num_lists)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        return block


def open_codes(
    codes, codec: Codec | None = None, num_codes: int | None = None, codebook_size: int | None = None
) -> CodeFile:
    """Open codes of any kind.

    Args:
        codes: Codes, an array, a path, or a CodeFile.
        codec: the Codec that made them, if it is known.
        num_codes: M, which .npy, .ivecs and .raw files do not say.
        codebook_size: K, which arrays and these files do not say.

    Raises:
        ConfigError: sizes are missing, or contradict the file.
        DataError: the file is missing or damaged, or holds codes of another codec.
    """
    if isinstance(codes, CodeFile):
        return codes
    if codec is not None:
        num_codes, codebook_size = _sizes(codec, num_codes, codebook_size)
    if not isinstance(codes, str | os.PathLike):
        found = Codes.of(codes)
        if codebook_size is None:
            raise ConfigError("codes in memory do not say how many codewords a step has: give codec or codebook_size")
        known = CodeFile(found, codebook_size, None, None if found.has_lists else 0)
    else:
        known = _open_file(Path(codes), codec, num_codes, codebook_size)
    found = known.codes
    if found.dtype.kind not in "iu" or found.shape[1] != (num_codes or found.shape[1]):
        raise DataError(
            f"{found.name} holds {found.dtype} of {found.shape[1]} columns: codes are integers, {num_codes} for each "
            "vector"
        )
    if not len(found):
        raise DataError(f"{found.name} holds no codes")
    return known


def _sizes(codec: Codec, num_codes: int | None, codebook_size: int | None) -> tuple[int, int]:
    """M and K of a codec; raises ConfigError where others were given."""
    sizes = codec.num_codes, codec.config.codebook_size
    for name, given, own in zip(("num_codes (M)", "codebook_size (K)"), (num_codes, codebook_size), sizes, strict=True):
        if given not in (None, own):
            raise ConfigError(f"{name} is {given}, the codec's is {own}: leave it out")
    return sizes


def _open_file(path: Path, codec: Codec | None, num_codes: int | None, codebook_size: int | None) -> CodeFile:
    facts = {"dim": None, "num_lists": None, "fingerprint": None, "source": None}
    sizes = None
    if is_directory(path):
        plan = CodeFolder.read(path).plan
        sizes = plan.num_codes, plan.codebook_size
        facts = {"dim": plan.dim, "num_lists": plan.num_lists, "fingerprint": plan.codec}
        facts["source"] = plan.source or None
    elif path.suffix.lower() == ".npz":
        header, _, has_lists = read_npz_sizes(path)
        sizes = header["M"], header["K"]
        facts |= {"dim": header["D"], "num_lists": None if has_lists else 0}
    elif not os.access(path, os.F_OK):
        raise DataError(f"{path} does not exist")
    elif num_codes is None or codebook_size is None:
        raise ConfigError(f"{path} does not say of what codec its codes are: give the codec (model=), or M= and K=")
    else:
        facts["num_lists"] = None if lists_beside(path).exists() else 0
    if codec is not None and facts["fingerprint"] not in (None, codec.fingerprint()):
        raise DataError(f"{path} holds codes of another codec: give the one that made them")
    if codec is None and sizes is not None:
        for key, given, found in zip("MK", (num_codes, codebook_size), sizes, strict=True):
            if given not in (None, found):
                raise ConfigError(f"{key}={given}, but {path} holds codes of {key}={found}: leave it out")
        num_codes, codebook_size = sizes
    has_lists = facts["num_lists"] != 0 if codec is None else codec.is_ivf
    beside = lists_beside(path)
    if has_lists and facts["num_lists"] == 0 and not is_directory(path) and not beside.exists():
        raise DataError(f"{path} holds codes without lists, and {beside} is missing: the codec has lists")
    codes, lists = open_codes_file(path, num_codes, codebook_size, has_lists)
    return CodeFile(Codes(codes, lists, str(path)), codebook_size, **facts)


def check_same_codec(first: CodeFile, second: CodeFile) -> None:
    """Raise DataError where two sets of codes cannot be of one codec."""
    for name in ("num_codes", "codebook_size", "dim", "num_lists", "fingerprint"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other and None not in (one, other):
            detail = f" ({name} is {one} and {other})" if isinstance(one, int) else ""
            raise DataError(f"{first.name} and {second.name} hold codes of different codecs{detail}")
    if first.codes.has_lists != second.codes.has_lists:
        raise DataError(f"{first.name} and {second.name} hold codes of different codecs (one has lists)")


def training_vectors(file: CodeFile, vectors) -> VectorSource:
    """The vectors that codes stand for; raises DataError where they do not match."""
    source = as_source(vectors)
    if file.dim not in (None, source.dim):
        raise DataError(f"{source.name} has vectors of {source.dim} dimensions, {file.name} is of {file.dim}")
    if len(file) > len(source):
        raise DataError(f"{file.name} holds codes of {len(file)} vectors, {source.name} has {len(source)}")
    source = source.limit(len(file))
    if file.source is not None and fingerprint(source) != file.source:
        raise DataError(f"{file.name} holds codes of other vectors than {source.name}: give the vectors encoded")
    return source


def list_centroids(file: CodeFile, codec: Codec | None, centroids, dim: int) -> np.ndarray | None:
    """The centroids of the codes' lists, float32 (V, D); None for codes without lists and centroids.

    Args:
        file: the codes.
        codec: their Codec, if known.
        centroids: (V, D) or a path; for codes without lists, the centroids that reconstructions are assigned to.
        dim: D.
    """
    given_VD = None if centroids is None else read_centroids(centroids, dim)
    name = centroids if isinstance(centroids, str | os.PathLike) else "the centroids"
    if not file.codes.has_lists:
        if given_VD is not None and codec is None and len(given_VD) > 1:
            raise ConfigError(
                f"{file.name} holds codes without lists: give the codec (model=), to assign its reconstructions to the "
                "centroids; without ivf_centroids= all are in one list"
            )
        return given_VD
    if codec is None:
        if given_VD is None:
            raise ConfigError(f"{file.name} holds codes of an IVF codec: give its ivf_centroids=, or model=")
        if file.num_lists not in (None, len(given_VD)):
            raise DataError(f"{name} holds {len(given_VD)} centroids, {file.name} is of {file.num_lists} lists")
        return given_VD
    own_VD = codec.coarse_centroids
    if given_VD is not None and not same_centroids(given_VD, own_VD):
        raise DataError(f"{name} holds other centroids than the codec was trained with: leave it out")
    return own_VD


def same_centroids(one_VD: np.ndarray, other_VD: np.ndarray) -> bool:
    """Whether centroids are the same but for rounding."""
    return one_VD.shape == other_VD.shape and np.abs(one_VD - other_VD).max() <= _MAX_ROUNDING * other_VD.std()
