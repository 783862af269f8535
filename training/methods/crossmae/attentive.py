"""Attentive Tokens: the visible tokens that guide the other modality's pixel decoder (eqs. 5 and 6)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.crossmae.config import AttentiveConfig
from training.methods.shared.blocks import take
from training.methods.shared.encoder import Features
from training.methods.shared.masking import Mask, noise


@torch.no_grad()
def attentive_places(
    config: AttentiveConfig, features: Features, mask: Mask, count: int, *, seeds: Tensor, stream: int
) -> Tensor:
    """Places [B, K] of the K = `count` Attentive Tokens among the visible ones; no gradient passes a choice.

    The best come first, and after them, where fewer are valid, padding.
    seeds [B] and stream serve the random choice alone.
    """
    if config.kind == "random":  # Table 6, "random tokens"
        score = noise(seeds, stream, mask.is_masked.shape[1]).gather(1, mask.visible)
    elif config.score == "cosine":
        score = F.cosine_similarity(features.tokens.float(), features.cls.float().unsqueeze(1), dim=-1)
    else:
        score = features.attention
    if features.is_valid is not None:
        least = -torch.inf if score.is_floating_point() else torch.iinfo(score.dtype).min
        score = score.masked_fill(~features.is_valid, least)
    return score.topk(count, dim=1).indices


def attentive_tokens(config: AttentiveConfig, features: Features, places: Tensor) -> Tensor:
    """The tokens [B, K, D] at their places [B, K]: the gradient reaches the encoder that made them."""
    tokens = take(features.tokens, places)
    return torch.zeros_like(tokens) if config.kind == "zeros" else tokens  # Table 6, "zero vectors"
