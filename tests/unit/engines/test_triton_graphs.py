"""Graphs of small batches, with what stands in for a card's capture: it runs the work again where a graph replays."""

import pytest
import torch

from qinco.engines.triton.graphs import MOST_GRAPHS, SIZES, Graphs


def work(x_ND, start_ND):
    return (x_ND.sum(1, keepdim=True) * 10).long(), x_ND + start_ND


def rerun(work):
    filled = tuple(torch.zeros_like(values) for values in work())

    def replay():
        for target, values in zip(filled, work(), strict=True):
            target.copy_(values)

    return replay, filled


def batch(count: int, seed: int):
    return torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed)).unbind()


def test_batches_of_any_size_give_what_the_work_gives():
    captures = []
    graphs = Graphs(lambda work: captures.append(1) or rerun(work))
    kept = []
    for seed, count in enumerate([1, 5, SIZES[0], SIZES[0] + 1, 2, SIZES[-1], SIZES[-1] + 1, 7]):
        x_ND, start_ND = batch(count, seed)
        kept.append((graphs.run("key", work, x_ND, start_ND), work(x_ND, start_ND)))
    assert all(torch.equal(a, b) for found, wanted in kept for a, b in zip(found, wanted, strict=True))  # nor later
    assert len(captures) == 3  # one of each size


def test_what_is_computed_has_a_graph_of_its_own():
    graphs = Graphs(rerun)
    x_ND, start_ND = batch(4, 0)
    for factor in (1, 2, 1, 2):
        _, found_ND = graphs.run(factor, lambda x, s, factor=factor: (x.long(), factor * x + s), x_ND, start_ND)
        assert torch.equal(found_ND, factor * x_ND + start_ND)


def test_graphs_are_no_larger_than_a_tile_and_few():
    captures, sizes = [], []

    def noted(x_ND, start_ND):
        sizes.append(len(x_ND))
        return work(x_ND, start_ND)

    graphs = Graphs(lambda work: captures.append(1) or rerun(work))
    graphs.run("key", noted, *batch(20, 0), most=31)
    assert sizes == [20] and not captures
    for key in range(100):
        assert torch.equal(graphs.run(key, noted, *batch(3, key))[1], sum(batch(3, key)))
    assert len(captures) == MOST_GRAPHS


def wrong(work):
    _, filled = rerun(work)
    return (lambda: filled[0].fill_(-1)), filled


def refusing(work):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("capture", [wrong, refusing])
def test_a_graph_that_is_wrong_or_cannot_be_captured_is_not_used(capture):
    graphs = Graphs(capture)
    for seed in range(3):
        x_ND, start_ND = batch(9, seed)
        assert all(map(torch.equal, graphs.run("key", work, x_ND, start_ND), work(x_ND, start_ND)))
