"""The contrastive loss of the whole batch where a process takes it in pieces (GradCache, Gao et al. 2021)."""

import torch
from torch import Tensor

from training.loop import Inputs
from training.methods.crossmae.model import CrossMAE
from training.methods.shared.contrast import CachedContrast


def cache_contrast(model: CrossMAE, pieces: list[Inputs]) -> list[CachedContrast]:
    """The batch's contrastive loss, and for each piece its gradient in the piece's global features.

    Encodes every piece once without gradient; the masks are functions of the samples' seeds, so that the pass with
    gradient sees the same views. With torch.distributed the batch is that of all ranks.
    """
    assert model.contrast is not None
    with torch.no_grad():
        features = [model.contrast_features(p.image, p.fbank, p.seeds, p.valid_frames) for p in pieces]
    audio, image = (torch.cat(side).float().requires_grad_() for side in zip(*features, strict=True))
    loss = model.contrast.loss(audio, image)
    wanted = [audio, image]
    if model.contrast.log_temperature is not None:
        wanted.append(model.contrast.log_temperature)
    gradients = torch.autograd.grad(loss, wanted)
    sizes = [len(p.seeds) for p in pieces]
    sides: list[tuple[Tensor, ...]] = [(gradient * len(pieces)).split(sizes) for gradient in gradients[:2]]
    temperature = gradients[2] if len(gradients) > 2 else None
    return [
        CachedContrast(loss=loss.detach(), audio=a, image=v, temperature=temperature)
        for a, v in zip(*sides, strict=True)
    ]
