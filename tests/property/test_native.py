"""The native engine on random shapes, rules and inputs: as the reference, the same bits however it is called, and
never outside its arrays."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_levels import LEVELS, needs_native, pack_at
from small_models import ARCHITECTURES, Encoder, random_model, torch_decode, torch_encoder

from qinco.config import EncodeOptions, ModelConfig
from qinco.machine import using_threads

pytestmark = needs_native
SEEDS = st.integers(0, 2**31)
PRECISIONS = st.sampled_from(["float32", "bf16"])
levels = st.sampled_from(LEVELS or ["portable"])
# Inputs are drawn anew only when this file changes: two float32 sums that tie by chance are no failure.
checked = settings(
    deadline=None, max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

MOST_CANDIDATES = 20_000  # so that an example takes milliseconds


@st.composite
def configs(draw, most_dim=300, sizes=(2, 4, 8, 16, 32, 64, 512)):
    dim = draw(st.one_of(st.integers(1, 20), st.integers(1, most_dim)))
    skips = draw(st.booleans())
    lists = draw(st.sampled_from([0, 0, 3]))
    return ModelConfig(
        dim=dim,
        num_steps=draw(st.integers(1, 4)),
        codebook_size=draw(st.sampled_from(sizes)),
        num_blocks=draw(st.integers(0, 3)),
        embed_dim=draw(st.one_of(st.just(dim), st.integers(1, 70))) if skips else dim,
        hidden_dim=draw(st.integers(1, 70)),
        has_preselector=draw(st.booleans()),
        codeword_skip=skips,
        concat_rank=draw(st.sampled_from([None, None, 1, 5])),
        starts_from_coarse=lists > 0,
        num_lists=lists,
    )


@st.composite
def rules(draw, config: ModelConfig):
    """A rule that the model can serve: also more candidates, pairs or hypotheses than there are."""
    beam, size = draw(st.sampled_from([1, 2, 3, 8, 33])), config.codebook_size
    kinds = {
        "everything": None, "num_candidates": [1, 2, 7, size, size + 3],
        "num_pairs": [1, 5, 40, beam * size, beam * size + 3],
    }  # fmt: skip
    kind = draw(st.sampled_from(list(kinds) if config.has_preselector else ["everything"]))
    return EncodeOptions(**({} if kinds[kind] is None else {kind: draw(st.sampled_from(kinds[kind]))}), beam_width=beam)


@st.composite
def searches(draw, most_rows=17, **kinds):
    """A model, a rule, vectors and starts; fewer vectors where each has many candidates."""
    config = draw(configs(**kinds))
    rule = draw(rules(config))
    each = rule.num_pairs or rule.beam_width * (rule.num_candidates or config.codebook_size)
    rows = draw(st.integers(0, max(2, min(most_rows, MOST_CANDIDATES // each))))
    return problem(config, draw(SEEDS), rows), rule


def problem(config: ModelConfig, seed: int, count: int):
    """A model whose layers keep their inputs' scale, vectors, and their starting points."""
    model = random_model(config, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "codebook" not in name and "preselector" not in name:
                weight /= weight.shape[1] ** 0.5
    generator = torch.Generator().manual_seed(seed + 1)
    x_ND = torch.randn(count, config.dim, generator=generator) * 2
    return model, x_ND, model.initial_reconstruction(count, torch.randint(3, (count,), generator=generator))


def errors(model, x_ND, start_ND, codes_NM):
    return (torch_decode(model, codes_NM, start_ND) - x_ND).square().sum(1)


def check_search(model, x_ND, start_ND, rule, level, steps=None):
    """The reference's codes, but for vectors whose two codes are equally good, and the vectors that they decode to."""
    packed = pack_at(level, model)
    ours_NM, reached_ND = Encoder(packed, rule).encode(x_ND, start_ND, steps)
    theirs_NM, _ = torch_encoder(model, rule).encode(x_ND, start_ND, steps)
    assert ours_NM.shape == theirs_NM.shape and ours_NM.dtype == torch.int64
    if not len(x_ND):
        return
    ours_N, theirs_N = (errors(model, x_ND, start_ND, codes_NM) for codes_NM in (ours_NM, theirs_NM))
    torch.testing.assert_close(ours_N, theirs_N, rtol=1e-5, atol=1e-5)
    for codes_NM in (ours_NM, theirs_NM):
        decoded_ND = torch_decode(model, codes_NM, start_ND)
        check_close(packed.decode_tensors(codes_NM, start_ND), decoded_ND, theirs_N)
    check_close(reached_ND, torch_decode(model, ours_NM, start_ND), theirs_N)


def check_close(ours_ND, theirs_ND, errors_N):
    """Within 1e-5 of the error's scale, and a few roundings of what is decoded and of what was summed up, about one."""
    limit_N = 1e-5 * errors_N.mean().sqrt() + 1e-6 * (1 + theirs_ND.norm(dim=1))
    assert ((ours_ND - theirs_ND).norm(dim=1) <= limit_N).all()


@checked
@given(search=searches(), level=levels)
def test_any_shape_and_rule_as_by_the_reference(search, level):
    (model, x_ND, start_ND), rule = search
    check_search(model, x_ND, start_ND, rule, level)


@checked
@given(search=searches(most_dim=40), level=levels, data=st.data())
def test_prefixes_as_by_the_reference(search, level, data):
    (model, x_ND, start_ND), rule = search
    check_search(model, x_ND, start_ND, rule, level, data.draw(st.integers(1, model.config.num_steps)))


LARGE = {  # more candidates of one vector than are evaluated together
    "everything": EncodeOptions(beam_width=8),
    "candidates": EncodeOptions(num_candidates=300, beam_width=16),
    "all candidates": EncodeOptions(num_candidates=512, beam_width=9),
    "pairs": EncodeOptions(num_pairs=5000, beam_width=16),
    "a beam of them": EncodeOptions(num_pairs=6000, beam_width=5000),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rule", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("embed_dim", [7, 5], ids=["same width", "projected"])
def test_more_candidates_than_are_evaluated_together(level, rule, embed_dim):
    config = ModelConfig(dim=7, embed_dim=embed_dim, num_steps=3, codebook_size=512, num_blocks=1, hidden_dim=6)
    check_search(*problem(config, 3, 7), rule, level)


def bits(*tensors) -> list[bytes]:
    """Of tensors of numbers: equal where all bits are, and unlike `torch.equal` also for what is not a number."""
    return [tensor.numpy().tobytes() for tensor in tensors]


@checked
@given(search=searches(most_rows=120, most_dim=30), level=levels, precision=PRECISIONS, data=st.data())
def test_threads_blocks_and_the_order_of_rows_change_no_bit(search, level, precision, data):
    (model, x_ND, start_ND), rule = search
    count = len(x_ND)
    packed = pack_at(level, model, precision)
    encoder = Encoder(packed, rule)
    whole_NM, reached_ND = encoder.encode(x_ND, start_ND)
    decoded_ND = packed.decode_tensors(whole_NM, start_ND)
    for threads in (2, 3, 7):
        with using_threads(threads):
            assert bits(*encoder.encode(x_ND, start_ND)) == bits(whole_NM, reached_ND)
            assert bits(packed.decode_tensors(whole_NM, start_ND)) == bits(decoded_ND)
    rows = data.draw(st.integers(1, max(1, count)))
    for from_ in range(0, count, rows):
        part = slice(from_, from_ + rows)
        assert bits(*encoder.encode(x_ND[part], start_ND[part])) == bits(whole_NM[part], reached_ND[part])
        assert bits(packed.decode_tensors(whole_NM[part], start_ND[part])) == bits(decoded_ND[part])
    order_N = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    moved = encoder.encode(x_ND[order_N], start_ND[order_N])
    assert bits(*moved) == bits(whole_NM[order_N], reached_ND[order_N])
    assert bits(packed.decode_tensors(whole_NM[order_N], start_ND[order_N])) == bits(decoded_ND[order_N])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["same width", "projected", "qinco1", "no blocks"])
def test_what_was_encoded_before_changes_no_bit(name, level, precision):
    """Whatever tables a model fills once it has been used for long."""
    model, x_ND, start_ND = problem(ARCHITECTURES[name], 5, 300)
    rules = [EncodeOptions(beam_width=3)]
    if model.config.has_preselector:
        rules += [EncodeOptions(num_candidates=2, beam_width=3), EncodeOptions(num_pairs=7, beam_width=4)]
    for rule in rules:
        encoders = [Encoder(pack_at(level, model, precision), rule) for _ in range(2)]
        fresh = [encoders[0].encode(x_ND[n : n + 1], start_ND[n : n + 1]) for n in range(3)]
        encoders[1].encode(x_ND.repeat(40, 1), start_ND.repeat(40, 1))
        used = encoders[1].encode(x_ND[:3], start_ND[:3])
        for n in range(3):
            assert bits(*fresh[n]) == bits(*(rows[n : n + 1] for rows in used))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["same width", "projected", "no blocks"])
def test_what_was_decoded_before_changes_no_bit(name, level, precision):
    """Nor how much of a table is filled, when one call evaluates less than the table holds."""
    model, size = random_model(ARCHITECTURES[name]), ARCHITECTURES[name].codebook_size
    codes_NM = torch.randint(size, (5 * size**2, model.config.num_steps), generator=torch.Generator().manual_seed(0))
    packed, start_ND = pack_at(level, model, precision), model.initial_reconstruction(len(codes_NM))
    fresh_ND = packed.decode_tensors(codes_NM[:100], start_ND[:100])
    for n in range(len(codes_NM)):
        packed.decode_tensors(codes_NM[n : n + 1], start_ND[n : n + 1])
        if n % size == 0:
            assert bits(packed.decode_tensors(codes_NM[:9], start_ND[:9])) == bits(fresh_ND[:9])
    assert bits(packed.decode_tensors(codes_NM[:100], start_ND[:100])) == bits(fresh_ND)


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -3.0, 1e-42, 1e-30, 1e15, -1e30, 3e38, float("inf"), float("nan")])


def check_codes(codes_NM, config: ModelConfig) -> None:
    assert int(codes_NM.min()) >= 0 and int(codes_NM.max()) < config.codebook_size


@checked
@given(search=searches(most_dim=40), level=levels, precision=PRECISIONS, data=st.data())
def test_extreme_vectors_get_codes_in_range_and_do_not_reach_their_neighbours(search, level, precision, data):
    (model, x_ND, start_ND), rule = search
    packed = pack_at(level, model, precision)
    encoder = Encoder(packed, rule)
    calm_NM, calm_ND = encoder.encode(x_ND, start_ND)
    wild = data.draw(st.lists(st.integers(0, max(0, len(x_ND) - 1)), max_size=4)) if len(x_ND) else []
    x_ND, start_ND = x_ND.clone(), start_ND.clone()
    for row in wild:
        rows_ND = data.draw(st.sampled_from([x_ND, x_ND, start_ND]))
        columns = slice(data.draw(st.integers(0, x_ND.shape[1] - 1)), None, data.draw(st.integers(1, 3)))
        rows_ND[row, columns] = data.draw(NUMBERS)
    codes_NM, reached_ND = encoder.encode(x_ND, start_ND)
    if len(x_ND):
        check_codes(codes_NM, model.config)
    packed.decode_tensors(codes_NM, start_ND)
    others = sorted(set(range(len(x_ND))) - set(wild))
    assert bits(codes_NM[others], reached_ND[others]) == bits(calm_NM[others], calm_ND[others])


@checked
@given(search=searches(most_dim=40), level=levels, precision=PRECISIONS, data=st.data())
def test_extreme_weights_give_codes_in_range(search, level, precision, data):
    (model, x_ND, start_ND), rule = search
    weights = [weight for _, weight in sorted(model.named_parameters())]
    with torch.no_grad():
        for _ in range(data.draw(st.integers(1, 3))):
            weight = data.draw(st.sampled_from(weights)).flatten()
            weight[data.draw(st.integers(0, len(weight) - 1)) :: data.draw(st.integers(1, 5))] = data.draw(NUMBERS)
    packed = pack_at(level, model, precision)
    codes_NM, _ = Encoder(packed, rule).encode(x_ND, start_ND)
    if len(x_ND):
        check_codes(codes_NM, model.config)
    packed.decode_tensors(codes_NM, start_ND)


@pytest.mark.parametrize("level", LEVELS)
def test_a_beam_far_larger_than_what_there_is(level):
    model, x_ND, start_ND = problem(ARCHITECTURES["projected"], 6, 9)
    for found in ({}, {"num_candidates": 3}, {"num_pairs": 50}):
        check_search(model, x_ND, start_ND, EncodeOptions(**found, beam_width=65536), level)


@pytest.mark.parametrize("level", LEVELS)
def test_zero_and_equal_vectors(level):
    for name in ("same width", "projected", "qinco1", "coarse"):
        model, x_ND, start_ND = problem(ARCHITECTURES[name], 7, 50)
        check_search(model, 0 * x_ND, start_ND, EncodeOptions(beam_width=3), level)
        codes_NM, _ = Encoder(pack_at(level, model), EncodeOptions(beam_width=3)).encode(
            x_ND[:1].repeat(50, 1), start_ND[:1].repeat(50, 1)
        )
        assert (codes_NM == codes_NM[0]).all()
