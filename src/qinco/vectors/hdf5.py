"""HDF5, as ann-benchmarks writes it. h5py tells where the values lie; they are mapped or unpacked here.

So damaged or hostile files meet little of the C library, which reads beyond its buffers where a chunk unpacks to
less than it should, and unpacks bombs whole.
"""

import zlib
from pathlib import Path

import numpy as np

from qinco.errors import ConfigError, DataError, QincoError
from qinco.vectors.block_rows import BLOCK_BYTES, BlockRows, choose_table, list_names, reason
from qinco.vectors.mapped import MAX_DIM, check_matrix, map_file, release_pages

_DEFLATE, _SHUFFLE = 1, 2  # numbers of HDF5's filters
_MAX_CHUNKS = 1 << 22  # their addresses are read one by one, and kept
_MIN_ENTRY = 9  # bytes of a file that a packed chunk takes at least: its address, and one of its own


class ChunkedRows(BlockRows):
    """The rows of a data set in chunks, which may be packed with deflate and shuffle.

    content:   the whole file's bytes     chunk_shape: rows and columns of each chunk
    filters:   numbers of the filters in the order of packing
    addresses: int64 (chunks down, chunks across, 3): offset, size in bytes, mask of the filters that are left out
    """

    def __init__(self, path: Path, shape, dtype, content: np.ndarray, chunk_shape, filters, addresses: np.ndarray):
        super().__init__(shape, dtype)
        self.path = path
        self._content, self._chunk_shape, self._filters, self._addresses = content, chunk_shape, filters, addresses
        self._rows_at_once = max(1, min(chunk_shape[0], BLOCK_BYTES // (shape[1] * dtype.itemsize)))

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        height, width = self._chunk_shape
        band, inside = divmod(row, height)
        inside -= inside % self._rows_at_once
        start = band * height + inside
        stop = min(start + self._rows_at_once, (band + 1) * height, len(self))
        block = np.empty((stop - start, self.shape[1]), self.dtype)
        for across, address in enumerate(self._addresses[band]):
            columns = block[:, across * width : (across + 1) * width]
            chunk = self._unpack(start, *address.tolist())
            columns[:] = chunk[inside : inside + len(block), : columns.shape[1]]
            release_pages(self._content[address[0] : address[0] + address[1]])
        return start, block

    def _unpack(self, row: int, offset: int, size: int, skipped: int) -> np.ndarray:
        """One chunk, rows by columns; `row` is for messages."""
        packed = self._content[offset : offset + size]
        expected = int(np.prod(self._chunk_shape)) * self.dtype.itemsize
        for number, chosen in reversed(list(enumerate(self._filters))):
            if skipped >> number & 1:
                continue
            if chosen == _DEFLATE:
                packed = np.frombuffer(self._inflate(row, packed, expected), np.uint8)
            elif len(packed) == expected:  # shuffle: all first bytes of the values, then all second ones, ...
                packed = packed.reshape(self.dtype.itemsize, -1).T.reshape(-1)
        if len(packed) != expected:
            raise DataError(
                f"{self.path} is damaged at row {row}: a chunk has {len(packed)} bytes where {expected} belong"
            )
        return packed.view(self.dtype).reshape(self._chunk_shape)

    def _inflate(self, row: int, packed: np.ndarray, expected: int) -> bytes:
        unpacker = zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(packed, expected + 1)  # one more, to see the end of the stream
        except zlib.error as error:
            raise DataError(f"{self.path} is damaged at row {row}: {error}") from error
        if not unpacker.eof:
            raise DataError(f"{self.path} is damaged at row {row}: a chunk does not end where it should")
        return unpacked


def open_hdf5(path: Path, size: int, name: str | None, part: str) -> np.ndarray | ChunkedRows:
    """Open a data set of an HDF5 file of `size` bytes: a memory map, or ChunkedRows.

    name: of the data set, with slashes where it lies in groups; None for `part`, or else the only matrix of the file

    Raises DataError where the file is damaged, where there is no such data set or no one matrix, where the data set is
    not written in full, and where its values lie in other files or are packed otherwise than with deflate and shuffle;
    ConfigError without the package h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"{path} needs the package h5py: pip install 'qinco[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            if name is None:
                name = part if _find(file, part) is not None else choose_table(path, _matrices(file), part, "matrix")
            return _open_data_set(path, size, name, _find(file, name), file)
    except QincoError:
        raise
    except Exception as error:  # h5py raises nearly anything where a file is damaged
        raise DataError(f"{path} is not an HDF5 file, or a damaged one: {reason(error)}") from error


def _find(group, name: str):
    """The data set of a name, or None. Only hard links are followed: others may lead into other files."""
    import h5py

    for step in name.strip("/").split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(step, getlink=True), h5py.HardLink):
            return None
        group = group[step]
    return group if isinstance(group, h5py.Dataset) else None


def _matrices(file) -> list[str]:
    """Names of the file's matrices of numbers that are in no group."""
    found = {name: _find(file, name) for name in file}
    return [name for name, data in found.items() if data is not None and data.ndim == 2 and data.dtype.kind in "fiu"]


def _open_data_set(path: Path, size: int, name: str, data, file) -> np.ndarray | ChunkedRows:
    import h5py

    if data is None:
        there = [child for child in file if _find(file, child) is not None]
        raise DataError(f"{path} holds no data set {name!r}: it holds {list_names(there)}")
    where = f"{path}:{name}"
    if data.shape is None:
        raise DataError(f"{where} is empty")
    check_matrix(data.shape, data.dtype, where)
    shape, dtype = data.shape, np.dtype(data.dtype.str)
    if shape[1] > MAX_DIM:
        raise DataError(f"{where} is damaged: it claims the shape {shape}")
    if not data.id.get_type().equal(h5py.h5t.py_create(dtype)):
        raise DataError(f"{where} holds numbers of a type that numpy has not: write it again as float32")
    if shape[0] == 0:
        return np.empty(shape, dtype)
    settings = data.id.get_create_plist()
    layout = settings.get_layout()
    if settings.get_external_count() or layout == h5py.h5d.VIRTUAL:
        raise DataError(f"{where} refers to other files, which are never opened: write its values into it")
    if layout == h5py.h5d.CONTIGUOUS:
        offset, expected = data.id.get_offset(), shape[0] * shape[1] * dtype.itemsize
        if offset is None or offset + expected > size:
            raise DataError(f"{where} is truncated: its shape {shape} needs {expected} bytes that are not there")
        return map_file(path, dtype, shape, offset)
    if layout != h5py.h5d.CHUNKED:
        raise DataError(f"{where} is stored in its own header, which is not read: write it again without that")
    filters = [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]
    addresses = _chunk_addresses(where, size, data, filters)
    content = map_file(path, np.dtype(np.uint8), (size,))
    return ChunkedRows(Path(where), shape, dtype, content, data.chunks, filters, addresses)


def _chunk_addresses(where: str, size: int, data, filters: list[int]) -> np.ndarray:
    """What ChunkedRows wants to know of the chunks, checked: they are all there, and small enough to be unpacked."""
    unknown = [number for number in filters if number not in (_DEFLATE, _SHUFFLE)]
    if unknown:
        raise DataError(
            f"{where} is packed with the HDF5 filter {unknown[0]}: only gzip and shuffle are read, write it again with "
            "compression='gzip'"
        )
    height, width = data.chunks
    chunk_bytes = height * width * data.dtype.itemsize
    if filters and chunk_bytes > BLOCK_BYTES:
        raise DataError(
            f"{where} is packed in chunks of {height} x {width} values, {chunk_bytes} bytes: write it again with "
            f"chunks of at most {BLOCK_BYTES} bytes"
        )
    grid = -(-data.shape[0] // height), -(-data.shape[1] // width)
    if grid[0] * grid[1] > _MAX_CHUNKS:
        raise DataError(
            f"{where} is damaged, or stored in {grid[0] * grid[1]} chunks of {height} x {width} values, where at most "
            f"{_MAX_CHUNKS} are read: write it again with larger chunks"
        )
    # Before the library counts chunks: it would take hours for those that a damaged header promises.
    if grid[0] * grid[1] * (_MIN_ENTRY if filters else chunk_bytes) > size or (
        data.id.get_num_chunks() != grid[0] * grid[1]
    ):
        raise DataError(f"{where} is truncated: of the chunks that its shape {data.shape} needs, some are not written")
    addresses = np.full((*grid, 3), -1, np.int64)

    def note(chunk):
        down, across = chunk.chunk_offset[0] // height, chunk.chunk_offset[1] // width
        addresses[down, across] = chunk.byte_offset, chunk.size, chunk.filter_mask

    data.id.chunk_iter(note)
    offsets, sizes = addresses[..., 0], addresses[..., 1]
    if (offsets < 0).any() or (sizes < 0).any() or (offsets > size - sizes).any():
        raise DataError(f"{where} is damaged: some of its chunks lie outside the file")
    return addresses
