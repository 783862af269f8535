"""What DeepAVFusion's optimizers have of their own: a ramp for pretrained parts, and LARS for the linear probe."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def pretrained_share(done: float) -> float:
    """By what the rate of pretrained encoders is multiplied after a share `done`, 0 to 1, of all epochs.

    (1 - cos(pi e / (E / 2))) / 2 over the first half, then 1: in the code, not in the paper.
    """
    return 1.0 if done >= 0.5 else (1 - math.cos(2 * math.pi * done)) / 2


def rate_at(epoch: float, *, peak: float, epochs: float, warmup: float) -> float:
    """The rate at an epoch, or a part of one: linear from 0 to the peak, then half a cosine to 0."""
    if epoch < warmup:
        return peak * epoch / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled to each parameter's norm (You et al. 2017), as MAE's linear probe has it.

    What has one dimension is neither scaled nor decayed.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, of the gradients that the parameters have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, float]) -> None:
        change = parameter.grad
        assert change is not None
        if parameter.ndim > 1:
            change = change + group["weight_decay"] * parameter
            own, norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(change)
            change = change * torch.where((own > 0) & (norm > 0), group["trust"] * own / norm, 1.0)
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        moment = state["momentum"].mul_(group["momentum"]).add_(change)
        parameter.sub_(group["lr"] * moment)
