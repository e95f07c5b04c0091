"""`QincoTransformer`: a codec as a scikit-learn transformer, for pipelines, grid searches and cross-validation."""

import warnings
from typing import Any, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from qinco.codec.codec import Codec
from qinco.config import ModelConfig
from qinco.vectors.rows import as_source

_USUAL_EPOCHS = 10


class QincoTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Compresses vectors to codes of `num_steps` small integers, and back with `inverse_transform`.

    Args:
        preset: "auto", "qinco1", "qinco2-XXS", "qinco2-XS", "qinco2-S", "qinco2-M" or "qinco2-L".
        num_steps: M, codes per vector.
        codebook_size: K, codewords per step, a power of two; at most the training vectors, with a UserWarning.
        epochs: passes over the training vectors; 10 where minutes are not given either.
        minutes: instead of epochs: how long `fit` may take; see `Codec.fit`.
        num_pairs: C, pairs that the encoder proposes over the whole beam; the preset's if None.
        num_candidates: A, codewords proposed for each hypothesis; instead of num_pairs.
        beam_width: B, hypotheses that the encoder keeps; the preset's if None.
        random_state: int, numpy RandomState or None: the seed of every random choice.
        device: "auto" (the first GPU, or the CPU), "cpu", "cuda" or "cuda:N".

    Attributes:
        codec_: the fitted `Codec`, with `save`.
        codebook_size_: the K that was used.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> codes = QincoTransformer(num_steps=4, epochs=5).fit_transform(X)
    """

    def __init__(
        self, preset="auto", *, num_steps=8, codebook_size=256, epochs=None, minutes=None, num_pairs=None,
        num_candidates=None, beam_width=None, random_state=0, device="auto",
    ):  # fmt: skip
        self.preset, self.num_steps, self.codebook_size = preset, num_steps, codebook_size
        self.epochs, self.minutes = epochs, minutes
        self.num_pairs, self.num_candidates, self.beam_width = num_pairs, num_candidates, beam_width
        self.random_state, self.device = random_state, device

    def fit(self, X, y=None):
        """Train a codec on vectors and return the transformer.

        X is (N, D) integers or floats, finite, of any kind that `Codec.fit` takes, at least 3 rows; a
        fortieth (1,000, but a tenth at most; 10,000 at most) is for validation.
        """
        X = np.asarray(validate_data(self, cast(Any, _plain_matrix(X)), dtype="numeric", ensure_min_samples=3))
        names = ("num_steps", "codebook_size", "epochs", "minutes", "num_pairs", "num_candidates", "beam_width")
        settings = {name: _plain_int(getattr(self, name)) for name in names}
        if settings["epochs"] is None and settings["minutes"] is None:
            settings["epochs"] = _USUAL_EPOCHS
        settings["codebook_size"] = _affordable_codebook_size(settings["codebook_size"], *X.shape)
        self.codec_ = Codec.fit(X, self.preset, seed=_seed(self.random_state), device=self.device, **settings)
        self.codebook_size_ = self.codec_.config.codebook_size
        return self

    def transform(self, X) -> np.ndarray:
        """Encode vectors (N, D), finite integers or floats: uint8 (N, M), uint16 above 256 codewords."""
        return self.codec_.encode(self._check_vectors(X)).codes

    def inverse_transform(self, codes) -> np.ndarray:
        """Decode codes, integers (N, m) with m ≤ M, to float32 (N, D). Raises DataError for other codes."""
        check_is_fitted(self)
        return self.codec_.decode(codes)

    def score(self, X, y=None) -> float:
        """Minus the mean squared error of compressing vectors (N, D): summed over dimensions, averaged over vectors."""
        X = self._check_vectors(X)
        errors_ND = self.codec_.decode(self.codec_.encode(X)) - np.asarray(X, np.float64)
        return -float(np.square(errors_ND).sum(1).mean())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.codec_.num_codes

    def _check_vectors(self, X) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(validate_data(self, cast(Any, _plain_matrix(X)), dtype="numeric", reset=False))


def _plain_matrix(X):
    """What scikit-learn takes, or refuses, as it is; others that hold vectors (paths, columns, batches) as an array."""
    is_table = hasattr(X, "columns") and hasattr(X, "__array__") and np.asarray(X[:1]).dtype != object
    is_array = isinstance(X, np.ndarray) and (X.dtype != object or X.ndim != 1)
    is_known = X is None or is_array or is_table or isinstance(X, list) or hasattr(X, "toarray")
    return X if is_known else as_source(X, "X")[:]


def _affordable_codebook_size(codebook_size: int, num_vectors: int, dim: int) -> int:
    """`codebook_size`, or the largest power of two that the training vectors suffice for, with a warning."""
    ModelConfig(dim, codebook_size=codebook_size)  # checks the size
    # As in Codec.fit; its limit of 10,000 validation vectors matters for more vectors only.
    num_train = num_vectors - max(1, num_vectors // 10)
    if codebook_size <= num_train:
        return codebook_size
    lowered = 1 << (num_train.bit_length() - 1)
    warnings.warn(
        f"codebook_size={codebook_size} is more than the number of training vectors, {num_train} of {num_vectors}: "
        f"{lowered} is used instead", UserWarning, stacklevel=3,
    )  # fmt: skip
    return lowered


def _seed(random_state) -> int:
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _plain_int(value):
    """numpy's integers, which parameter searches give, as Python's."""
    return int(value) if isinstance(value, np.integer) else value
