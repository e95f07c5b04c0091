"""Which rivals a comparison tries at which size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

LENGTH_BYTES = 2  # of a vector's length as float16
SPLITS = 2  # of a vector, for product residual quantizers
_NEAR = 2  # times the largest size that is asked for: sizes of rivals with so many bits a dimension
_LEAST_DIMS = 8  # that components are cut down to
_RABIT_SCALARS = {1: 8, 2: 20, 4: 20}  # bytes, for so many bits a dimension
_WORDS = {"plain": "", "rotated": ", rotated", "centred": ", centred and rotated"}


@dataclass(frozen=True)
class Rival:
    """One training of a rival.

    Attributes:
        id: unique, a file name.
        family: of the report, with "PCA+" before it where components are coded.
        method: for people.
        size: bytes of a vector.
        kind, number: what codes, and how many parts, codebooks or bits a dimension it has.
        space: "plain", "rotated", "centred" (rotated after the mean is subtracted) or "components".
        dims: how many components.
        prefixes: bytes at which a quantizer whose prefixes are quantizers is measured, too.
    """

    id: str
    family: str
    method: str
    size: int
    kind: str
    number: int
    space: str = "plain"
    dims: int = 0
    prefixes: tuple[int, ...] = ()

    is_ours = False


def rivals(dim: int, sizes: tuple[int, ...], families: tuple[str, ...]) -> Iterator[Rival]:
    """All that are tried on vectors of a dimension, the quick ones first."""
    for family, make in _MAKERS.items():
        if family in families:
            yield from make(dim, sizes)


def _signs(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    yield from _by_bits("signs", "signs, float query", 1, 0, ("plain", "centred"), dim, sizes)


def _turbo(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for bits in (1, 2, 3, 4):
        name = f"TurboQuant {bits} bit"
        yield from _by_bits("TurboQuant", name, bits, LENGTH_BYTES, ("rotated", "centred"), dim, sizes)


def _rabit(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for bits, scalars in _RABIT_SCALARS.items():
        yield from _by_bits("RaBitQ", f"RaBitQ {bits} bit", bits, scalars, ("rotated",), dim, sizes)


def _scalars(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for bits in (4, 6, 8):
        yield from _by_bits("SQ", f"SQ{bits}", bits, 0, ("plain",), dim, sizes)


def _by_bits(
    family: str, name: str, bits: int, scalars: int, spaces: tuple[str, ...], dim: int, sizes: tuple[int, ...]
) -> Iterator[Rival]:
    """With so many bits a dimension: of all dimensions in some spaces, and of components that fill each size."""
    stem, whole = name.replace(",", "").replace(" ", "-"), (dim * bits + 7) // 8 + scalars
    for space in spaces if whole <= _NEAR * max(sizes) else ():
        yield Rival(f"{stem}-{space}", family, name + _WORDS[space], whole, family, bits, space)
    for size in sizes:
        dims = 8 * (size - scalars) // bits
        if _LEAST_DIMS <= dims <= dim:
            method = f"PCA{dims}+rotation+{name}"
            yield Rival(f"PCA-{stem}-{size}", f"PCA+{family}", method, size, family, bits, "components", dims)


def _product(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for size in (size for size in sizes if size <= dim):
        yield from _and_components(Rival(f"PQ-{size}", "PQ", f"PQ{size}x8", size, "PQ", size), dim)


def _rotated_product(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for size in (size for size in sizes if size <= dim):
        yield from _and_components(Rival(f"OPQ-{size}", "OPQ", f"OPQ{size}+PQ{size}x8", size, "OPQ", size), dim)


def _residual(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for size in sizes:
        shorter = tuple(one for one in sizes if one < size) if size == max(sizes) else ()
        yield from _and_components(Rival(f"RQ-{size}", "RQ", f"RQ{size}x8", size, "RQ", size, prefixes=shorter), dim)


def _local_search(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for size in sizes:
        yield from _and_components(Rival(f"LSQ-{size}", "LSQ", f"LSQ{size}x8", size, "LSQ", size), dim)


def _residual_product(dim: int, sizes: tuple[int, ...]) -> Iterator[Rival]:
    for size in (size for size in sizes if size % SPLITS == 0 and size > SPLITS):
        name = f"PRQ{SPLITS}x{size // SPLITS}x8"
        yield from _and_components(Rival(f"PRQ-{size}", "PRQ", name, size, "PRQ", size), dim)


def _and_components(rival: Rival, dim: int) -> Iterator[Rival]:
    """A rival, and the same on the leading half of the components where these are enough for its parts."""
    yield rival
    if (dims := dim // 2) >= max(_LEAST_DIMS, rival.size):
        named = {"id": f"PCA-{rival.id}", "family": f"PCA+{rival.family}"}
        yield replace(
            rival, **named, method=f"PCA{dims}+rotation+{rival.method}", space="components", dims=dims
        )  # fmt: skip


_MAKERS = {
    "signs": _signs, "TurboQuant": _turbo, "RaBitQ": _rabit, "SQ": _scalars, "PQ": _product, "OPQ": _rotated_product,
    "PRQ": _residual_product, "RQ": _residual, "LSQ": _local_search,
}  # fmt: skip
