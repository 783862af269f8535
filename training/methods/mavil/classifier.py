"""A fine-tuned MAViL: the encoders, mean pooling, a layer norm and a linear layer (Sec. 4.3, B.3)."""

from typing import Literal

import torch
from torch import Tensor, nn

from training.methods.mavil.config import MAViLConfig
from training.methods.mavil.encoder import audio_encoder, video_encoder, video_input
from training.methods.mavil.fusion import make_fusion
from training.methods.mavil.masking import finetune_audio_mask, finetune_video_mask
from training.methods.shared.blocks import LayerNorm
from training.methods.shared.patches import FULL, Grids

Input = Literal["audio", "video", "joint"]
MASK_RATIO = 0.2  # B.3


class Head(nn.Module):
    """LayerNorm and a linear layer, which starts near zero as in MAE's fine-tuning."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, D] -> scores [B, C]."""
        return self.linear(self.norm(x))


class MAViLClassifier(nn.Module):
    """Scores of sound, video, or both, each by a head of its own.

    One modality keeps its encoder alone, whose last norm gives way to the head's, as in MAE. Both get a fusion ("we
    introduce a 2-layer vanilla Transformer on top", B.3), with norms around it as the config says; the released file
    has three blocks and none.
    """

    def __init__(self, config: MAViLConfig, *, inputs: tuple[Input, ...], classes: int, grids: Grids = FULL) -> None:
        """For each of the inputs a head, and the encoders that these need.

        Args:
            config: `fusion.depth` counts the blocks of the fusion, if there is one.

        Raises:
            ValueError: "joint" stands beside others, whose encoders end otherwise.
        """
        super().__init__()
        is_joint = "joint" in inputs
        if is_joint and len(inputs) > 1:
            raise ValueError(f"inputs are {', '.join(inputs)}: allowed are joint alone, or audio and video")
        self.config, self.grids = config, grids
        self.audio_encoder = audio_encoder(config, grids.audio) if is_joint or "audio" in inputs else None
        self.video_encoder = video_encoder(config, grids.image) if is_joint or "video" in inputs else None
        self.fusion = make_fusion(config) if is_joint else None
        for encoder in (self.audio_encoder, self.video_encoder):
            if encoder is not None and not is_joint:
                encoder.norm = nn.Identity()
        dim = config.encoder.dim
        self.heads = nn.ModuleDict({name: Head(2 * dim if is_joint else dim, classes) for name in inputs})

    def forward(self, video: Tensor | None, fbank: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """Scores [B, C] of frames [B, F, 3, 224, 224] and fbanks [B, 1024, 128]; None for what is not used.

        Args:
            seeds: int64 [B], with which 20% are hidden (B.3): in training, not in tests.

        Raises:
            ValueError: what is given has no head here.
        """
        given: Input = "joint" if video is not None and fbank is not None else "audio" if video is None else "video"
        if given not in self.heads or (video is None and fbank is None):
            raise ValueError(f"the classifier has heads for {', '.join(self.heads)}, and none for what is given")
        scores: Tensor = self.heads[given](self.pool(video, fbank, seeds))
        return scores

    def pool(self, video: Tensor | None, fbank: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """The mean of the patch tokens [B, D]; of both modalities those of both parts, sound first: [B, 2 D]."""
        sequences = []
        if fbank is not None:
            assert self.audio_encoder is not None
            mask = None if seeds is None else finetune_audio_mask(seeds, self.grids.audio, MASK_RATIO)
            sequences.append(self.audio_encoder(self.audio_encoder.embed(fbank.unsqueeze(1)), mask))
        if video is not None:
            assert self.video_encoder is not None
            tokens = self.video_encoder.embed(video_input(video, self.config.tube))
            mask = None if seeds is None else finetune_video_mask(seeds, tokens.shape[1], MASK_RATIO)
            sequences.append(self.video_encoder(tokens, mask))
        if self.fusion is not None:
            sequences = list(self.fusion(*sequences))
        return torch.cat([sequence[:, 1:].mean(dim=1) for sequence in sequences], dim=1)
