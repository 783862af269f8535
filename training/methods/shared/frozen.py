"""A teacher: a second model inside a method's, that no gradient moves."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Parts of the state dict without gradient, always in eval behaviour; a resumed run has the same targets."""

    is_ready: bool  # whether it was given weights: by `load`, or by a state dict that holds them

    def freeze(self, *, is_ready: bool) -> None:
        """To be called when the parts are there."""
        self.is_ready = is_ready
        self.requires_grad_(False)
        self.eval()
        self.register_load_state_dict_pre_hook(_note_weights)

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in eval behaviour, whatever the model around it does."""
        return super().train(False)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes its parts out of the state of a whole model of the method; other entries are not looked at.

        Raises:
            ValueError: a weight is missing or of another shape; nothing was taken.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        if missing:
            raise ValueError(f"no teacher: {len(missing)} of {len(own)} weights are missing, the first is {missing[0]}")
        for name, value in own.items():
            if state[name].shape != value.shape:
                raise ValueError(
                    f"no teacher: {name} is {list(state[name].shape)}, the model's own is {list(value.shape)}:"
                    " the encoders of both stages have the same size"
                )
        for name, value in own.items():
            value.copy_(state[name])  # state_dict() shares its memory with the module
        self.is_ready = True


def _note_weights(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state dict is loaded: a checkpoint that holds a teacher makes it ready."""
    assert isinstance(module, Frozen)
    module.is_ready |= any(name.startswith(prefix) for name in state)
