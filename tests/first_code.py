"""Checkpoints as the authors' first code pickles them, for tests."""

import sys
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn

from qinco.model.qinco import Qinco


@contextmanager
def first_code():
    """Classes of the first code's names in a module of its name, for `torch.save` alone."""
    package = ModuleType("model_qinco")
    for kind in ("QINCo", "IVFQINCo", "QINCoLR", "PQ_QINCo", "QINCoStep"):
        setattr(package, kind, type(kind, (nn.Module,), {"__module__": "model_qinco"}))
    sys.modules["model_qinco"] = package
    try:
        yield package
    finally:
        del sys.modules["model_qinco"]


def _holder(kind: type, children: dict[str, nn.Module], **attributes) -> nn.Module:
    made = kind()
    for key, child in children.items():
        made.add_module(key, child)
    vars(made).update(attributes)
    return made


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


def _as_first_code(package: ModuleType, model: Qinco, scale) -> nn.Module:
    config, steps = model.config, {}
    for m, step in enumerate(model.steps):
        if not step.conditioned:
            continue
        outer = _linear(step.concat.outer.weight.data, getattr(step.concat.outer.bias, "data", None))
        if config.concat_rank is not None:
            outer = nn.Sequential(_linear(step.concat.inner.weight.data), outer)
        blocks = {
            f"residual_block{j}": nn.Sequential(_linear(b.up.weight.data), nn.ReLU(), _linear(b.down.weight.data))
            for j, b in enumerate(step.blocks)
        }
        children = {"codebook": nn.Embedding.from_pretrained(step.codebook.weight.data), "MLPconcat": outer, **blocks}
        steps[f"step{m}"] = _holder(package.QINCoStep, children, residual_blocks=list(blocks.values()))
    is_ivf = config.starts_from_coarse
    first = model.coarse_centroids if is_ivf else model.steps[0].codebook.weight.data
    kind = "IVFQINCo" if is_ivf else "QINCo" if config.concat_rank is None else "QINCoLR"
    sizes = {"d": config.dim, "K": config.codebook_size, "L": config.num_blocks, "M": config.num_steps}
    lists = {"K_IVF": config.num_lists} if is_ivf else {}
    children = {"codebook0": nn.Embedding.from_pretrained(first), **steps}
    extra = {"h": config.hidden_dim, "db_scale": scale, "steps": list(steps.values()), **lists}
    return _holder(getattr(package, kind), children, **sizes, **extra)


def save_first_code(path, models: list[Qinco], scale, rotation_DD: torch.Tensor | None = None, product=False) -> None:
    """Write models of QINCo1 as the authors' first code does; as a PQ-QINCo model with `product`."""
    with first_code() as package:
        parts = [_as_first_code(package, model, scale) for model in models]
        content = parts[0]
        if product:
            children = {f"sub_quantizer_{m}": part for m, part in enumerate(parts)}
            content = _holder(package.PQ_QINCo, children, sub_quantizers=parts, db_scale=1)
            content.opq_matrix = None if rotation_DD is None else nn.Parameter(rotation_DD)
        torch.save(content, path)
