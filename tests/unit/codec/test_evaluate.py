"""Error and speed of a codec: what is measured, never how long anything takes."""

from functools import partial

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec
from qinco.codec import evaluate as module
from qinco.codec.evaluate import benchmark, evaluate, measure_time, median_us
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError
from qinco.machine import num_threads, using_threads

OWN = EncodeOptions(num_pairs=6, beam_width=3)
quick = partial(benchmark, pass_us=1, max_vectors=64)


def make_codec(name: str, device: str | torch.device = "cpu") -> Codec:
    options = OWN.override(precision="float32")
    if name == "product":
        return Codec([random_model(ARCHITECTURES["projected"], seed).to(device) for seed in (0, 1)], options)
    model = random_model(ARCHITECTURES[name]).to(device)
    return Codec(model, options if model.config.has_preselector else EncodeOptions())


@pytest.mark.parametrize("name", ["projected", "coarse", "product"])
def test_the_error_is_that_of_every_prefix(name, device):
    codec = make_codec(name, device)
    x, heard = random_vectors(200, codec.dim), []
    codec.block_rows = 64
    codes = codec.encode(x)
    decoded = [codec.decode(codec.prefix(codes, steps)) for steps in (1, 2, 3)]
    errors = [np.square(x_ND - x, dtype=np.float64).sum(1).mean() for x_ND in decoded]
    found = evaluate(codec, x, progress=lambda *report: heard.append(report))
    assert found.mse_per_step == pytest.approx(errors, rel=1e-4) and found.num_vectors == 200
    assert found.mse == found.mse_per_step[-1]
    assert [done for _, done, total in heard if total == 200] == [64, 128, 192, 200]
    assert len(evaluate(codec, x, num_steps=2).mse_per_step) == 2
    assert min(measure_time(codec, x)) > 0


def test_no_vectors_are_refused():
    for call in (evaluate, measure_time):
        with pytest.raises(DataError, match="must not be empty"):
            call(make_codec("projected"), random_vectors(0, 3))


@pytest.mark.parametrize("name", ["projected", "coarse", "product"])
def test_every_combination_is_measured(name, monkeypatch):
    monkeypatch.setattr(module, "candidate_precision", lambda *given: "bf16")
    heard = []
    with using_threads(2):
        rows = quick(make_codec(name), progress=lambda *report: heard.append(report))
        assert num_threads() == torch.get_num_threads() == 2
    found = [(row.threads, row.precision, row.options.num_pairs, row.options.num_candidates) for row in rows]
    options = [(None, 16), (80, None), (16, None), (6, None)]
    assert found == [(t, p, *own) for t in (1, 2) for p in ("float32", "auto") for own in options]
    assert all(row.encode_us > 0 and row.decode_us > 0 for row in rows)
    assert [report[1:] for report in heard] == [(i, len(rows), "measurement") for i in range(1, len(rows) + 1)]


def test_only_what_is_asked_for_is_measured():
    (row,) = quick(make_codec("projected"), threads=[1], precisions=["bf16"], options=[OWN], engine="torch")
    assert (row.threads, row.precision, row.options) == (1, "bf16", OWN)
    rows = quick(make_codec("qinco1"), threads=[1], precisions=["float32"])
    assert [row.options for row in rows] == [EncodeOptions()]


@pytest.mark.parametrize("wrong", [{"threads": [1, 0]}, {"precisions": ["float32", "int8"]}, {"engine": "abacus"}])
def test_no_combination_is_measured_when_one_is_wrong(wrong):
    heard = []
    with pytest.raises(ConfigError):
        quick(make_codec("projected"), **wrong, progress=lambda *report: heard.append(report))
    assert heard == []


def test_threads_come_back_after_an_interrupt():
    def interrupt(*report):
        assert num_threads() == torch.get_num_threads() == 1
        raise KeyboardInterrupt

    with using_threads(2):
        with pytest.raises(KeyboardInterrupt):
            quick(make_codec("projected"), progress=interrupt)
        assert num_threads() == torch.get_num_threads() == 2


@pytest.mark.parametrize(("us_per_vector", "last"), [(1, 1000), (1000, 200), (1e6, 1)])
def test_passes_grow_until_they_take_a_while(monkeypatch, us_per_vector, last):
    counts, now = [], [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def work(count):
        counts.append(count)
        now[0] += count * us_per_vector / 1e6

    assert median_us(work, 1000, 200_000) == pytest.approx(us_per_vector)
    assert counts[0] == 1 and counts[-1] == last and len(counts) <= 9
    assert median_us(work, 50) == pytest.approx(us_per_vector) and counts[-1] == 50
