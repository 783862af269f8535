"""The contrastive losses of the whole batch where a process takes it in pieces (GradCache, Gao et al. 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.methods.interface import CachedLoss, Inputs, Model


def cache_contrast(model: Model, pieces: Sequence[Inputs]) -> list[dict[str, CachedLoss]]:
    """The batch's contrastive losses by name, and for each piece their gradients in the piece's features.

    Encodes every piece once without gradient; the masks are functions of the samples' seeds, so that the pass with
    gradient sees the same views. With torch.distributed the batch is that of all ranks.
    """
    with torch.no_grad():
        features = [model.contrast_features(piece) for piece in pieces]
    cached: list[dict[str, CachedLoss]] = [{} for _ in pieces]
    for name in features[0]:
        of_pieces = _cache(model, name, [found[name] for found in features])
        for piece, loss in zip(cached, of_pieces, strict=True):
            piece[name] = loss
    return cached


def _cache(model: Model, name: str, pieces: list[tuple[Tensor, ...]]) -> list[CachedLoss]:
    """One loss of the features [B, D] of each piece."""
    whole = [torch.cat(side).float().requires_grad_() for side in zip(*pieces, strict=True)]
    loss = model.contrast_loss(name, whole)
    gradients = torch.autograd.grad(loss, [*whole, *model.contrast_parameters(name)])
    sizes = [len(piece[0]) for piece in pieces]
    sides = [(gradient * len(pieces)).split(sizes) for gradient in gradients[: len(whole)]]
    own = gradients[len(whole) :]
    return [CachedLoss(loss=loss.detach(), features=features, parameters=own) for features in zip(*sides, strict=True)]
