"""`Codec`: a trained quantizer between vectors in data space and codes."""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from qinco.atomic import check_output, readable, write_content
from qinco.codec.columns import cut, first_steps, join
from qinco.codec.plan import check_values
from qinco.codec.shared import SharedCodec
from qinco.config import EncodeOptions, ModelConfig, accepts_keys, by_field, require_int
from qinco.engines.engine import Packed, candidate_precision, choose_engine
from qinco.errors import ConfigError, DataError, needs_extra
from qinco.maths.assignment import assigner
from qinco.maths.devices import CPU, choose_device, to_device
from qinco.model.weights import Weights
from qinco.packing import code_dtype
from qinco.progress import ProgressOption, reporting
from qinco.store.codec import SUFFIXES, load_models, save_models
from qinco.store.codes import Codes, check_range
from qinco.vectors.prefetch import read_ahead
from qinco.vectors.rows import VectorSource, as_source, check_dim, check_finite

if TYPE_CHECKING:
    import torch

    from qinco.model.qinco import Qinco

_LEAST_ROWS, _LEAST_SECONDS = 64, 0.1  # of a block, after which progress is shown, and which an interrupt keeps


class Codec(SharedCodec):
    """Compresses float vectors to codes of M small integers and back (QINCo, QINCo2).

    Make one with `Codec.fit` or `Codec.load`. It consists of one model, or of several of one architecture, each for a
    part of the columns (PQ-QINCo; QINCo paper, section 5.3), whose codes stand side by side.

    Attributes:
        weights: the architecture and arrays of each model.
        device: where the models compute: "cpu", "cuda:0".
        rotation_DD: float32 (D, D), by which vectors are rotated before the columns are split (OPQ), or None.
        encode_options: EncodeOptions of the training, which `encode` uses unless told otherwise.
        provenance: plain values: how the codec was trained, and on how many vectors.
        block_rows: vectors that are encoded or decoded at a time, which bounds the memory of a call.

    Example:
        >>> codec = Codec.fit(x, num_steps=8, minutes=10)
        >>> x_hat = codec.decode(codec.encode(x))
    """

    def __init__(
        self, models: "Weights | Qinco | Sequence[Weights | Qinco]", encode_options: EncodeOptions,
        provenance: dict | None = None, rotation_DD: np.ndarray | None = None,
    ):  # fmt: skip
        device, self.weights, self.rotation_DD = CPU, [], rotation_DD
        for model in models if isinstance(models, Sequence) else [models]:
            if not isinstance(model, Weights):
                device, module = str(model.device), model.eval().requires_grad_(False)
                model = module.weights()
                model.models[device] = module
            self.weights.append(model)
        self.encode_options, self.provenance = encode_options, provenance or {}
        encode_options.check_model(self.config)
        self._on(device)

    def _on(self, device: str) -> "Codec":
        """Compute on a device, with models that are packed anew."""
        self.device, config = device, self.config
        block_bytes = 1 << 24 if self.device == CPU else 1 << 28  # a GPU needs more vectors to be busy
        self.block_rows = max(256, block_bytes // (4 * max(config.dim, config.embed_dim, config.hidden_dim)))
        self._assigner: Callable[[Any], np.ndarray] | None = None
        self._packings: dict[tuple[str, str], list[Packed]] = {}
        return self

    def __getstate__(self) -> dict:
        """What is copied and pickled: not what is made again when it is needed."""
        return self.__dict__ | {"_assigner": None, "_packings": {}}

    def __repr__(self) -> str:
        text = f"dim={self.dim}, num_steps={self.config.num_steps}, codebook_size={self.config.codebook_size}"
        text += f", num_parts={len(self.weights)}" if len(self.weights) > 1 else ""
        text += f", num_lists={self.config.num_lists}" if self.is_ivf else ""
        return f"Codec({text}, {self.bytes_per_vector:g} bytes a vector, device={self.device})"

    @property
    def config(self) -> ModelConfig:
        """The architecture of each model."""
        return self.weights[0].config

    @property
    def models(self) -> "list[Qinco]":
        """The networks, as modules of torch on the device, which share the weights' memory on the CPU."""
        with needs_extra("Codec.models", "torch", "train"):
            from qinco.model.qinco import Qinco

        return [Qinco.of(weights, self.device) for weights in self.weights]

    @property
    def dim(self) -> int:
        """D, the dimension of the vectors."""
        return self.config.dim * len(self.weights)

    @property
    def num_codes(self) -> int:
        """M, the columns of a code array."""
        return self.config.num_steps * len(self.weights)

    @property
    def bytes_per_vector(self) -> float:
        """Size of a packed code, the list number of an IVF codec apart."""
        return self.config.bytes_per_vector * len(self.weights)

    @property
    def is_ivf(self) -> bool:
        """Whether codes come with list numbers."""
        return self.config.starts_from_coarse

    @property
    def coarse_centroids(self) -> np.ndarray | None:
        """The centroids of an IVF codec's lists in data space, float32 (V, D); None without lists."""
        return self.weights[0].denormalize(self.weights[0].coarse_centroids_VD) if self.is_ivf else None

    @classmethod
    def fit(cls, x, preset: str | None = "auto", **settings) -> "Codec":
        """Train a codec on vectors.

        Args:
            x: (N, D) array, memory map, torch tensor, path or VectorSource of any float or integer type.
            preset: "auto", or the name of one of `qinco.PRESETS` (see `qinco.codec.fit.fit`); None: ModelConfig's.
            **settings: all arguments of `qinco.codec.fit.fit`: `num_parts` and `rotate` (PQ-QINCo, OPQ), `output`,
                `resume` and `overwrite`, `device`, `coarse_centroids` (IVF), `initial`, `recipe`, `progress`,
                `on_report`, and the fields of ModelConfig, EncodeOptions and TrainOptions (`num_steps`, ...). Give
                `minutes`, which all of it may take, or `epochs`; with neither, training ends when it pays no more.

        Raises:
            ConfigError, DataError: before any work begins.
            KeyboardInterrupt: with an attribute `codec`, the best so far (None before the first validation):
                `except KeyboardInterrupt as stop: codec = stop.codec`; in Jupyter `sys.last_value.codec`.
        """
        with needs_extra("training", "torch", "train"):
            from qinco.codec.fit import fit
        if isinstance(initial := settings.get("initial"), str | os.PathLike):
            settings["initial"] = cls.load(initial)
        try:
            models, rotation_DD, options, provenance = fit(x, preset, **settings)
        except (KeyboardInterrupt, ConfigError) as stop:
            if found := getattr(stop, "fitted", None):
                found = cls(found[0], found[2], found[3], found[1])
            vars(stop)["codec"] = found
            raise
        return cls(models, options, provenance, rotation_DD)

    def with_options(self, options: EncodeOptions | None = None, **settings) -> "Codec":
        """The same codec with other options for encoding; raises ConfigError if the models cannot serve them.

        `settings` replace some of them (the codec's own if None): `codec.with_options(num_pairs=64, beam_width=32)`.
        """
        options = (options or self.encode_options).override(**by_field(settings, EncodeOptions))
        return Codec(self.weights, options, self.provenance, self.rotation_DD)._on(self.device)

    def fingerprint(self) -> str:
        """SHA-256 of the architecture and all weights: codes belong to the codec of the same fingerprint."""
        joined = "".join(weights.fingerprint() for weights in self.weights)
        rotation = b"" if self.rotation_DD is None else self.rotation_DD.tobytes()
        return joined if len(self.weights) == 1 else sha256(joined.encode() + rotation).hexdigest()

    def to(self, device: "str | torch.device") -> "Codec":
        """Move the codec to a device ("auto", "cpu", "cuda", "cuda:N") and return it."""
        device = choose_device(device)
        if device != CPU:
            device = str(to_device(np.empty(0), device).device)  # with its number
        for weights in self.weights if device != self.device else ():
            weights.models.pop(self.device, None)
        return self._on(device)

    def save(self, path, *, overwrite: bool = True) -> None:
        """Write one safetensors file, whole or not at all; a .pt file is a checkpoint of the authors' code.

        Args:
            path: of the file, or a binary file object, which a safetensors file is written to.
            overwrite: replace a file that is there.
        """
        if hasattr(path, "write"):
            return write_content(path, self.to_bytes())
        file = check_output(path, suffixes=SUFFIXES, overwrite=overwrite)
        save_models(file, self.weights, self.rotation_DD, self.encode_options, self.provenance)

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        with TemporaryDirectory() as folder:
            self.save(file := Path(folder, "codec.safetensors"))
            return file.read_bytes()

    @classmethod
    def load(cls, path, device: "str | torch.device" = CPU) -> "Codec":
        """Read a codec that `save`, or the authors' code, wrote; executes no code.

        Args:
            path: of the file, its content as bytes, or a binary file object.
            device: "cpu", "cuda", "cuda:N" or "auto".
        """
        target = choose_device(device)
        with readable(path, "codec") as file:
            weights, rotation_DD, options, provenance = load_models(file)
        return cls(weights, options, provenance, rotation_DD).to(target)

    @classmethod
    def from_bytes(cls, content: bytes, device: "str | torch.device" = CPU) -> "Codec":
        """Read what `to_bytes` returned; see `load`."""
        return cls.load(content, device)

    @accepts_keys(ModelConfig, EncodeOptions)
    def encode(
        self, x, *, num_candidates: int | None = None, num_pairs: int | None = None, beam_width: int | None = None,
        precision: str | None = None, num_steps: int | None = None, progress: ProgressOption = None,
    ) -> Codes:  # fmt: skip
        """Search the codes of vectors (QINCo2 paper, section 3.2). Options that are not given are as in training.

        Args:
            x: (N, D) array, tensor, path or VectorSource of any float or integer type, all values finite.
            num_candidates: A, codewords proposed for each hypothesis; 0: all are tried.
            num_pairs: C, (hypothesis, codeword) pairs proposed over the whole beam; instead of A.
            beam_width: B, hypotheses kept.
            precision: "auto", "float32" or "bf16", of the candidates.
            num_steps: encode so many steps only: the best code of that length.
            progress: see `qinco.progress`.

        Returns:
            Codes, uint8 (N, M), uint16 above 256 codewords; with int32 list numbers (N,) for an IVF codec.

        Raises:
            KeyboardInterrupt: with an attribute `codes`, the Codes of the first vectors, whose blocks are complete.
        """
        source, options = as_source(x), self.encode_options.override(num_candidates, num_pairs, beam_width, precision)
        shape = len(source), self.check_steps(num_steps) * len(self.weights)
        codes_NM = np.empty(shape, code_dtype(self.config.codebook_size))
        lists_N = np.empty(len(source), np.int32) if self.is_ivf else None
        with reporting(progress) as report:
            done = 0
            try:
                for first, block in self.encode_blocks(source, options, num_steps):
                    part = slice(first, first + len(block))
                    codes_NM[part] = block.codes
                    if lists_N is not None:
                        lists_N[part] = np.asarray(block.lists)
                    done = part.stop
                    report("encoding", done, len(source))
            except KeyboardInterrupt as stop:
                vars(stop)["codes"] = Codes(codes_NM[:done], None if lists_N is None else lists_N[:done])
                raise
        return Codes(codes_NM, lists_N)

    def encode_blocks(
        self, source: VectorSource, options: EncodeOptions | None = None, num_steps: int | None = None,
        ranges: Sequence[range] | None = None,
    ) -> Generator[tuple[int, Codes], None, None]:  # fmt: skip
        """Encode consecutive blocks of a source, in bounded memory; of less than a second on the CPU.

        Args:
            source: (N, D) vectors.
            options: the codec's own if None.
            num_steps: as for `encode`.
            ranges: of rows (all if None), one after the other; no block reaches from one into the next.

        Yields:
            The first row of a block, and its Codes.
        """
        options = options or self.encode_options
        options.check_model(self.config)
        self.check_dim(source)
        self.check_steps(num_steps)
        if ranges is None and len(source) > self.block_rows:
            check_values(source)  # before there is work to lose
        packings, width = self.packings(options.precision, options.engine), self.config.dim
        # The next block is read, checked and sent while this one is encoded.
        blocks = (
            (rows.start + first, [p.send(cut(block_ND, i, width, self.rotation_DD)) for i, p in enumerate(packings)])
            for rows in ([range(len(source))] if ranges is None else ranges)
            for first, block_ND in source.window(rows.start, rows.stop).blocks(self.block_rows)
        )
        size = min(_LEAST_ROWS, self.block_rows) if self.device == CPU else self.block_rows
        for first, sent in read_ahead(blocks) if len(source) > self.block_rows else blocks:
            lists, end = self.assign_lists(sent[0]), 0
            while end < len(sent[0]):
                part, begun = slice(end, end + size), time.monotonic()
                lists_N, end = None if lists is None else lists[part], min(end + size, len(sent[0]))
                found = [p.encode(x[part], lists_N, options, num_steps) for p, x in zip(packings, sent, strict=True)]
                if time.monotonic() - begun < _LEAST_SECONDS:
                    size = min(4 * size, self.block_rows)
                yield first + part.start, Codes(np.concatenate(found, 1), lists_N)

    def assign_lists(self, x_ND: "np.ndarray | torch.Tensor") -> np.ndarray | None:
        """The nearest coarse centroid of float32 vectors (N, D): int32 (N,); None without IVF."""
        if not self.is_ivf:
            return None
        if isinstance(x_ND, np.ndarray):
            check_finite(x_ND)
        if self._assigner is None:
            self._assigner = assigner(self.weights[0].coarse_centroids_VD, self.device)
        if self.device == CPU:
            return self._assigner(self.weights[0].normalize(np.asarray(x_ND))).astype(np.int32)
        x_ND = to_device(x_ND, self.device) if isinstance(x_ND, np.ndarray) else x_ND
        return self._assigner(self.models[0].normalize(x_ND)).astype(np.int32)

    def decode(self, codes, lists=None, *, precision: str = "float32", progress: ProgressOption = None) -> np.ndarray:
        """Reconstruct vectors from codes.

        Args:
            codes: (N, m) Codes, array, tensor or lists of integers, m ≤ M: the first steps are a code of their own (see
                `prefix`); or a pair of codes and lists; or a path (see `Codes.load`).
            lists: (N,) integers, for an IVF codec whose codes are given without them; for a path another path.
            precision: "float32", "bf16", or "auto": bf16 where it is fast.
            progress: see `qinco.progress`.

        Returns:
            float32 (N, D).
        """
        codes = self.check_codes(codes, lists)
        packings, decoded_ND = self.packings(precision), np.empty((len(codes), self.dim), np.float32)
        with reporting(progress) as report:
            for first, block in codes.blocks(self.block_rows):
                self._decode(packings, block, decoded_ND[first : first + len(block)])
                report("decoding", first + len(block), len(codes))
        return decoded_ND

    def decode_blocks(self, codes, precision: str = "float32") -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 reconstructions) for consecutive blocks of codes that `check_codes` has passed."""
        packings = self.packings(precision)
        for first, block in Codes.of(codes).blocks(self.block_rows):
            yield first, self._decode(packings, block)

    def decode_tensors(self, codes, precision: str = "float32") -> "Iterator[tuple[int, torch.Tensor]]":
        """`decode_blocks` with tensors on the codec's device."""
        import torch

        if self.device == CPU:
            yield from ((first, torch.from_numpy(x_ND)) for first, x_ND in self.decode_blocks(codes, precision))
            return
        packings: list[Any] = self.packings(precision)  # each a TensorModel, see Engine
        for first, block in Codes.of(codes).blocks(self.block_rows):
            parts = zip(packings, np.split(block.codes, len(packings), 1), strict=True)
            x_ND = torch.cat([packed.reconstruct(codes_NM, block.lists) for packed, codes_NM in parts], 1)
            yield first, x_ND if self.rotation_DD is None else x_ND @ to_device(self.rotation_DD, x_ND.device)

    def decode_prefixes(self, codes) -> Iterator[np.ndarray]:
        """Yield what the first 1, 2, ... steps of codes (N, M) decode to, float32 (N, D)."""
        codes, packings = Codes.of(codes), self.packings("float32")
        parts = zip(packings, np.split(codes.codes, len(packings), 1), strict=True)
        for reached in zip(*(packed.prefixes(part_NM, codes.lists) for packed, part_NM in parts), strict=True):
            yield join(reached, self.rotation_DD)

    def _decode(self, packings: list[Packed], codes: Codes, out_ND: np.ndarray | None = None) -> np.ndarray:
        if len(packings) == 1:
            return packings[0].decode(codes.codes, codes.lists, out_ND)
        parts = zip(packings, np.split(codes.codes, len(packings), 1), strict=True)
        return join([packed.decode(codes_NM) for packed, codes_NM in parts], self.rotation_DD, out_ND)

    def prefix(self, codes, num_steps: int):
        """Shorten codes (an array, tensor or Codes) to their first `num_steps` steps, which decode on their own."""
        codes = codes if hasattr(codes, "shape") else Codes.of(codes)
        count, parts = self.check_steps(num_steps), len(self.weights)
        return codes[:, :count] if parts == 1 else codes[:, first_steps(parts, codes.shape[1] // parts, count)]

    def check_codes(self, codes, lists=None) -> Codes:
        """Codes of any kind that `decode` takes, as Codes; raises DataError unless they are ones of this codec."""
        if isinstance(codes, str | os.PathLike):
            codes, lists = Codes.load(codes, self, lists=lists), None
        codes, count = Codes.of(codes, lists), len(self.weights)
        if self.is_ivf and not codes.has_lists:
            raise DataError("codes of an IVF codec are decoded with their list numbers: give lists")
        if codes.has_lists and not self.is_ivf:
            raise DataError("lists were given, but this codec has none: it was trained without coarse centroids")
        if codes.shape[1] % count:
            raise DataError(f"codes must have a multiple of {count} columns, for equal parts, not {codes.shape[1]}")
        check_range(codes, self.num_codes, self.config.codebook_size, self.config.num_lists)
        return codes

    def check_dim(self, source: VectorSource) -> None:
        """Raise DataError unless the source's vectors have the codec's dimension."""
        check_dim(source, self.dim, "the codec")

    def packings(self, precision: str, engine: str | None = None) -> list[Packed]:
        """The models packed by an engine, once for each precision."""
        chosen = choose_engine(engine or self.encode_options.engine, self.config, self.device)
        key = chosen.name, candidate_precision(precision, self.device, self.config)
        if key not in self._packings:
            self._packings[key] = [chosen.pack(weights, key[1], self.device) for weights in self.weights]
        return self._packings[key]

    def check_steps(self, num_steps: int | None) -> int:
        """The number of steps to use, M if None; raises ConfigError if the model has fewer."""
        if num_steps is not None:
            require_int("num_steps (prefix)", num_steps, 1, self.config.num_steps)
        return num_steps or self.config.num_steps
