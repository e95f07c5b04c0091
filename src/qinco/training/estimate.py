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
from qinco.training.codebooks import CodewordUse, sample_rows
from qinco.training.loop import Training, prefix_losses

_ROWS = 256


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    `seconds` from now to its end, `memory_bytes` beyond those of the libraries, `epochs` that are left, numbers of
    training and validation vectors, and batch size and learning rate as given or fitted.
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
    options, plan = training.options, training.plan
    x_ND = to_device(training.train_source[:_ROWS], training.model.device)
    x_ND = training.model.normalize(x_ND)
    codes_NM = _encode(training, x_ND, training.batch_encode_options)
    train_seconds = _seconds(lambda: _encode(training, x_ND, training.batch_encode_options), x_ND)
    valid_seconds = _seconds(lambda: _encode(training, x_ND, training.encode_options), x_ND)
    gradient_seconds = _seconds(lambda: _gradients(training, x_ND, codes_NM), x_ND)
    left = options.epochs - training.position.epoch
    per_epoch = plan.epoch_vectors * (train_seconds + gradient_seconds) + len(training.valid_source) * valid_seconds
    per_epoch /= training.processes.count
    return Estimate(
        seconds=left * per_epoch,
        memory_bytes=_memory(training),
        epochs=left,
        steps_per_epoch=plan.steps_per_epoch,
        num_train=len(training.train_source),
        num_valid=len(training.valid_source),
        num_parameters=sum(p.numel() for p in training.parameters),
        batch_size=plan.batch_size,
        lr=plan.lr,
    )


def _encode(training: Training, x_ND: torch.Tensor, options: EncodeOptions) -> torch.Tensor:
    packed = pack(training.model, options.engine, training.dtype)
    return packed.encode_tensors(x_ND, training.initial_reconstructions(x_ND), options)[0]


def _gradients(training: Training, x_ND: torch.Tensor, codes_NM: torch.Tensor) -> None:
    with torch.autocast(x_ND.device.type, torch.bfloat16, enabled=training.dtype is torch.bfloat16):
        start_ND = training.initial_reconstructions(x_ND)
        losses = prefix_losses(training.model, x_ND, start_ND, codes_NM, CodewordUse(training.model))
    losses.backward()
    training.optimizer.zero_grad(set_to_none=True)


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
    vector = 4 * config.dim
    rows = sample_rows(config, num_train)
    start = (rows * (1 + BEAM_WIDTH) + min(KMEANS_ROWS, rows * BEAM_WIDTH)) * vector
    weights = sum(tensor.nbytes for tensor in training.model.state_dict().values())
    buffers = 2 * min(1 << 27, vector * num_train)
    widths = 3 * config.dim + 2 * config.embed_dim + config.num_blocks * (config.embed_dim + 2 * config.hidden_dim)
    return start + 5 * weights + buffers + 4 * training.plan.batch_size * config.num_steps * widths
