"""How long a run will take and how much memory it needs, measured on its first vectors before it starts.

The time to fit the first codebooks, at most a minute or two, is not included.
"""

import time
from dataclasses import dataclass

import torch

from qinco.config import EncodeOptions
from qinco.engines.engine import pack
from qinco.maths.clustering import BEAM_WIDTH, KMEANS_ROWS
from qinco.maths.devices import to_device
from qinco.training.batches import BUFFER_BYTES
from qinco.training.codebooks import CodewordUse, sample_rows
from qinco.training.loop import Training

_ROWS = 256


@dataclass(frozen=True)
class Estimate:
    """What a run will take: `seconds` and `epochs` from now to its end, and `memory_bytes` beyond the libraries'.

    `batch_size` and `lr` are as given or fitted.
    """

    seconds: float
    memory_bytes: int
    epochs: int
    steps_per_epoch: int
    num_train: int
    num_valid: int
    num_parameters: int
    batch_size: int
    lr: float


def estimate(training: Training) -> Estimate:
    """Time encoding, gradients and validation on a few vectors. The run's state is unchanged."""
    plan, num_train, num_valid = training.plan, len(training.train_source), len(training.valid_source)
    x_ND = training.model.normalize(to_device(training.train_source[:_ROWS], training.model.device))
    codes_NM = _encode(training, x_ND, training.batch_encode_options)

    def gradients() -> None:
        training.loss(x_ND, training.initial_reconstructions(x_ND), codes_NM, CodewordUse(training.model)).backward()
        training.optimizer.zero_grad(set_to_none=True)

    train_seconds = _seconds(lambda: _encode(training, x_ND, training.batch_encode_options), x_ND)
    train_seconds += _seconds(gradients, x_ND)
    valid_seconds = _seconds(lambda: _encode(training, x_ND, training.encode_options), x_ND)
    epochs = training.options.epochs - training.position.epoch
    per_epoch = (plan.epoch_vectors * train_seconds + num_valid * valid_seconds) / training.processes.count
    num_parameters = sum(parameter.numel() for parameter in training.parameters)
    return Estimate(
        epochs * per_epoch, _memory(training), epochs, plan.steps_per_epoch, num_train, num_valid, num_parameters,
        plan.batch_size, plan.lr,
    )  # fmt: skip


def _encode(training: Training, x_ND: torch.Tensor, options: EncodeOptions) -> torch.Tensor:
    packed = pack(training.model, options.engine, training.dtype)
    return packed.encode_tensors(x_ND, training.initial_reconstructions(x_ND), options)[0]


def _seconds(work, x_ND: torch.Tensor) -> float:
    """Seconds that `work` takes per vector."""
    begun = time.monotonic()
    work()
    if x_ND.is_cuda:
        torch.cuda.synchronize(x_ND.device)
    return (time.monotonic() - begun) / len(x_ND)


def _memory(training: Training) -> int:
    """Bytes of initialization (sample, residuals of the beam, and those that k-means takes), of weights, gradients, two
    moments and the best copy, of the two shuffle buffers, and of a step's activations."""
    config, num_train = training.model.config, len(training.train_source)
    vector, rows = 4 * config.dim, sample_rows(config, num_train)
    start = (rows * (1 + BEAM_WIDTH) + min(KMEANS_ROWS, rows * BEAM_WIDTH)) * vector
    weights = sum(tensor.nbytes for tensor in training.model.state_dict().values())
    buffers = 2 * min(BUFFER_BYTES, vector * num_train)
    widths = 3 * config.dim + 2 * config.embed_dim + config.num_blocks * (config.embed_dim + 2 * config.hidden_dim)
    return start + 5 * weights + buffers + 4 * training.plan.batch_size * config.num_steps * widths
