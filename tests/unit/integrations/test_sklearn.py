import inspect
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from qinco.codec.codec import Codec
from qinco.codec.plan import split_validation
from qinco.errors import ConfigError, DataError
from qinco.integrations.sklearn import QincoTransformer
from qinco.vectors.rows import as_source

QUICK = {"num_steps": 2, "codebook_size": 4, "epochs": 1, "device": "cpu"}
LOWERED = "ignore:codebook_size=256 is more than:UserWarning"


def make_vectors(num_vectors=60, dim=3, seed=0):
    return np.random.default_rng(seed).standard_normal((num_vectors, dim)) * 2 + 5


@parametrize_with_checks([QincoTransformer(**QUICK), QincoTransformer("qinco1", **QUICK)])
def test_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings(LOWERED)
@parametrize_with_checks([QincoTransformer()])
def test_passes_the_checks_of_scikit_learn_with_default_settings(estimator, check):
    check(estimator)


def test_is_the_codec_and_nothing_else():
    x = make_vectors()
    transformer = QincoTransformer(num_pairs=6, beam_width=3, random_state=7, **QUICK)
    codes = transformer.fit_transform(x)
    codec = Codec.fit(x, num_pairs=6, beam_width=3, seed=7, **QUICK)
    assert transformer.codec_.encode_options == codec.encode_options
    assert transformer.codec_.provenance["train"] == codec.provenance["train"]
    assert codes.dtype == np.uint8
    assert codes.shape == (60, 2)
    np.testing.assert_array_equal(codes, codec.encode(x))
    decoded = transformer.inverse_transform(codes)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, codec.decode(codes))
    assert transformer.score(x) == pytest.approx(-((decoded - x) ** 2).sum(1).mean())


def test_every_parameter_reaches_the_codec():
    given = QUICK | {"num_candidates": 2, "beam_width": 3, "random_state": 5, "preset": "qinco2-M"}
    codec = QincoTransformer(**given).fit(make_vectors()).codec_
    rule, model, train = codec.encode_options, codec.config, codec.provenance["train"]
    assert (rule.num_candidates, rule.num_pairs, rule.beam_width) == (2, None, 3)
    assert (model.num_steps, model.codebook_size, model.num_blocks, model.embed_dim) == (2, 4, 4, 384)
    assert (train["epochs"], train["seed"]) == (1, 5)
    left_out = {"num_pairs", "minutes"}
    assert {*inspect.signature(QincoTransformer).parameters} == {*given} | left_out


def test_it_takes_epochs_or_minutes():
    assert "10 where minutes" in QincoTransformer.__doc__
    x = make_vectors(40)
    train = QincoTransformer(**QUICK | {"epochs": None}).fit(x).codec_.provenance["train"]
    assert (train["epochs"], train["minutes"]) == (10, None)
    train = QincoTransformer(**QUICK | {"epochs": None, "minutes": np.float64(0.002)}).fit(x).codec_.provenance["train"]
    assert (train["epochs"], train["minutes"]) == (None, 0.002)
    with pytest.raises(ConfigError, match="epochs=1 and minutes=3 exclude each other"):
        QincoTransformer(**QUICK, minutes=3).fit(x)


@pytest.mark.parametrize("num_vectors", [3, 4, 5, 9, 10, 19, 20, 71, 72, 284, 285, 72_817, 72_818, 200_000])
def test_a_lowered_codebook_is_the_largest_that_can_be_trained(num_vectors):
    from qinco.integrations.sklearn import _affordable_codebook_size

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = _affordable_codebook_size(65536, num_vectors, 1)
    source = as_source(np.zeros((num_vectors, 1), np.float32))
    split_validation(source, None, size)
    if size < 65536:
        with pytest.raises(DataError, match="for each codeword"):
            split_validation(source, None, 2 * size)


def test_tiny_sets_lower_the_codebook_and_say_so():
    x = make_vectors(12)
    transformer = QincoTransformer(**QUICK | {"codebook_size": 256})
    with pytest.warns(UserWarning, match="codebook_size=256 .* 11 of 12: 8 is used"):
        transformer.fit(x)
    assert transformer.codebook_size_ == transformer.codec_.config.codebook_size == 8
    assert transformer.codebook_size == 256
    assert transformer.fit(make_vectors(300)).codebook_size_ == 256


@pytest.mark.filterwarnings(LOWERED)
@pytest.mark.parametrize(
    "x",
    [
        make_vectors(3),
        make_vectors(10, dim=1),
        np.full((20, 2), 2.5),
        np.hstack([make_vectors(20, dim=1), np.full((20, 1), 7.0)]),
        np.repeat(make_vectors(2), 10, axis=0),
        make_vectors(20).astype(np.uint8),
    ],
    ids=["three rows", "one dimension", "all equal", "constant column", "duplicates", "integers"],
)
def test_degenerate_sets_are_compressed(x):
    transformer = QincoTransformer(**QUICK | {"codebook_size": 256}).fit(x)
    decoded = transformer.inverse_transform(transformer.transform(x))
    # Codebooks start as the training vectors here, so that all but the rows for validation come back.
    np.testing.assert_allclose(decoded[:2], x[:2], atol=0.2 if len(x) > 3 else 5)


def test_too_few_rows():
    for count in (1, 2):
        with pytest.raises(ValueError, match=f"{count} sample.* minimum of 3"):
            QincoTransformer(**QUICK).fit(make_vectors(count))


def test_random_state():
    x = make_vectors()

    def seed(random_state):
        return QincoTransformer(random_state=random_state, **QUICK).fit(x).codec_.provenance["train"]["seed"]

    assert seed(3) == seed(np.int64(3)) == 3
    assert seed(np.random.RandomState(3)) == seed(np.random.RandomState(3)) != 3
    state = np.random.RandomState(3)
    assert seed(state) != seed(state)
    assert seed(None) != seed(None)


def test_the_same_fit_twice_gives_the_same_codes():
    x = make_vectors()
    transformer = QincoTransformer(**QUICK)
    first = transformer.fit_transform(x)
    np.testing.assert_array_equal(clone(transformer).fit_transform(x), first)
    np.testing.assert_array_equal(transformer.fit(x).transform(x), first)


def test_names_of_the_codes():
    transformer = QincoTransformer(**QUICK).fit(make_vectors())
    assert list(transformer.get_feature_names_out()) == ["qincotransformer0", "qincotransformer1"]


def test_a_prefix_of_the_codes_is_decoded():
    x = make_vectors()
    transformer = QincoTransformer(**QUICK).fit(x)
    codes = transformer.transform(x)
    np.testing.assert_array_equal(transformer.inverse_transform(codes[:, :1]), transformer.codec_.decode(codes[:, :1]))


def test_works_in_a_pipeline_and_a_search_over_numpy_values():
    x = make_vectors(100)
    pipeline = make_pipeline(StandardScaler(), QincoTransformer(**QUICK))
    search = GridSearchCV(pipeline, {"qincotransformer__num_steps": np.array([1, 3])}, cv=2).fit(x)
    assert search.best_params_ == {"qincotransformer__num_steps": 3}
    best = search.best_estimator_
    decoded = best.inverse_transform(best.transform(x))
    assert decoded.shape == x.shape
    assert ((decoded - x) ** 2).mean() < 0.5 * x.var(0).mean()


def test_wrong_use_is_told():
    x = make_vectors()
    with pytest.raises(NotFittedError):
        QincoTransformer().inverse_transform(np.zeros((1, 8), np.uint8))
    with pytest.raises(NotFittedError):
        QincoTransformer().score(x)
    for wrong, message in [
        ({"codebook_size": 300}, "power of two, not 300"),
        ({"codebook_size": "256"}, "must be an integer, not '256'"),
        ({"preset": "qinco2-XL"}, "unknown preset"),
        ({"num_steps": 0}, r"num_steps \(M\) must be between 1 and 1024"),
        ({"num_pairs": 4, "num_candidates": 2}, "exclude each other"),
    ]:
        with pytest.raises(ConfigError, match=message):
            QincoTransformer(**QUICK | wrong).fit(x)
    fitted = QincoTransformer(**QUICK).fit(x)
    with pytest.raises(DataError, match="in the range"):
        fitted.inverse_transform(np.full((1, 2), 4))
    with pytest.raises(ValueError, match="expecting 3 features"):
        fitted.transform(x[:, :2])
