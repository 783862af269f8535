"""The ViT of one modality, on all of its tokens or on the visible ones, and the fixed positions of its tokens.

B samples, N tokens, V of them visible, D width; a sequence has [CLS] first.
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from training.methods.mavil.config import MAViLConfig, Positions
from training.methods.shared.blocks import LayerNorm, init_linears, run_blocks, self_block, take
from training.methods.shared.encoder import cls_attention
from training.methods.shared.masking import Mask
from training.methods.shared.patches import IMAGE_CHANNELS, PATCH, sincos_positions


class TubeProjection(nn.Conv3d):
    """A convolution whose kernel is its stride, taken as the matrix product that it is.

    cuDNN's own in bf16 is wrong, slow or hungry in several releases (pytorch issues 163539, 166643, 174051).
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, D, F / t, H / y, W / x] of kernels [D, C, t, y, x]."""
        _, _, t, y, x = self.weight.shape
        cut = input.unflatten(4, (-1, x)).unflatten(3, (-1, y)).unflatten(2, (-1, t))  # [B, C, T, t, Y, y, X, x]
        tubes = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(tubes, self.weight.flatten(1), self.bias).movedim(-1, 1)


class Encoder(nn.Module):
    """Patches, fixed positions and [CLS], then the blocks; a norm at the end, or none (config: norms)."""

    positions: Tensor  # [1, 1 + N, D], [CLS] first

    def __init__(self, config: MAViLConfig, projection: nn.Conv2d | nn.Conv3d, positions: Tensor) -> None:
        super().__init__()
        sizes = config.encoder
        self.recompute = config.checkpoint_activations
        self.proj = projection
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.register_buffer("positions", with_cls(positions))
        self.blocks = nn.ModuleList(self_block(sizes.dim, sizes.heads) for _ in range(sizes.depth))
        self.norm = last_norm(config)
        init_linears(self)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))  # as a linear layer
        nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] or [B, C, F, H, W] -> all tokens [B, N, D] with their positions."""
        return self.proj(x).flatten(2).transpose(1, 2) + self.positions[:, 1:]

    def forward(self, tokens: Tensor, mask: Mask | None = None) -> Tensor:
        """Embedded tokens [B, N, D] -> the sequence [B, 1 + V, D] of the visible ones after the last norm."""
        return self.norm(self.states(tokens, mask)[-1])

    def states(self, tokens: Tensor, mask: Mask | None = None, *, last: int = 1) -> list[Tensor]:
        """Embedded tokens [B, N, D] -> the outputs [B, 1 + V, D] of the last blocks, before the norm."""
        body, top = self.blocks[:-last], self.blocks[-last:]
        x = run_blocks(body, self.sequence(tokens, mask), recompute=self.recompute)
        outputs = []
        for block in top:
            x = run_blocks([block], x, recompute=self.recompute)
            outputs.append(x)
        return outputs

    def attended(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` on all embedded tokens [B, N, D], and the attention [B, N] of [CLS] to them in the last block."""
        x = run_blocks(self.blocks[:-1], self.sequence(tokens, None), recompute=self.recompute)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return self.norm(run_blocks([last], x, recompute=self.recompute)), cls_attention(last, x)

    def sequence(self, tokens: Tensor, mask: Mask | None) -> Tensor:
        """The first block's input [B, 1 + V, D]."""
        if mask is not None:
            tokens = take(tokens, mask.visible)
        cls = (self.cls_token + self.positions[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls.to(tokens.dtype), tokens], dim=1)


def audio_encoder(config: MAViLConfig, grid: tuple[int, int]) -> Encoder:
    """The encoder of fbanks [B, 1, T, M] whose tokens lie on `grid`: token t * 8 + f."""
    dim = config.encoder.dim
    return Encoder(config, nn.Conv2d(1, dim, PATCH, PATCH), sincos_positions(dim, grid))


def video_encoder(config: MAViLConfig, grid: tuple[int, int]) -> Encoder:
    """The encoder of `video_input`, each frame of whose tokens lies on `grid`: token t * 196 + y * 14 + x."""
    dim, tube = config.encoder.dim, (config.tube, PATCH, PATCH)
    projection: nn.Conv2d | nn.Conv3d
    if config.tube == 1:
        projection = nn.Conv2d(IMAGE_CHANNELS, dim, PATCH, PATCH)
    else:
        projection = TubeProjection(IMAGE_CHANNELS, dim, tube, tube)
    return Encoder(config, projection, video_positions(dim, config.slots, grid, config.positions))


def video_input(video: Tensor, tube: int) -> Tensor:
    """Frames [B, F, 3, H, W] as the video's encoder takes them: [B, 3, F, H, W], or the one still [B, 3, H, W]."""
    assert video.shape[1] % tube == 0 and (tube > 1 or video.shape[1] == 1), video.shape
    return video[:, 0] if tube == 1 else video.transpose(1, 2)


def video_positions(dim: int, slots: int, grid: tuple[int, int], kind: Positions) -> Tensor:
    """Fixed positions [slots * rows * columns, dim] of video tokens.

    `tiled`: MAE's table for each slot. `sincos3d`: a quarter of the width tells the slot, the rest is MAE's table.
    """
    if kind == "tiled":
        return sincos_positions(dim, grid).repeat(slots, 1)
    time = _of_times(dim // 4, slots)
    space = sincos_positions(dim - dim // 4, grid)
    return torch.cat([time.repeat_interleave(len(space), dim=0), space.repeat(slots, 1)], dim=1)


def with_cls(positions: Tensor) -> Tensor:
    """Positions [N, D] as a table [1, 1 + N, D]: zeros for [CLS]."""
    return torch.cat([torch.zeros_like(positions[:1]), positions]).unsqueeze(0)


def last_norm(config: MAViLConfig) -> nn.Module:
    """What an encoder, or the fusion, ends in."""
    norm: nn.Module = LayerNorm(config.encoder.dim) if config.norms == "normed" else nn.Identity()
    return norm


def _of_times(dim: int, slots: int) -> Tensor:
    """Fixed positions [slots, dim] in time, sines before cosines: the row half of a 2-D table of one column."""
    return sincos_positions(2 * dim, (slots, 1))[:, dim:]
