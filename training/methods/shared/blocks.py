"""What timm's blocks do not have: attention over another sequence, recomputation. And how every layer starts."""

import ctypes
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, use_fused_attn
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)  # MAE's eps


def self_block(dim: int, heads: int, *, eps: float = 1e-6) -> Block:
    """timm's pre-norm ViT block, as MAE uses it: x [B, N, D] -> [B, N, D]."""
    norm: Any = partial(nn.LayerNorm, eps=eps)
    return Block(dim, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)


class CrossAttention(nn.Module):
    """Pre-norm residual multi-head attention over a context: CrossAttn of eqs. 7, 8, 10 and 11.

    With `starts_at_zero` it adds nothing at first: what it stands in begins as it would without it.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, *, starts_at_zero: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.fused_attn = use_fused_attn()  # timm's switch, as its own blocks have it: off with TIMM_FUSED_ATTN=0
        self.norm = LayerNorm(dim)
        with drawn_aside():
            self.q = nn.Linear(dim, dim)
            self.kv = nn.Linear(context_dim, 2 * dim)
            self.proj = nn.Linear(dim, dim)
            for layer in (self.q, self.kv, self.proj):
                init_linear(layer)
        if starts_at_zero:
            nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, D], context [B, M, C], already normalised by its encoder -> [B, N, D].

        bias [B, 1, 1, M] is added to the scores: -inf for what is no context.
        """
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # [B, heads, N, D / heads]
        else:
            scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
            attended = (scores if bias is None else scores + bias).softmax(dim=-1) @ v
        return x + self.proj(attended.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward: a block of the decoder of Sec. 3.3."""

    def __init__(self, dim: int, context_dim: int, heads: int, *, starts_at_zero: bool = False) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.cross = CrossAttention(dim, context_dim, heads, starts_at_zero=starts_at_zero)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(
        self, x: Tensor, context: Tensor, bias: Tensor | None = None, context_bias: Tensor | None = None
    ) -> Tensor:
        """x [B, N, D], context [B, M, C] -> [B, N, D]; biases of the scores [B, 1, 1, N] and [B, 1, 1, M]."""
        x = x + self.attn(self.norm1(x), bias)
        x = self.cross(x, context, context_bias)
        return x + self.mlp(self.norm2(x))


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *context: Any, recompute: bool) -> Tensor:
    """x [B, N, D] through the blocks, each of which is also given what else there is: biases, a context.

    With `recompute` the backward pass computes the inside of each block again instead of keeping it. Nothing in a block
    is random, so no generator's state is kept for it (on a GPU that would wait for the device).
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, *context, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, *context)
    return x


def init_linear(module: nn.Module) -> None:
    """MAE's start of a linear layer: Xavier-uniform weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_linears(module: nn.Module) -> None:
    """`init_linear` for all layers inside but those of a CrossAttention, which has its own start."""
    if not isinstance(module, CrossAttention):
        init_linear(module)
        for child in module.children():
            init_linears(child)


@contextmanager
def drawn_aside() -> Iterator[None]:
    """For parts that not every variant has: random numbers drawn outside are the same with them and without.

    So variants of one seed start from the same weights wherever they have the same layers.
    """
    with torch.random.fork_rng(devices=()):
        state = torch.default_generator.get_state()
        state_bytes = ctypes.string_at(state.data_ptr(), state.numel())  # works among fake tensors, too
        torch.default_generator.manual_seed(zlib.crc32(state_bytes))
        yield


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products of tensors like x are taken in their own dtype: for scores, which are compared."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # there is none on `meta`


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows index [B, K] of x [B, N, D] -> [B, K, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def put(base: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Base [B, N, D] (any batch that expands to B) with its rows index [B, K] replaced by rows [B, K, D]."""
    base = base.to(rows.dtype).expand(rows.shape[0], -1, -1)
    return base.scatter(1, index.unsqueeze(-1).expand_as(rows), rows)
