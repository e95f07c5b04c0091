"""`Codec`: a trained quantizer between vectors in data space and codes.

Shape suffixes: N vectors, D dimension, M steps.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

import numpy as np
import torch

from qinco.atomic import check_output
from qinco.codec.fit import fit
from qinco.config import EncodeOptions, ModelConfig, require_int
from qinco.engines import native_engine
from qinco.engines.engine import candidate_dtype, choose_device, choose_engine, make_encoder
from qinco.engines.torch_engine import decode
from qinco.errors import DataError
from qinco.maths.assignment import assigner
from qinco.maths.devices import to_device
from qinco.model.qinco import Qinco
from qinco.native.library import NativeModel
from qinco.packing import check_codes, check_lists, code_dtype
from qinco.store.codec import load_models, save_models
from qinco.vectors.prefetch import read_ahead
from qinco.vectors.rows import VectorSource, as_source

_BLOCK_BYTES, _DEVICE_BLOCK_BYTES = 1 << 24, 1 << 28  # a device needs more vectors to be busy


class Codec:
    """Compresses float vectors to codes of M small integers and back (QINCo, QINCo2).

    config:         ModelConfig, the architecture
    encode_options: EncodeOptions, the search rule it was trained with, which `encode` uses unless told otherwise
    provenance:     dict of plain values: how it was trained, and on how many vectors
    block_rows:     vectors of a block: what memory a call needs beyond its input and output

    Make one with `Codec.fit` or `Codec.load`.
    """

    def __init__(self, model: Qinco, encode_options: EncodeOptions, provenance: dict | None = None):
        encode_options.check_model(model.config)
        self.model = model.eval().requires_grad_(False)
        self.encode_options = encode_options
        self.provenance = provenance or {}
        self._settle()

    def _settle(self) -> None:
        """What depends on the device that the model is on."""
        block_bytes = _BLOCK_BYTES if self.device.type == "cpu" else _DEVICE_BLOCK_BYTES
        widest = max(self.dim, self.config.embed_dim, self.config.hidden_dim)
        self.block_rows = max(256, block_bytes // (4 * widest))
        self._assigner: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._packings: dict[torch.dtype, NativeModel] = {}

    def __getstate__(self) -> dict:
        """What is copied and pickled: not what is made again when it is needed."""
        return self.__dict__ | {"_assigner": None, "_packings": {}}

    def __repr__(self) -> str:
        config = self.config
        lists = f", num_lists={config.num_lists}" if config.starts_from_coarse else ""
        return (
            f"Codec(dim={config.dim}, num_steps={config.num_steps}, codebook_size={config.codebook_size}, "
            f"{self.bytes_per_vector:g} bytes a vector{lists}, device={self.device})"
        )

    @property
    def models(self) -> list[Qinco]:
        return [self.model]

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the codec computes: see `to`."""
        return self.model.device

    @property
    def dim(self) -> int:
        """D, the dimension of the vectors."""
        return self.config.dim

    @property
    def code_size(self) -> int:
        """M, the columns of a code array."""
        return self.config.num_steps

    @property
    def bytes_per_vector(self) -> float:
        """Size of a packed code, the list number of an IVF codec apart."""
        return self.config.bytes_per_vector

    @property
    def is_ivf(self) -> bool:
        """Whether codes come with list numbers."""
        return self.config.starts_from_coarse

    @property
    def coarse_centroids(self) -> np.ndarray | None:
        """The centroids of an IVF codec's lists in data space, float32 (V, D); None without lists."""
        return self.model.denormalize(self.model.coarse_centroids).cpu().numpy() if self.is_ivf else None

    @classmethod
    def fit(cls, x, preset: str = "qinco2-S", **settings) -> "Codec":
        """Train a codec on vectors; see `qinco.codec.fit.fit` for all settings.

        x: (N, D) array, memory map, torch tensor, path or VectorSource of any float or integer type
        """
        fitted = fit(x, preset, **settings)
        return cls(fitted.models[0], fitted.encode_options, fitted.provenance)

    def with_options(self, options: EncodeOptions) -> "Codec":
        """The same codec with another search rule; raises ConfigError where the model cannot serve it."""
        return Codec(self.model, options, self.provenance)

    def fingerprint(self) -> str:
        """SHA-256 of the architecture and all weights: codes belong to the codec of the same fingerprint."""
        digest = sha256(repr(sorted(self.config.to_dict().items())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: str | torch.device) -> "Codec":
        """Move the codec to a device ("auto", "cpu", "cuda", "cuda:N") and return it."""
        self.model.to(choose_device(device))
        self._settle()
        return self

    def save(self, path: str | os.PathLike, *, overwrite: bool = True) -> None:
        """Write one safetensors file, whole or not at all. `overwrite=False` refuses to replace a file."""
        check_output(path, overwrite=overwrite)
        save_models(path, [self.model], None, self.encode_options, self.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "Codec":
        """Read what `save` wrote; executes no code. Raises DataError for any other file."""
        target = choose_device(device)
        models, _, options, provenance = load_models(path)
        if len(models) > 1:
            raise DataError(f"{path} is a PQ-QINCo codec of {len(models)} parts: read it with qinco.load_codec")
        return cls(models[0], options, provenance).to(target)

    # Encoding

    def encode(
        self,
        x,
        *,
        num_candidates: int | None = None,
        num_pairs: int | None = None,
        beam_width: int | None = None,
        precision: str | None = None,
        num_steps: int | None = None,
    ):
        """Codes of vectors: uint8 (N, M), uint16 above 256 codewords; with IVF also list numbers, int32 (N,).

        x:              (N, D) array, tensor, path or VectorSource of any float or integer type; finite
        num_candidates: A, codewords proposed for each hypothesis (0: all are tried)
        num_pairs:      C, pairs proposed over the whole beam; instead of A
        beam_width:     B, hypotheses kept
        precision:      "auto", "float32" or "bf16", of the candidates
        num_steps:      stop after so many steps: a shorter code, the best of its length
        Each is as in training where it is not given. Raises DataError for values that are not finite or a dimension
        that is not the model's, ConfigError for options that exclude each other or that the model cannot serve.
        """
        source = as_source(x)
        rule = self.encode_options.override(num_candidates, num_pairs, beam_width, precision)
        steps = self._check_steps(num_steps)
        codes_NM = np.empty((len(source), steps), code_dtype(self.config.codebook_size))
        lists_N = np.empty(len(source), np.int32) if self.is_ivf else None
        for start, codes, lists in self.encode_blocks(source, rule, steps):
            codes_NM[start : start + len(codes)] = codes
            if lists_N is not None:
                lists_N[start : start + len(codes)] = lists
        return codes_NM if lists_N is None else (codes_NM, lists_N)

    def encode_blocks(
        self,
        source: VectorSource,
        options: EncodeOptions | None = None,
        num_steps: int | None = None,
        ranges: Sequence[range] | None = None,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield (first row, codes, list numbers or None) for consecutive blocks of a source, in bounded memory.

        ranges: of rows, one after the other, of which no block reaches from one into the next; all rows if None
        """
        self.check_dim(source)
        ranges = [range(len(source))] if ranges is None else ranges
        options = options or self.encode_options
        arithmetic = candidate_dtype(options.precision, self.device, self.config)
        encoder = make_encoder(self.model, options, arithmetic, self._packed(arithmetic, options.engine))
        dtype = code_dtype(self.config.codebook_size)
        # The next block is read, checked and sent while this one is encoded.
        blocks = (
            (rows.start + first, to_device(block, self.device))
            for rows in ranges
            for first, block in source.window(rows.start, rows.stop).blocks(self.block_rows)
        )
        for first, block_ND in read_ahead(blocks) if len(source) > self.block_rows else blocks:
            x_ND = self.model.normalize(block_ND)
            lists_N = self._assign(x_ND)
            codes_NM, _ = encoder.encode(x_ND, self.model.start(len(x_ND), lists_N), num_steps)
            lists = None if lists_N is None else lists_N.cpu().numpy().astype(np.int32)
            yield first, codes_NM.cpu().numpy().astype(dtype), lists

    def assign_lists(self, x_ND: np.ndarray) -> np.ndarray | None:
        """The nearest coarse centroid of float32 vectors: int64 (N,); None without IVF."""
        lists_N = self._assign(self.model.normalize(to_device(x_ND, self.device)))
        return None if lists_N is None else lists_N.cpu().numpy()

    def _assign(self, x_ND: torch.Tensor) -> torch.Tensor | None:
        """Lists, int64 (N,), of normalised vectors on the model's device; None without IVF."""
        if not self.is_ivf:
            return None
        if self._assigner is None:
            self._assigner = assigner(self.model.coarse_centroids)
        return self._assigner(x_ND)

    # Decoding

    def decode(self, codes, lists=None, *, precision: str = "float32") -> np.ndarray:
        """Reconstructions of codes, float32 (N, D).

        codes:     (N, m) integers of any type, m ≤ M: the first m columns are a code of their own (dynamic rate)
        lists:     (N,) integers, for an IVF codec
        precision: "float32", "bf16", or "auto": bf16 where it is fast
        Raises DataError for codes or lists out of range.
        """
        codes, lists = as_integers(codes), as_integers(lists)
        self.check_codes(codes, lists)
        decoded_ND = np.empty((len(codes), self.dim), np.float32)
        for start, block_ND in self.decode_tensors(codes, lists, precision):
            torch.from_numpy(decoded_ND[start : start + len(block_ND)]).copy_(block_ND)
        return decoded_ND

    def decode_blocks(self, codes, lists=None, precision: str = "float32") -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 reconstructions) for consecutive blocks of codes that `check_codes` has passed."""
        for first, decoded_ND in self.decode_tensors(codes, lists, precision):
            yield first, decoded_ND.cpu().numpy()

    def decode_tensors(self, codes, lists=None, precision: str = "float32") -> Iterator[tuple[int, torch.Tensor]]:
        """`decode_blocks` with tensors on the codec's device."""
        dtype = candidate_dtype(precision, self.device, self.config)
        packed = self._packed(dtype, self.encode_options.engine)
        for first in range(0, len(codes), self.block_rows):
            part = slice(first, first + self.block_rows)
            codes_NM = self._to_device(codes[part])
            start_ND = self.model.start(len(codes_NM), None if lists is None else self._to_device(lists[part]))
            if packed is None:
                reached_ND = decode(self.model, codes_NM, start_ND, dtype)
            else:
                reached_ND = native_engine.decode(packed, codes_NM, start_ND)
            yield first, self.model.denormalize(reached_ND)

    def decode_prefixes(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Iterator[torch.Tensor]:
        """Yield the reconstructions after each step, float32 (N, D) on the codec's device, of a block of its codes."""
        start_ND = self.model.start(len(codes_NM), None if lists_N is None else self._to_device(lists_N))
        for x_ND in self.model.reconstructions(self._to_device(codes_NM), start_ND):
            yield self.model.denormalize(x_ND)

    def prefix(self, codes, num_steps: int):
        """The shorter code that the first `num_steps` steps are: columns of `codes`."""
        return codes[:, : self._check_steps(num_steps)]

    def check_codes(self, codes, lists=None) -> None:
        """Raise DataError unless codes (and lists, for an IVF codec) are ones of this codec."""
        check_codes(codes, self.config.num_steps, self.config.codebook_size)
        if self.is_ivf:
            if lists is None:
                raise DataError("codes of an IVF codec are decoded with their list numbers: give lists")
            check_lists(lists, len(codes), self.config.num_lists)
        elif lists is not None:
            raise DataError("lists were given, but this codec has none: it was trained without coarse centroids")

    def check_dim(self, source: VectorSource) -> None:
        """Raise DataError unless the source's vectors have the codec's dimension."""
        if source.dim != self.dim:
            raise DataError(f"{source.name}: vectors have {source.dim} dimensions, the codec was trained on {self.dim}")

    def _packed(self, dtype: torch.dtype, engine: str) -> NativeModel | None:
        """The model packed for the native engine, once for each arithmetic; None where torch computes."""
        if choose_engine(engine, self.config, self.device) == "torch":
            return None
        if dtype not in self._packings:
            self._packings[dtype] = native_engine.pack(self.model, dtype)
        return self._packings[dtype]

    def _check_steps(self, num_steps: int | None) -> int:
        if num_steps is None:
            return self.config.num_steps
        require_int("num_steps", num_steps, 1, self.config.num_steps)
        return num_steps

    def _to_device(self, integers: np.ndarray) -> torch.Tensor:
        sent = integers if integers.dtype == np.uint8 else np.asarray(integers, np.int64)
        return to_device(sent, self.device).long()


def as_integers(values):
    """Integers as a numpy array, from arrays, tensors on any device, or lists."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else None if values is None else np.asarray(values)
