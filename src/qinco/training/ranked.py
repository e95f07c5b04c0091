"""When a run is over, rankers are fitted to its best weights; how many vectors a budget of time allows for that."""

import time
from copy import deepcopy

import torch

from qinco.engines.tensors import pack
from qinco.maths.devices import to_device
from qinco.model.qinco import Qinco
from qinco.model.weights import Weights
from qinco.training.loop import Training, narrow_options
from qinco.training.rankers import clear_rankers, fit_rankers
from qinco.vectors.rows import read_rows, stratified_rows

_ROWS = 8192  # vectors that rankers are fitted to; with half of them the error is .1 % higher
_SHARE, _MEASURED = 0.04, 512  # of a budget of time, at most; vectors to measure that with


def ranked_rows(training: Training, seconds: float) -> tuple[int, float]:
    """How many vectors to fit the rankers to in a small share of `seconds`, and how long that takes; 0 for none."""
    if not _has_rankers(training):
        return 0, 0.0
    count = len(training.train_source)
    begun = time.monotonic()
    _fit(training, min(_MEASURED, count))
    each = (time.monotonic() - begun) / _MEASURED
    clear_rankers(training.model)
    rows = min(_ROWS, int(_SHARE * seconds / each))
    return (rows, rows * each) if rows >= _MEASURED else (0, 0.0)


def rank_best(training: Training, weights: Weights, mse: float) -> tuple[Weights, float] | None:
    """The best weights of a run with fitted rankers, and their error; None if that is not below `mse`.

    The run's own weights stay as they are.
    """
    rows = _ROWS if training.plan.num_ranked is None else training.plan.num_ranked
    if not rows or not _has_rankers(training):
        return None
    model = training.model
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(Qinco.of(weights, model.device).state_dict())
        _fit(training, rows)
        ranked = training.validate()[-1]
        return (deepcopy(model.weights()), ranked) if ranked < mse else None
    finally:
        model.load_state_dict(kept)


def _has_rankers(training: Training) -> bool:
    return training.encode_options.preselects and any(step.ranker is not None for step in training.model.steps)


@torch.no_grad()
def _fit(training: Training, num_vectors: int) -> None:
    """Fit the model's rankers to some of the training vectors."""
    model, source = training.model, training.train_source
    clear_rankers(model)
    rows = stratified_rows(len(source), min(num_vectors, len(source)))
    x_ND = model.normalize(to_device(read_rows(source, rows), model.device))
    start_ND = training.initial_reconstructions(x_ND)
    packed = pack(model, training.encode_options.engine, training.precision)
    codes_NM, _ = packed.encode_tensors(x_ND, start_ND, narrow_options(training.encode_options, is_late=True))
    fit_rankers(model, x_ND, start_ND, codes_NM)
