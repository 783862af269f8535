"""What timm's blocks do not have: attention over another sequence. And how every layer starts."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)  # MAE's eps


def self_block(dim: int, heads: int) -> Block:
    """timm's pre-norm ViT block, as MAE uses it: x [B, N, D] -> [B, N, D]."""
    return Block(dim, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=LayerNorm)


class CrossAttention(nn.Module):
    """Pre-norm residual multi-head attention over a context: CrossAttn of eqs. 7, 8, 10 and 11."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, D], context [B, M, C], already normalised by its encoder -> [B, N, D]."""
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, D / heads]
        return x + self.proj(attended.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward: a block of the decoder of Sec. 3.3."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.cross = CrossAttention(dim, context_dim, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, D], context [B, M, C] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        x = self.cross(x, context)
        return x + self.mlp(self.norm2(x))


def init_linear(module: nn.Module) -> None:
    """MAE's start: Xavier-uniform weights, zero biases. For `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows index [B, K] of x [B, N, D] -> [B, K, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def put(base: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Base [B, N, D] (any batch that expands to B) with its rows index [B, K] replaced by rows [B, K, D]."""
    base = base.to(rows.dtype).expand(rows.shape[0], -1, -1)
    return base.scatter(1, index.unsqueeze(-1).expand_as(rows), rows)
