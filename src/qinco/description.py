"""What a file of ours, of the authors' code, of faiss or of vectors holds, without reading more than that takes."""

import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from qinco.errors import DataError
from qinco.store.folder import read_folder
from qinco.store.manifest import is_kind
from qinco.vectors.formats import SUFFIXES, open_array, split_part
from qinco.vectors.mapped import missing_file

_MOST_TEXT_BYTES = 1 << 28
_HOLDING_CODES = (".npy", ".ivecs")  # and vectors, and anything else


def describe(path: str) -> dict:
    """Kind, size and content of a file of ours, of the authors' code or of vectors, as JSON values; raises DataError.

    The suffix says what a file should be; what it is not is refused.
    """
    file, _ = split_part(path)
    try:
        if file.is_dir():
            return {"file": str(path)} | (_describe_index(file) if is_kind(file, "index") else _describe_codes(file))
        if not file.is_file():
            raise DataError(f"{path} is not a regular file") if file.exists() else missing_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    common = {"file": str(path), "bytes": file.stat().st_size}
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return common | _describe_vectors(path, suffix)
    return common | _DESCRIBERS.get(suffix, _describe_tensors)(file)


def _describe_vectors(path: str, suffix: str) -> dict:
    rows = open_array(path)
    num_vectors, dim = rows.shape
    kind = {"kind": "vectors"}
    if suffix in _HOLDING_CODES and rows.dtype.kind in "iu":
        kind = {"kind": "integers", "note": "vectors, codes, list numbers or neighbours: the file does not say which"}
    return kind | {
        "num_vectors": num_vectors,
        "dim": dim,
        "dtype": str(rows.dtype),
        "bytes_per_vector": dim * rows.dtype.itemsize,
    }


def _describe_tensors(file: Path) -> dict:
    """A codec, pairwise decoder or training state of ours, whose header alone is read."""
    from qinco.store.tensors import open_tensors

    with open_tensors(file, "numpy") as (header, tensors):
        if header["kind"] == "pairwise":
            return _describe_pairwise(file, tensors)
    fields = {"kind": header["kind"], "format_version": header["format_version"]}
    for name in ("model", "encode", "provenance", "progress", "best", "train"):
        if isinstance(header.get(name), dict):
            fields[name] = header[name]
    model, parts = header.get("model"), header.get("num_parts", 1)
    try:
        bits = int(model["codebook_size"]).bit_length() - 1
        fields |= {"num_parts": parts, "dim": model["dim"] * parts}
        fields["bytes_per_vector"] = model["num_steps"] * parts * bits / 8
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{file} has a damaged qinco header: its model is not described") from None
    return fields


def _describe_pairwise(file: Path, tensors) -> dict:
    """A pairwise decoder of ours: the shapes of its tensors."""
    try:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        pairs, rows, dim = slices["pair_tables"].get_shape()
        code_size, codebook_size, _ = slices["tables"].get_shape()
        num_lists = slices["list_codes"].get_shape()[0] if "list_codes" in slices else 0
        dtype = slices["pair_tables"].get_dtype()
    except (KeyError, ValueError):
        raise DataError(
            f"{file} is damaged: it lacks tensors of a pairwise decoder, or they have other shapes"
        ) from None
    return {
        "kind": "pairwise decoder",
        "code_size": code_size,
        "codebook_size": codebook_size,
        "dim": dim,
        "num_lists": num_lists,
        "num_pairs": pairs,
        "tables": {"F32": "float32", "F16": "float16"}.get(dtype, dtype),
        "table_bytes": pairs * rows * dim * (2 if dtype == "F16" else 4),
    }


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
        fields["pairwise"] = _describe_tensors(opened.files["pairwise.safetensors"])
        del fields["pairwise"]["kind"]
    return fields | {"bytes": _folder_size(folder)}


def _describe_checkpoint(file: Path) -> dict:
    """A checkpoint of the authors' code, or its pairwise decoder; the values of its tensors are not read."""
    from qinco.compat.checkpoints import describe_checkpoint

    return describe_checkpoint(file)


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


def _describe_encoded_set(file: Path) -> dict:
    from qinco.compat.encoded_sets import describe_encoded_set

    return describe_encoded_set(file)


def _describe_raw(file: Path) -> dict:
    return {"kind": "packed codes", "note": "without a header: the codec says how many bytes a vector has"}


def _describe_log(file: Path) -> dict:
    """A training log: a line of JSON for each epoch."""
    epochs = [line for line in map(_parse_line, _read_text(file).splitlines()) if isinstance(line, dict)]
    try:
        best = min((epoch for epoch in epochs if _is_number(epoch["mse"])), key=lambda epoch: epoch["mse"])
        last = epochs[-1]
        return {
            "kind": "training log",
            "epoch": last["epoch"],
            "epochs": last["epochs"],
            "best_epoch": best["epoch"],
            "best_mse": best["mse"],
            "seconds": last["seconds"],
        }
    except (KeyError, ValueError, IndexError):
        raise DataError(f"{file} is no training log: its lines are not what training writes for an epoch") from None


def _describe_results(file: Path) -> dict:
    """Results of a search sweep, of the authors' code or ours."""
    content = _parse_line(_read_text(file))
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


def _describe_faiss(file: Path) -> dict:
    from qinco.compat.faiss_files import describe_faiss_file

    return describe_faiss_file(file)


def _read_text(file: Path) -> str:
    if file.stat().st_size > _MOST_TEXT_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes, too many for a log")
    return file.read_text(errors="replace")


def _parse_line(line: str):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_DESCRIBERS = {
    ".pt": _describe_checkpoint,
    ".npz": _describe_encoded_set,
    ".raw": _describe_raw,
    ".jsonl": _describe_log,
    ".json": _describe_results,
    ".faissindex": _describe_faiss,
}
