"""What a file holds, without reading more of it than that takes."""

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from qinco.errors import DataError
from qinco.store.folder import read_folder
from qinco.store.manifest import is_kind
from qinco.vectors.formats import SUFFIXES, describe_vectors, split_part
from qinco.vectors.mapped import missing_file

_MAX_TEXT_BYTES = 1 << 28


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
            return {"file": str(path)} | (_describe_index(file) if is_kind(file, "index") else _describe_codes(file))
        if not file.is_file():
            raise DataError(f"{path} is not a regular file") if file.exists() else missing_file(path)
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return {"file": str(path), "bytes": size} | _find_describer(file)(path)


def _find_describer(file: Path):
    """The function that describes such a file. What it needs is imported here: a file of vectors needs no torch."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return describe_vectors
    if suffix == ".npz":
        from qinco.compat.encoded_sets import describe_encoded_set as describer
    elif suffix == ".raw":
        note = "without a header: the codec says how many bytes a vector has"
        return lambda path: {"kind": "packed codes", "note": note}
    elif suffix == ".json":
        return _describe_results
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


def _describe_index(folder: Path) -> dict:
    """An index of ours: what lies in it, and the bytes of a vector, with ids and without centroids and tables."""
    opened = read_folder(folder, "index")
    settings, arrays = opened.settings, opened.arrays
    try:
        num_vectors = len(arrays["ids"])
        of_vectors = sum(arrays[name].nbytes for name in ("starts", "codes", "ids"))
        fields = {
            "kind": "index",
            "num_vectors": num_vectors,
            "num_lists": settings["num_lists"],
            "dim": settings["dim"],
            "metric": settings["metric"],
            "code_size": settings["code_size"],
            "codebook_size": settings["codebook_size"],
            "bytes_per_vector": of_vectors / max(1, num_vectors),
            "id_bytes": arrays["ids"].dtype.itemsize,
            "table_bytes": sum(arrays[name].nbytes for name in ("centroids", "tables", "levels")),
            "codec": settings["codec"],
            "options": settings["options"],
        }
    except (KeyError, TypeError):
        raise DataError(f"{folder} is damaged: its manifest does not describe an index") from None
    fields["holds_codec"] = "codec.safetensors" in opened.files
    fields["pairwise"] = None
    if "pairwise.safetensors" in opened.files:
        fields["pairwise"] = describe(opened.files["pairwise.safetensors"])
        for name in ("file", "bytes", "kind"):
            del fields["pairwise"][name]
    return fields | {"bytes": _folder_size(folder)}


def _describe_codes(folder: Path) -> dict:
    from qinco.store.code_folder import CodeFolder

    found = CodeFolder.read(folder)
    plan, missing = found.plan, len(found.missing())
    return {
        "kind": "codes",
        **asdict(plan),
        "complete": not found.is_pending and not missing,
        "num_shards": plan.num_shards,
        "shards_there": plan.num_shards - missing,
        "bytes_per_vector": plan.num_codes * (plan.codebook_size.bit_length() - 1) / 8,
        "bytes": _folder_size(folder),
    }


def _folder_size(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # a temporary file of a run that goes on
            size += file.lstat().st_size
    return size


def _describe_results(file) -> dict:
    """Results of a search sweep, of the authors' code or ours."""
    content = _parse_line(_read_text(Path(file)))
    results = content.get("ivf_real_res") if isinstance(content, dict) else None
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DataError(f"{file} holds no search results: it has no list 'ivf_real_res'")
    recalls = [result.get("recalls", {}).get("1") for result in results if isinstance(result.get("recalls"), dict)]
    fields = {
        "kind": "search results",
        "num_settings": len(results),
        "best_recall_at_1": max(filter(_is_number, recalls), default=None),
    }
    settings = content.get("settings")
    if isinstance(settings, list):  # those of ours
        fields["pareto"] = sum(isinstance(setting, dict) and setting.get("pareto") is True for setting in settings)
    return fields | {name: content[name] for name in ("num_queries", "threads", "machine") if name in content}


def _read_text(file: Path) -> str:
    if file.stat().st_size > _MAX_TEXT_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes, too many for a log")
    return file.read_text(errors="replace")


def _parse_line(line: str):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
