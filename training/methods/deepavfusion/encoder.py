"""DeepAVFusion's encoder: an image, an audio and a fusion branch, each of which reads the others' layer before.

v' = block([m; v]), a' = block([m; a]), m' = Phi(m, v, a) (eqs. 1 to 3). The image and audio blocks are MAE's, with
LayerNorm's eps 1e-6; that of the fusion branch is 1e-5.

B samples, V visible tokens of a modality, M fusion tokens, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.methods.deepavfusion.config import DeepAVFusionConfig, StackConfig
from training.methods.deepavfusion.fusion import EPS, fusion_block
from training.methods.shared.blocks import LayerNorm, init_linears, self_block, take
from training.methods.shared.masking import Mask
from training.methods.shared.patches import IMAGE_CHANNELS, PATCH, Grids, sincos_positions


@dataclass(frozen=True)
class Streams:
    """The tokens of the three branches at one layer."""

    image: Tensor  # [B, Vi, D]
    audio: Tensor  # [B, Va, D]
    fusion: Tensor  # [B, M, D], order: fusion, image aggregation, audio aggregation


class Branch(nn.Module):
    """A ViT without [CLS]: patches, fixed positions, blocks, norm."""

    def __init__(self, config: StackConfig, *, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, config.dim, PATCH, PATCH)
        self.positions = nn.Parameter(sincos_positions(config.dim, grid).unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(self_block(config.dim, config.heads) for _ in range(config.depth))
        self.norm = LayerNorm(config.dim)
        init_linears(self)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))  # as a linear layer

    def embed(self, x: Tensor, mask: Mask | None) -> Tensor:
        """x [B, C, H, W] -> tokens [B, V, D] with positions, in the order of the mask; all of them without."""
        tokens = self.proj(x).flatten(2).transpose(1, 2) + self.positions
        return tokens if mask is None else take(tokens, mask.visible)


class Encoder(nn.Module):
    """Three branches of equal depth."""

    def __init__(self, config: DeepAVFusionConfig, grids: Grids) -> None:
        super().__init__()
        sizes = config.encoder
        self.recompute = config.checkpoint_activations
        self.image = Branch(sizes, channels=IMAGE_CHANNELS, grid=grids.image)
        self.audio = Branch(sizes, channels=1, grid=grids.audio)
        self.fusion_tokens = nn.Parameter(torch.empty(1, config.fusion.tokens, sizes.dim))
        self.fusion_blocks = nn.ModuleDict(
            {str(layer): fusion_block(sizes.dim, config.fusion) for layer in config.fusion_layers}
        )
        self.fusion_norm = nn.LayerNorm(sizes.dim, eps=EPS)
        nn.init.normal_(self.fusion_tokens, std=0.02)

    def forward(
        self, image: Tensor, spectrogram: Tensor, image_mask: Mask | None = None, audio_mask: Mask | None = None
    ) -> Streams:
        """Images [B, 3, H, W] and spectrograms [B, mel, time] -> tokens after the last norms."""
        last = self.layers(image, spectrogram, image_mask, audio_mask)[-1]
        return Streams(
            image=self.image.norm(last.image),
            audio=self.audio.norm(last.audio),
            fusion=self.fusion_norm(last.fusion),
        )

    def layers(
        self, image: Tensor, spectrogram: Tensor, image_mask: Mask | None = None, audio_mask: Mask | None = None
    ) -> list[Streams]:
        """The tokens after each layer, before the last norms: what the heads of dense tasks take."""
        seen = self.image.embed(image, image_mask)
        heard = self.audio.embed(spectrogram.unsqueeze(1), audio_mask)
        streams = Streams(seen, heard, self.fusion_tokens.expand(len(seen), -1, -1))
        found = []
        for layer in range(len(self.image.blocks)):
            streams = self._layer(layer, streams)
            found.append(streams)
        return found

    def _layer(self, layer: int, streams: Streams) -> Streams:
        image_block, audio_block = self.image.blocks[layer], self.audio.blocks[layer]
        image, audio, fusion = streams.image, streams.audio, streams.fusion
        if str(layer) not in self.fusion_blocks:
            return Streams(self._run(image_block, image), self._run(audio_block, audio), fusion)
        count = fusion.shape[1]
        return Streams(
            image=self._run(image_block, torch.cat([fusion, image], dim=1))[:, count:],
            audio=self._run(audio_block, torch.cat([fusion, audio], dim=1))[:, count:],
            fusion=self._run(self.fusion_blocks[str(layer)], fusion, image, audio),
        )

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """A block; with `recompute` the backward pass computes its inside again. Nothing in it is random."""
        if self.recompute and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            return output
        return block(*inputs)
