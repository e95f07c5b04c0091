"""`qinco info`: what a file is and holds, without reading more of it than that takes."""

from pathlib import Path

from qinco.errors import DataError
from qinco.storage.tensor_file import read_header
from qinco.vectors.formats import open_array

_VECTORS = (".fvecs", ".bvecs", ".ivecs", ".npy")


def describe(path: str) -> dict:
    """Kind, size and content of a file of ours or of vectors, as JSON values; raises DataError for anything else."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path} does not exist" if not file.exists() else f"{path} is a folder, not a file")
    common = {"file": str(path), "bytes": file.stat().st_size}
    if file.suffix.lower() in _VECTORS:
        rows = open_array(path)
        kind = {"kind": "vectors", "num_vectors": rows.shape[0], "dim": rows.shape[1], "dtype": str(rows.dtype)}
        return common | kind | {"bytes_per_vector": rows.shape[1] * rows.dtype.itemsize}
    header = read_header(path)
    fields = {"kind": header["kind"], "format_version": header["format_version"]}
    for name in ("model", "encode", "provenance", "progress", "train"):
        if isinstance(header.get(name), dict):
            fields[name] = header[name]
    model, parts = header.get("model"), header.get("num_parts", 1)
    try:
        bits = int(model["codebook_size"]).bit_length() - 1
        fields |= {"num_parts": parts, "dim": model["dim"] * parts}
        fields["bytes_per_vector"] = model["num_steps"] * parts * bits / 8
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{path} has a damaged qinco header: its model is not described") from None
    return common | fields
