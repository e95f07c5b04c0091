"""Rankers: what is fitted, and what a run does with it."""

import numpy as np
import pytest
import torch
from small_models import random_model, random_vectors

from qinco.config import EncodeOptions, ModelConfig
from qinco.model.step import StepTables
from qinco.training.loop import Training
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.ranked import rank_best, ranked_rows
from qinco.training.rankers import fit_rankers
from qinco.vectors.rows import as_source

COUNT, SIZE = 2000, 8
CONFIG = ModelConfig(dim=6, num_steps=3, codebook_size=SIZE, num_blocks=2, hidden_dim=12, has_ranker=True)
WIDTHS = {"same width": CONFIG, "projected": ModelConfig(**CONFIG.to_dict() | {"embed_dim": 4})}


def fitted(config: ModelConfig, used: int = SIZE):
    """A model with fitted rankers, the step that has one, and its hypotheses, residuals and codes."""
    model = random_model(config)
    x_ND = torch.from_numpy(random_vectors(COUNT, config.dim)) / 4
    codes_NM = torch.from_numpy(np.random.default_rng(0).integers(0, used, (COUNT, config.num_steps)))
    start_ND = model.initial_reconstruction(COUNT)
    fit_rankers(model, x_ND, start_ND, codes_NM)
    before_ND = model(codes_NM[:, :2], start_ND)
    return model, model.steps[2], before_ND, x_ND - before_ND, codes_NM[:, 2]


def errors(step, codes_N, x_ND, residual_ND):
    """Squared errors, what the ranker makes of them, and the pre-selector's distances: (N,) each."""
    tables, rows_N = StepTables(step, torch.float32, tabulate=True), torch.arange(len(x_ND))
    estimates_N = tables.estimate(codes_N, rows_N, x_ND, residual_ND, tables.reconstruction_parts(x_ND))
    true_N = (residual_ND - step(codes_N, x_ND)).square().sum(1)
    return true_N, estimates_N, (residual_ND - step.preselector.weight[codes_N]).square().sum(1)


@pytest.mark.parametrize("name", WIDTHS)
def test_estimates_are_nearer_to_errors_than_the_preselector(name):
    _, step, *state, codes_N = fitted(WIDTHS[name])
    true_N, estimates_N, distances_N = errors(step, codes_N, *state)
    assert (estimates_N - true_N).std() < 0.2 * (distances_N - true_N).std()
    assert abs(float((estimates_N - true_N).mean())) < 0.05 * float(true_N.mean())


def test_the_output_of_one_block_is_linear_in_its_hidden_layer():
    config = ModelConfig(**CONFIG.to_dict() | {"num_blocks": 1})
    _, step, x_ND, _, codes_N = fitted(config)
    ranker = step.ranker
    hidden_NH = step.blocks[0].up(step.embed(step.codebook(codes_N)) + step.concat.from_reconstruction(x_ND)).relu()
    found_ND = ranker.codebook[codes_N] + x_ND @ ranker.map.T + hidden_NH @ ranker.hidden_map.T
    wanted_ND = step(codes_N, x_ND)
    assert (found_ND - wanted_ND).square().sum() < 1e-4 * wanted_ND.square().sum()


def test_codewords_that_were_not_used_are_estimated():
    _, step, *state, _ = fitted(CONFIG, used=1)
    for buffer in step.ranker.buffers():
        assert buffer.isfinite().all()
    true_N, estimates_N, _ = errors(step, torch.full((COUNT,), SIZE - 1), *state)
    assert estimates_N.mean() > 0.2 * true_N.mean()


def a_run(config: ModelConfig = CONFIG, rule: EncodeOptions | None = None) -> Training:
    options = TrainOptions.from_recipe("default", config, epochs=1, precision="float32")
    source = as_source(random_vectors(COUNT, config.dim) / 4)
    valid, rule = source.window(0, 400), rule or EncodeOptions(num_pairs=3, beam_width=3)
    model = random_model(config).requires_grad_()
    return Training(model, source, valid, options, rule, Processes(torch.device("cpu")))


def test_the_best_weights_are_ranked_and_the_run_stays_as_it_was():
    training = a_run()
    best, before = random_model(CONFIG, 1).weights(), training.arrays()
    for name in best.arrays:
        if "ranker" in name:
            best.arrays[name] = np.zeros_like(best.arrays[name])
    ranked, mse = rank_best(training, best, np.inf)
    assert all(np.array_equal(before[name], array) for name, array in training.arrays().items())
    for name, array in ranked.arrays.items():
        assert np.array_equal(array, best.arrays[name]) == ("ranker" not in name)
    again, same = rank_best(training, ranked, np.inf)
    assert same == mse and all(np.array_equal(again.arrays[name], array) for name, array in ranked.arrays.items())
    assert rank_best(training, best, mse) is None  # no better


def test_models_without_rankers_and_searches_without_preselection_have_none():
    without = ModelConfig(**CONFIG.to_dict() | {"has_ranker": False})
    for training in (a_run(without), a_run(rule=EncodeOptions())):
        assert rank_best(training, training.model.weights(), np.inf) is None
        assert ranked_rows(training, 1e9) == (0, 0.0)


def test_a_budget_of_time_bounds_what_rankers_are_fitted_to():
    training = a_run()
    rows, seconds = ranked_rows(training, 1e9)
    assert rows == 8192 and seconds > 0
    assert not any(buffer.any() for step in training.model.steps if step.ranker for buffer in step.ranker.buffers())
    assert ranked_rows(training, 1e-3) == (0, 0.0)
