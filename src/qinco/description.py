"""What a file holds, without reading more of it than that takes."""

import glob
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from qinco.atomic import user_path
from qinco.collection.schema import FILE
from qinco.compat.encoded_sets import is_encoded_set
from qinco.errors import DataError
from qinco.store.code_folder import describe_codes
from qinco.store.manifest import MANIFEST, PENDING, is_kind
from qinco.vectors.formats import SUFFIXES, describe_vectors, split_part
from qinco.vectors.mapped import missing_file

# By kind or suffix. Modules are imported when they are needed: a file of vectors needs no torch.
_DESCRIBERS = {
    "codec": ("qinco.store.codec", "describe_codec"),
    "collection": ("qinco.collection.opened", "describe_collection"),
    "index": ("qinco.search.index_file", "describe_index"),
    "pairwise": ("qinco.store.decoder", "describe_decoder"),
    ".faissindex": ("qinco.compat.faiss_files", "describe_faiss_file"),
    ".json": ("qinco.search.measure.sweep", "describe_results"),
    ".jsonl": ("qinco.store.run_state", "describe_log"),
    ".npz": ("qinco.compat.encoded_sets", "describe_encoded_set"),
    ".pt": ("qinco.compat.checkpoints", "describe_checkpoint"),
}


def describe(path: str | os.PathLike) -> dict:
    """Say what a file or folder is and holds.

    Args:
        path: A codec, codes, a decoder, an index, a collection, a training log or the results of a search, of ours or
            of the authors' code; a faiss index; or vectors. Its suffix says what it should be.

    Returns:
        "file", "kind", "bytes" and what its header says, as JSON values.

    Raises:
        DataError: The file is missing, damaged, or not what its suffix says.

    Example:
        >>> qinco.describe("base.bvecs")["num_vectors"]
        1000000
    """
    path = user_path(path)
    file, _ = split_part(path)
    try:
        if file.is_dir() or (glob.has_magic(str(file)) and not file.exists()):
            is_ours = any((file / name).exists() for name in (MANIFEST, PENDING, FILE))
            return {"file": str(path)} | (_find_describer(file)(file) if is_ours else describe_vectors(path))
        if not file.is_file():
            raise DataError(f"{path} is not a regular file") if file.exists() else missing_file(path)
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return {"file": str(path), "bytes": size} | _find_describer(file)(path)


def _find_describer(file: Path) -> Callable[..., dict]:
    suffix = file.suffix.lower()
    is_collection = (file / FILE).exists()
    if file.is_dir() and not is_collection and not is_kind(file, "index"):
        return describe_codes
    if suffix in SUFFIXES and (suffix != ".npz" or not is_encoded_set(file)):
        return describe_vectors
    if suffix == ".raw":
        note = "without a header: the codec says how many bytes a vector has"
        return lambda path: {"kind": "packed codes", "note": note}
    kind = "collection" if is_collection else "index" if file.is_dir() else suffix
    if kind not in _DESCRIBERS:
        held = import_module("qinco.store.tensors").find_content(file)
        if held is None and suffix != ".safetensors":
            raise DataError(f"{file} is no file that qinco knows")
        kind = "pairwise" if held and "pairwise" in held else "codec"
    module, name = _DESCRIBERS[kind]
    return getattr(import_module(module), name)
