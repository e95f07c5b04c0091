"""The nearest of very many centroids on a GPU, by products of bf16 halves whose best few are compared exactly.

A float32 number is the sum of two bf16 numbers but for 2^-18 of it, and three products of such halves run on the matrix
units, which float32 does not reach (no global switch of torch is turned). What they cannot tell apart is compared by
distances in float64, or where more than two centroids are as near by all products in float32: the results are never
further away than those of `closest`.

Shape suffixes: N vectors, K centroids, D dimension, S slices of the centroids, C candidates of a vector.
"""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qinco.forking import new_lock
from qinco.maths.devices import holds, multiplies_bf16_fast
from qinco.maths.distances import closest

LEAST_CENTROIDS = 4096  # fewer are compared by float32 products
TILE, BLOCK, CHUNK = 128, 64, 32
CUTS = {"TILE": TILE, "BLOCK": BLOCK, "CHUNK": CHUNK, "num_warps": 8, "num_stages": 3}  # of the kernel
_PROGRAMS = 1024  # that keep a GPU busy
_ROWS = 1 << 17  # vectors whose candidates are kept at a time
_EXACT_VALUES = 1 << 24  # of float64 differences
_LOG = logging.getLogger(__name__)


class SplitProducts:
    """Candidates by split products, on the devices of one kind whose results have been checked.

    A device is checked when it is first used. Where the kernel cannot be compiled or its results are wrong, a warning
    says so once, and from then on `closest` computes everything there.

    Args:
        launch: makes candidates as `launch_kernel` does.
        kind: of the devices.
    """

    def __init__(self, launch: Callable[..., tuple[Tensor, Tensor]], kind: str = "cuda"):
        self._launch, self._kind = launch, kind
        self._reasons: dict[torch.device, str | None] = {}
        self._lock = new_lock()

    def work_on(self, device: torch.device) -> bool:
        """Whether results on this device are right, as far as is known."""
        if device.type != self._kind:
            return False
        with self._lock:
            if device not in self._reasons:
                try:
                    self._check(device)
                    self._reasons[device] = None
                except Exception as error:  # of the compiler, the driver or the results: `closest` needs none of them
                    self._fail(device, str(error) or type(error).__name__)
            return self._reasons[device] is None

    def candidates(self, *given) -> tuple[Tensor, Tensor]:
        return self._launch(*given)

    def fail(self, device: torch.device, reason: str) -> None:
        """Warn of wrong results, and use the device no more."""
        with self._lock:
            if self._reasons.get(device) is None:
                self._fail(device, reason)

    def _fail(self, device: torch.device, reason: str) -> None:
        self._reasons[device] = reason
        _LOG.warning("%s: centroids are compared by float32 products, which is slower: %s", device, reason)

    def _check(self, device: torch.device) -> None:
        """Raise WrongResults where a sample's nearest centroids are not found, among pairs of near ones."""
        generator = torch.Generator().manual_seed(0)
        for count, size, dim, programs in ((150, 700, 40, 1), (150, 700, 40, 8), (1, 129, 3, _PROGRAMS)):
            x_ND, c_KD = (torch.randn(n, dim, generator=generator) + 3 for n in (count, size))
            some = size - size // 2
            c_KD[size // 2 :] = c_KD[:some] + 1e-3 * torch.randn(some, dim, generator=generator)
            on_device = Centroids(c_KD.to(device), self, programs)
            found_N, distances_N = (found.cpu() for found in on_device.compared(x_ND.to(device)))
            all_NK = (x_ND[:, None].double() - c_KD).square().sum(2)
            reached_N, least_N = all_NK.gather(1, found_N[:, None])[:, 0], all_NK.min(1).values
            if not (torch.allclose(reached_N, least_N, 1e-5) and torch.allclose(distances_N.double(), least_N, 1e-5)):
                raise WrongResults("its results are wrong: the nearest centroids of a sample were not found")


class WrongResults(Exception):
    """A kernel's results cannot be right."""


class Centroids:
    """Centroids (K, D) on their device, compared with vectors there; without `products` as `closest` does."""

    def __init__(self, c_KD: Tensor, products: SplitProducts | None, programs: int = _PROGRAMS):
        self._centroids_KD, self._products, self._programs = c_KD, products, programs
        if products is not None:
            self._middle_D = c_KD.mean(0, dtype=torch.float64).float()  # sums from there are small and exact
            centred_KD = c_KD - self._middle_D
            lengths_K = torch.linalg.vector_norm(centred_KD, dim=1, dtype=torch.float64)
            self._norms_K, self._longest = lengths_K.square().float(), lengths_K.max()
            self._halves = _halves(centred_KD)

    def __call__(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest centroid of each float32 vector, its number (int64) and its squared distance: (N,) each."""
        if self._products is not None and len(x_ND):
            try:
                return self.compared(x_ND)
            except WrongResults as error:
                self._products.fail(x_ND.device, str(error))
                self._products = None
        return closest(x_ND, self._centroids_KD)

    def compared(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The same by split products alone; raises WrongResults."""
        found = [self._compared(part_ND) for part_ND in x_ND.split(_ROWS)]
        numbers_N, distances_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        return numbers_N, distances_N

    def _compared(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        assert self._products is not None
        centred_ND = x_ND - self._middle_D
        slices = max(1, self._programs // -(-len(x_ND) // TILE))
        given = *_halves(centred_ND), *self._halves, self._norms_K, slices
        values_NC, numbers_NC = self._products.candidates(*given)
        values_NC, order_NC = torch.topk(values_NC.flatten(1), 3, largest=False)
        numbers_NC = numbers_NC.flatten(1).gather(1, order_NC)[:, :2].long()
        numbers_NC = numbers_NC.clamp(0, len(self._centroids_KD) - 1)  # a wrong kernel's would stop the whole process
        exact_NC = self._distances(x_ND, numbers_NC)
        takes_second_N = (exact_NC[:, 1] < exact_NC[:, 0]) | (
            (exact_NC[:, 1] == exact_NC[:, 0]) & (numbers_NC[:, 1] < numbers_NC[:, 0])
        )
        chosen_N1 = takes_second_N.long()[:, None]
        numbers_N, distances_N = numbers_NC.gather(1, chosen_N1)[:, 0], exact_NC.gather(1, chosen_N1)[:, 0]

        lengths_N = torch.linalg.vector_norm(centred_ND, dim=1, dtype=torch.float64)
        errors_N = self._errors(lengths_N, x_ND.shape[1])
        is_certain_N = values_NC[:, 2].double() - values_NC[:, 0] > 2 * errors_N  # not of what is no number
        is_wrong_N = (exact_NC[:, 0] - lengths_N.square() - values_NC[:, 0]).abs() > errors_N
        if (is_wrong_N & is_certain_N).any():
            raise WrongResults("its results are wrong: products are further off than rounding explains")
        distances_N, unsure_n = distances_N.to(x_ND.dtype), torch.nonzero(~is_certain_N)[:, 0]
        if len(unsure_n):
            numbers_N[unsure_n], distances_N[unsure_n] = closest(x_ND[unsure_n], self._centroids_KD)
        return numbers_N, distances_N

    def _distances(self, x_ND: Tensor, numbers_NC: Tensor) -> Tensor:
        """Squared distances to some centroids of each vector, float64 (N, C)."""
        rows = max(1, _EXACT_VALUES // (numbers_NC.shape[1] * x_ND.shape[1]))
        pairs = zip(x_ND.split(rows), numbers_NC.split(rows), strict=True)
        return torch.cat([(x[:, None].double() - self._centroids_KD[of]).square().sum(2) for x, of in pairs])

    def _errors(self, lengths_N: Tensor, dim: int) -> Tensor:
        """What values may be off by, float64 (N,).

        Three products of halves leave out 3 · 2^-18 of |x| |c|, adding up 3 D of them loses 2^-23 each at most, and the
        rest is what the norm, and taking the middle away, round.
        """
        products_N = 2 * (3 * 2.0**-18 + 3 * dim * 2.0**-23) * lengths_N * self._longest
        return products_N + 8 * 2.0**-23 * (lengths_N + self._longest).square() + 2.0**-120  # which bf16 hardly has


def _halves(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Two bf16 tensors that add up to this one, with columns of zeros to a multiple of the kernel's."""
    padded_ND = torch.nn.functional.pad(x_ND, (0, -x_ND.shape[1] % CHUNK))
    high_ND = padded_ND.bfloat16()
    return high_ND, (padded_ND - high_ND.float()).bfloat16()


def launch_kernel(
    kernel: Any, x_high_ND: Tensor, x_low_ND: Tensor, c_high_KD: Tensor, c_low_KD: Tensor, norms_K: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Three smallest values, float32 (N, S, 3), of at most so many slices, and the numbers of two of them, int32."""
    (count, dim), size = x_high_ND.shape, len(c_high_KD)
    per_slice = -(-size // (BLOCK * most)) * BLOCK
    slices = -(-size // per_slice)
    values_NSC = torch.empty((count, slices, 3), device=norms_K.device)
    numbers_NSC = torch.zeros((count, slices, 3), dtype=torch.int32, device=norms_K.device)
    kernel[(-(-count // TILE), slices)](
        x_high_ND, x_low_ND, c_high_KD, c_low_KD, norms_K, values_NSC, numbers_NSC, count, size, dim, per_slice,
        **CUTS,
    )  # fmt: skip
    return values_NSC, numbers_NSC


def _launch(*given) -> tuple[Tensor, Tensor]:
    from qinco.maths.closest_kernel import closest_kernel

    device = given[0].device
    with torch.cuda.device(device):  # Triton launches on the current one
        return launch_kernel(closest_kernel, *given)


_PRODUCTS = SplitProducts(_launch)


def prepared(c_KD: Tensor) -> Centroids:
    """Centroids float32 (K, D), ready to be compared with vectors on their device in the fastest way there.

    Example:
        >>> nearest = prepared(c_KD.cuda())
        >>> numbers_N, distances_N = nearest(x_ND.cuda())
    """
    device, size = c_KD.device, len(c_KD)
    is_split = size >= LEAST_CENTROIDS and device.type == "cuda" and find_spec("triton") is not None
    is_split = is_split and multiplies_bf16_fast(str(device)) and holds(device, 4 * c_KD.nbytes)
    return Centroids(c_KD, _PRODUCTS if is_split and _PRODUCTS.work_on(device) else None)
