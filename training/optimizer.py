"""Adam with MAE's parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW (or Adam with L2) over the trainable parameters; decay on matrices of linear and patch layers only.

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
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, fused=fused)


def _own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that are no layer's weight: tokens, queries, temperature."""
    layers = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    return [p for module in model.modules() if not isinstance(module, layers) for p in module.parameters(recurse=False)]


def learning_rate(step: int, steps: int, config: OptimizerConfig, batch_size: int) -> float:
    """The rate of step `step` (0-based) of `steps`: linear warm-up, then half a cosine to 0."""
    peak = config.lr * batch_size / 256 if config.scale_lr else config.lr
    warmup = round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norm of the gradient of each part of the model, `grad_norm/PART`: scalars on the device."""
    norms = {}
    for name, part in model.named_children():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad_norm/{name}"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norms
