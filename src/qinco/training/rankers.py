"""Rankers (`qinco.model.step.Ranker`) are fitted when training ends, by least squares, to outputs of the networks.

Shape suffixes: N vectors or pairs, D dimension, M steps, K codewords, E stream width, H hidden width, F features,
T targets.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from qinco.maths.distances import smallest, squared_distances
from qinco.model.qinco import Qinco
from qinco.model.step import Step

_NEAR = 4  # codewords beside that of the code, which pairs are made with
_RIDGE = 1e-3  # times the variance of a feature
_BLOCK_ROWS = 4096


class _WithinCodes:
    """Least squares of targets on features, with a constant of its own for each codeword."""

    def __init__(self, size: int, num_features: int, num_targets: int, device: torch.device):
        self.counts_K = torch.zeros(size, dtype=torch.float64, device=device)
        self.sums = torch.zeros(size, num_features + num_targets, dtype=torch.float64, device=device)
        self.products = torch.zeros(num_features, num_features + num_targets, dtype=torch.float64, device=device)

    def add(self, codes_N: Tensor, features_NF: Tensor, targets_NT: Tensor) -> None:
        both = torch.cat([features_NF, targets_NT], 1)
        self.counts_K.index_add_(0, codes_N, torch.ones_like(codes_N, dtype=torch.float64))
        self.sums.index_add_(0, codes_N, both.double())
        self.products += (features_NF.T @ both).double()

    def solve(self, prior_KT: Tensor | None) -> tuple[Tensor, Tensor]:
        """The coefficients (F, T) and the constants (K, T).

        Each codeword has one pair more, of mean features and of the targets `prior`, by default the mean ones.
        """
        num_features, counts_K1 = len(self.products), self.counts_K[:, None]
        within = self.products - self.sums[:, :num_features].T @ (self.sums / counts_K1.clamp(min=1))
        within_FF, within_FT = within[:, :num_features], within[:, num_features:]
        variances_F = within_FF.diagonal()
        ridge_FF = torch.diag(_RIDGE * variances_F + 1e-6 * variances_F.mean() + 1e-12)
        solved_FT = torch.linalg.solve(within_FF + ridge_FF, within_FT)
        mean = self.sums.sum(0) / self.counts_K.sum()
        means = self.sums + mean
        if prior_KT is not None:
            means[:, num_features:] += prior_KT.double() - mean[num_features:]
        means /= counts_K1 + 1
        return solved_FT.float(), (means[:, num_features:] - means[:, :num_features] @ solved_FT).float()


def clear_rankers(model: Qinco) -> None:
    for step in model.steps:
        if step.ranker is not None:
            step.ranker.clear()


@torch.no_grad()
def fit_rankers(model: Qinco, x_ND: Tensor, start_ND: Tensor, codes_NM: Tensor) -> None:
    """Fit all rankers to normalised vectors, their starts and codes (int64)."""
    before_ND = start_ND
    for m, after_ND in enumerate(model.reconstructions(codes_NM, start_ND)):
        if model.steps[m].ranker is not None:
            _fit(model.steps[m], codes_NM[:, m], before_ND, x_ND - before_ND)
        before_ND = after_ND


def _fit(step: Step, codes_N: Tensor, x_ND: Tensor, residual_ND: Tensor) -> None:
    """First the end of the stream, linear in x̂ and hidden layer, then the errors beside what follows from it."""
    ranker, preselector = step.ranker, step.preselector
    assert ranker is not None and preselector is not None
    (size, dim), hidden = preselector.weight.shape, len(ranker.hidden_slope)
    near_NJ = smallest(squared_distances(residual_ND, preselector.weight), min(_NEAR, size))[1]
    codes_NJ = torch.cat([codes_N[:, None], near_NJ], 1)
    width = len(ranker.map)
    streams = _WithinCodes(size, dim + hidden, width, x_ND.device)
    for codes, x, _, h, e in _pairs(step, codes_NJ, x_ND, residual_ND):
        streams.add(codes, torch.cat([x, h], 1), e)
    solved_FE, constants_KE = streams.solve(None)
    map_ED, hidden_map_EH = solved_FE[:dim].T.contiguous(), solved_FE[dim:].T.contiguous()
    codebook_KD = step.finish(constants_KE, step.codebook.weight)
    rest = _WithinCodes(size, dim + 2 * hidden, 1, x_ND.device)
    for codes, x, r, h, e in _pairs(step, codes_NJ, x_ND, residual_ND):
        f = step.finish(e, step.codebook(codes))
        stream = constants_KE[codes] + functional.linear(x, map_ED) + functional.linear(h, hidden_map_EH)
        found = step.finish(stream, step.codebook(codes))
        lengths = (f * f - 2 * r * (f - found)).sum(1, keepdim=True)
        rest.add(codes, torch.cat([x, h, h * h], 1), lengths)
    squares_K1 = preselector.weight.square().sum(1, keepdim=True).double()
    shift = (rest.sums[:, -1].sum() - (rest.counts_K @ squares_K1)) / rest.counts_K.sum()
    solved_F1, offset_K1 = rest.solve(squares_K1 + shift)
    slope_D, hidden_slope_H, hidden_square_H = solved_F1[:, 0].split([dim, hidden, hidden])
    fitted = codebook_KD, offset_K1[:, 0], map_ED, slope_D, hidden_map_EH, hidden_slope_H, hidden_square_H
    if all(bool(values.isfinite().all()) for values in fitted):  # of a network that has not diverged
        for buffer, values in zip(ranker.buffers(), fitted, strict=True):
            buffer.copy_(values)


def _pairs(step: Step, codes_NJ: Tensor, x_ND: Tensor, residual_ND: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of pairs: codes, reconstructions, residuals, the first hidden layer (N, H) and the stream's end (N, E)."""
    for codes_N in codes_NJ.T:
        for codes, x, r in zip(*(rows.split(_BLOCK_ROWS) for rows in (codes_N, x_ND, residual_ND)), strict=True):
            stream = step.embed(step.codebook(codes)) + step.concat.from_reconstruction(x)
            yield codes, x, r, functional.relu(step.blocks[0].up(stream)), step.refine(stream)
