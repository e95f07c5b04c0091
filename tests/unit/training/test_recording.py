"""Recorded training steps are those computed launch by launch. A fake of recordings stands for those of a GPU."""

import logging

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_vectors

from qinco.config import EncodeOptions
from qinco.model.qinco import Qinco
from qinco.training.codebooks import CodewordUse, initialize_model
from qinco.training.gradients import TorchGradients
from qinco.training.loop import Training
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.training.recording import BatchWork
from qinco.vectors.rows import as_source

CONFIG = ARCHITECTURES["projected"]
OPTIONS = EncodeOptions(num_pairs=6, beam_width=3, engine="torch")


class FakeGpu:
    """Records functions: a replay runs one again, and puts new gradients where those of the recorded run are."""

    def __init__(self, model: Qinco, replay=lambda run, kept, parameters: run()):
        self.parameters, self.replay, self.recorded, self.replayed = list(model.parameters()), replay, 0, 0

    def __call__(self, work):
        work()
        kept = [parameter.grad for parameter in self.parameters]
        self.recorded += 1

        def run():
            work()
            for old, parameter in zip(kept, self.parameters, strict=True):
                assert (old is None) == (parameter.grad is None)
                if old is not None:
                    old.copy_(parameter.grad)

        def replay():
            self.replayed += 1
            self.replay(run, kept, self.parameters)

        return replay


def new_model() -> Qinco:
    model = Qinco.empty(CONFIG).to_empty(device="cpu")
    initialize_model(model, as_source(random_vectors(300, CONFIG.dim)), TrainOptions(), None)
    return model


def work_of(model: Qinco, record=None) -> BatchWork:
    return BatchWork(model, TorchGradients(model, "float32"), "float32", record)


def steps(work: BatchWork, sizes, options=OPTIONS):
    """Losses, counts and gradients of steps of so many vectors, with weights that change in between."""
    found, parameters = [], list(work.model.parameters())
    for number, size in enumerate(sizes):
        for parameter in parameters:
            parameter.grad = None
        x_ND, use = torch.from_numpy(random_vectors(size, CONFIG.dim, number)), CodewordUse(work.model)
        loss = work.compute(x_ND, torch.zeros_like(x_ND), options, use, 1 / size)
        gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        found.append((float(loss), use.flat.clone(), gradients))
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-3)
    return found


def assert_equal(found, wanted):
    for (loss, counts, gradients), (other_loss, other_counts, other_gradients) in zip(found, wanted, strict=True):
        assert loss == other_loss
        assert torch.equal(counts, other_counts)
        for own, other in zip(gradients, other_gradients, strict=True):
            assert torch.equal(own, other)


def test_recorded_steps_are_those_that_are_not():
    sizes, model = [40, 40, 41, 40, 41, 41, 40], new_model()
    gpu = FakeGpu(model)
    assert_equal(steps(work_of(model, gpu), sizes), steps(work_of(new_model()), sizes))
    assert gpu.recorded == 2 and gpu.replayed == 5  # a first step of each size is not recorded


def no_replay(run, kept, parameters):
    """The gradients and the loss stay what they were."""


def wrong_gradients(run, kept, parameters):
    run()
    next(old for old in kept if old is not None).mul_(1.5)


def failing(run, kept, parameters):
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")


@pytest.mark.parametrize("replay", [no_replay, wrong_gradients, failing])
def test_a_recording_that_is_wrong_is_not_used_and_told_once(replay, caplog):
    sizes, model = [40, 40, 40, 41, 41], new_model()
    with caplog.at_level(logging.WARNING):
        found = steps(work_of(model, FakeGpu(model, replay)), sizes)
    assert_equal(found, steps(work_of(new_model()), sizes))
    (record,) = [record for record in caplog.records if "recorded" in record.getMessage()]
    assert "\n" not in record.getMessage()


def test_a_device_that_cannot_record_is_told_once(caplog):
    def cannot(work):
        raise RuntimeError("no graphs")

    sizes = [40, 40, 40, 41, 41]
    with caplog.at_level(logging.WARNING):
        assert_equal(steps(work_of(new_model(), cannot), sizes), steps(work_of(new_model()), sizes))
    assert len([record for record in caplog.records if "no graphs" in record.getMessage()]) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_recorded_steps_is_the_one_without(optimizer):
    def run(is_recorded: bool) -> tuple[list, dict]:
        source = as_source(random_vectors(300, CONFIG.dim))
        model, options = new_model(), TrainOptions(epochs=2, batch_size=32, precision="float32", optimizer=optimizer)
        one = Training(model, source, source.window(0, 50), options, OPTIONS, Processes(torch.device("cpu")))
        if is_recorded:
            one.work.record = FakeGpu(model)
        reports = [getattr(report, "mse_per_step", None) or report.loss for report in one.run()]
        assert not is_recorded or one.work.record.replayed > 10
        return reports, one.arrays()

    (reports, arrays), (wanted_reports, wanted_arrays) = run(True), run(False)
    assert reports == wanted_reports
    for name, array in wanted_arrays.items():
        np.testing.assert_array_equal(arrays[name], array)
