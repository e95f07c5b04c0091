"""The baseline of the GPU benchmark: QINCo2 in straightforward torch.

Its encoder is `encode_speed.encode_plainly`. Training encodes every batch with it and then walks through the steps; it
starts, shuffles, counts, redraws and schedules as ours does, so that only the way of computing differs.

Shape suffixes: N vectors, D dimension, M steps.
"""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from encode_speed import PLAIN_CANDIDATES, encode_plainly
from torch import Tensor

from qinco.config import PAPER_ENCODE_OPTIONS
from qinco.model.qinco import Qinco
from qinco.training.codebooks import CodewordUse, redraw_unused
from qinco.training.gradients import prefix_losses
from qinco.training.options import TrainOptions
from qinco.training.schedule import SCHEDULES, StepPlan
from qinco.vectors.rows import VectorSource

_BATCH = PLAIN_CANDIDATES // (PAPER_ENCODE_OPTIONS.num_candidates * PAPER_ENCODE_OPTIONS.beam_width)
_VALID_ROWS = 4096


def half_encoder(model: Qinco) -> Callable[[Tensor], Tensor]:
    """Codes of float16 vectors by a float16 copy of the model, A=16 B=32, 65,536 candidates in a batch."""
    return partial(encode_plainly, deepcopy(model).half(), PAPER_ENCODE_OPTIONS, _BATCH)


class PlainReport(NamedTuple):
    """Steps so far, their seconds, and the error in data space at the end of an epoch."""

    step: int
    seconds: float
    mse: float | None


def train_plainly(
    model: Qinco, train: VectorSource, valid: VectorSource, options: TrainOptions
) -> Iterator[PlainReport]:
    """Train an initialized model under bf16 autocast; yields a report after each step and each epoch."""
    device, plan = model.device, StepPlan.from_options(options, len(train))
    schedule = SCHEDULES[options.schedule](options, plan)
    x_ND, random = torch.from_numpy(train[:]), torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), plan.lr, weight_decay=options.weight_decay)
    use, step, begun = CodewordUse(model), 0, time.monotonic()
    for epoch in range(options.epochs):
        for rows_N in torch.randperm(len(x_ND), generator=random).tensor_split(plan.steps_per_epoch):
            batch_ND = model.normalize(x_ND[rows_N].to(device))
            start_ND = model.initial_reconstruction(len(rows_N))
            with torch.autocast(device.type, torch.bfloat16):
                codes_NM = encode_plainly(model, PAPER_ENCODE_OPTIONS, _BATCH, batch_ND)
            # A separate context: autocast would otherwise reuse weights that were cast without gradients.
            with torch.autocast(device.type, torch.bfloat16):
                loss = prefix_losses(model, batch_ND, start_ND, codes_NM, use) / len(rows_N)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_value_(model.parameters(), options.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            optimizer.step()
            step += 1
            float(loss.detach())  # as a training loop that prints its loss, and so waits for it
            yield PlainReport(step, time.monotonic() - begun, None)
        if epoch + 1 < options.epochs:
            redraw_unused(model, use, options.redraw, random)
        use = CodewordUse(model)
        mse = validate_plainly(model, valid)
        yield PlainReport(step, time.monotonic() - begun, mse)


@torch.no_grad()
def validate_plainly(model: Qinco, valid: VectorSource) -> float:
    """Mean squared error in data space, summed over dimensions, encoded under bf16 autocast and decoded in float32."""
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for _, block in valid.blocks(_VALID_ROWS):
        x_ND = model.normalize(torch.from_numpy(block).to(model.device))
        with torch.autocast(x_ND.device.type, torch.bfloat16):
            codes_NM = encode_plainly(model, PAPER_ENCODE_OPTIONS, _BATCH, x_ND)
        total += (model(codes_NM, model.initial_reconstruction(len(x_ND))) - x_ND).square().sum()
    return float(total * model.scale.double() ** 2) / len(valid)
