"""PQ-QINCo: the vector is cut into parts, each with a quantizer of its own (QINCo paper, section 5.3).

Shape suffixes: N vectors, D dimension, M steps of a part, P parts.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from qinco.atomic import check_output
from qinco.codec.codec import Codec, as_integers
from qinco.codec.fit import fit
from qinco.codec.parts import PartRows
from qinco.config import EncodeOptions, ModelConfig
from qinco.engines.engine import choose_device
from qinco.errors import DataError
from qinco.maths.devices import to_device
from qinco.store.codec import load_models, save_models
from qinco.vectors.rows import VectorSource, as_source


class ProductCodec:
    """A codec of P parts, with an optional rotation before the cut (OPQ).

    Codes are (N, P · M): all codes of the first part, then of the second, and so on. A shorter code takes the first
    steps of every part (`num_steps`), not the first columns.
    """

    def __init__(self, parts: list[Codec], rotation_DD: np.ndarray | None = None, provenance: dict | None = None):
        self.parts = parts
        self.rotation_DD = rotation_DD
        self.provenance = provenance or {}

    def __repr__(self) -> str:
        rotated = ", rotated" if self.rotation_DD is not None else ""
        return f"ProductCodec({len(self.parts)} parts{rotated} of {self.parts[0]!r})"

    @property
    def config(self) -> ModelConfig:
        """The architecture of one part."""
        return self.parts[0].config

    @property
    def encode_options(self) -> EncodeOptions:
        return self.parts[0].encode_options

    @property
    def dim(self) -> int:
        """D, the dimension of the whole vectors."""
        return self.config.dim * len(self.parts)

    @property
    def code_size(self) -> int:
        """P · M, the columns of a code array."""
        return self.config.num_steps * len(self.parts)

    @property
    def bytes_per_vector(self) -> float:
        return self.config.bytes_per_vector * len(self.parts)

    @property
    def is_ivf(self) -> bool:
        return False

    @property
    def device(self) -> torch.device:
        """Where the codec computes: see `to`."""
        return self.parts[0].device

    @property
    def block_rows(self) -> int:
        return self.parts[0].block_rows

    @classmethod
    def fit(
        cls,
        x,
        preset: str | None = "qinco2-S",
        *,
        num_parts: int = 2,
        rotate: bool = False,
        output: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        device: str | torch.device = "auto",
        on_report: Callable | None = None,
        **settings,
    ) -> "ProductCodec":
        """Train one codec after the other; settings are those of `Codec.fit`, num_steps and the like of each part.

        num_parts: P, which must divide D
        rotate:    learn a rotation that spreads the variance over the parts (OPQ)
        output:    the codec file; the parts' runs lie beside it as `output.part_i` until all are done
        resume:    continue where a run of `output` stopped; a finished one is loaded
        """
        fitted = fit(
            x, preset, num_parts=num_parts, rotate=rotate, output=output, resume=resume, overwrite=overwrite,
            device=device, on_report=on_report, **settings,
        )  # fmt: skip
        parts = [Codec(model, fitted.encode_options, fitted.provenance) for model in fitted.models]
        return cls(parts, fitted.rotation_DD, fitted.provenance)

    def with_options(self, options: EncodeOptions) -> "ProductCodec":
        """The same codec with another search rule."""
        return ProductCodec([part.with_options(options) for part in self.parts], self.rotation_DD, self.provenance)

    def fingerprint(self) -> str:
        """SHA-256 of the parts and the rotation."""
        rotation = b"" if self.rotation_DD is None else self.rotation_DD.tobytes()
        return sha256("".join(part.fingerprint() for part in self.parts).encode() + rotation).hexdigest()

    def to(self, device: str | torch.device) -> "ProductCodec":
        """Move the codec to a device and return it."""
        for part in self.parts:
            part.to(device)
        return self

    def save(self, path: str | os.PathLike, *, overwrite: bool = True) -> None:
        """Write one safetensors file, whole or not at all."""
        check_output(path, overwrite=overwrite)
        rotation = None if self.rotation_DD is None else torch.from_numpy(self.rotation_DD)
        save_models(path, [part.model for part in self.parts], rotation, self.encode_options, self.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "ProductCodec":
        """Read what `save` wrote; raises DataError for any other file."""
        codec = load_codec(path, device)
        if not isinstance(codec, cls):
            raise DataError(f"{path} is a codec of one part: read it with qinco.Codec.load")
        return codec

    def encode(self, x, *, num_steps: int | None = None, **options) -> np.ndarray:
        """Codes of vectors, uint8 or uint16 (N, P · M); options as in `Codec.encode`."""
        source = as_source(x)
        self.check_dim(source)
        return np.concatenate(
            [
                part.encode(VectorSource(self._columns(source, i), source.name), num_steps=num_steps, **options)
                for i, part in enumerate(self.parts)
            ],
            axis=1,
        )

    def encode_blocks(
        self,
        source: VectorSource,
        options: EncodeOptions | None = None,
        num_steps: int | None = None,
        ranges: Sequence[range] | None = None,
    ) -> Iterator[tuple[int, np.ndarray, None]]:
        """`Codec.encode_blocks` without list numbers."""
        self.check_dim(source)
        blocks = _SharedBlocks([self._columns(source, i) for i in range(len(self.parts))])
        streams = [
            part.encode_blocks(VectorSource(_PartOfBlocks(blocks, i), source.name), options, num_steps, ranges)
            for i, part in enumerate(self.parts)
        ]
        for blocks in zip(*streams, strict=True):
            yield blocks[0][0], np.concatenate([codes for _, codes, _ in blocks], axis=1), None

    def decode(self, codes, lists=None, *, precision: str = "float32") -> np.ndarray:
        """Reconstructions of codes, float32 (N, D). The columns must be P · m, the first m steps of every part."""
        codes = as_integers(codes)
        self.check_codes(codes, lists)
        decoded = [part.decode(c, precision=precision) for part, c in zip(self.parts, self._split(codes), strict=True)]
        return self._unrotate(np.concatenate(decoded, axis=1))

    def decode_blocks(self, codes, lists=None, precision: str = "float32") -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 reconstructions) for consecutive blocks of codes that `check_codes` has passed."""
        for first in range(0, len(codes), self.block_rows):
            yield first, self.decode(codes[first : first + self.block_rows], precision=precision)

    def decode_prefixes(self, codes_NM: np.ndarray, lists_N: None = None) -> Iterator[torch.Tensor]:
        """Yield what the first steps of every part decode to, float32 (N, D) on the codec's device, step by step."""
        rotation_DD = None if self.rotation_DD is None else to_device(self.rotation_DD, self.device)
        streams = [part.decode_prefixes(c) for part, c in zip(self.parts, self._split(codes_NM), strict=True)]
        for decoded in zip(*streams, strict=True):
            x_ND = torch.cat(decoded, 1)
            yield x_ND if rotation_DD is None else x_ND @ rotation_DD

    def prefix(self, codes, num_steps: int) -> np.ndarray:
        """The shorter code that the first `num_steps` steps of every part are: (N, P · num_steps)."""
        parts = zip(self.parts, self._split(codes), strict=True)
        return np.concatenate([part.prefix(columns, num_steps) for part, columns in parts], axis=1)

    def check_codes(self, codes, lists=None) -> None:
        """Raise DataError unless codes are ones of this codec."""
        if lists is not None:
            raise DataError("lists were given, but a PQ-QINCo codec has none")
        if np.ndim(codes) == 2 and np.shape(codes)[1] % len(self.parts):
            raise DataError(f"codes have {np.shape(codes)[1]} columns: {len(self.parts)} parts need as many each")
        for part, columns in zip(self.parts, self._split(codes), strict=True):
            part.check_codes(columns)

    def check_dim(self, source: VectorSource) -> None:
        """Raise DataError unless the source's vectors have the codec's dimension."""
        if source.dim != self.dim:
            raise DataError(f"{source.name}: vectors have {source.dim} dimensions, the codec was trained on {self.dim}")

    def _split(self, codes) -> list:
        width = codes.shape[1] // len(self.parts) if np.ndim(codes) == 2 else 0
        if width == 0:
            return [codes] * len(self.parts)
        return [codes[:, i * width : (i + 1) * width] for i in range(len(self.parts))]

    def _columns(self, source: VectorSource, part: int) -> "PartRows":
        return PartRows(source, part, len(self.parts), self.rotation_DD)

    def _unrotate(self, x_ND: np.ndarray) -> np.ndarray:
        return x_ND if self.rotation_DD is None else x_ND @ self.rotation_DD


class _SharedBlocks:
    """Blocks that all parts ask for, each in its own thread: read once, cut, and kept until every part has taken its.

    The parts go on together, so no more than the block in work and the one read ahead are kept.
    """

    def __init__(self, parts: list[PartRows]):
        self.parts = parts
        self._lock = Lock()
        self._waiting: dict[tuple[int, int], dict[int, np.ndarray]] = {}

    def take(self, part: int, rows: slice) -> np.ndarray:
        key = (rows.start, rows.stop)
        with self._lock:
            if key not in self._waiting:
                x_ND = self.parts[part].source[rows]
                self._waiting[key] = {i: columns.cut(x_ND) for i, columns in enumerate(self.parts)}
            pieces = self._waiting[key]
            piece = pieces.pop(part)
            if not pieces:
                del self._waiting[key]
            return piece


class _PartOfBlocks:
    """The rows of one part, to be read in blocks, each of them once."""

    dtype = np.dtype(np.float32)

    def __init__(self, blocks: _SharedBlocks, part: int):
        self.blocks, self.part, self.shape = blocks, part, blocks.parts[part].shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.blocks.take(self.part, rows)


def load_codec(path: str | os.PathLike, device: str | torch.device = "cpu") -> Codec | ProductCodec:
    """Read a codec file of either kind; raises DataError for any other file."""
    target = choose_device(device)
    models, rotation, options, provenance = load_models(path)
    parts = [Codec(model, options, provenance).to(target) for model in models]
    if len(parts) == 1:
        return parts[0]
    return ProductCodec(parts, None if rotation is None else rotation.numpy(), provenance)
