"""The first weights of a model, and new values for codewords that are not used."""

import numpy as np
import torch
from torch import Tensor

from qinco.config import ModelConfig
from qinco.errors import DataError
from qinco.machine import num_threads
from qinco.maths.clustering import nearest, residual_kmeans
from qinco.maths.devices import to_device
from qinco.model.qinco import Qinco
from qinco.progress import Progress, silent
from qinco.training.options import TrainOptions
from qinco.vectors.rows import VectorSource, read_rows, sample, stratified_rows

_STATISTICS_ROWS = 100_000
_SAMPLE_ROWS, _SAMPLE_BYTES = 100_000, 1 << 27
_MAX_LENGTH_RATIO = 1e6


def sample_rows(config: ModelConfig, num_vectors: int) -> int:
    """Number of training vectors that the first codebooks are fitted to."""
    rows = min(max(_SAMPLE_ROWS, 64 * config.codebook_size), _SAMPLE_BYTES // (4 * config.dim))
    return min(rows, num_vectors)


@torch.no_grad()
def set_scales(model: Qinco, source: VectorSource, options: TrainOptions, coarse_VD: np.ndarray | None) -> None:
    """Set mean (per dimension) and scale (one number) from 100,000 vectors at most, and the coarse centroids.

    With `range_scaling` (QINCo1's recipe) they come from the range of the values, as in the authors' code.
    """
    rows = stratified_rows(len(source), _STATISTICS_ROWS)
    rows = np.arange(len(rows)) if options.rows_shuffled else rows
    x_ND = read_rows(source, rows)
    squares_N = np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64)
    longest, median = int(squares_N.argmax()), float(np.median(squares_N))
    if median > 0 and squares_N[longest] > _MAX_LENGTH_RATIO**2 * median:
        raise DataError(
            f"{source.name}: the vector in row {source.row_number(rows[longest])} is "
            f"{np.sqrt(squares_N[longest] / median):.1g} times as long as most others, which a codec could not "
            "tell apart then: remove or repair it"
        )
    if options.range_scaling:
        low, high = float(x_ND.min()), float(x_ND.max())
        mean_D, scale = np.full(x_ND.shape[1], low + 1, np.float32), (high - low) / 2
    else:
        mean_D = x_ND.mean(0, dtype=np.float64).astype(np.float32)
        scale = float(np.sqrt(np.square(x_ND - mean_D, dtype=np.float64).mean()))
    model.mean.copy_(torch.from_numpy(mean_D))
    model.scale.fill_(scale if scale > 1e-30 else 1.0)  # constant vectors have no spread, and nothing to scale
    if coarse_VD is not None:
        model.coarse_centroids.copy_(model.normalize(to_device(coarse_VD, model.device)))


@torch.no_grad()
def set_steps(model: Qinco, codebooks_MKD: Tensor, options: TrainOptions) -> None:
    """Set the steps to a residual quantizer with these codebooks, and draw the weights that it does not determine."""
    generator = torch.Generator().manual_seed(options.seed)
    for step, book_KD in zip(model.steps, codebooks_MKD, strict=True):
        noise_KD = torch.randn(book_KD.shape, generator=generator) * (options.codebook_noise * book_KD.std())
        step.initialize((book_KD + noise_KD).to(model.device), options.exact_start, generator)


@torch.no_grad()
def initialize_model(
    model: Qinco, source: VectorSource, options: TrainOptions, coarse_VD: np.ndarray | None,
    progress: Progress = silent, rows: int | None = None,
) -> None:  # fmt: skip
    """Set every weight: scales, then the steps to a residual quantizer of a sample (QINCo2 paper, section 3.3).

    The sample has `rows` vectors, by default `sample_rows`.
    """
    config, threads = model.config, num_threads()
    set_scales(model, source, options, coarse_VD)
    x_ND = sample(source, rows or sample_rows(config, len(source)), options.seed)
    x_ND = model.normalize(to_device(x_ND, model.device))
    if coarse_VD is not None:
        x_ND -= model.coarse_centroids[nearest(x_ND, model.coarse_centroids, threads)]
    books_MKD = residual_kmeans(
        x_ND, config.num_steps, config.codebook_size, seed=options.seed, threads=threads, shrinks=options.shrinks,
        progress=progress,
    )  # fmt: skip
    set_steps(model, torch.from_numpy(books_MKD), options)


class CodewordUse:
    """Counts of each step's codewords over an epoch, and the sums that give each step's targets' mean and spread.

    counts_MK, sums_MD and squares_MD are views of `flat` (float64), which can be summed over processes at once.
    """

    def __init__(self, model: Qinco):
        steps, size, dim = model.config.num_steps, model.config.codebook_size, model.config.dim
        self.flat = torch.zeros(steps * (size + 2 * dim), dtype=torch.float64, device=model.device)
        counts, sums, squares = self.flat.split([steps * size, steps * dim, steps * dim])
        self.counts_MK = counts.view(steps, size)
        self.sums_MD, self.squares_MD = sums.view(steps, dim), squares.view(steps, dim)

    def add(self, step: int, codes_N: Tensor, targets_ND: Tensor) -> None:
        # bincount would wait for the device, to see which is the largest.
        self.counts_MK[step].index_add_(0, codes_N, torch.ones_like(codes_N, dtype=torch.float64))
        self.sums_MD[step] += targets_ND.sum(0)
        self.squares_MD[step] += targets_ND.square().sum(0)

    def entropy(self) -> float:
        """The mean over steps of the entropy of their codes, in bits: log2 K where all codewords are used alike."""
        shares_MK = self.counts_MK / self.counts_MK.sum(1, keepdim=True).clamp(min=1)
        return float(-torch.xlogy(shares_MK, shares_MK).sum(1).mean() / np.log(2))


@torch.no_grad()
def redraw_unused(model: Qinco, use: CodewordUse, redraw: str, generator: torch.Generator) -> int:
    """Draw new values for the codewords that an epoch did not use, and return how many there were.

    "split" puts them beside a frequently used codeword; "targets" draws them from the mean and spread of the step's
    targets (QINCo2 paper, section 3.3). `generator` (on the CPU) has the same state in every process.
    """
    total = 0
    for m, step in enumerate(model.steps):
        counts_K = use.counts_MK[m].cpu()
        unused = torch.nonzero(counts_K == 0)[:, 0]
        total += len(unused)
        if len(unused) == 0 or counts_K.sum() == 0:
            continue
        noise_ND = torch.randn(len(unused), model.config.dim, generator=generator).to(model.device)
        if redraw == "split":
            parents = torch.multinomial(counts_K, len(unused), replacement=True, generator=generator).to(model.device)
        else:
            mean_D = use.sums_MD[m] / counts_K.sum()
            spread_D = (use.squares_MD[m] / counts_K.sum() - mean_D.square()).clamp(min=0).sqrt()
        unused = unused.to(model.device)
        for book_KD in [step.codebook.weight] + ([] if step.preselector is None else [step.preselector.weight]):
            if redraw == "split":
                book_KD[unused] = book_KD[parents] + 0.02 * book_KD.std() * noise_ND
            else:
                book_KD[unused] = (mean_D + spread_D * noise_ND).float()
    return total
