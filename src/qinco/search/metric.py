"""The metrics of neighbours: squared L2 distance, inner product, cosine similarity.

Internally all are values of which the smallest are nearest. Shape suffixes: N vectors or pairs, D dimension.
"""

import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qinco.config import METRIC_SPELLINGS, METRICS
from qinco.errors import ConfigError
from qinco.vectors.formats import stated_metric
from qinco.vectors.hdf5 import name_on_disk
from qinco.vectors.rows import VectorSource

if TYPE_CHECKING:
    from torch import Tensor

_LONG, _SMALL = 2.0**60, 1e-30
_UNIT_ROWS, _UNIT_ERROR = 1000, 1e-3  # what is looked at, and what float16 rounds
_SEPARATORS, _NAMES = re.compile(r"(?<=\w)[-_ ]+"), [*zip(METRICS, METRICS, strict=True), *METRIC_SPELLINGS.items()]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A metric by its name.

    Args:
        name: "l2", "inner_product" or "cosine"; or another name of it, such as "euclidean", "ip" or "angular".
        unit_length: the length that vectors are scaled to for "cosine", near that of the codec's training vectors.
    """

    name: str
    unit_length: float = 1.0

    def __post_init__(self):
        if (name := metric_name(self.name)) is None:
            raise ConfigError(f"metric must be one of {', '.join(METRICS)}, not {self.name!r}")
        object.__setattr__(self, "name", name)

    @property
    def scans_inner_products(self) -> bool:
        """Whether lists are scanned by inner products; by L2 distances otherwise, also of vectors of one length."""
        return self.name == "inner_product"

    def prepare(self, x_ND: np.ndarray) -> np.ndarray:
        """Vectors or queries as they are encoded and compared, float32 (N, D): scaled to one length for "cosine"."""
        if self.name != "cosine":
            return x_ND
        lengths_N1 = np.linalg.norm(x_ND.astype(np.float64), axis=1, keepdims=True)
        has_length = (lengths_N1 > 0) & np.isfinite(lengths_N1)  # NaN and infinity stay, so that checks find them
        return (x_ND * (self.unit_length / np.where(has_length, lengths_N1, 1))).astype(np.float32)

    def scale(self, queries_QD: np.ndarray) -> np.ndarray | None:
        """Factors, float32 (Q, 1), of queries that are too long for their squares to be float32s, or None.

        Their inner products may be float32s all the same. Powers of two change neither their order nor their digits.
        """
        if self.name != "inner_product" or np.abs(queries_QD).max(initial=0) < _LONG:
            return None
        _, exponents_Q1 = np.frexp(np.abs(queries_QD).max(1, keepdims=True))
        return np.exp2(-np.maximum(exponents_Q1, 0)).astype(np.float32) * np.float32(_LONG)

    @np.errstate(over="ignore", invalid="ignore")
    def values(self, queries_ND: "np.ndarray | Tensor", x_ND: "np.ndarray | Tensor") -> np.ndarray:
        """The value of each pair of a prepared query and a reconstruction, float32 (N,)."""
        if self.name == "l2":
            difference_ND = x_ND - queries_ND
            return products(difference_ND, difference_ND)
        products_N = products(queries_ND, x_ND)
        if self.name == "inner_product":
            return -products_N
        squares = products(queries_ND, queries_ND), products(x_ND, x_ND)
        squares_N, lengths_N = squares[0] * squares[1], np.sqrt(squares[0]) * np.sqrt(squares[1])
        is_exact_N = (squares_N > _SMALL) & (squares_N < 1 / _SMALL)
        lengths_N = np.where(is_exact_N, np.sqrt(squares_N), np.where(lengths_N > 0, lengths_N, np.inf))
        # As the squared distance of two vectors of length `unit_length`, so that values of all stages compare.
        return 2 * self.unit_length**2 * (1 - products_N / lengths_N)

    def distances(self, values: np.ndarray) -> np.ndarray:
        """What `search` returns for values: squared distances, or similarities; ±inf where nothing was found."""
        if self.name == "l2":
            return values
        if self.name == "inner_product":
            return 0 - values  # no negative zeros
        return np.where(np.isinf(values), -np.inf, 1 - values / (2 * self.unit_length**2)).astype(np.float32)


def metric_name(text) -> str | None:
    """The one of METRICS that has a name, in any spelling; None if there is none."""
    word = _SEPARATORS.sub("", str(text).strip().lower())
    return next((name for word_of, name in _NAMES if _SEPARATORS.sub("", word_of) == word), None)


def choose_metric(given: str | None, *sources, own: str | None = None, compared: VectorSource | None = None) -> str:
    """The metric of a call: `given`, or that of an index (`own`), or what the files of `sources` state, or a default.

    That is "cosine", and logged, if the vectors that are `compared` have length 1, and else "l2". Files that state
    another metric are warned about. Raises ConfigError where `given` and `own` differ, or where files leave no metric
    to choose.
    """
    given = given if given is None else Metric(given).name
    if given and own and given != own:
        raise ConfigError(f"metric={given}, and the index compares by {own}: leave metric= out, or build the index "
                          f"with metric={given}")  # fmt: skip
    if given is None and all(isinstance(one, np.ndarray) for one in sources):
        return own or _default(compared)
    each = [one for given in sources for one in (given if isinstance(given, list | tuple) else [given])]
    paths = (one.name if isinstance(one, VectorSource) else name_on_disk(one) or one for one in each)
    stated = {str(path): stated_metric(path) for path in paths if isinstance(path, str | os.PathLike)}
    stated = {path: word for path, word in stated.items() if word is not None}
    found = {metric_name(word) for word in stated.values()}
    chosen = given or own or (found.pop() if len(found) == 1 else None if found else _default(compared))
    words = [f"{path} states the distance {word!r}" for path, word in stated.items()]
    if chosen is None:
        raise ConfigError(f"{' and '.join(words)}: choose metric={', metric='.join(METRICS)}")
    for word, text in zip(stated.values(), words, strict=True):
        if metric_name(word) != chosen:
            log.warning("%s, and neighbours are compared by metric=%s", text, chosen)
    return chosen


def default_metric(compared: VectorSource, share: float = 1.0, error: float = _UNIT_ERROR) -> tuple[str, str]:
    """The metric of vectors for which none is given, and why, as a sentence.

    It is "cosine" if a share of the first thousand have length 1, by default within what float16 rounds. Integers never
    count as such.
    """
    if compared.holds_integers or not len(compared):
        return "l2", f"{compared.name}: vectors are compared by metric=l2; give metric= for another"
    with np.errstate(invalid="ignore"):
        lengths_N = np.linalg.norm(compared[:_UNIT_ROWS].astype(np.float64), axis=1)
    if (np.abs(lengths_N - 1) < error).mean() >= share:
        return "cosine", f"{compared.name}: vectors of length 1 are compared by metric=cosine; give metric= for another"
    return "l2", f"{compared.name}: vectors of different lengths are compared by metric=l2; give metric= for another"


def _default(compared: VectorSource | None) -> str:
    name, why = ("l2", "") if compared is None else default_metric(compared)
    if name == "cosine":
        log.info("%s", why)
    return name


def products(a_ND, b_ND) -> np.ndarray:
    """The inner product of each pair of arrays or tensors, (N,)."""
    if isinstance(a_ND, np.ndarray):
        return np.einsum("nd,nd->n", a_ND, b_ND)
    return (a_ND * b_ND).sum(1).cpu().numpy()


L2 = Metric("l2")
