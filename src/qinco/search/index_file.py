"""Index folders: which arrays and files an index consists of, and the settings that tie them together."""

import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qinco.atomic import read_content, user_path
from qinco.codec.codec import Codec
from qinco.config import require_bool, require_int
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError, DataError
from qinco.search.lists import InvertedLists, Merge
from qinco.search.metric import Metric
from qinco.search.names import put_names, read_names
from qinco.search.options import SearchOptions
from qinco.search.parts import Fitted, IndexParts
from qinco.search.ranking import SCORES, Ranking, Score
from qinco.search.scan import ENTRIES
from qinco.search.tables import CoarseGraph, SearchTables
from qinco.store.decoder import describe_decoder, load_pairwise, save_pairwise
from qinco.store.folder import FolderWriter, OpenFolder, folder_size, read_folder, write_folder
from qinco.store.manifest import MANIFEST, token_in

_FILE_SUFFIXES = (".faissindex", ".safetensors", ".pt", ".npy", ".npz", ".json")
_LISTS, _ZEROS, _MEAN = ("starts", "codes", "ids"), "zeros", "mean"
_MARGINS = "margin", "pairwise_margin"  # of a Ranking
_MAX_NUMBER = float(np.finfo(np.float32).max)
_SIZES = ("num_lists", "code_size", "codebook_size", "dim")
CODEC, PAIRWISE = "codec.safetensors", "pairwise.safetensors"
GRAPH, FAISS_GRAPH = "graph.safetensors", "graph.faissindex"  # the latter in older indexes


def save_parts(
    codec: Codec | None, parts: IndexParts, folder: str | os.PathLike, overwrite: bool = False
) -> IndexParts:
    """Write an index to a folder, whole or not at all; returns its parts, which know the folder."""
    require_bool("overwrite", overwrite)
    if (path := Path(user_path(folder))).suffix.lower() in _FILE_SUFFIXES and not path.is_dir():
        raise ConfigError(f"{path}: an index is saved to a folder, give a name without {path.suffix}")
    replaces = None if overwrite else parts.generations.get(os.path.realpath(path))
    with write_folder(path, "index", {}, replaces) as writer:
        put_parts(writer, codec, parts)
        put_lists(writer, parts.segments)
    return parts.stored(os.path.realpath(path), writer.token)


def put_lists(
    writer: FolderWriter, segments: Sequence[InvertedLists], kept: Sequence[np.ndarray | None] | None = None
) -> int:
    """Write the vectors of segments as one, list by list in bounded memory, and return their number.

    `kept` are the bits of each segment's positions that are written (see `Selection`), or None for all of them.
    """
    if len(segments) == 1 and (kept is None or kept[0] is None):
        for name in _LISTS:
            writer.put(name, getattr(segments[0], name))
        return len(segments[0])
    merge = Merge(segments, kept)
    writer.put("starts", merge.starts)
    with (
        writer.stream("codes", np.uint8, (merge.code_bytes,)) as codes_file,
        writer.stream("ids", merge.id_dtype, (merge.num_vectors,)) as ids_file,
    ):
        for codes, ids in merge.blocks():
            codes_file.write(codes.data)
            ids_file.write(ids.data)
    return merge.num_vectors


def holds_newer(parts: IndexParts) -> bool:
    """Whether the folder that was last loaded or saved holds another generation now."""
    folder = next(reversed(parts.generations), None)
    return folder is not None and token_in(Path(folder) / MANIFEST, "index") not in (parts.generations[folder], None)


def to_bytes(codec: Codec | None, parts: IndexParts) -> bytes:
    """The files of the folder of an index, in an archive (zip, not compressed)."""
    content = io.BytesIO()
    with TemporaryDirectory() as folder:
        save_parts(codec, parts, folder)
        with zipfile.ZipFile(content, "w") as archive:
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)
    return content.getvalue()


def from_bytes(content, codec: Codec | None, device: str) -> tuple[Codec | None, IndexParts]:
    """Read what `to_bytes` made: a bytes-like object, an array of bytes or a binary file object."""
    content = read_content(content) if hasattr(content, "read") else content
    with TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if any(file.compress_type or Path(file.filename).name != file.filename for file in archive.infolist()):
                    raise ValueError("it is another zip file")
                archive.extractall(folder)
        except OSError:
            raise
        except Exception as error:  # damaged bytes can raise nearly anything
            raise DataError(f"the bytes are not those of an index, as to_bytes() returns: {error}") from None
        codec, parts = load_parts(folder, False, codec, device)
    return codec, replace(parts, generations={})


def put_parts(writer: FolderWriter, codec: Codec | None, parts: IndexParts) -> None:
    """Write all of an index but its inverted lists: settings, tables, codec and pairwise decoder."""
    tables, lookup, pairwise = parts.tables, parts.tables.lookup, parts.pairwise
    writer.settings = {
        "metric": tables.metric.name,
        "radius": tables.metric.unit_length,
        "num_lists": tables.num_lists,
        "adds_centroids": tables.partition_VD is None,
        "dim": lookup.dim,
        "code_size": lookup.num_codes,
        "codebook_size": lookup.codebook_size,
        "next_id": parts.next_id,
        "codec": codec.fingerprint() if parts.codec_fingerprint is None and codec else parts.codec_fingerprint,
        "options": asdict(parts.options),
        "fitted": asdict(parts.fitted),
        "ranking": None,
    }
    writer.put("centroids", tables.centroids_VD)
    writer.put("tables", lookup.tables_MKD)
    writer.put("levels", tables.levels)
    if tables.ranking is not None:
        writer.settings["ranking"] = scores = asdict(tables.ranking)
        writer.put(_MEAN, scores.pop("mean_D"))
    if len(parts.zeros):
        writer.put(_ZEROS, parts.zeros)
    if parts.names is not None:
        put_names(writer, parts.names)
    if tables.coarse is not None and tables.coarse.links is not None:
        tables.coarse.save(writer.file(GRAPH))
    if codec is not None:
        codec.save(writer.file(CODEC))
    if pairwise is not None:
        # A decoder that was fitted elsewhere has other centroids than the index.
        own_VD, shared_VD = pairwise.centroids_VD, lookup.centroids_VD
        is_shared = own_VD is not None and shared_VD is not None and np.array_equal(own_VD, shared_VD)
        save_pairwise(writer.file(PAIRWISE), replace(pairwise, centroids_VD=None) if is_shared else pairwise)


def load_parts(folder, mmap: bool, codec: Codec | None, device: str) -> tuple[Codec | None, IndexParts]:
    """Read the codec and the parts of an index from a folder; see `Index.load`."""
    return read_folder(folder, "index", lambda opened: _load(opened, codec, device), mmap=mmap)


def check_codec_of(path: Path, codec: Codec | None, sizes: dict) -> None:
    if codec is None:
        return
    own = {"dim": codec.dim, "code_size": codec.num_codes, "codebook_size": codec.config.codebook_size}
    if codec.is_ivf:
        own["num_lists"] = codec.config.num_lists
    for name, value in own.items():
        if value != (found := sizes[name]):
            name = name.replace("code_size", "num_codes")
            raise DataError(f"{path} holds codes of another codec: its {name} is {found}, not {value}")


def _load(opened: OpenFolder, codec: Codec | None, device: str) -> tuple[Codec | None, IndexParts]:
    path, settings, arrays = opened.path, opened.settings, opened.arrays
    try:
        metric = Metric(settings["metric"], float(settings["radius"]))
        options, next_id, fingerprint = SearchOptions(**settings["options"]), settings["next_id"], settings["codec"]
        there = arrays["ids"].size if "ids" in arrays else 0
        fitted = Fitted(**settings.get("fitted", {"tables": there}))  # older indexes do not say it
        for name, count in asdict(fitted).items():
            require_int(f"fitted {name}", 0 if count is None else count, 0)
        num_lists, num_codes, codebook_size, dim = (settings[name] for name in _SIZES)
        for name in _SIZES:
            require_int(name, settings[name], 1)
        require_int("next_id", next_id, 0, 1 << 63)
        require_bool("adds_centroids", adds_centroids := settings["adds_centroids"])
        if codebook_size > ENTRIES or not (fingerprint is None or isinstance(fingerprint, str)):
            raise ValueError(f"codebook_size is {codebook_size}, codec is {fingerprint!r:.100}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: its manifest does not describe an index ({error})") from None
    shapes = {"centroids": (num_lists, dim), "tables": (num_codes, codebook_size, dim), "levels": (ENTRIES,)}
    if missing := shapes.keys() - arrays.keys():
        raise DataError(f"{path} is damaged: its {', '.join(sorted(missing))} are missing")
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise DataError(f"{path} is damaged: its {name} are not finite float32 {shape}")
    segments = _segments_of(arrays, num_lists, num_codes, path)
    centroids_VD = np.array(arrays["centroids"])
    lookup = LookupDecoder(np.array(arrays["tables"]), centroids_VD if adds_centroids else None)
    graph, file = None, opened.files.get(GRAPH)
    if file is None and find_spec("faiss"):  # without it the graph of an older index is built anew
        file = opened.files.get(FAISS_GRAPH)
    if file is not None and file.stat().st_size:  # version 1 has empty ones, too
        graph = CoarseGraph.read(file, centroids_VD, inner_product=metric.scans_inner_products)
    tables = SearchTables(lookup, np.array(arrays["levels"]), metric, graph, None if adds_centroids else centroids_VD)
    tables = replace(tables, ranking=_ranking_of(opened, dim))
    codec = _codec_of(opened, codec, fingerprint, device)
    pairwise = load_pairwise(opened.files[PAIRWISE]) if PAIRWISE in opened.files else None
    if pairwise is not None and pairwise.num_lists and pairwise.centroids_VD is None:
        pairwise = replace(pairwise, centroids_VD=centroids_VD)
    zeros = np.array(arrays.get(_ZEROS, np.empty(0, np.int64)))
    if zeros.ndim != 1 or zeros.dtype != np.int64:
        raise DataError(f"{path} is damaged: its {_ZEROS} are not int64 (n,)")
    names = read_names(arrays, next_id, path)
    parts = IndexParts(tables, segments, pairwise, options, next_id, fingerprint, fitted, zeros=zeros, names=names)
    return codec, parts.stored(os.path.realpath(path), opened.token)


def _segments_of(arrays: dict[str, np.ndarray], num_lists: int, num_codes: int, path: Path) -> list[InvertedLists]:
    """The lists of an index, or those of each of its shards."""
    shards = [name.removeprefix("starts") for name in sorted(arrays) if name.startswith("starts_")]
    expected, segments = [f"_{number:05}" for number in range(len(shards))] or [""], []
    for shard in expected:
        if missing := {f"{name}{shard}" for name in _LISTS} - arrays.keys():
            raise DataError(f"{path} is damaged: its {', '.join(sorted(missing))} are missing")
        starts, codes, ids = (arrays[f"{name}{shard}"] for name in _LISTS)
        segments.append(InvertedLists.from_stored(starts, codes, ids, num_lists, num_codes, str(path)))
    return segments


def _ranking_of(opened: OpenFolder, dim: int) -> Ranking | None:
    stored = opened.settings.get("ranking")  # none in version 1
    if stored is None:
        return None
    mean_D = np.array(opened.arrays.get(_MEAN, np.empty(0, np.float32)))
    try:
        lookup, neural, pairwise = (_score_of(stored[name]) for name in SCORES)
        numbers = [_number(stored[name]) for name in ("typical", "low", "high")]
        require_int("num_vectors", count := stored["num_vectors"], 0)
        margins = {name: _number(stored[name]) for name in _MARGINS if stored.get(name) is not None}
        if numbers[1] > numbers[2]:
            raise ValueError("its limits are none")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{opened.path} is damaged: its manifest does not describe a ranking ({error})") from None
    if mean_D.shape != (dim,) or mean_D.dtype != np.float32 or not np.isfinite(mean_D).all():
        raise DataError(f"{opened.path} is damaged: its {_MEAN} is not finite float32 ({dim},)")
    return Ranking(mean_D, lookup, neural, pairwise, *numbers, num_vectors=count, **margins)


def _score_of(stored: dict) -> Score:
    return Score(**{name: _number(stored[name]) for name in asdict(Score())})


def _number(stored) -> float:
    if not isinstance(stored, int | float) or isinstance(stored, bool) or not abs(stored) <= _MAX_NUMBER:
        raise ValueError(f"{stored!r:.100} is no number that float32 holds")
    return float(stored)


def _codec_of(opened: OpenFolder, given, fingerprint: str | None, device: str) -> Codec | None:
    if given is None:
        return Codec.load(opened.files[CODEC], device) if CODEC in opened.files else None
    if isinstance(given, Codec) and fingerprint is not None and given.fingerprint() != fingerprint:
        raise DataError(f"{opened.path} holds codes of another codec than {given!r}: give the one that made them")
    check_codec_of(opened.path, given, opened.settings)
    return given


def describe_index(folder: Path) -> dict:
    """What an index holds, as JSON values; the bytes of a vector include its id. Raises DataError."""
    opened = read_folder(folder, "index")
    settings, arrays = opened.settings, opened.arrays
    try:
        bytes_of = {name: array.nbytes for name, array in arrays.items()}
        lists = {name: [array for key, array in arrays.items() if key.partition("_")[0] == name] for name in _LISTS}
        num_vectors = sum(map(len, lists["ids"]))
        fields = {"kind": "index", "num_vectors": num_vectors, "num_codes": settings["code_size"]}
        fields |= {name: settings[name] for name in ("num_lists", "dim", "metric", "codebook_size")}
        of_lists = sum(array.nbytes for some in lists.values() for array in some)
        fields["bytes_per_vector"] = of_lists / max(1, num_vectors)
        fields["id_bytes"] = max(array.dtype.itemsize for array in lists["ids"])
        fields["table_bytes"] = sum(bytes_of[name] for name in ("centroids", "tables", "levels"))
        fields |= {name: settings[name] for name in ("codec", "options")}
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder} is damaged: its manifest does not describe an index") from None
    pairwise = describe_decoder(opened.files[PAIRWISE]) if PAIRWISE in opened.files else None
    if pairwise:
        del pairwise["kind"]
    return fields | {"holds_codec": CODEC in opened.files, "pairwise": pairwise, "bytes": folder_size(folder)}
