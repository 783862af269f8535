"""The fusion encoder (Sec. 3.1, Appendix B.2): what lets sound and video see each other.

B samples, D width. A sequence is [CLS] and visible tokens of one modality, [B, 1 + V, D]; V differs between the two.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from training.methods.mavil.config import MAViLConfig
from training.methods.mavil.encoder import last_norm
from training.methods.shared.blocks import init_linears, run_blocks, self_block


class Fusion(nn.Module, ABC):
    """Sequences of sound and video -> the same, each in the context of the other."""

    def __init__(self, config: MAViLConfig) -> None:
        super().__init__()
        self.recompute = config.checkpoint_activations
        self.norm = last_norm(config) if config.fusion.depth else nn.Identity()

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Both sequences, as the encoders give them, after the blocks and the last norm."""
        states = self.states(audio, video)
        audio, video = states[-1] if states else (audio, video)
        return self.norm(audio), self.norm(video)

    @abstractmethod
    def states(self, audio: Tensor, video: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Both sequences after each block, before the norm."""


class VanillaFusion(Fusion):
    """Blocks on [CLS_a, audio, CLS_v, video]: (a || v) = Transformer(a || v)."""

    def __init__(self, config: MAViLConfig) -> None:
        super().__init__(config)
        self.blocks = _blocks(config)
        init_linears(self)

    def states(self, audio: Tensor, video: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Both sequences after each block."""
        x = torch.cat([audio, video], dim=1)
        outputs = []
        for block in self.blocks:
            x = run_blocks([block], x, recompute=self.recompute)
            outputs.append((x[:, : audio.shape[1]], x[:, audio.shape[1] :]))
        return outputs


class BottleneckFusion(Fusion):
    """MBT: a || b_a = g(a || b), v || b_v = g(v || b), and the next layer's b is the mean of b_a and b_v."""

    def __init__(self, config: MAViLConfig) -> None:
        super().__init__(config)
        self.bottleneck = nn.Parameter(torch.zeros(1, config.fusion.bottleneck_tokens, config.encoder.dim))
        self.blocks = _blocks(config)
        self.video_blocks = _blocks(config) if config.fusion.mbt_blocks == "separate" else None
        init_linears(self)
        nn.init.normal_(self.bottleneck, std=0.02)

    def states(self, audio: Tensor, video: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Both sequences after each layer, without the bottleneck tokens."""
        shared = self.bottleneck.expand(audio.shape[0], -1, -1)
        outputs = []
        for for_audio, for_video in zip(self.blocks, self.video_blocks or self.blocks, strict=True):
            audio, of_audio = self._with(for_audio, audio, shared)
            video, of_video = self._with(for_video, video, shared)
            shared = (of_audio + of_video) / 2
            outputs.append((audio, video))
        return outputs

    def _with(self, block: nn.Module, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        x = run_blocks([block], torch.cat([own, shared.to(own.dtype)], dim=1), recompute=self.recompute)
        return x[:, : own.shape[1]], x[:, own.shape[1] :]


def make_fusion(config: MAViLConfig) -> Fusion:
    """The fusion that the config names."""
    is_mbt = config.fusion.kind == "mbt" and config.fusion.depth > 0
    return BottleneckFusion(config) if is_mbt else VanillaFusion(config)


def _blocks(config: MAViLConfig) -> nn.ModuleList:
    sizes = config.encoder
    return nn.ModuleList(self_block(sizes.dim, sizes.heads) for _ in range(config.fusion.depth))
