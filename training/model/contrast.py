"""The contrastive loss of eq. 1 over the global batch."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from training.model.blocks import init_linear
from training.model.config import ContrastConfig
from training.model.encoder import Features

MIN_TEMPERATURE = 0.01  # CLIP's floor, for a learned temperature


class Contrast(nn.Module):
    """Global features of both modalities (eq. 1: "global features") and their symmetric InfoNCE."""

    def __init__(self, config: ContrastConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.audio_head = _mlp(dim) if config.pooling == "mlp" else None
        self.image_head = _mlp(dim) if config.pooling == "mlp" else None
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(config.temperature))) if config.learnable_temperature else None
        )

    def forward(self, audio: Features, image: Features) -> Tensor:
        """Eq. 1: the scalar loss of B pairs; with torch.distributed, this rank's rows against all columns."""
        a, v = self.globals(audio, self.audio_head), self.globals(image, self.image_head)
        temperature: float | Tensor = self.config.temperature
        if self.log_temperature is not None:
            temperature = self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)
        return info_nce(a, v, temperature, reduction=self.config.reduction, is_global=self.config.negatives == "global")

    def globals(self, features: Features, head: nn.Module | None) -> Tensor:
        """The global feature [B, D] of each sample."""
        pooled = features.cls if self.config.pooling == "cls" else features.pooled
        return pooled if head is None else head(pooled)


def info_nce(audio: Tensor, image: Tensor, temperature: float | Tensor, *, reduction: str, is_global: bool) -> Tensor:
    """Symmetric InfoNCE (eq. 1) of features audio, image [B, D] with cosine similarity.

    With more than one rank each takes its own rows against the columns of all, and the gather passes gradients back to
    the rank that made a column. The mean over ranks of this loss is the loss of the global batch, so DDP's averaging
    of gradients gives exactly its gradient. Every rank must bring the same B.
    """
    audio, image = F.normalize(audio.float(), dim=-1), F.normalize(image.float(), dim=-1)
    all_audio, all_image, first = audio, image, 0
    if is_global and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered = torch.cat(all_gather(torch.cat([audio, image], dim=1)))  # one collective for both: [W * B, 2 D]
        all_audio, all_image = gathered.chunk(2, dim=1)
        first = dist.get_rank() * audio.shape[0]
    partner = torch.arange(audio.shape[0], device=audio.device) + first
    to_image = F.cross_entropy((audio @ all_image.T).float() / temperature, partner)
    to_audio = F.cross_entropy((image @ all_audio.T).float() / temperature, partner)
    return to_image + to_audio if reduction == "sum" else (to_image + to_audio) / 2


def _mlp(dim: int) -> nn.Module:
    head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
    return head.apply(init_linear)
