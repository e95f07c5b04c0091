"""Pairwise decoders in files: `.safetensors` is ours, `.pt` the authors' form, either way.

Shape suffixes: M codes of a vector, K codewords, V lists, I streams of a list, S = M + I streams, P pairs, J = K² joint
codes, D dimension.
"""

import math
import os
from pathlib import Path

import numpy as np

from qinco.compat.checkpoints import PAIRWISE_KEYS
from qinco.compat.torch_files import (
    as_tensor,
    check_tensors,
    errors_as_damage,
    is_torch_file,
    read_torch_file,
    write_torch_file,
)
from qinco.decoders.pairwise import MAX_CODEWORDS, PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.store.tensors import open_tensors, read_tensors, write_tensors

KIND = "pairwise"
SUFFIXES = (".safetensors", ".pt")
_FIELDS = {
    "tables": "tables_MKD", "pairs": "pairs_P2", "pair_tables": "tables_PJD",
    "list_codes": "list_codes_VI", "centroids": "centroids_VD",
}  # fmt: skip


def save_pairwise(path: str | os.PathLike, decoder: PairwiseDecoder) -> None:
    """Write a decoder, whole or not at all: in the authors' form to `.pt`, in ours to `.safetensors`.

    Their form has no tables of single codes, which are added to those of pairs, no centroids, and always lists.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".pt":
        _write_upstream(path, decoder)
    elif suffix == ".safetensors":
        arrays = {name: array for name, field in _FIELDS.items() if (array := getattr(decoder, field)) is not None}
        write_tensors(path, KIND, {"scale": decoder.scale}, arrays)
    else:
        raise ConfigError(f"{path} does not end in .safetensors, nor in .pt as QINCo's pairwise decoders do: rename it")


def load_pairwise(
    path: str | os.PathLike, num_codes: int | None = None, centroids_VD: np.ndarray | None = None
) -> PairwiseDecoder:
    """Read a decoder of either form; executes nothing.

    The authors' form does not tell `num_codes` M, and has no centroids; `centroids_VD` replace those of the file.
    """
    if is_torch_file(path) or Path(path).suffix.lower() == ".pt":
        return _read_upstream(path, num_codes, centroids_VD)
    decoder = _read_ours(path, centroids_VD)
    if num_codes is not None and decoder.num_codes != num_codes:
        raise DataError(f"{path} decodes codes of M={decoder.num_codes}, not M={num_codes}")
    return decoder


def describe_decoder(path: str | os.PathLike) -> dict:
    """The sizes of a pairwise decoder of ours, as JSON values, from the shapes of its tensors; raises DataError."""
    with open_tensors(path) as (_, file):
        try:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            pairs, rows, dim = slices["pair_tables"].get_shape()
            num_codes, codebook_size, _ = slices["tables"].get_shape()
            num_lists = slices["list_codes"].get_shape()[0] if "list_codes" in slices else 0
            dtype = slices["pair_tables"].get_dtype()
        except (KeyError, ValueError):
            raise DataError(f"{path} is damaged: tensors of a pairwise decoder are missing or misshapen") from None
    return {
        "kind": "pairwise decoder", "num_codes": num_codes, "codebook_size": codebook_size, "dim": dim,
        "num_lists": num_lists, "num_pairs": pairs, "tables": {"F32": "float32", "F16": "float16"}.get(dtype, dtype),
        "table_bytes": pairs * rows * dim * (2 if dtype == "F16" else 4),
    }  # fmt: skip


def _read_ours(path, centroids_VD: np.ndarray | None) -> PairwiseDecoder:
    header, found = read_tensors(path, KIND)
    if not {*list(_FIELDS)[:3]} <= set(found) <= set(_FIELDS):
        raise DataError(f"{path} is damaged: it has the tensors {', '.join(sorted(found))}")
    scale = header.get("scale")
    if not isinstance(scale, float) or not 0 < scale < math.inf:
        raise DataError(f"{path} is damaged: its scale is {str(scale)[:50]}")
    arrays = dict.fromkeys(_FIELDS) | found
    if centroids_VD is not None:
        arrays["centroids"] = centroids_VD
    return _checked(path, scale, *arrays.values())


def _read_upstream(path, num_codes: int | None, centroids_VD: np.ndarray | None) -> PairwiseDecoder:
    content = read_torch_file(path)
    if not isinstance(content, dict) or set(content) != set(PAIRWISE_KEYS):
        raise DataError(f"{path} is no pairwise decoder: one has {', '.join(PAIRWISE_KEYS)}")
    check_tensors(path, content)
    if num_codes is None:
        raise ConfigError(f"{path} does not tell how many codes a vector has: give the codec (model=) it was made for")
    with errors_as_damage(path):  # numpy has no bfloat16
        list_codes_VI, pairs_2P, tables_PJD = (content[name].detach().numpy().copy("C") for name in PAIRWISE_KEYS)
    if tables_PJD.ndim != 3 or not _lie_below(list_codes_VI, MAX_CODEWORDS):
        raise DataError(f"{path} is damaged: it has tensors of impossible shape or list codes out of range")
    size = math.isqrt(tables_PJD.shape[1])
    tables_MKD = np.zeros((num_codes, size, tables_PJD.shape[2]), np.float32)
    pairs_P2, list_codes_VI = np.ascontiguousarray(pairs_2P.T), list_codes_VI.astype(np.uint8)
    return _checked(path, 1.0, tables_MKD, pairs_P2, tables_PJD, list_codes_VI, centroids_VD)


def _write_upstream(path, decoder: PairwiseDecoder) -> None:
    if decoder.list_codes_VI is None:
        raise ConfigError(f"{path}: QINCo's form of a pairwise decoder needs lists (IVF), save *.safetensors instead")
    # The table of a code is added to that of the first pair with it; codes in no pair get pairs of their own.
    size, dim = decoder.codebook_size, decoder.dim
    alone = [m for m in range(decoder.num_codes) if m not in decoder.pairs_P2]
    if len(alone) % 2:
        alone.append(decoder.num_codes)  # the first of the list's streams, to make a pair
    pairs_P2 = np.concatenate([decoder.pairs_P2, np.array(alone, np.int64).reshape(-1, 2)])
    tables_PKKD = np.zeros((len(pairs_P2), size, size, dim), np.float32)
    tables_PKKD[: decoder.num_pairs] = decoder.tables_PJD.reshape(-1, size, size, dim)
    tables_PKKD *= np.float32(decoder.scale)
    for m, table_KD in enumerate(decoder.tables_MKD):
        pair = int(np.flatnonzero((pairs_P2 == m).any(1))[0])
        tables_PKKD[pair] += table_KD[:, None] if pairs_P2[pair, 0] == m else table_KD[None]
    arrays = decoder.list_codes_VI.astype(np.int64), pairs_P2.T, tables_PKKD.reshape(len(pairs_P2), -1, dim)
    write_torch_file(path, dict(zip(PAIRWISE_KEYS, map(as_tensor, arrays), strict=True)))


def _checked(path, scale, tables_MKD, pairs_P2, tables_PJD, list_codes_VI, centroids_VD) -> PairwiseDecoder:
    """A decoder of arrays that fit each other and hold what they should; raises DataError for any others."""
    num_steps, size, dim = tables_MKD.shape if tables_MKD.ndim == 3 else (0, 0, 0)
    lists = np.empty((0, 0), np.uint8) if list_codes_VI is None else list_codes_VI
    if (
        lists.dtype != np.uint8
        or lists.ndim != 2
        or not _lie_below(lists, size)
        or tables_MKD.dtype != np.float32
        or tables_MKD.size == 0
        or size > MAX_CODEWORDS
        or tables_PJD.dtype not in (np.float32, np.float16)
        or tables_PJD.shape != (*pairs_P2.shape[:1], size**2, dim)
        or not all(np.isfinite(table).all() for tables in (tables_MKD, tables_PJD) for table in tables)
    ):
        raise DataError(f"{path} is damaged: its tables do not fit each other, or hold values that are not finite")
    num_streams = num_steps + lists.shape[1]
    if pairs_P2.dtype != np.int64 or pairs_P2.shape[1:] != (2,) or not _lie_below(pairs_P2, num_streams):
        raise DataError(
            f"{path} pairs other codes than there are: numbers below {num_streams} were expected for M={num_steps}"
        )
    if centroids_VD is not None and (centroids_VD.dtype != np.float32 or centroids_VD.shape != (len(lists), dim)):
        raise DataError(
            f"{path} is for lists with centroids of shape ({len(lists)}, {dim}), "
            f"not {centroids_VD.dtype} of shape {centroids_VD.shape}"
        )
    if centroids_VD is not None and not np.isfinite(centroids_VD).all():
        raise DataError(f"{path}: the centroids hold values that are not finite")
    return PairwiseDecoder(tables_MKD, pairs_P2, tables_PJD, scale, list_codes_VI, centroids_VD)


def _lie_below(numbers: np.ndarray, bound: int) -> bool:
    return numbers.dtype.kind in "iu" and (not numbers.size or (numbers.min() >= 0 and numbers.max() < bound))
