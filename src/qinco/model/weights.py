"""A model as plain arrays: what is stored, and what engines are made of.

Shape suffixes: N vectors, D dimension, E width of the residual stream, H hidden width, K codewords, V lists.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from qinco.config import ModelConfig
from qinco.errors import DataError


class Weights:
    """The architecture of a model and its arrays, float32, by the names of `weight_shapes`."""

    def __init__(self, config: ModelConfig, arrays: Mapping[str, np.ndarray]):
        self.config, self.arrays = config, dict(arrays)
        self.models: dict[str, Any] = {}  # by device, see `qinco.model.qinco.Qinco.of`

    def __getstate__(self) -> dict:
        """What is copied and pickled: not what is made again when it is needed."""
        return self.__dict__ | {"models": {}}

    @property
    def mean_D(self) -> np.ndarray:
        return self.arrays["mean"]

    @property
    def scale(self) -> np.float32:
        return np.float32(self.arrays["scale"])

    @property
    def coarse_centroids_VD(self) -> np.ndarray:
        """In normalised space."""
        return self.arrays["coarse_centroids"]

    def fingerprint(self) -> str:
        """SHA-256 of the architecture and all weights."""
        digest = sha256(repr(sorted(self.config.to_dict().items())).encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    def normalize(self, x_ND: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # of vectors near the limit of float32
            return (x_ND - self.mean_D) / self.scale

    def denormalize(self, x_ND: np.ndarray, out_ND: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.add(np.multiply(x_ND, self.scale, out=out_ND), self.mean_D, out=out_ND)

    def start(self, lists_N: np.ndarray | None) -> np.ndarray | None:
        """The reconstructions before the first step: None for zeros, or the coarse centroids (N, D) of `lists_N`."""
        return self.coarse_centroids_VD[lists_N] if self.config.starts_from_coarse else None

    def step(self, number: int) -> "StepWeights":
        """The arrays of one step."""
        return StepWeights(self.config, self.arrays, f"steps.{number}.")


RANKER = ("codebook", "offset", "map", "slope", "hidden_map", "hidden_slope", "hidden_square")


class StepWeights:
    """The arrays of one step; None, or none of them, where a model has no such layer. See `qinco.model.step.Step`."""

    def __init__(self, config: ModelConfig, arrays: Mapping[str, np.ndarray], prefix: str):
        def array(name: str) -> np.ndarray | None:
            return arrays.get(f"{prefix}{name}")

        self.codebook_KD = arrays[f"{prefix}codebook.weight"]
        self.preselector_KD = array("preselector.weight")
        found = {name: array(f"ranker.{name}") for name in RANKER}
        self.ranker = {name: value for name, value in found.items() if value is not None}
        self.conditioned = f"{prefix}concat.outer.weight" in arrays
        self.project_in_ED, self.project_out_DE = array("project_in.weight"), array("project_out.weight")
        self.outer, self.outer_bias_E, self.inner = (
            array(f"concat.{name}") for name in ("outer.weight", "outer.bias", "inner.weight")
        )
        blocks = range(config.num_blocks if self.conditioned else 0)
        self.up = [arrays[f"{prefix}blocks.{block}.up.weight"] for block in blocks]
        self.down = [arrays[f"{prefix}blocks.{block}.down.weight"] for block in blocks]

    def concat(self, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The concatenation's matrices for the codeword, (E, E), and for the reconstruction, (E, D)."""
        assert self.outer is not None
        joint = self.outer.astype(dtype) if self.inner is None else self.outer.astype(dtype) @ self.inner.astype(dtype)
        return joint[:, : len(joint)], joint[:, len(joint) :]

    def embed(self, dtype: type = np.float32) -> np.ndarray:
        """The codewords' contributions to the stream, z + W_z z + b with z = P_in c: (K, E)."""
        codebook_KD, (codeword_EE, _) = self.codebook_KD.astype(dtype), self.concat(dtype)
        z_KE = codebook_KD if self.project_in_ED is None else codebook_KD @ self.project_in_ED.astype(dtype).T
        e_KE = z_KE + z_KE @ codeword_EE.T
        return e_KE if self.outer_bias_E is None else e_KE + self.outer_bias_E.astype(dtype)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's arrays, those of the state of a `qinco.model.qinco.Qinco`."""
    dim, width, hidden, size = config.dim, config.embed_dim, config.hidden_dim, config.codebook_size
    shapes: dict[str, tuple[int, ...]] = {"mean": (dim,), "scale": ()}
    if config.starts_from_coarse:
        shapes["coarse_centroids"] = config.num_lists, dim
    for number in range(config.num_steps):
        step: dict[str, tuple[int, ...]] = {"codebook": (size, dim)}
        if config.is_conditioned(number):
            step |= {"preselector": (size, dim)} if config.has_preselector else {}
            if config.is_ranked(number):
                of_ranker = ((size, dim), (size,), (width, dim), (dim,), (width, hidden), (hidden,), (hidden,))
                named = zip(RANKER, of_ranker, strict=True)
                shapes |= {f"steps.{number}.ranker.{name}": shape for name, shape in named}
            step |= {"project_in": (width, dim), "project_out": (dim, width)} if config.projects else {}
            step["concat.outer"] = width, config.concat_rank or width + dim
            step |= {"concat.inner": (config.concat_rank, width + dim)} if config.concat_rank else {}
            for block in range(config.num_blocks):
                step |= {f"blocks.{block}.up": (hidden, width), f"blocks.{block}.down": (width, hidden)}
            if not config.concat_rank:
                shapes[f"steps.{number}.concat.outer.bias"] = (width,)
        shapes |= {f"steps.{number}.{name}.weight": shape for name, shape in step.items()}
    return shapes


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Random weights, with which values neither grow nor vanish with depth, to measure speed."""
    generator, arrays = np.random.default_rng(seed), {}
    for name, shape in weight_shapes(config).items():
        width = shape[-1] if shape else 1
        arrays[name] = generator.standard_normal(shape, np.float32) * np.float32(0.5 / np.sqrt(width))
    return Weights(config, arrays | {"scale": np.ones((), np.float32)})


def check_promise(path, config: ModelConfig, num_tensors: int) -> None:
    """Raise DataError if a file has fewer tensors than its configuration needs, before anything is allocated."""
    conditioned = config.num_steps - (not config.starts_from_coarse)
    if config.num_steps + 2 * conditioned * config.num_blocks > num_tensors:
        raise DataError(f"{path} does not fit its configuration: it has only {num_tensors} tensors")


def check_shapes(path, tensors: Mapping, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise DataError unless `tensors` (whatever has a shape) has the names and shapes of `expected`."""
    misfit = f"{path} does not fit its configuration: tensor"
    for name in sorted(set(tensors) ^ set(expected)):
        raise DataError(f"{misfit} {name} is {'unexpected' if name in tensors else 'missing'}")
    for name, wanted in expected.items():
        if (found := tuple(tensors[name].shape)) != wanted:
            raise DataError(f"{misfit} {name} is {found}, not {wanted}")


def check_values(path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise DataError unless all arrays are float32 and finite."""
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise DataError(f"{path} does not fit its configuration: tensor {name} is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise DataError(f"{path} is damaged: tensor {name} holds values that are not finite")


def check_scale(path, weights: Weights) -> None:
    """Raise DataError unless the scale that vectors are divided by is positive and finite."""
    if not 0 < weights.scale < np.inf:
        raise DataError(f"{path} is damaged: its scale is {weights.scale}")
