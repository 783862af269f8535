"""CAV-MAE's encoder: own blocks for each modality, then blocks that both share, with norms for each stream.

A shared block has one attention and one MLP, and three pairs of norms: of both modalities together (`joint`), of the
sound alone (`audio`), of the frame alone (`image`). LayerNorm's eps is 1e-5 everywhere (MAE's is 1e-6).
"""

from typing import Literal

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from training.methods.cav_mae.config import CAVMAEConfig, StackConfig
from training.methods.shared.blocks import init_linears, run_blocks, self_block, take
from training.methods.shared.masking import Mask
from training.methods.shared.patches import IMAGE_CHANNELS, PATCH, sincos_positions

Stream = Literal["joint", "audio", "image"]
STREAMS: tuple[Stream, ...] = ("joint", "audio", "image")
EPS = 1e-5


def fbank_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions [N, dim] of an fbank's tokens, time first: t * bands + f on a grid of (times, bands).

    The authors' table is of the spectrogram as a picture of mel rows and time columns: the first half of the width
    holds the time, the second the mel band.
    """
    times, bands = grid
    return sincos_positions(dim, (bands, times)).unflatten(0, (bands, times)).transpose(0, 1).flatten(0, 1)


class OwnEncoder(nn.Module):
    """One modality by itself: patches, positions and a token that tells the modality, then its own blocks."""

    def __init__(self, config: StackConfig, *, channels: int, positions: Tensor, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute  # of activations, in the backward pass
        self.proj = nn.Conv2d(channels, config.dim, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(positions.unsqueeze(0), requires_grad=False)  # fine-tuning trains them
        self.blocks = nn.ModuleList(self_block(config.dim, config.heads, eps=EPS) for _ in range(config.depth))
        init_linears(self)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))  # as a linear layer
        nn.init.normal_(self.token, std=0.02)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """x [B, C, H, W] -> tokens [B, V, D] after the own blocks, in the order of the mask; all of them without."""
        tokens = self.proj(x).flatten(2).transpose(1, 2) + self.positions + self.token
        if mask is not None:
            tokens = take(tokens, mask.visible)
        return run_blocks(self.blocks, tokens, recompute=self.recompute)


class SharedBlock(nn.Module):
    """timm's pre-norm block with a pair of norms for each stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict(
            {stream: nn.ModuleList([nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)]) for stream in STREAMS}
        )
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """x [B, N, D] of a stream -> [B, N, D]."""
        norms = self.norms[stream]
        assert isinstance(norms, nn.ModuleList)
        before_attention, before_mlp = norms
        x = x + self.attn(before_attention(x))
        return x + self.mlp(before_mlp(x))


class SharedEncoder(nn.Module):
    """The blocks that both modalities share, and the last norm of each stream."""

    def __init__(self, config: CAVMAEConfig) -> None:
        super().__init__()
        self.recompute = config.checkpoint_activations
        self.single_streams = config.single_streams
        dim = config.encoder.dim
        self.blocks = nn.ModuleList(SharedBlock(dim, config.encoder.heads) for _ in range(config.joint_depth))
        self.norms = nn.ModuleDict({stream: nn.LayerNorm(dim, eps=EPS) for stream in STREAMS})
        init_linears(self)

    def forward(self, x: Tensor, stream: Stream, *, only_last: bool = False) -> Tensor:
        """Tokens [B, N, D] of a stream through the shared blocks (or the last of them alone) and the stream's norm."""
        blocks = self.blocks[-1:] if only_last else self.blocks
        return self.norms[stream](run_blocks(blocks, x, stream, recompute=self.recompute))


def audio_encoder(config: CAVMAEConfig, grid: tuple[int, int]) -> OwnEncoder:
    """The blocks of the sound, of fbanks [B, 1, T, M] whose tokens lie on `grid`."""
    return OwnEncoder(
        config.encoder,
        channels=1,
        positions=fbank_positions(config.encoder.dim, grid),
        recompute=config.checkpoint_activations,
    )


def image_encoder(config: CAVMAEConfig, grid: tuple[int, int]) -> OwnEncoder:
    """The blocks of the frame, of images [B, 3, H, W] whose tokens lie on `grid`."""
    return OwnEncoder(
        config.encoder,
        channels=IMAGE_CHANNELS,
        positions=sincos_positions(config.encoder.dim, grid),
        recompute=config.checkpoint_activations,
    )
