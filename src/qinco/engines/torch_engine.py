"""The torch engine: readable, on any device, and what every other engine is tested against.

It works in normalised space. Two exact rearrangements keep the work per candidate small: the concatenation and the
first block's up-projection are linear in (codeword, x̂), so they become one table over codewords and one product per
hypothesis; and vectors walk through all steps in tiles, on the processor small enough that a tile's candidates stay in
the cache, on other devices large enough that starting an operation takes less than doing it.

Shape suffixes: N vectors of a tile, D dimension, M steps, K codewords, B hypotheses, C candidates (pairs of a
hypothesis and a codeword), E stream width, H hidden width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from qinco.config import EncodeOptions
from qinco.maths.distances import smallest, squared_distances
from qinco.model.qinco import Qinco
from qinco.model.step import Step

TILE_CANDIDATES = 4096
TILE_DISTANCES = 1 << 21
DEVICE_TILE_BYTES = 1 << 30
TABLE_BYTES = 1 << 28


class StepTables:
    """One step's weights in the candidates' dtype, and its tables over codewords where they are not too large."""

    def __init__(self, step: Step, dtype: torch.dtype, tabulate: bool):
        self.step = step
        self.dtype = dtype
        codebook_KD = step.codebook.weight
        self.codebook_KD = codebook_KD
        self.proposals_KD = None if step.preselector is None else step.preselector.weight
        if step.conditioned:
            self.blocks = [(block.up.weight.to(dtype), block.down.weight.to(dtype)) for block in step.blocks]
            self.out_DE = None if step.project_out is None else step.project_out.weight.to(dtype)
            self.table_KE, self.table_KH = self._rows(codebook_KD) if tabulate else (None, None)

    def _autocast(self, like: Tensor):
        return torch.autocast(like.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _rows(self, c_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        e_NE = self.step.embed(c_ND)
        h_NH = self.step.blocks[0].up(e_NE).to(self.dtype) if self.blocks else None
        return e_NE.to(self.dtype), h_NH

    def codeword_parts(self, codes_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stream's beginning (N, E) and the first hidden layer's part (N, H) that come from the codewords."""
        if self.table_KE is None:
            return self._rows(self.codebook_KD.index_select(0, codes_N))
        h_NH = None if self.table_KH is None else self.table_KH.index_select(0, codes_N)
        return self.table_KE.index_select(0, codes_N), h_NH

    def reconstruction_parts(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parts that come from the partial reconstruction, (N, E) and (N, H): once per hypothesis."""
        with self._autocast(x_ND):
            v_NE = self.step.concat.from_reconstruction(x_ND)
            u_NH = self.step.blocks[0].up(v_NE) if self.blocks else None
        return v_NE, u_NH

    def evaluate(self, codes_N: Tensor, hypotheses_N: Tensor, parts) -> Tensor:
        """f(c, x̂) for candidate codes and the rows of `parts` that their hypotheses have: float32 (N, D)."""
        v_BE, u_BH = parts
        e_NE, h_NH = self.codeword_parts(codes_N)
        e_NE = e_NE.add_(v_BE.index_select(0, hypotheses_N))
        for j, (up_HE, down_EH) in enumerate(self.blocks):
            h_NH = h_NH.add_(u_BH.index_select(0, hypotheses_N)) if j == 0 else functional.linear(e_NE, up_HE)
            e_NE = e_NE.add_(functional.linear(h_NH.relu_(), down_EH))
        f_ND = (e_NE if self.out_DE is None else functional.linear(e_NE, self.out_DE)).float()
        return f_ND.add_(self.codebook_KD.index_select(0, codes_N)) if self.step.codeword_skip else f_ND


class Encoder:
    """Searches codes for a model as it is now: make a new one after the weights have changed.

    `dtype` is that of candidates; distances, selections and reconstructions are float32.
    """

    @torch.no_grad()
    def __init__(self, model: Qinco, options: EncodeOptions, dtype: torch.dtype = torch.float32):
        config = model.config
        options.check_model(config)
        self.model = model
        self.options = options
        self.dtype = dtype
        row_bytes = (config.embed_dim + config.hidden_dim) * dtype.itemsize
        tabulate = config.num_steps * config.codebook_size * row_bytes <= TABLE_BYTES
        self.tables = [StepTables(step, dtype, tabulate) for step in model.steps]

    @torch.no_grad()
    def encode(self, x_ND: Tensor, start_ND: Tensor, num_steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Codes of normalised vectors from their starting points.

        Returns codes (N, num_steps), int64, and the reconstructions that the search arrived at, float32 (N, D).
        """
        tile = self._tile_size()
        tables = self.tables[:num_steps]
        if len(x_ND) == 0:
            return torch.empty(0, len(tables), dtype=torch.int64, device=x_ND.device), start_ND
        done = [self._encode_tile(x, s, tables) for x, s in zip(x_ND.split(tile), start_ND.split(tile), strict=True)]
        codes, reconstructions = zip(*done, strict=True)
        return torch.cat(codes), torch.cat(reconstructions)

    def _tile_size(self) -> int:
        """Vectors of a tile."""
        config, options = self.model.config, self.options
        beam = min(options.beam_width, config.codebook_size**config.num_steps)
        candidates = options.num_pairs or beam * (options.num_candidates or config.codebook_size)
        if self.model.device.type != "cpu":
            # The stream, a hidden layer and what becomes of each, the codeword, the residual and two of their sums;
            # the cheap distances, their groups' least and what is gathered of them.
            row_bytes = 2 * self.dtype.itemsize * (config.embed_dim + config.hidden_dim) + 16 * config.dim
            tile_bytes = candidates * row_bytes + 12 * beam * config.codebook_size
            return max(1, DEVICE_TILE_BYTES // tile_bytes)
        by_distances = TILE_DISTANCES // (beam * config.codebook_size)
        return max(1, min(TILE_CANDIDATES // candidates, by_distances))

    def _encode_tile(self, x_ND: Tensor, start_ND: Tensor, tables: list[StepTables]) -> tuple[Tensor, Tensor]:
        reached_NBD = start_ND[:, None]
        codes_NBM = torch.empty(len(x_ND), 1, 0, dtype=torch.int64, device=x_ND.device)
        for table in tables:
            step = self._first_step if not table.step.conditioned else self._step
            hypotheses_NB, chosen_NB, reached_NBD = step(table, x_ND, reached_NBD)
            kept_NBM = codes_NBM.gather(1, hypotheses_NB[..., None].expand(-1, -1, codes_NBM.shape[2]))
            codes_NBM = torch.cat([kept_NBM, chosen_NB[..., None]], 2)
        return codes_NBM[:, 0], reached_NBD[:, 0]

    def _first_step(self, table: StepTables, x_ND: Tensor, start_N1D: Tensor):
        """A bare codebook: the nearest codewords."""
        count = min(self.options.beam_width, len(table.codebook_KD))
        distances_NK = squared_distances(x_ND - start_N1D[:, 0], table.codebook_KD)
        chosen_NB = smallest(distances_NK, count)[1]
        return torch.zeros_like(chosen_NB), chosen_NB, start_N1D + table.codebook_KD[chosen_NB]

    def _step(self, table: StepTables, x_ND: Tensor, reached_NBD: Tensor):
        """A step with a network: propose, evaluate, keep the best. Returns hypotheses, codes and reconstructions."""
        num_vectors, beam, dim = reached_NBD.shape
        residual_NBD = x_ND[:, None] - reached_NBD
        hypotheses_NC, codes_NC = self._propose(table, residual_NBD)
        offsets_N1 = torch.arange(num_vectors, device=x_ND.device)[:, None] * beam
        rows = (hypotheses_NC + offsets_N1).flatten()
        parts = table.reconstruction_parts(reached_NBD.flatten(0, 1))
        f_ND = table.evaluate(codes_NC.flatten(), rows, parts)
        errors_ND = residual_NBD.flatten(0, 1).index_select(0, rows).sub_(f_ND)
        distances_NC = torch.linalg.vector_norm(errors_ND, dim=1).view(num_vectors, -1)
        winners_NB = smallest(distances_NC, min(self.options.beam_width, distances_NC.shape[1]))[1]
        hypotheses_NB = hypotheses_NC.gather(1, winners_NB)
        f_NBD = f_ND.view(num_vectors, -1, dim).gather(1, winners_NB[..., None].expand(-1, -1, dim))
        kept_NBD = reached_NBD.gather(1, hypotheses_NB[..., None].expand(-1, -1, dim))
        return hypotheses_NB, codes_NC.gather(1, winners_NB), kept_NBD + f_NBD

    def _propose(self, table: StepTables, residual_NBD: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates of each vector as (hypothesis, codeword), int64 (N, C) each."""
        num_vectors, beam, _ = residual_NBD.shape
        size, options = self.model.config.codebook_size, self.options
        if not options.preselects:
            pairs_C = torch.arange(beam * size, device=residual_NBD.device)
            pairs_NC = pairs_C.expand(num_vectors, -1)
            return pairs_NC // size, pairs_NC % size
        distances_NBK = self._cheap_distances(table, residual_NBD)
        if options.num_pairs is not None:
            pairs_NC = smallest(distances_NBK.flatten(1), min(options.num_pairs, beam * size))[1]
            return pairs_NC // size, pairs_NC % size
        # A step that starts from one hypothesis proposes enough codewords to fill the beam.
        count = max(options.num_candidates, options.beam_width) if beam == 1 else options.num_candidates
        codes_NBA = smallest(distances_NBK.flatten(0, 1), min(count, size))[1].view(num_vectors, beam, -1)
        hypotheses_B1 = torch.arange(beam, device=residual_NBD.device)[:, None]
        return hypotheses_B1.expand_as(codes_NBA).flatten(1), codes_NBA.flatten(1)

    @staticmethod
    def _cheap_distances(table: StepTables, residual_NBD: Tensor) -> Tensor:
        """‖r − c̃‖² of the pre-selector for all hypotheses and codewords: float32 (N, B, K)."""
        num_vectors, beam, _ = residual_NBD.shape
        return squared_distances(residual_NBD.flatten(0, 1), table.proposals_KD).view(num_vectors, beam, -1)


@torch.no_grad()
def decode(model: Qinco, codes_NM: Tensor, start_ND: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised reconstructions, float32 (N, D), of codes (int64; a prefix of the columns gives the shorter code)."""
    with torch.autocast(codes_NM.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        return model(codes_NM, start_ND)
