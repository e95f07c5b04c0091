"""Codes with what is known of the codec that made them, and checks of what belongs to them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qinco.atomic import user_path
from qinco.codec.codec import Codec
from qinco.codec.plan import read_centroids
from qinco.compat.encoded_sets import read_npz_sizes
from qinco.errors import ConfigError, DataError
from qinco.packing import check_codes, check_lists
from qinco.store.code_files import plan_of_codes
from qinco.store.codes import Codes
from qinco.vectors.mapped import release_pages
from qinco.vectors.remote import is_remote
from qinco.vectors.rows import VectorSource, as_source, check_not_empty, fingerprint

BLOCK_ROWS = 1 << 17
_MAX_ROUNDING = 1e-3  # of the centroids' spread: what normalising and back costs in float32


@dataclass(frozen=True)
class CodeFile:
    """Codes in memory or on disk, and what their file says of the codec; None where it does not.

    `fingerprint` is the codec's, `source` that of the vectors that were encoded; V is 0 without lists.
    """

    codes: Codes
    codebook_size: int
    dim: int | None = None
    num_lists: int | None = None
    fingerprint: str | None = None
    source: str | None = None

    def __len__(self) -> int:
        return len(self.codes)

    name = property(lambda self: self.codes.name)
    num_codes = property(lambda self: self.codes.shape[1])

    def limit(self, count: int | None) -> "CodeFile":
        """The first `count` vectors, or all for None or where there are fewer."""
        return self if count is None else replace(self, codes=self.codes.limit(count), source=None)

    def blocks(self, rows: int = BLOCK_ROWS, num_lists: int = 0) -> Iterator[tuple[int, Codes]]:
        """Yield (first row, Codes) for consecutive blocks; raises DataError for codes or lists out of range."""
        for first in range(0, len(self), rows):
            block = self.rows(slice(first, first + rows), num_lists)
            yield first, block
            release_pages(block.codes)

    def rows(self, rows, num_lists: int = 0) -> Codes:
        """Codes of chosen vectors; raises DataError as `blocks` does."""
        block = self.codes[rows]
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
    """Open Codes, an array, a path, or a CodeFile; arrays, .npy, .ivecs and .raw need `codec`, or M and K."""
    if isinstance(codes, CodeFile):
        return codes
    codes, is_file = user_path(codes), isinstance(codes, str | os.PathLike)
    sizes, facts = _facts(codes) if is_file else ((None, None), {})
    if codec is not None:
        sizes = codec.num_codes, codec.config.codebook_size
    for name, given, known in zip("MK", (num_codes, codebook_size), sizes, strict=True):
        if None not in (given, known) and given != known:
            raise ConfigError(f"{name}={given}, but the codes have {name}={known}: leave it out")
    num_codes, codebook_size = sizes[0] or num_codes, sizes[1] or codebook_size
    if codebook_size is None or (is_file and num_codes is None):
        name = codes if is_file else "an array"
        raise ConfigError(f"{name} does not say of what codec its codes are: give the codec (model=), or M= and K=")
    sizes = {"num_codes": num_codes, "codebook_size": codebook_size}
    found = Codes.load(codes, codec, **sizes) if is_file else Codes.of(codes)
    if found.dtype.kind not in "iu" or found.shape[1] != (num_codes or found.shape[1]):
        what = f"{found.dtype} of {found.shape[1]} columns"
        raise DataError(f"{found.name} must hold integers, {num_codes} a vector, not {what}")
    check_not_empty(found)
    facts.setdefault("num_lists", None if found.has_lists else 0)
    return CodeFile(found, codebook_size, **facts)


def _facts(path) -> tuple[tuple[int | None, int | None], dict]:
    """M and K, and the other fields of CodeFile, as far as a file or folder says them."""
    if (plan := plan_of_codes(path)) is not None:
        facts = {"dim": plan.dim, "num_lists": plan.num_lists, "fingerprint": plan.codec, "source": plan.source or None}
        return (plan.num_codes, plan.codebook_size), facts
    if is_remote(path):
        return (None, None), {}
    if Path(path).suffix.lower() == ".npz":
        header, *_ = read_npz_sizes(Path(path))
        return (header["M"], header["K"]), {"dim": header["D"]}
    if not os.access(path, os.F_OK):
        raise DataError(f"No such file: {path}")
    return (None, None), {}


def check_same_codec(first: CodeFile, second: CodeFile) -> None:
    """Raise DataError where two sets of codes cannot be of one codec."""
    for name in ("num_codes", "codebook_size", "dim", "num_lists", "fingerprint"):
        one, other = getattr(first, name), getattr(second, name)
        if (one != other and None not in (one, other)) or first.codes.has_lists != second.codes.has_lists:
            raise DataError(f"{first.name} and {second.name} hold codes of different codecs")


def training_vectors(file: CodeFile, vectors) -> VectorSource:
    """The vectors that codes stand for; raises DataError where they do not match."""
    source = as_source(vectors)
    if file.dim not in (None, source.dim) or len(file) > len(source):
        wanted = f"({len(file)}, {file.dim or source.dim})"
        raise DataError(f"{source.name} must be what was encoded to {file.name}, {wanted}, not {source.shape}")
    source = source.limit(len(file))
    if file.source is not None and fingerprint(source) != file.source:
        raise DataError(f"{source.name} must be the vectors that were encoded to {file.name}, not others")
    return source


def list_centroids(file: CodeFile, codec: Codec | None, centroids, dim: int) -> np.ndarray | None:
    """The centroids of the lists that codes have or are assigned to, float32 (V, D); None without lists."""
    given_VD = None if centroids is None else read_centroids(centroids, dim)
    if not file.codes.has_lists:
        if given_VD is not None and codec is None and len(given_VD) > 1:
            raise ConfigError(f"there are no lists in {file.name}: give the codec (model=), to assign its "
                              "reconstructions to the centroids; or leave ivf_centroids= out")  # fmt: skip
        return given_VD
    if codec is None:
        if given_VD is None:
            raise ConfigError(f"there are lists in {file.name}: give the IVF codec (model=) or its ivf_centroids=")
        if file.num_lists not in (None, len(given_VD)):
            wanted = f"{file.num_lists}, one for each list of {file.name}"
            raise DataError(f"the number of centroids must be {wanted}, not {len(given_VD)}")
        return given_VD
    if given_VD is not None and not same_centroids(given_VD, codec.coarse_centroids):
        raise DataError("ivf_centroids= are others than the codec was trained with: leave it out")
    return codec.coarse_centroids


def same_centroids(one_VD: np.ndarray, other_VD: np.ndarray | None) -> bool:
    """Whether centroids are the same but for rounding."""
    if other_VD is None or one_VD.shape != other_VD.shape:
        return False
    return bool(np.abs(one_VD - other_VD).max() <= _MAX_ROUNDING * other_VD.std())
