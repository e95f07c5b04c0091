"""What a person sees of a run: log lines, progress and TensorBoard."""

import logging
import sys
from dataclasses import replace

import pytest

from qinco.errors import ConfigError
from qinco.progress import silent
from qinco.training.loop import EpochReport, StepReport
from qinco.training.monitor import Estimate, monitor

EPOCH = EpochReport(3, 10, 2.5, [4.0, 2.5], 1.25, 1e-3, 7, 0.01, 2.75, 5.0, True)


def test_an_epoch_is_a_line_with_scaled_errors(caplog):
    caplog.set_level(logging.INFO, "qinco")
    with monitor(mse_scale=1000) as show:
        show(replace(EPOCH, epoch=0, loss=None, code_entropy=float("nan")))
        show(EPOCH)
    messages = caplog.messages
    assert messages[0].startswith("start") and "2,500" in messages[0]
    for fact in ("3/10", "2,500", "best", "1.25", "0.001", "2.75 bits", "7 codewords", "0:05"):
        assert fact in messages[1]


def test_an_end_that_is_brought_forward_is_a_line(caplog):
    caplog.set_level(logging.INFO, "qinco")
    with monitor() as show:
        show(replace(EPOCH, epochs=7, ending="no gain in 2 epochs"))
    assert len(caplog.messages) == 2 and "no gain in 2 epochs" in caplog.messages[1] and "7" in caplog.messages[1]


def test_an_estimate_says_whether_the_run_may_end_early(caplog):
    caplog.set_level(logging.INFO, "qinco")
    estimate = Estimate(60.0, 4.0, 2**20, 16, 16, 100, 1.0, 1000, 100, 5000, 32, 1e-3, may_end_early=True)
    with monitor() as show:
        show(estimate)
        show(replace(estimate, may_end_early=False))
        show(replace(estimate, seconds=None, epochs=None, total_epochs=None))
    assert ["at most 16 epochs" in message for message in caplog.messages] == [True, False, False]
    assert "until they pay no more" in caplog.messages[2]


@pytest.mark.parametrize(("share", "is_warned"), [(0.01, False), (0.03, True)])
def test_many_unused_codewords_are_a_warning(share, is_warned, caplog):
    with monitor() as show:
        show(replace(EPOCH, unused_share=share))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == is_warned and all("3%" in warning for warning in warnings)


def test_every_step_is_progress():
    heard = []
    with monitor(lambda *report, **fields: heard.append((report, fields))) as show:
        show(StepReport(3, 10, 5, 100, 1e-3, 1.25))
    assert heard == [(("epoch 3/10", 5, 100, "step"), {"loss": 1.25, "lr": 1e-3})]


def test_curves_are_written(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monitor(silent, 1000, tmp_path) as show:
        show(replace(EPOCH, epoch=0, loss=None, code_entropy=float("nan")))
        show(EPOCH)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    points = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points["mse/valid"] == [(0, 2500), (3, 2500)] and points["mse_per_step/1"][1] == (3, 4000)
    assert points["loss/train"] == [(3, 1.25)] and points["codewords/entropy_bits"] == [(3, 2.75)]


def test_curves_need_their_package_and_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    pytest.importorskip("tensorboard")
    with pytest.raises(ConfigError, match="file"), monitor(silent, 1, tmp_path / "file"):
        pass
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'qinco\[tensorboard"), monitor(silent, 1, tmp_path):
        pass
