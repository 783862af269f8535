"""Adam with decay on the matrices alone, its state carried over a resume, and the rate at any point of a run."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig

Groups = list[dict[str, Any]]
# Layers whose weights multiply what comes in, whatever number of dimensions these have.
_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW (or Adam with L2) over the trainable parameters, one rate for all, decay where `decayed` says."""
    with_decay = decayed(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: Groups = [
        {"params": [p for p in trained if id(p) in with_decay], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in with_decay], "weight_decay": 0.0},
    ]
    return build_optimizer(groups, config, fused=fused)


def build_optimizer(groups: Groups, config: OptimizerConfig, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer that the options ask for, over groups that have their own decay."""
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, fused=fused)


def decayed(model: nn.Module, config: OptimizerConfig) -> set[int]:
    """The ids of the parameters that are decayed: the weights of linear layers, convolutions and attention.

    Told by the layer that a parameter belongs to, not by its shape. Biases, norms, tokens, queries, positions and
    temperatures are not decayed. MAE's fine-tuning spares the same ones; its pre-training spares biases and what has
    one dimension, so it decays [CLS] and mask tokens: `decay_on` tokens. CAV-MAE decays all.
    """
    if config.decay_on == "all":
        return {id(parameter) for parameter in model.parameters()}
    found = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, _LAYERS) and name.endswith("weight")
            is_token = parameter.ndim > 1 and not name.endswith("bias")
            if is_matrix or (config.decay_on == "tokens" and is_token):
                found.add(id(parameter))
    return found


def in_order(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of an optimizer as its state dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any], order: list[nn.Parameter]) -> None:
    """Gives an optimizer the moments of a state dict. Its options stay those that it was made with.

    Args:
        order: the parameters `in_order` of the optimizer that was saved, whose groups other options may have made.

    Raises:
        ValueError: the state is of another number of parameters, or holds no such moments.
    """
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if count != len(order):
        raise ValueError(f"it is the state of {count} parameters, expected {len(order)}")
    for number, parameter in enumerate(order):
        for name, value in saved["state"].get(number, {}).items():
            shape = torch.Size([]) if name == "step" else parameter.shape
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
                raise ValueError(f"{name} of its parameter {number} is none of {list(shape)} floats")
        if number in saved["state"] and not {"step", "exp_avg", "exp_avg_sq"} <= saved["state"][number].keys():
            raise ValueError(f"it has no moments of parameter {number}")
    moments = {id(p): saved["state"][i] for i, p in enumerate(order) if i in saved["state"]}
    state = {i: moments[id(p)] for i, p in enumerate(in_order(optimizer)) if id(p) in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def learning_rate(done: float, in_all: float, config: OptimizerConfig, batch_size: int, *, epoch: int = 0) -> float:
    """The rate of the step after `done` of `in_all`: linear warm-up, then half a cosine, or halved at epochs.

    Both are counted in steps of this batch size. Where a run changed its batch size they are no whole numbers.

    Args:
        epoch: whole passes over the data that are done.
    """
    peak = config.lr * batch_size / 256 if config.scale_lr else config.lr
    warmup = round(config.warmup * in_all)
    if done < warmup:
        return peak * min(done + 1, warmup) / warmup
    if config.schedule == "halving":
        return peak * 0.5 ** sum(epoch >= after for after in config.halve_after)
    progress = (done - warmup) / max(in_all - warmup, 1)
    return config.least_lr + (peak - config.least_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norm of the gradient of each part of the model, `grad_norm/PART`: scalars on the device."""
    norms = {}
    for name, part in model.named_children():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad_norm/{name}"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norms
