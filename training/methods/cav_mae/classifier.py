"""A fine-tuned CAV-MAE: encoder, mean of tokens, LayerNorm and a linear layer (Sec. 4.2 and the authors' CAVMAEFT)."""

import torch
from torch import Tensor, nn

from training.methods.cav_mae.config import CAVMAEConfig
from training.methods.cav_mae.encoder import EPS, SharedEncoder, audio_encoder, image_encoder
from training.methods.shared.blocks import without_autocast
from training.methods.shared.patches import FULL, Grids


class Head(nn.Module):
    """LayerNorm and a linear layer: what the paper calls a "linear head"."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.linear = nn.Linear(dim, classes)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, D] -> scores [B, C], in the weights' precision also under autocast: in bf16 classes would tie."""
        with without_autocast(x):
            return self.linear(self.norm(x.to(self.linear.weight.dtype)))


class CAVMAEClassifier(nn.Module):
    """Scores of sound, frame or both; positions are trained, unlike in pre-training (as the code does)."""

    def __init__(self, config: CAVMAEConfig, *, classes: int, grids: Grids = FULL) -> None:
        super().__init__()
        self.audio_encoder = audio_encoder(config, grids.audio)
        self.image_encoder = image_encoder(config, grids.image)
        self.audio_encoder.positions.requires_grad_(True)
        self.image_encoder.positions.requires_grad_(True)
        self.shared = SharedEncoder(config)
        self.head = Head(config.encoder.dim, classes)

    def forward(self, image: Tensor | None, fbank: Tensor | None, *, other_is_missing: bool = False) -> Tensor:
        """Scores [B, C] of images [B, 3, 224, 224] and fbanks [B, 1024, 128].

        Both pass the joint stream, and the mean is over all 708 tokens. One alone passes its own stream; where the
        other is missing from a model that was trained with both (`other_is_missing`), the mean of what both streams
        make of it is taken.

        Raises:
            ValueError: neither is given.
        """
        audio = None if fbank is None else self.audio_encoder(fbank.unsqueeze(1))
        visual = None if image is None else self.image_encoder(image)
        if audio is not None and visual is not None:
            return self.head(self.shared(torch.cat([audio, visual], dim=1), "joint").mean(dim=1))
        if audio is None and visual is None:
            raise ValueError("neither image nor fbank is given")
        tokens, stream = (visual, "image") if audio is None else (audio, "audio")
        pooled = self.shared(tokens, stream).mean(dim=1)
        if other_is_missing:
            pooled = (self.shared(tokens, "joint").mean(dim=1) + pooled) / 2
        return self.head(pooled)
