"""Indexes in folders: which arrays and files an index consists of, and the settings that tie them together."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.compat.faiss_files import FaissIndex
from qinco.config import require_bool, require_int
from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.search.build import fill_lists, silent
from qinco.search.coarse import CoarseGraph
from qinco.search.index import Index
from qinco.search.lists import InvertedLists
from qinco.search.metric import Metric
from qinco.search.options import SearchOptions
from qinco.search.scan import ENTRIES
from qinco.search.tables import SearchTables
from qinco.store.decoder import load_pairwise, save_pairwise
from qinco.store.folder import FolderWriter, OpenFolder, read_folder, write_folder

_FILE_SUFFIXES = (".faissindex", ".safetensors", ".pt", ".npy", ".npz", ".json")
_LEVEL_ROWS = 200_000
CODEC, PAIRWISE, GRAPH = "codec.safetensors", "pairwise.safetensors", "graph.faissindex"


def save_index(index: Index, folder: str | os.PathLike) -> None:
    """Write an index to a folder, whole or not at all."""
    if (path := _as_path(folder)).suffix.lower() in _FILE_SUFFIXES and not path.is_dir():
        raise ConfigError(f"{path}: an index is saved to a folder, give a name without {path.suffix}")
    settings = settings_of(index.tables, index.options, index.next_id, index.codec_fingerprint)
    with write_folder(folder, "index", settings) as writer:
        put_tables(writer, index.tables)
        if index.codec is not None:
            index.codec.save(writer.file(CODEC))
        if index.pairwise is not None:
            put_pairwise(writer, index.pairwise, index.tables)
        lists = index.segments[0] if len(index.segments) == 1 else InvertedLists.merged(index.segments)
        for name in ("starts", "codes", "ids"):
            writer.put(name, getattr(lists, name))


def settings_of(tables: SearchTables, options: SearchOptions, next_id: int, fingerprint: str | None) -> dict:
    """What the manifest says of an index."""
    return {
        "metric": tables.metric.name,
        "radius": tables.metric.radius,
        "num_lists": tables.num_lists,
        "adds_centroids": tables.partition_VD is None,
        "dim": tables.lookup.dim,
        "code_size": tables.lookup.code_size,
        "codebook_size": tables.lookup.codebook_size,
        "next_id": next_id,
        "codec": fingerprint,
        "options": asdict(options),
    }


def put_tables(writer: FolderWriter, tables: SearchTables) -> None:
    """Write the fitted part of an index."""
    writer.put("centroids", tables.centroids_VD)
    writer.put("tables", tables.lookup.tables_MKD)
    writer.put("levels", tables.levels)
    if tables.coarse is not None:
        writer.file(GRAPH).write_bytes(tables.coarse.serialize())


def put_pairwise(writer: FolderWriter, pairwise: PairwiseDecoder, tables: SearchTables) -> None:
    """Write a pairwise decoder, with its centroids where they are not those of the index: it was fitted elsewhere."""
    is_shared = np.array_equal(pairwise.centroids_VD, tables.lookup.centroids_VD)
    save_pairwise(writer.file(PAIRWISE), replace(pairwise, centroids_VD=None) if is_shared else pairwise)


def load_index(
    folder: str | os.PathLike, *, mmap: bool = True, codec: Codec | None = None, device: str = "cpu"
) -> Index:
    """Read an index from a folder or a faiss file; see `Index.load`."""
    path = _as_path(folder)
    if path.suffix.lower() == ".faissindex" and not path.is_dir():
        return _from_faiss(path, codec)
    return read_folder(folder, "index", lambda opened: _load(opened, codec, device), mmap=mmap)


def _as_path(folder) -> Path:
    try:
        return Path(folder)
    except TypeError:
        raise ConfigError(f"an index is named by its folder, not by {folder!r:.100}") from None


def _from_faiss(path: Path, codec: Codec | None) -> Index:
    """An index in memory of the codes, tables and ids of a faiss file; scalars are computed anew."""
    found = FaissIndex.open(path)
    if found.codebook_size > ENTRIES:
        raise DataError(f"{path} holds codes of K={found.codebook_size}, and an index those of one byte: use faiss")
    sizes = {"dim": found.dim, "code_size": found.num_codes, "num_lists": found.num_lists}
    _check_codec(path, codec, sizes)
    lookup = LookupDecoder(found.tables, found.centroids)
    nothing = np.empty((0, found.num_codes), np.uint8), np.empty(0, np.int32), np.empty(0, np.int64)
    codes, lists, _ = next(found.blocks(_LEVEL_ROWS), nothing)
    metric = Metric("inner_product" if found.inner_product else "l2")
    tables = SearchTables.fit(lookup, codes, lists, metric)
    ids = np.concatenate([np.empty(0, np.int64), *(ids for _, _, ids in found.blocks())])
    filled = fill_lists(tables, lambda: ((codes, lists) for codes, lists, _ in found.blocks()), ids, silent)
    return Index(codec, tables, [filled])


def _load(opened: OpenFolder, codec: Codec | None, device: str) -> Index:
    path, settings, arrays = opened.path, opened.settings, opened.arrays
    try:
        metric = Metric(settings["metric"], float(settings["radius"]))
        options, next_id, fingerprint = SearchOptions(**settings["options"]), settings["next_id"], settings["codec"]
        sizes = [settings[name] for name in ("num_lists", "code_size", "codebook_size", "dim")]
        for name, size in zip(("num_lists", "code_size", "codebook_size", "dim"), sizes, strict=True):
            require_int(name, size, 1)
        require_int("next_id", next_id, 0, 1 << 63)
        require_bool("adds_centroids", adds_centroids := settings["adds_centroids"])
        num_lists, code_size, codebook_size, dim = sizes
        if codebook_size > 256 or not (fingerprint is None or isinstance(fingerprint, str)):
            raise ValueError(f"codebook_size is {codebook_size}, codec is {fingerprint!r:.100}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: its manifest does not describe an index ({error})") from None
    shapes = {"centroids": (num_lists, dim), "tables": (code_size, codebook_size, dim), "levels": (256,)}
    for name, shape in shapes.items():
        _check_array(path, name, arrays.get(name), shape)
    missing = {"starts", "codes", "ids"} - set(arrays)
    if missing:
        raise DataError(f"{path} is damaged: its {', '.join(sorted(missing))} are missing")
    lists = InvertedLists.from_stored(*(arrays[n] for n in ("starts", "codes", "ids")), num_lists, code_size, str(path))
    centroids_VD = np.array(arrays["centroids"])
    lookup = LookupDecoder(np.array(arrays["tables"]), centroids_VD if adds_centroids else None)
    graph = None
    if GRAPH in opened.files and opened.files[GRAPH].stat().st_size:  # version 1 has empty ones, too
        inner_product = metric.scans_inner_products
        graph = CoarseGraph.read(opened.files[GRAPH], centroids_VD, inner_product=inner_product)
    tables = SearchTables(lookup, np.array(arrays["levels"]), metric, graph, None if adds_centroids else centroids_VD)
    codec = _codec_of(opened, codec, fingerprint, device)
    pairwise = load_pairwise(opened.files[PAIRWISE]) if PAIRWISE in opened.files else None
    if pairwise is not None and pairwise.num_lists and pairwise.centroids_VD is None:
        pairwise = replace(pairwise, centroids_VD=centroids_VD)
    return Index(
        codec, tables, [lists], pairwise=pairwise, options=options, next_id=next_id, codec_fingerprint=fingerprint
    )


def _codec_of(opened: OpenFolder, given, fingerprint: str | None, device: str) -> Codec | None:
    """The codec that the folder holds, or the one that was given; raises DataError for another one."""
    if given is None:
        return Codec.load(opened.files[CODEC], device) if CODEC in opened.files else None
    is_codec = isinstance(given, Codec)
    if is_codec and fingerprint is not None and given.fingerprint() != fingerprint:
        raise DataError(f"{opened.path} holds codes of another codec than {given!r}: give the one that made them")
    _check_codec(opened.path, given, opened.settings)
    return given


def _check_codec(path: Path, given, settings: dict) -> None:
    """Raise unless codes of these sizes may be those of the codec that was given, if one was."""
    if given is None:
        return
    if not isinstance(given, Codec):
        raise ConfigError(f"codec must be a Codec, not {type(given).__name__}: see qinco.Codec.load")
    for name, found in (("dim", given.dim), ("code_size", given.num_codes)):
        if found != settings[name]:
            raise DataError(f"{path} has {name}={settings[name]}, the codec {found}: give its own")
    if given.is_ivf and given.config.num_lists != settings["num_lists"]:
        raise DataError(f"{path} has {settings['num_lists']} lists, the codec {given.config.num_lists}: give its own")


def _check_array(path: Path, name: str, array, shape: tuple[int, ...]) -> None:
    if array is None or array.shape != shape or array.dtype != np.float32:
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise DataError(f"{path} is damaged: its {name} are {found}, not float32 {shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{path} is damaged: its {name} hold values that are not finite")
