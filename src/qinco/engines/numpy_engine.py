"""The numpy engine: decodes where there is neither a compiled engine nor torch, slowly; it does not encode.

Shape suffixes: N vectors, D dimension, M steps, K codewords, E stream width.
"""

import logging
from collections.abc import Iterator
from functools import cache

import numpy as np

from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError
from qinco.maths.devices import CPU
from qinco.model.weights import StepWeights, Weights

name = "numpy"

_LOG = logging.getLogger(__name__)
_REMEDY = "install qinco where a C++ compiler is, or pip install 'qinco[train]'"
_BLOCK_ROWS = 4096


def supports(config: ModelConfig, device: str) -> str | None:
    return None if device == CPU else f"it runs on the CPU, not on {device}"


def pack(weights: Weights, precision: str, device: str = CPU) -> "NumpyDecoder":
    _say_slow()
    return NumpyDecoder(weights)


@cache  # once
def _say_slow() -> None:
    _LOG.warning("the compiled engine is missing, and decoding by numpy is slow: %s", _REMEDY)


class NumpyDecoder:
    """A model that decodes in float32."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.steps = [weights.step(number) for number in range(weights.config.num_steps)]
        self.embeds = [step.embed() if step.conditioned else None for step in self.steps]

    def send(self, x_ND: np.ndarray) -> np.ndarray:
        return x_ND

    def encode(self, x_ND: np.ndarray, lists_N, options: EncodeOptions, num_steps: int | None = None) -> np.ndarray:
        raise ConfigError(f"encoding needs the compiled engine or torch: {_REMEDY}")

    def decode(self, codes_NM: np.ndarray, lists_N=None, out_ND: np.ndarray | None = None) -> np.ndarray:
        decoded_ND = np.empty((len(codes_NM), self.weights.config.dim), np.float32) if out_ND is None else out_ND
        for first in range(0, len(codes_NM), _BLOCK_ROWS):
            part = slice(first, first + _BLOCK_ROWS)
            for reached_ND in self.prefixes(codes_NM[part], None if lists_N is None else lists_N[part]):
                decoded_ND[part] = reached_ND
        return decoded_ND

    def prefixes(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Iterator[np.ndarray]:
        x_ND = self.weights.start(lists_N)
        x_ND = np.zeros((len(codes_NM), self.weights.config.dim), np.float32) if x_ND is None else x_ND
        for step, embed_KE, codes_N in zip(self.steps, self.embeds, np.asarray(codes_NM).T, strict=False):
            x_ND = x_ND + self._codewords(step, embed_KE, codes_N, x_ND)
            yield self.weights.denormalize(x_ND)

    @np.errstate(over="ignore", invalid="ignore")  # OpenBLAS sets these flags by lanes that it drops
    def _codewords(self, step: StepWeights, embed_KE: np.ndarray | None, codes_N, x_ND: np.ndarray) -> np.ndarray:
        """The implicit codewords f(c, x̂), float32 (N, D); as `qinco.model.step.Step` computes them."""
        c_ND = step.codebook_KD[codes_N]
        if embed_KE is None:
            return c_ND
        e_NE = embed_KE[codes_N] + x_ND @ step.concat()[1].T
        for up_HE, down_EH in zip(step.up, step.down, strict=True):
            e_NE = e_NE + np.maximum(e_NE @ up_HE.T, 0) @ down_EH.T
        f_ND = e_NE if step.project_out_DE is None else e_NE @ step.project_out_DE.T
        return c_ND + f_ND if self.weights.config.codeword_skip else f_ND
