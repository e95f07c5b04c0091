"""What a file holds, without reading more of it than that takes."""

import os
from pathlib import Path

from qinco.errors import DataError
from qinco.store.code_folder import describe_codes
from qinco.store.manifest import is_kind
from qinco.vectors.formats import SUFFIXES, describe_vectors, split_part
from qinco.vectors.mapped import missing_file


def describe(path: str | os.PathLike) -> dict:
    """Say what a file or folder is and holds.

    Args:
        path: A codec, codes, a decoder, an index, a training log or the results of a search, of ours or of the authors'
            code; a faiss index; or vectors. Its suffix says what it should be.

    Returns:
        "file", "kind", "bytes" and what its header says, as JSON values.

    Raises:
        DataError: The file is missing, damaged, or not what its suffix says.

    Example:
        >>> qinco.describe("base.bvecs")["num_vectors"]
        1000000
    """
    file, _ = split_part(path)
    try:
        if file.is_dir():
            return {"file": str(path)} | _find_describer(file)(file)
        if not file.is_file():
            raise DataError(f"{path} is not a regular file") if file.exists() else missing_file(path)
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return {"file": str(path), "bytes": size} | _find_describer(file)(path)


def _find_describer(file: Path):
    """The function that describes such a file. What it needs is imported here: a file of vectors needs no torch."""
    suffix = file.suffix.lower()
    if file.is_dir():
        if not is_kind(file, "index"):
            return describe_codes
        from qinco.search.index_file import describe_index as describer
    elif suffix in SUFFIXES:
        return describe_vectors
    elif suffix == ".npz":
        from qinco.compat.encoded_sets import describe_encoded_set as describer
    elif suffix == ".raw":
        note = "without a header: the codec says how many bytes a vector has"
        return lambda path: {"kind": "packed codes", "note": note}
    elif suffix == ".json":
        from qinco.search.measure.sweep import describe_results as describer
    elif suffix == ".faissindex":
        from qinco.compat.faiss_files import describe_faiss_file as describer
    elif suffix == ".pt":
        from qinco.compat.checkpoints import describe_checkpoint as describer
    elif suffix == ".jsonl":
        from qinco.store.run_state import describe_log as describer
    elif _kind(file) == "pairwise":
        from qinco.store.decoder import describe_decoder as describer
    else:
        from qinco.store.codec import describe_codec as describer
    return describer


def _kind(file: Path) -> str:
    from qinco.store.tensors import read_header

    return read_header(file)["kind"]
