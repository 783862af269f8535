"""One modality as its encoder sees it in training: masked, with its Attentive Tokens chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.methods.shared.encoder import Features
from training.methods.shared.masking import Mask


@dataclass(frozen=True)
class View:
    """One modality as its encoder sees it: masked."""

    features: Features  # of the V visible tokens
    mask: Mask
    places: Tensor  # [B, K] int64, the Attentive Tokens' places among the visible ones
    attentive: Tensor  # [B, K, D], the Attentive Tokens
    is_chosen: Tensor | None = None  # [B, K] bool, False where there is no token for a place: padding is left out

    @property
    def is_attentive(self) -> Tensor:
        """Which of all patches are Attentive Tokens, bool [B, N]."""
        chosen = torch.ones_like(self.places, dtype=torch.bool) if self.is_chosen is None else self.is_chosen
        return torch.zeros_like(self.mask.is_masked).scatter(1, self.mask.visible.gather(1, self.places), chosen)
