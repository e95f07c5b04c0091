"""The encoder against exhaustive search, against itself with other options, and against the networks it shortcuts."""

import itertools
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import random_model, torch_decode, torch_encoder

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import torch_engine
from qinco.model.step import StepTables

SEEDS = st.integers(0, 2**31)
# Inputs are drawn anew only when this file changes: two float32 sums that tie by chance are no failure.
quick = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def configs(draw, preselector=None, max_steps=3, sizes=(2, 4)):
    dim = draw(st.integers(1, 4))
    skips = draw(st.booleans())
    lists = draw(st.sampled_from([0, 3]))
    return ModelConfig(
        dim=dim,
        num_steps=draw(st.integers(1, max_steps)),
        codebook_size=draw(st.sampled_from(sizes)),
        num_blocks=draw(st.integers(0, 2)),
        embed_dim=draw(st.integers(1, 5)) if skips else dim,
        hidden_dim=draw(st.integers(1, 5)),
        has_preselector=draw(st.booleans()) if preselector is None else preselector,
        codeword_skip=skips,
        concat_rank=draw(st.sampled_from([None, 1, 2])),
        starts_from_coarse=lists > 0,
        num_lists=lists,
    )


def problem(config: ModelConfig, seed: int, device: torch.device, count: int = 6):
    """A model far from any residual quantizer, vectors, and their starting points, on a device."""
    model = random_model(config, seed).to(device)
    generator = torch.Generator().manual_seed(seed + 1)
    x_ND = torch.randn(count, config.dim, generator=generator) * 2
    lists_N = torch.randint(3, (count,), generator=generator)
    return model, x_ND.to(device), model.initial_reconstruction(count, lists_N.to(device))


def errors(model, x_ND, start_ND, codes_NM):
    return (torch_decode(model, codes_NM, start_ND) - x_ND).square().sum(1)


def same_result(model, x_ND, start_ND, codes_NM, others_NM):
    """Codes are equal, but for vectors whose two codes are equally good."""
    ours, theirs = (errors(model, x_ND, start_ND, codes) for codes in (codes_NM, others_NM))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    differ_N = (codes_NM != others_NM).any(1)
    torch.testing.assert_close(ours[differ_N], theirs[differ_N], rtol=1e-5, atol=1e-5)


@quick
@given(config=configs(), seed=SEEDS)
def test_a_full_beam_is_an_exhaustive_search(device, config, seed):
    model, x_ND, start_ND = problem(config, seed, device)
    full = config.codebook_size ** (config.num_steps - 1)  # all that the last step can start from
    found_NM, _ = torch_encoder(model, EncodeOptions(beam_width=full)).encode(x_ND, start_ND)
    everything = torch.tensor(list(itertools.product(range(config.codebook_size), repeat=config.num_steps)))
    everything = everything.to(device)
    all_errors = torch.stack([errors(model, x_ND, start_ND, code.expand(len(x_ND), -1)) for code in everything])
    best_N, winners_N = all_errors.min(0)
    torch.testing.assert_close(errors(model, x_ND, start_ND, found_NM), best_N, rtol=1e-5, atol=1e-5)
    same_result(model, x_ND, start_ND, found_NM, everything[winners_N])


@quick
@given(config=configs(preselector=True), seed=SEEDS)
def test_all_candidates_and_no_beam_is_the_greedy_search(device, config, seed):
    model, x_ND, start_ND = problem(config, seed, device)
    rule = EncodeOptions(num_candidates=config.codebook_size)
    found_NM, reached_ND = torch_encoder(model, rule).encode(x_ND, start_ND)
    greedy_ND, codes, rows_N = start_ND, [], torch.arange(len(x_ND), device=device)
    for step in model.steps:
        options_KND = torch.stack(
            [greedy_ND + step(torch.full_like(rows_N, k), greedy_ND) for k in range(config.codebook_size)]
        )
        codes.append((options_KND - x_ND).square().sum(2).argmin(0))
        greedy_ND = options_KND[codes[-1], rows_N]
    same_result(model, x_ND, start_ND, found_NM, torch.stack(codes, 1))
    torch.testing.assert_close(reached_ND, torch_decode(model, found_NM, start_ND), rtol=1e-4, atol=1e-4)


@quick
@given(config=configs(preselector=True), seed=SEEDS, beam=st.integers(1, 6), more=st.integers(0, 9))
def test_rules_that_propose_everything_are_alike(device, config, seed, beam, more):
    """No pre-selection, A = K or more, and C = B · K or more."""
    model, x_ND, start_ND = problem(config, seed, device)
    size = config.codebook_size
    rules = [
        EncodeOptions(beam_width=beam),
        EncodeOptions(num_candidates=size + more, beam_width=beam),
        EncodeOptions(num_pairs=beam * size + more, beam_width=beam),
    ]
    first, *others = [torch_encoder(model, rule).encode(x_ND, start_ND)[0] for rule in rules]
    for codes_NM in others:
        same_result(model, x_ND, start_ND, first, codes_NM)


rules = st.one_of(
    st.builds(EncodeOptions, num_candidates=st.integers(1, 5), beam_width=st.integers(1, 5)),
    st.builds(EncodeOptions, num_pairs=st.integers(1, 9), beam_width=st.integers(1, 5)),
    st.builds(EncodeOptions, beam_width=st.integers(1, 5)),
)


@quick
@given(config=configs(preselector=True), seed=SEEDS, rule=rules, tile=st.sampled_from([1, 7, 40, 10**6]))
def test_results_do_not_depend_on_the_tile_or_the_order_of_rows(device, config, seed, rule, tile):
    model, x_ND, start_ND = problem(config, seed, device, 12)
    whole_NM, _ = torch_encoder(model, rule).encode(x_ND, start_ND)
    with mock.patch.multiple(torch_engine, TILE_CANDIDATES=tile, DEVICE_TILE_BYTES=1000 * tile):
        tiled_NM, _ = torch_encoder(model, rule).encode(x_ND, start_ND)
    same_result(model, x_ND, start_ND, whole_NM, tiled_NM)
    order_N = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).to(device)
    moved_NM, _ = torch_encoder(model, rule).encode(x_ND[order_N], start_ND[order_N])
    same_result(model, x_ND, start_ND, whole_NM[order_N], moved_NM)


@quick
@given(config=configs(preselector=True), seed=SEEDS, rule=rules, rows=st.integers(1, 9))
def test_results_do_not_depend_on_the_block(config, seed, rule, rows):
    codec = Codec(random_model(config, seed), rule)
    x_ND = np.random.default_rng(seed).standard_normal((13, config.dim)).astype(np.float32) * 3
    whole = codec.encode(x_ND, precision="float32")
    decoded_ND = codec.decode(whole)
    codec.block_rows = rows
    split = codec.encode(x_ND, precision="float32")
    assert np.array_equal(split, whole) and (whole.lists is None or np.array_equal(split.lists, whole.lists))
    np.testing.assert_allclose(codec.decode(whole), decoded_ND, rtol=1e-5, atol=1e-5)


@quick
@given(config=configs(preselector=True, max_steps=4), seed=SEEDS, rule=rules)
def test_a_prefix_of_the_codes_decodes_as_the_shorter_code(device, config, seed, rule):
    model, x_ND, start_ND = problem(config, seed, device)
    codes_NM, _ = torch_encoder(model, rule).encode(x_ND, start_ND)
    prefixes = list(model.reconstructions(codes_NM, start_ND))
    for steps in range(1, config.num_steps + 1):
        assert torch.equal(torch_decode(model, codes_NM[:, :steps], start_ND), prefixes[steps - 1])
        short_NM, reached_ND = torch_encoder(model, rule).encode(x_ND, start_ND, steps)
        assert short_NM.shape == (len(x_ND), steps)
        torch.testing.assert_close(torch_decode(model, short_NM, start_ND), reached_ND, rtol=1e-4, atol=1e-4)
        if rule.beam_width == 1:
            assert torch.equal(short_NM, codes_NM[:, :steps])


@quick
@given(config=configs(), seed=SEEDS)
def test_tables_change_nothing(device, config, seed):
    model, x_ND, _ = problem(config, seed, device, 5)
    generator = torch.Generator().manual_seed(seed)
    codes_N = torch.randint(config.codebook_size, (20,), generator=generator).to(device)
    hypotheses_N = torch.randint(5, (20,), generator=generator).to(device)
    for step in filter(lambda step: step.conditioned, model.steps):
        wanted_ND = step(codes_N, x_ND[hypotheses_N])
        for tabulate in (True, False):
            table = StepTables(step, torch.float32, tabulate)
            for _ in range(2):  # the second call finds the tables as the first one left them
                found_ND = table.evaluate(codes_N, hypotheses_N, table.reconstruction_parts(x_ND))
                torch.testing.assert_close(found_ND, wanted_ND, rtol=1e-4, atol=1e-4)


@quick
@given(config=configs(preselector=True, max_steps=4), seed=SEEDS, data=st.data())
def test_a_search_of_everything_beats_every_cheaper_one(device, config, seed, data):
    model, x_ND, start_ND = problem(config, seed, device)
    full = EncodeOptions(beam_width=config.codebook_size**config.num_steps)
    best_N = errors(model, x_ND, start_ND, torch_encoder(model, full).encode(x_ND, start_ND)[0])
    rule = data.draw(rules)
    codes_NM, _ = torch_encoder(model, rule).encode(x_ND, start_ND)
    assert (best_N <= errors(model, x_ND, start_ND, codes_NM) * (1 + 1e-5) + 1e-5).all()
