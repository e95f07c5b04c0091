"""What a step of training takes, whatever the vectors."""

import numpy as np
import torch

from qinco.config import DEFAULT_ENCODE_OPTIONS, EncodeOptions, ModelConfig, require_int, require_number
from qinco.maths.devices import CPU
from qinco.model.qinco import random_model
from qinco.training.budget import measure
from qinco.training.loop import Training
from qinco.training.options import TrainOptions
from qinco.training.processes import Processes
from qinco.vectors.rows import as_source

_VALID_ROWS = 64


def time_training(
    config: ModelConfig, *, options: EncodeOptions = DEFAULT_ENCODE_OPTIONS, batch_size: int = 256, seconds: float = 1.0
) -> float:
    """Microseconds a vector of a step of training on random vectors, on the threads of `qinco.set_num_threads`.

    Args:
        config: of the model.
        options: how batches are encoded at the end of training; narrower at its beginning, as usual.
        batch_size: vectors of a step.
        seconds: about so long is measured.

    Example:
        >>> time_training(ModelConfig(dim=128, num_steps=8))
    """
    require_int("batch_size", batch_size)
    require_number("seconds", seconds, above=0)
    x_ND = np.random.default_rng(0).standard_normal((batch_size + _VALID_ROWS, config.dim), np.float32)
    train, valid = as_source(x_ND[:batch_size]), as_source(x_ND[batch_size:])
    given = TrainOptions.from_recipe("default", config, epochs=10, num_valid=_VALID_ROWS)
    model = random_model(config).requires_grad_(True).train()
    training = Training(model, train, valid, given, options, Processes(torch.device(CPU)))
    return measure(training, (batch_size,), seconds).steps[batch_size] / batch_size * 1e6
