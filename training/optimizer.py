"""AdamW with MAE's parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from training.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices of linear and patch layers only.

    Biases, norms, tokens and queries are not decayed (MAE's rule).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    tokens = {id(p) for p in _own_parameters(model)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or id(parameter) in tokens else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def _own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that are no layer's weight: tokens, queries, temperature."""
    layers = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    return [p for module in model.modules() if not isinstance(module, layers) for p in module.parameters(recurse=False)]


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step `step` (0-based) of `steps`: linear warm-up, then half a cosine to 0."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
