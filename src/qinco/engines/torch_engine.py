"""The torch engine: runs on any device, and is the reference for the tests of all other engines.

Candidates are evaluated with `StepTables`. Vectors pass through all steps in tiles: on the CPU small enough that the
candidates of a tile stay in the cache, on a GPU large enough that launching a kernel takes less time than running it.

Shape suffixes: N vectors of a tile, D dimension, M steps, K codewords, B hypotheses, C candidates (pairs of a
hypothesis and a codeword), E stream width, H hidden width.
"""

from functools import cached_property

import torch
from torch import Tensor

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines.tensors import TensorModel
from qinco.maths.distances import smallest, squared_distances
from qinco.model.qinco import Qinco
from qinco.model.step import StepTables
from qinco.model.weights import Weights

name = "torch"

TILE_CANDIDATES = 4096
TILE_DISTANCES = 1 << 21
DEVICE_TILE_BYTES = 1 << 30
SHORTLISTED, LAST_SHARE, LEAST_LAST = 4, 4, 16  # as in native/ranking.h
TABLE_BYTES = 1 << 28


def supports(config: ModelConfig, device: str) -> None:
    """The engine runs every model on every device."""


def pack(weights: Weights, precision: str, device: str) -> "TorchTensors":
    return pack_tensors(Qinco.of(weights, device), precision)


def pack_tensors(model: Qinco, precision: str) -> "TorchTensors":
    """A model with its current weights, for training."""
    return TorchTensors(model, torch.bfloat16 if precision == "bf16" else torch.float32)


def num_candidates(options: EncodeOptions, beam: int, is_cut: bool) -> int:
    """How many candidates a step evaluates: of the whole beam with C, else of each hypothesis.

    `is_cut` is the last step of a ranked model, which keeps one and evaluates fewer.
    """
    if options.num_pairs is not None:
        count = options.num_pairs
        return max(min(count, LEAST_LAST), -(-count // LAST_SHARE)) if is_cut else count
    # With one hypothesis, propose enough codewords to fill the beam.
    return max(options.num_candidates or 0, options.beam_width if beam == 1 else 0)


class TorchTensors(TensorModel):
    """A model, and its tables from the first encoding on. Distances, selection and reconstructions are float32.

    `dtype` is that of candidates in encoding and of products in decoding.
    """

    def __init__(self, model: Qinco, dtype: torch.dtype):
        super().__init__(model)
        self.dtype = dtype

    @cached_property
    def tables(self) -> list[StepTables]:
        """The factored form of each step, with tables over codewords unless these are too large."""
        config = self.model.config
        row_bytes = (config.embed_dim + config.hidden_dim) * self.dtype.itemsize
        tabulate = config.num_steps * config.codebook_size * row_bytes <= TABLE_BYTES
        return [StepTables(step, self.dtype, tabulate) for step in self.model.steps]

    @torch.no_grad()
    def encode_tensors(self, x_ND, start_ND, options: EncodeOptions, num_steps: int | None = None):
        tables = self.tables[:num_steps]
        if len(x_ND) == 0:
            return torch.empty(0, len(tables), dtype=torch.int64, device=x_ND.device), start_ND
        search = _Search(self.model, options, self.dtype)
        tile = search.tile_size()
        done = [search.run(x, s, tables) for x, s in zip(x_ND.split(tile), start_ND.split(tile), strict=True)]
        codes, reconstructions = zip(*done, strict=True)
        return torch.cat(codes), torch.cat(reconstructions)

    @torch.no_grad()
    def decode_tensors(self, codes_NM, start_ND):
        with torch.autocast(codes_NM.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            return self.model(codes_NM, start_ND)


class _Search:
    """Beam search over the steps, for one tile of vectors at a time (QINCo2 paper, section 3.2)."""

    def __init__(self, model: Qinco, options: EncodeOptions, dtype: torch.dtype):
        self.model, self.options, self.dtype = model, options, dtype

    def tile_size(self) -> int:
        config, options = self.model.config, self.options
        beam = min(options.beam_width, config.codebook_size**config.num_steps)
        candidates = options.num_pairs or beam * (options.num_candidates or config.codebook_size)
        if self.model.device.type != "cpu":
            # Per candidate: stream, hidden layer and a copy of each, codeword, residual and two sums. Per hypothesis:
            # the pre-selector's distances, minima of groups of them and what is gathered.
            row_bytes = 2 * self.dtype.itemsize * (config.embed_dim + config.hidden_dim) + 16 * config.dim
            if config.has_ranker:
                row_bytes += SHORTLISTED * (12 * config.hidden_dim + 8 * config.dim)
            tile_bytes = candidates * row_bytes + 12 * beam * config.codebook_size
            return max(1, DEVICE_TILE_BYTES // tile_bytes)
        by_distances = TILE_DISTANCES // (beam * config.codebook_size)
        return max(1, min(TILE_CANDIDATES // candidates, by_distances))

    def run(self, x_ND: Tensor, start_ND: Tensor, tables: list[StepTables]) -> tuple[Tensor, Tensor]:
        reached_NBD = start_ND[:, None]
        codes_NBM = torch.empty(len(x_ND), 1, 0, dtype=torch.int64, device=x_ND.device)
        for table in tables:
            if not table.step.conditioned:
                hypotheses_NB, chosen_NB, reached_NBD = self._first_step(table, x_ND, reached_NBD)
            else:
                is_last = table is tables[-1]
                hypotheses_NB, chosen_NB, reached_NBD = self._step(table, x_ND, reached_NBD, is_last)
            kept_NBM = codes_NBM.gather(1, hypotheses_NB[..., None].expand(-1, -1, codes_NBM.shape[2]))
            codes_NBM = torch.cat([kept_NBM, chosen_NB[..., None]], 2)
        return codes_NBM[:, 0], reached_NBD[:, 0]

    def _first_step(self, table: StepTables, x_ND: Tensor, start_N1D: Tensor):
        """A step without a network: the nearest codewords."""
        count = min(self.options.beam_width, len(table.codebook_KD))
        distances_NK = squared_distances(x_ND - start_N1D[:, 0], table.codebook_KD)
        chosen_NB = smallest(distances_NK, count)[1]
        return torch.zeros_like(chosen_NB), chosen_NB, start_N1D + table.codebook_KD[chosen_NB]

    def _step(self, table: StepTables, x_ND: Tensor, reached_NBD: Tensor, is_last: bool):
        """A step with a network: propose, evaluate, select. Returns hypotheses, codes and reconstructions."""
        num_vectors, beam, dim = reached_NBD.shape
        residual_NBD = x_ND[:, None] - reached_NBD
        count, is_ranked = num_candidates(self.options, beam, is_last and self._ranks(table)), self._ranks(table)
        hypotheses_NC, codes_NC = self._propose(table, residual_NBD, count * SHORTLISTED if is_ranked else count)
        offsets_N1 = torch.arange(num_vectors, device=x_ND.device)[:, None] * beam
        parts = table.reconstruction_parts(reached_NBD.flatten(0, 1))
        if is_ranked:
            rows = (hypotheses_NC + offsets_N1).flatten()
            states = reached_NBD.flatten(0, 1), residual_NBD.flatten(0, 1)
            estimates_NC = table.estimate(codes_NC.flatten(), rows, *states, parts).view_as(codes_NC)
            chosen_NC = self._ranked(estimates_NC, beam, count)
            hypotheses_NC, codes_NC = hypotheses_NC.gather(1, chosen_NC), codes_NC.gather(1, chosen_NC)
        rows = (hypotheses_NC + offsets_N1).flatten()
        f_ND = table.evaluate(codes_NC.flatten(), rows, parts)
        errors_ND = residual_NBD.flatten(0, 1).index_select(0, rows).sub_(f_ND)
        distances_NC = torch.linalg.vector_norm(errors_ND, dim=1).view(num_vectors, -1)
        winners_NB = smallest(distances_NC, min(self.options.beam_width, distances_NC.shape[1]))[1]
        hypotheses_NB = hypotheses_NC.gather(1, winners_NB)
        f_NBD = f_ND.view(num_vectors, -1, dim).gather(1, winners_NB[..., None].expand(-1, -1, dim))
        kept_NBD = reached_NBD.gather(1, hypotheses_NB[..., None].expand(-1, -1, dim))
        return hypotheses_NB, codes_NC.gather(1, winners_NB), kept_NBD + f_NBD

    def _ranks(self, table: StepTables) -> bool:
        return table.ranker is not None and self.options.preselects

    def _ranked(self, estimates_NC: Tensor, beam: int, count: int) -> Tensor:
        """The places of the smallest estimates: `count` of each vector with C, else of each hypothesis."""
        groups = 1 if self.options.num_pairs is not None else beam
        each = estimates_NC.shape[1] // groups
        chosen_NGC = smallest(estimates_NC.unflatten(1, (groups, each)).flatten(0, 1), min(count, each))[1]
        firsts_G1 = torch.arange(groups, device=estimates_NC.device)[:, None] * each
        return (chosen_NGC.view(len(estimates_NC), groups, -1) + firsts_G1).flatten(1)

    def _propose(self, table: StepTables, residual_NBD: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`count` candidates of each vector with C, else of each hypothesis: hypotheses and codes, int64 (N, C)."""
        num_vectors, beam, _ = residual_NBD.shape
        size, options = self.model.config.codebook_size, self.options
        if not options.preselects:
            pairs_C = torch.arange(beam * size, device=residual_NBD.device)
            pairs_NC = pairs_C.expand(num_vectors, -1)
            return pairs_NC // size, pairs_NC % size
        assert table.proposals_KD is not None
        # ‖r − c̃‖² of the pre-selector for all hypotheses and codewords
        distances_NBK = squared_distances(residual_NBD.flatten(0, 1), table.proposals_KD).view(num_vectors, beam, -1)
        if options.num_pairs is not None:
            pairs_NC = smallest(distances_NBK.flatten(1), min(count, beam * size))[1]
            return pairs_NC // size, pairs_NC % size
        codes_NBA = smallest(distances_NBK.flatten(0, 1), min(count, size))[1].view(num_vectors, beam, -1)
        hypotheses_B1 = torch.arange(beam, device=residual_NBD.device)[:, None]
        return hypotheses_B1.expand_as(codes_NBA).flatten(1), codes_NBA.flatten(1)
