"""The network of one step: codeword and partial reconstruction in, implicit codeword out (QINCo2 paper, section 3.1).

Shape suffixes: N rows, D dimension, E width of the residual stream, H hidden width, K codewords.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qinco.config import ModelConfig
from qinco.model.weights import RANKER


class ResidualBlock(nn.Module):
    """e + down(relu(up e)), without biases."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.up = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, embed_dim, bias=False)

    def forward(self, e_NE: Tensor) -> Tensor:
        return e_NE + self.down(functional.relu(self.up(e_NE)))


class Concat(nn.Module):
    """W [z; x̂] + b, as the sum of the contributions of z (b among it) and x̂, (N, E).

    With `rank`, W is the product of two matrices and there is no b (QINCo-LR).
    """

    def __init__(self, embed_dim: int, dim: int, rank: int | None):
        super().__init__()
        self.embed_dim = embed_dim
        self.inner = None if rank is None else nn.Linear(embed_dim + dim, rank, bias=False)
        self.outer = nn.Linear(rank or embed_dim + dim, embed_dim, bias=rank is None)

    def matrix(self) -> Tensor:
        """W, (E, E + D)."""
        return self.outer.weight if self.inner is None else self.outer.weight @ self.inner.weight

    def from_codeword(self, z_NE: Tensor) -> Tensor:
        return self._part(z_NE, slice(None, self.embed_dim), self.outer.bias)

    def from_reconstruction(self, x_ND: Tensor) -> Tensor:
        return self._part(x_ND, slice(self.embed_dim, None), None)

    def _part(self, rows: Tensor, columns: slice, bias: Tensor | None) -> Tensor:
        if self.inner is None:
            return functional.linear(rows, self.outer.weight[:, columns], bias)
        return functional.linear(functional.linear(rows, self.inner.weight[:, columns]), self.outer.weight, bias)


class Ranker(nn.Module):
    """A cheap estimate of the error of a pair of hypothesis and codeword, from the network's first hidden layer φ.

    Linear in φ and x̂, f is about c' + P_out (A x̂ + Q φ), and its squared length about b + g·x̂ + v·φ + s·φ². The error
    that these make, of a residual r, is ‖r‖² - 2 r·(c' + P_out (A x̂ + Q φ)) + b + g·x̂ + v·φ + s·φ². All are zeros until
    `qinco.training.rankers` fits them; the optimizer leaves them alone.
    """

    codebook: Tensor  # c', (K, D)
    offset: Tensor  # b, (K,)
    map: Tensor  # A, (E, D)
    slope: Tensor  # g, (D,)
    hidden_map: Tensor  # Q, (E, H)
    hidden_slope: Tensor  # v, (H,)
    hidden_square: Tensor  # s, (H,)

    def __init__(self, config: ModelConfig):
        super().__init__()
        size, dim, width, hidden = config.codebook_size, config.dim, config.embed_dim, config.hidden_dim
        shapes = (size, dim), (size,), (width, dim), (dim,), (width, hidden), (hidden,), (hidden,)
        for name, shape in zip(RANKER, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape))
        self._fitted: tuple[tuple[int, int], bool] | None = None

    @property
    def is_fitted(self) -> bool:
        # A GPU is asked again only after a change: to wait for it in every training step would take long.
        state = self.offset.data_ptr(), self.offset._version
        if self._fitted is None or self._fitted[0] != state:
            self._fitted = state, bool(self.offset.any())
        return self._fitted[1]

    @torch.no_grad()
    def clear(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()


def _codebook(config: ModelConfig) -> nn.Embedding:
    """A codebook without values: initialising one takes a second on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(config.codebook_size, config.dim), freeze=False)


class Step(nn.Module):
    """One quantization step: its codebooks and, where the step is conditioned, its network."""

    def __init__(self, config: ModelConfig, number: int):
        super().__init__()
        self.codeword_skip, self.conditioned = config.codeword_skip, config.is_conditioned(number)
        conditioned = self.conditioned
        self.codebook = _codebook(config)
        self.preselector = _codebook(config) if conditioned and config.has_preselector else None
        self.ranker = Ranker(config) if config.is_ranked(number) else None
        if not conditioned:
            return
        self.project_in = nn.Linear(config.dim, config.embed_dim, bias=False) if config.projects else None
        self.project_out = nn.Linear(config.embed_dim, config.dim, bias=False) if config.projects else None
        self.concat = Concat(config.embed_dim, config.dim, config.concat_rank)
        blocks = (ResidualBlock(config.embed_dim, config.hidden_dim) for _ in range(config.num_blocks))
        self.blocks: tuple[ResidualBlock, ...] = nn.ModuleList(blocks)  # pyright: ignore[reportAttributeAccessIssue]

    def embed(self, c_ND: Tensor) -> Tensor:
        """The stream before the reconstruction's contribution, z + W_z z + b with z = P_in c: (N, E)."""
        z_NE = c_ND if self.project_in is None else self.project_in(c_ND)
        return z_NE + self.concat.from_codeword(z_NE)

    def refine(self, e_NE: Tensor) -> Tensor:
        for block in self.blocks:
            e_NE = block(e_NE)
        return e_NE

    def finish(self, e_NE: Tensor, c_ND: Tensor) -> Tensor:
        """The implicit codeword from the end of the stream: (N, D)."""
        f_ND = e_NE if self.project_out is None else self.project_out(e_NE)
        return c_ND + f_ND if self.codeword_skip else f_ND

    def forward(self, codes_N: Tensor, x_ND: Tensor) -> Tensor:
        """The implicit codewords f(c, x̂) of `codes_N` (int64, (N,)) given the reconstructions so far: (N, D)."""
        c_ND = self.codebook(codes_N)
        if not self.conditioned:
            return c_ND
        return self.finish(self.refine(self.embed(c_ND) + self.concat.from_reconstruction(x_ND)), c_ND)

    @torch.no_grad()
    def initialize(self, codebook_KD: Tensor, exact: bool, generator: torch.Generator) -> None:
        """Initialise the weights from a residual quantizer's codebook, float32 (K, D).

        The concatenation and the down-projections of the blocks are zero. With `exact`, f(c, x̂) is row c of
        `codebook_KD` for every x̂: P_out is zero or, without projections, where the codeword enters both the stream and
        the skip, the codewords are halved. Otherwise f is as in the published code: twice the codeword, or the codeword
        and noise. The remaining weights are drawn on the CPU.
        """

        def draw(linear: nn.Linear) -> None:
            shape = linear.weight.shape
            linear.weight.copy_(nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=generator))

        halved = exact and self.conditioned and self.codeword_skip and self.project_in is None
        self.codebook.weight.copy_(codebook_KD / 2 if halved else codebook_KD)
        if not self.conditioned:
            return
        if self.preselector is not None:
            self.preselector.weight.copy_(codebook_KD)
        if self.ranker is not None:
            self.ranker.clear()
        for parameter in self.concat.outer.parameters():
            parameter.zero_()
        if self.concat.inner is not None:
            draw(self.concat.inner)
        for block in self.blocks:
            draw(block.up)
            block.down.weight.zero_()
        if self.project_in is not None and self.project_out is not None:
            draw(self.project_in)
            draw(self.project_out)
            if exact:
                self.project_out.weight.zero_()


class StepTables:
    """The factored form of a `Step` for many candidates; equal to it but for rounding.

    The concatenation and the first up-projection, which are linear in (codeword, x̂), become a table over codewords and
    one product per hypothesis. The step's weights must not change meanwhile. `dtype` is that of the candidates'
    products; with `tabulate`, the codewords' contributions are computed once, otherwise for the candidates of a call.
    """

    def __init__(self, step: Step, dtype: torch.dtype, tabulate: bool):
        self.step, self.dtype, self.codebook_KD = step, dtype, step.codebook.weight
        self.proposals_KD = None if step.preselector is None else step.preselector.weight
        self.ranker = step.ranker if step.ranker is not None and step.ranker.is_fitted else None
        if step.conditioned:
            self.blocks = [(block.up.weight.to(dtype), block.down.weight.to(dtype)) for block in step.blocks]
            self.out_DE = None if step.project_out is None else step.project_out.weight.to(dtype)
            self.table_KE, self.table_KH = self._rows(self.codebook_KD) if tabulate else (None, None)

    def _rows(self, c_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        e_NE = self.step.embed(c_ND)
        h_NH = self.step.blocks[0].up(e_NE).to(self.dtype) if self.blocks else None
        return e_NE.to(self.dtype), h_NH

    def codeword_parts(self, codes_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """The codewords' contributions to the stream (N, E) and to the first hidden layer (N, H)."""
        if self.table_KE is None:
            return self._rows(self.codebook_KD.index_select(0, codes_N))
        h_NH = None if self.table_KH is None else self.table_KH.index_select(0, codes_N)
        return self.table_KE.index_select(0, codes_N), h_NH

    def reconstruction_parts(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """The partial reconstructions' contributions, (N, E) and (N, H), computed once per hypothesis."""
        with torch.autocast(x_ND.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            v_NE = self.step.concat.from_reconstruction(x_ND)
            return v_NE, self.step.blocks[0].up(v_NE) if self.blocks else None

    def estimate(self, codes_N: Tensor, rows_N: Tensor, x_ND: Tensor, residual_ND: Tensor, parts) -> Tensor:
        """The ranker's estimates of squared errors (N,), as `evaluate`; x̂ and residuals are those of `parts`' rows."""
        ranker, (_, u_BH) = self.ranker, parts
        assert ranker is not None
        own_B = residual_ND.square().sum(1) + x_ND @ ranker.slope
        project_out = self.step.project_out
        back_BE = residual_ND if project_out is None else residual_ND @ project_out.weight
        own_B -= 2 * (back_BE * functional.linear(x_ND, ranker.map)).sum(1)
        q_BH = ranker.hidden_slope - 2 * back_BE @ ranker.hidden_map
        h_NH = (self.codeword_parts(codes_N)[1] + u_BH.index_select(0, rows_N)).relu_().float()
        of_hidden_N = (h_NH * (q_BH.index_select(0, rows_N) + ranker.hidden_square * h_NH)).sum(1)
        products_N = (residual_ND.index_select(0, rows_N) * ranker.codebook.index_select(0, codes_N)).sum(1)
        own_N = own_B.index_select(0, rows_N) + ranker.offset.index_select(0, codes_N)
        return own_N - 2 * products_N + of_hidden_N

    def evaluate(self, codes_N: Tensor, rows_N: Tensor, parts) -> Tensor:
        """f(c, x̂), float32 (N, D), of codes, int64 (N,), and of rows, int64 (N,), of `reconstruction_parts`."""
        v_BE, u_BH = parts
        e_NE, h_NH = self.codeword_parts(codes_N)
        e_NE = e_NE.add_(v_BE.index_select(0, rows_N))
        for j, (up_HE, down_EH) in enumerate(self.blocks):
            h_NH = functional.linear(e_NE, up_HE) if j or h_NH is None else h_NH.add_(u_BH.index_select(0, rows_N))
            e_NE = e_NE.add_(functional.linear(h_NH.relu_(), down_EH))
        f_ND = (e_NE if self.out_DE is None else functional.linear(e_NE, self.out_DE)).float()
        return f_ND.add_(self.codebook_KD.index_select(0, codes_N)) if self.step.codeword_skip else f_ND
