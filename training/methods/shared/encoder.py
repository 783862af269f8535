"""The encoder of one modality: a ViT with [CLS] on the visible tokens only, and the attention of its [CLS] token.

Its state has the names of MAE, AudioMAE and timm: cls_token, pos_embed, patch_embed.proj, blocks.N, norm.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from training.methods.shared.blocks import LayerNorm, init_linears, run_blocks, self_block, take, without_autocast
from training.methods.shared.config_values import check_literals, check_sizes
from training.methods.shared.padding import Padding, attention_bias
from training.methods.shared.patches import PATCH, sincos_positions


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The ViT of each modality (Sec. 4.1: "ViT-B/16 model as the backbone by default")."""

    dim: int = 768
    """Width."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """Attention heads."""
    padding: Padding = "counted"
    """Of the rows that fill up the fbank of a clip below 10.24 s: counted as sound, as in the papers, or left out of
    attention, pooling, masking, Attentive Tokens and losses, as if the clip had fewer tokens (docs/model.md)."""

    def __post_init__(self) -> None:
        check_literals("encoder", self)
        check_sizes("encoder", width=self.dim, depth=self.depth, heads=self.heads)


@dataclass(frozen=True)
class Features:
    """What an encoder makes of B samples; N counts the tokens that it was shown."""

    pooled: Tensor  # [B, D], mean of the patch tokens
    tokens: Tensor  # [B, N, D], patch tokens after the last norm
    cls: Tensor  # [B, D], the [CLS] token after the last norm
    attention: Tensor  # [B, N], attention of [CLS] to the patch tokens in the last block, mean over heads; no gradient
    is_valid: Tensor | None = None  # [B, N] bool, False = padding that was left out of all the others


class Encoder(nn.Module):
    """ViT of MAE and AudioMAE (Sec. 4.1): fixed 2-D sin-cos positions, zero for [CLS]."""

    pos_embed: Tensor  # [1, 1 + N, D]

    def __init__(
        self, config: EncoderConfig, *, shape: tuple[int, int], channels: int, recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute  # of activations, in the backward pass
        grid = (shape[0] // PATCH, shape[1] // PATCH)
        self.patch_embed = PatchEmbed(shape, PATCH, channels, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        positions = torch.cat([torch.zeros(1, config.dim), sincos_positions(config.dim, grid)])
        self.register_buffer("pos_embed", positions.unsqueeze(0))
        self.blocks = nn.ModuleList(self_block(config.dim, config.heads) for _ in range(config.depth))
        self.norm = LayerNorm(config.dim)
        init_linears(self)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # as a linear layer; MAE leaves the bias
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor, visible: Tensor | None = None, is_valid: Tensor | None = None) -> Features:
        """x [B, C, H, W], visible [B, V] (all tokens where None) -> features of the visible tokens (eqs. 3 and 4).

        No token attends to those that is_valid [B, N], of all tokens, says are padding, and no mean counts them.
        """
        if is_valid is not None and visible is not None:
            is_valid = is_valid.gather(1, visible)
        bias = attention_bias(is_valid, has_cls=True)
        sequence = self.embed(x, visible)
        *body, last = self.blocks
        sequence = run_blocks(body, sequence, bias, recompute=self.recompute)
        assert isinstance(last, Block)
        attention = cls_attention(last, sequence, bias)
        sequence = self.norm(run_blocks([last], sequence, bias, recompute=self.recompute))
        cls, tokens = sequence[:, 0], sequence[:, 1:]
        return Features(_pooled(tokens, is_valid), tokens, cls, attention, is_valid)

    def full_view(self, x: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] -> the patch tokens [B, N, D] of `forward` on all tokens, alone: what a target needs."""
        bias = attention_bias(is_valid, has_cls=True)
        sequence = run_blocks(self.blocks, self.embed(x, None), bias, recompute=self.recompute)
        return self.norm(sequence)[:, 1:]

    def embed(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """x [B, C, H, W], visible [B, V] or None -> the first block's input [B, 1 + V, D], [CLS] first."""
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        if visible is not None:
            tokens = take(tokens, visible)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([cls.to(tokens.dtype), tokens], dim=1)


def _pooled(tokens: Tensor, is_valid: Tensor | None) -> Tensor:
    """The mean [B, D] of the tokens [B, N, D] that count."""
    if is_valid is None:
        return tokens.mean(dim=1)
    counted = is_valid.unsqueeze(-1)
    return (tokens * counted).sum(dim=1) / counted.sum(dim=1)


@torch.no_grad()
def cls_attention(block: Block, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention [B, N] of [CLS] to the patches in a block whose input is x [B, 1 + N, D], mean over heads.

    The fused attention of the main path keeps no weights, so this one row is computed apart. q.(W_k x) is taken as
    (q W_k).x, which spares the keys; the key bias adds the same to every score of a row, and softmax forgets it. In
    float32 also under autocast: bf16 has so few values that tokens would tie, and chance would choose among them.
    """
    attn = block.attn
    assert isinstance(attn, Attention)
    with without_autocast(x):
        scores = _cls_scores(attn, block.norm1(x))
    if bias is not None:
        scores = scores + bias[:, 0]
    return scores.softmax(dim=-1).mean(dim=1)[:, 1:]


def _cls_scores(attn: Attention, x: Tensor) -> Tensor:
    """Scores [B, heads, 1 + N] of [CLS] with all tokens."""
    weight_q, weight_k, _ = attn.qkv.weight.chunk(3)
    bias_q, _, _ = attn.qkv.bias.chunk(3)
    q = F.linear(x[:, 0], weight_q, bias_q).unflatten(-1, (attn.num_heads, -1))  # [B, heads, D / heads]
    q = torch.einsum("bhd,hdc->bhc", q, weight_k.unflatten(0, (attn.num_heads, -1)))
    return torch.einsum("bhc,bnc->bhn", q, x) * attn.scale
