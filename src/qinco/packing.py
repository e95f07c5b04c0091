"""Checks of codes, uint8 or uint16 (N, M), and their packing into bits."""

import numpy as np

from qinco.errors import DataError


def code_dtype(codebook_size: int) -> np.dtype:
    """uint8 up to 256 codewords, uint16 up to 65536."""
    return np.dtype(np.uint8 if codebook_size <= 256 else np.uint16)


def check_codes(codes, num_codes: int, codebook_size: int, name: str = "codes", first_row: int = 0) -> np.ndarray:
    """Codes as an integer array (N, m) with 1 ≤ m ≤ num_codes and every value below codebook_size.

    Messages call them `name`, and the first row `first_row`.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise DataError(f"{name} must be a 2-D integer array (N, M), not {codes.dtype} of shape {codes.shape}")
    if not 1 <= codes.shape[1] <= num_codes:
        columns = f"{num_codes} columns, or fewer for a prefix"
        raise DataError(f"{name} must have {columns}, not {codes.shape[1]}")
    cannot_exceed = codes.dtype.kind == "u" and np.iinfo(codes.dtype).max < codebook_size
    if codes.size and not cannot_exceed and (codes.max() >= codebook_size or codes.min() < 0):
        row, column = np.argwhere((codes >= codebook_size) | (codes < 0))[0]
        value = codes[row, column]
        where = f"row {first_row + row}, column {column} is {value}"
        raise DataError(f"{name} must be in the range 0 to {codebook_size - 1}, the numbers of codewords: {where}")
    return codes


def check_lists(lists, num_vectors: int, num_lists: int, first_row: int = 0) -> np.ndarray:
    """List numbers as an integer array (N,) with every value below num_lists; see `check_codes`."""
    lists = np.asarray(lists)
    if lists.shape != (num_vectors,) or lists.dtype.kind not in "iu":
        found = f"{lists.dtype} of shape {lists.shape}"
        raise DataError(f"lists must be {num_vectors} integers, one for each code, not {found}")
    if lists.size and (lists.max() >= num_lists or lists.min() < 0):
        row = int(np.flatnonzero((lists >= num_lists) | (lists < 0))[0])
        value = f"row {first_row + row} is {lists[row]}"
        raise DataError(f"lists must be in the range 0 to {num_lists - 1}, the numbers of the lists: {value}")
    return lists


def packed_size(num_steps: int, bits: int) -> int:
    """Bytes of a vector's packed code: `num_steps` times `bits` bits, rounded up."""
    return (num_steps * bits + 7) // 8


def pack_codes(codes_NM: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits each as bytes, uint8 (N, packed_size), the first code in the lowest bits (faiss's order)."""
    if bits in (8, 16):
        return np.ascontiguousarray(codes_NM, f"<u{bits // 8}").view(np.uint8)
    digits_NMb = (codes_NM[..., None].astype(np.uint16) >> np.arange(bits, dtype=np.uint16)) & 1
    digits_Nb = digits_NMb.astype(np.uint8).reshape(len(codes_NM), codes_NM.shape[1] * bits)
    return np.packbits(digits_Nb, axis=1, bitorder="little")


def unpack_codes(packed_NS: np.ndarray, num_steps: int, bits: int) -> np.ndarray:
    """What `pack_codes` packed: uint8 (N, num_steps), uint16 above 8 bits."""
    dtype = code_dtype(1 << bits)
    if bits in (8, 16):
        return np.ascontiguousarray(packed_NS).view(f"<u{bits // 8}").astype(dtype, copy=False)
    digits_Nb = np.unpackbits(np.ascontiguousarray(packed_NS), axis=1, count=num_steps * bits, bitorder="little")
    digits_NMb = digits_Nb.reshape(-1, num_steps, bits).astype(dtype)
    return (digits_NMb << np.arange(bits, dtype=dtype)).sum(2, dtype=dtype)
