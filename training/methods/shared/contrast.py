"""The contrastive loss of eq. 1 over the global batch."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd  # unlike the others, it compiles

from training.methods.interface import CachedLoss
from training.methods.shared.blocks import init_linears, without_autocast
from training.methods.shared.config_values import check_literals
from training.methods.shared.encoder import Features

MIN_TEMPERATURE = 0.01  # CLIP's floor, for a learned temperature


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The contrastive loss (eq. 1)."""

    enabled: bool = True
    """Whether there is one (Table 2)."""
    weight: float = 0.1
    """Lambda of eq. 13 (Sec. 4.1: "lambda = 0.1")."""
    temperature: float = 0.1
    """Tau of eq. 1; the paper gives no value. 0.1 is MAViL's, whose words on lambda it shares."""
    learnable_temperature: bool = False
    """Learn tau, from `temperature` on."""
    pooling: Literal["mean", "cls", "mlp"] = "mean"
    """"Global features": mean of the visible patch tokens, the [CLS] token, or the mean through an MLP head."""
    reduction: Literal["sum", "mean"] = "sum"
    """Eq. 1 sums both directions."""
    negatives: Literal["global", "local"] = "global"
    """Other clips of the global batch, or of this process only."""

    def __post_init__(self) -> None:
        check_literals("contrast", self)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"contrast.temperature is {self.temperature}: allowed are numbers above 0, and finite")
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"contrast.weight is {self.weight}: allowed are numbers above 0, and finite (to leave it out: enabled)"
            )


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

    def forward(self, audio: Features, image: Features, cached: CachedLoss | None = None) -> Tensor:
        """Eq. 1: the scalar loss of B pairs; with torch.distributed, this rank's rows against all columns.

        With `cached`, these are a piece of the batch that it knows: its loss, and the gradient of that.
        """
        a, v = self.global_features(audio, image)
        return self.loss(a, v) if cached is None else cached.attach((a, v), self.own_parameters)

    @property
    def own_parameters(self) -> tuple[nn.Parameter, ...]:
        """The logarithm of the temperature, where it is learned."""
        return () if self.log_temperature is None else (self.log_temperature,)

    def global_features(self, audio: Features, image: Features) -> tuple[Tensor, Tensor]:
        """Eq. 1's global features of both modalities, [B, D] each."""
        return self.globals(audio, self.audio_head), self.globals(image, self.image_head)

    def loss(self, a: Tensor, v: Tensor) -> Tensor:
        """Eq. 1 of global features [B, D], of audio and image."""
        temperature: float | Tensor = self.config.temperature
        if self.log_temperature is not None:
            temperature = self.log_temperature.exp()
        return info_nce(a, v, temperature, reduction=self.config.reduction, is_global=self.config.negatives == "global")

    @torch.no_grad()
    def hold_temperature(self) -> None:
        """Lifts a learned temperature that fell below its floor back to it; to be called after each optimizer step.

        The parameter is held, as in CLIP, and not the value that the loss takes: that would have no gradient at the
        floor, and never leave it.
        """
        if self.log_temperature is not None:
            self.log_temperature.clamp_(min=math.log(MIN_TEMPERATURE))

    def globals(self, features: Features, head: nn.Module | None) -> Tensor:
        """The global feature [B, D] of each sample."""
        pooled = features.cls if self.config.pooling == "cls" else features.pooled
        return pooled if head is None else head(pooled)


@dataclass(frozen=True)
class Pairs:
    """This rank's features of B pairs, and those of the global batch of all W ranks."""

    audio: Tensor  # [B, D]
    image: Tensor  # [B, D]
    all_audio: Tensor  # [W * B, D]
    all_image: Tensor  # [W * B, D]
    first: int  # the place of this rank's first pair among them


def all_pairs(audio: Tensor, image: Tensor) -> Pairs:
    """Features [B, D] of this rank's pairs beside those of all ranks, where torch.distributed runs.

    The gather passes gradients back to the rank that made a row. Every rank must bring the same B.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return Pairs(audio, image, audio, image, 0)
    assert dist.group.WORLD is not None
    both = torch.cat([audio, image], dim=1)
    gathered = all_gather_tensor_autograd(both, 0, dist.group.WORLD)  # one collective for both: [W * B, 2 D]
    all_audio, all_image = gathered.chunk(2, dim=1)
    return Pairs(audio, image, all_audio, all_image, dist.get_rank() * audio.shape[0])


def info_nce(audio: Tensor, image: Tensor, temperature: float | Tensor, *, reduction: str, is_global: bool) -> Tensor:
    """Symmetric InfoNCE (eq. 1) of features audio, image [B, D] with cosine similarity.

    With more than one rank each takes its own rows against the columns of all, and the gather passes gradients back to
    the rank that made a column. The mean over ranks of this loss is the loss of the global batch, so DDP's averaging
    of gradients gives exactly its gradient. Every rank must bring the same B.
    """
    with without_autocast(audio):  # bf16 leaves a handful of values to the cosines of features that are nearly alike
        audio, image = F.normalize(audio.float(), dim=-1), F.normalize(image.float(), dim=-1)
        pairs = all_pairs(audio, image) if is_global else Pairs(audio, image, audio, image, 0)
        partner = torch.arange(audio.shape[0], device=audio.device) + pairs.first
        to_image = F.cross_entropy(audio @ pairs.all_image.T / temperature, partner)
        to_audio = F.cross_entropy(image @ pairs.all_audio.T / temperature, partner)
    return to_image + to_audio if reduction == "sum" else (to_image + to_audio) / 2


def _mlp(dim: int) -> nn.Module:
    head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
    init_linears(head)
    return head
