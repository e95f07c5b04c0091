"""Rivals: quantizers of faiss behind one interface, and the signs of coordinates.

A coder works on float32 vectors (N, E). Its codes are ranked by `score`: the nearest to a query q are those of which
⟨q, v⟩ − a is largest, with v (N, E) and a (N,) of each code. So a library's own estimates are computed by one product.

Shape suffixes: N vectors, E dimensions of what is coded, M codes of a vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from qinco.comparison.rivals import LENGTH_BYTES, SPLITS
from qinco.vectors.rows import stratified_rows

_SEARCHED_BY = {"l2": faiss.METRIC_L2, "cosine": faiss.METRIC_L2, "inner_product": faiss.METRIC_INNER_PRODUCT}
_BEAM, _CODEWORDS = 5, 256
_REFINED_ROWS = 16  # of a codeword, with which least squares does not learn them by heart
_LSQ_ROWS = 20_000
_EQUAL_LENGTHS = 1e-3  # relative spread of lengths that need not be stored
_VALID_SHARE, _MAX_VALID = 10, 10_000


class Coder(ABC):
    """A quantizer whose codes are ranked by what they decode to.

    Attributes:
        code_bytes, scalar_bytes: of a vector, known after `fit`.
        decodes: whether codes decode to something near the vectors.
        settings: what differs from the library's defaults, for the report.
        by_metric: whether codes depend on the metric.
    """

    code_bytes, scalar_bytes, decodes, by_metric = 0, 0, True, False

    def __init__(self, **settings):
        self.settings: dict[str, Any] = settings

    @abstractmethod
    def fit(self, x_NE: np.ndarray) -> None:
        """Train on vectors."""

    @abstractmethod
    def encode(self, x_NE: np.ndarray, metric: str = "l2") -> np.ndarray:
        """Codes, uint8 (N, bytes), scalars included."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors, float32 (N, E)."""

    def score(self, codes: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """What ranks codes by a metric: v (N, E) and a (N,)."""
        decoded_NE = self.decode(codes)
        if metric == "inner_product":
            return decoded_NE, np.zeros(len(codes), np.float32)
        return decoded_NE, np.einsum("ne,ne->n", decoded_NE, decoded_NE) / 2

    def nbytes(self) -> int:
        """Of what was fitted."""
        return 0


class FaissCoder(Coder):
    """A codec of faiss; columns of zeros are added where it needs a multiple of some number of dimensions."""

    def __init__(self, make: Callable[[int], Any], multiple: int = 1, **settings):
        super().__init__(**settings)
        self._make, self._multiple = make, multiple

    def fit(self, x_NE: np.ndarray) -> None:
        self._dim, x_NE = x_NE.shape[1], self._padded(x_NE)
        self.index = self._make(x_NE.shape[1])
        self.index.train(x_NE)
        self.code_bytes = self.index.sa_code_size()

    def encode(self, x_NE: np.ndarray, metric: str = "l2") -> np.ndarray:
        return self.index.sa_encode(self._padded(x_NE))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.index.sa_decode(codes)[:, : self._dim])

    def nbytes(self) -> int:
        return len(faiss.serialize_index(self.index))

    def _padded(self, x_NE: np.ndarray) -> np.ndarray:
        missing = -x_NE.shape[1] % self._multiple
        return np.ascontiguousarray(np.pad(x_NE, ((0, 0), (0, missing))), np.float32)


class RotatedProduct(FaissCoder):
    """OPQ. It starts from a random rotation, as by default, and from the vectors as they are; the better one is kept.

    Vectors that neither has seen decide. Of SIFT's, whose parts are alike, a random start never comes back.
    """

    def __init__(self, num_parts: int):
        super().__init__(lambda dim: None, num_parts)
        self._num_parts = num_parts

    def fit(self, x_NE: np.ndarray) -> None:
        self._dim, x_NE = x_NE.shape[1], self._padded(x_NE)
        drawn_N = np.random.default_rng(0).permutation(len(x_NE))
        count = min(_MAX_VALID, len(x_NE) // _VALID_SHARE)
        valid_NE, train_NE = x_NE[drawn_N[:count]], np.ascontiguousarray(x_NE[drawn_N[count:]])
        errors = {}
        for start in ("random", "identity"):
            rotation = faiss.OPQMatrix(x_NE.shape[1], self._num_parts)
            if start == "identity":
                faiss.copy_array_to_vector(np.eye(x_NE.shape[1], dtype=np.float32).ravel(), rotation.A)
            product = faiss.IndexPQ(x_NE.shape[1], self._num_parts, 8)
            index = faiss.IndexPreTransform(rotation, product)
            index.train(train_NE)
            decoded_NE = index.sa_decode(index.sa_encode(valid_NE))
            errors[start] = float(np.square(decoded_NE - valid_NE).sum(1).mean())
            if errors[start] == min(errors.values()):
                self.index, self.settings = index, {"start": start}
                self._parts = rotation, product  # which the index does not keep alive
        self.settings["errors_of_starts"] = errors
        self.code_bytes = self.index.sa_code_size()


class ResidualCoder(FaissCoder):
    """Residual quantization with a beam of 5. Its first codebooks are a quantizer, in which vectors are encoded anew.

    Where vectors are many, all codebooks are refined by least squares in the end, which faiss does not do by default:
    with 4 codebooks for 20,000 of SIFT's vectors the error of others falls from 39,690 to 38,480.
    """

    def __init__(self, count: int):
        super().__init__(self._new, beam=_BEAM)
        self._count, self._refines = count, False

    def fit(self, x_NE: np.ndarray) -> None:
        self._refines = len(x_NE) >= _REFINED_ROWS * self._count * _CODEWORDS
        self.settings["refined"] = self._refines
        super().fit(x_NE)

    def prefix(self, number: int) -> "ResidualCoder":
        """The coder of its first codebooks."""
        shorter, quantizer = ResidualCoder(number), self.index.rq
        shorter._dim, shorter.code_bytes = self._dim, number
        shorter.index = shorter._new(self._dim)
        books = faiss.vector_to_array(quantizer.codebooks)[: number * _CODEWORDS * self._dim]
        faiss.copy_array_to_vector(books, shorter.index.rq.codebooks)
        shorter.index.rq.is_trained = shorter.index.is_trained = True
        shorter.index.rq.compute_codebook_tables()
        return shorter

    def _new(self, dim: int):
        index = faiss.IndexResidualQuantizer(dim, self._count, 8)
        if self._refines:
            index.rq.train_type |= faiss.ResidualQuantizer.Train_refine_codebook
        index.rq.max_beam_size = _BEAM
        return index


class LocalSearchCoder(FaissCoder):
    """LSQ, trained on some of the vectors only: its time is that of an iterated local search in each iteration."""

    def __init__(self, count: int):
        super().__init__(lambda dim: faiss.IndexLocalSearchQuantizer(dim, count, 8), trained_on=_LSQ_ROWS)

    def fit(self, x_NE: np.ndarray) -> None:
        rows_S = stratified_rows(len(x_NE), _LSQ_ROWS)
        self.settings = {"trained_on": len(rows_S)}
        super().fit(x_NE[rows_S])


class TurboCoder(FaissCoder):
    """TurboQuant of unit vectors, with the length as float16; without it where all training vectors have one length."""

    def __init__(self, bits: int):
        kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit_tqmse")
        super().__init__(lambda dim: faiss.IndexScalarQuantizer(dim, kind))

    def fit(self, x_NE: np.ndarray) -> None:
        lengths_N = np.linalg.norm(x_NE, axis=1)
        self._length = float(lengths_N.mean())
        self.scalar_bytes = 0 if lengths_N.std() <= _EQUAL_LENGTHS * self._length else LENGTH_BYTES
        super().fit(_units(x_NE, lengths_N))

    def encode(self, x_NE: np.ndarray, metric: str = "l2") -> np.ndarray:
        lengths_N = np.linalg.norm(x_NE, axis=1)
        codes = super().encode(_units(x_NE, lengths_N))
        if not self.scalar_bytes:
            return codes
        return np.hstack([codes, lengths_N.astype(np.float16)[:, None].view(np.uint8)])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        decoded_NE = super().decode(np.ascontiguousarray(codes[:, : self.code_bytes]))
        if not self.scalar_bytes:
            return decoded_NE * np.float32(self._length)
        return decoded_NE * np.ascontiguousarray(codes[:, self.code_bytes :]).view(np.float16).astype(np.float32)


class RabitCoder(Coder):
    """RaBitQ with a query of floats. What it estimates is affine in the query, and read from its codes.

    A code is: the signs, a bit a dimension; 2 floats, or 3 with more bits; these bits, and 2 floats more.
    """

    by_metric = True

    def __init__(self, bits: int):
        super().__init__()
        self._bits = bits

    def fit(self, x_NE: np.ndarray) -> None:
        self._dim = x_NE.shape[1]
        self.indexes = {}
        for metric in dict.fromkeys(_SEARCHED_BY.values()):
            self.indexes[metric] = faiss.IndexRaBitQ(self._dim, metric, self._bits)
            self.indexes[metric].qb = 0
            self.indexes[metric].train(np.ascontiguousarray(x_NE, np.float32))
        self.center_E = faiss.vector_to_array(self.indexes[faiss.METRIC_L2].center)
        self.code_bytes = (self._dim * self._bits + 7) // 8
        self.scalar_bytes = self.indexes[faiss.METRIC_L2].sa_code_size() - self.code_bytes

    def encode(self, x_NE: np.ndarray, metric: str = "l2") -> np.ndarray:
        return self.indexes[_SEARCHED_BY[metric]].sa_encode(np.ascontiguousarray(x_NE, np.float32))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.score(codes, "l2")[0] + self.center_E

    def score(self, codes: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
        is_product = metric == "inner_product"
        offset_N, directions_NE, factor_N = self._parts(codes, is_product)
        v_NE = directions_NE * (factor_N if is_product else -factor_N / 2)[:, None]
        return v_NE, v_NE @ self.center_E - (offset_N if is_product else -offset_N / 2)

    def nbytes(self) -> int:
        return self.center_E.nbytes

    def _parts(self, codes: np.ndarray, is_product: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset, u and factor of each code: the estimate is offset + factor ⟨q − c, u⟩, but for what all share."""
        size, more = (self._dim + 7) // 8, self._bits - 1
        signs_NE = np.unpackbits(codes[:, :size], axis=1, bitorder="little")[:, : self._dim]
        if more == 0:
            floats_N2 = np.ascontiguousarray(codes[:, size : size + 8]).view(np.float32)
            u_NE = (signs_NE * 2.0 - 1).astype(np.float32) / np.float32(np.sqrt(self._dim))
            scale = -0.5 if is_product else 1.0  # the inner product is had from the distance
            return scale * floats_N2[:, 0], u_NE, -2 * scale * floats_N2[:, 1]
        length = (self._dim * more + 7) // 8
        bits = np.unpackbits(codes[:, size + 12 : size + 12 + length], axis=1, bitorder="little")
        numbers_NE = bits[:, : self._dim * more].reshape(-1, self._dim, more) @ (1 << np.arange(more))
        u_NE = ((signs_NE.astype(int) << more) + numbers_NE - (2.0**more - 0.5)).astype(np.float32)
        floats_N2 = np.ascontiguousarray(codes[:, -8:]).view(np.float32)
        return floats_N2[:, 0], u_NE, floats_N2[:, 1]


class SignCoder(Coder):
    """A bit for the sign of each coordinate, compared with a query of floats by inner product."""

    decodes = False

    def fit(self, x_NE: np.ndarray) -> None:
        self._dim = x_NE.shape[1]
        self.code_bytes = (self._dim + 7) // 8

    def encode(self, x_NE: np.ndarray, metric: str = "l2") -> np.ndarray:
        return np.packbits(x_NE > 0, axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.unpackbits(codes, axis=1)[:, : self._dim] * np.float32(2) - np.float32(1)

    def score(self, codes: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
        return self.decode(codes), np.zeros(len(codes), np.float32)


def _units(x_NE: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    return x_NE / np.where(lengths_N > 0, lengths_N, 1)[:, None].astype(np.float32)


def _product(parts: int) -> Coder:
    return FaissCoder(lambda dim: faiss.IndexPQ(dim, parts, 8), parts)


def _scalars(bits: int) -> Coder:
    kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit")
    return FaissCoder(lambda dim: faiss.IndexScalarQuantizer(dim, kind))


def _residual_product(codebooks: int) -> Coder:
    return FaissCoder(lambda dim: faiss.IndexProductResidualQuantizer(dim, SPLITS, codebooks // SPLITS, 8), SPLITS)


# Of each kind that a rival may have, by the number of its parts or bits.
CODERS: dict[str, Callable[[int], Coder]] = {
    "PQ": _product, "OPQ": RotatedProduct, "SQ": _scalars, "RQ": ResidualCoder, "LSQ": LocalSearchCoder,
    "PRQ": _residual_product, "TurboQuant": TurboCoder, "RaBitQ": RabitCoder, "signs": lambda bits: SignCoder(),
}  # fmt: skip
