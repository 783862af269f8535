"""The fusion blocks Phi of Sec. 3.1: m, v, a of a layer -> m of the next.

All of them are z = M + R, m' = z + MLP(LN(z)), with M = LN(m), V = LN(v), A = LN(a); they differ in R.

Keys and values are linear in a pair [x_i; y_j], so the scores are s_i + t_j, up to what is the same for all pairs, and
the softmax over the pairs is the product of one over i and one over j. What is attended to is then the sum of one
attention over the x and one over the y, and the values' bias, exactly: no term depends on a pair. So are pairs built
here; n + m products instead of n * m.

B samples, M fusion tokens, N image and audio tokens, D width, H heads.
"""

import torch
import torch.nn.functional as F
from timm.layers import Mlp, use_fused_attn
from torch import Tensor, nn

from training.methods.deepavfusion.config import FusionConfig
from training.methods.shared.blocks import init_linears

EPS = 1e-5


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float) -> Tensor:
    """softmax(q k^T * scale) v, of q [B, M, K], k [B, N, K], v [B, N, D] -> [B, M, D]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if use_fused_attn():
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        attended = (q * scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return attended.transpose(1, 2).flatten(2)


def attend_to_pairs(
    q: Tensor, first: Tensor, second: Tensor, keys: Tensor, values: Tensor, bias: Tensor, *, heads: int, scale: float
) -> Tensor:
    """Attention of q [B, M, K] to all pairs [first_i; second_j] of [B, N1, D] and [B, N2, D] -> [B, M, W].

    Args:
        keys, values: weights [K, 2 D] and [W, 2 D] of the linear layers over a pair.
        bias: of the values, [W]. That of the keys adds the same to all scores of a query, which a softmax forgets.
    """
    sides = zip((first, second), keys.chunk(2, dim=1), values.chunk(2, dim=1), strict=True)
    attended = [attend(q, F.linear(x, key), F.linear(x, value), heads=heads, scale=scale) for x, key, value in sides]
    return attended[0] + attended[1] + bias


class Aggregation(nn.Module):
    """Attention of one modality's aggregation tokens to its tokens, at full width (eq. 9, eq. 10)."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, P, D], context [B, N, D] -> [B, P, D], without residual."""
        k, v = self.kv(context).chunk(2, dim=-1)
        scale = (x.shape[-1] // self.heads) ** -0.5
        return self.proj(attend(self.q(x), k, v, heads=self.heads, scale=scale))


class FactorizedAttention(nn.Module):
    """R of factorized interactions (eqs. 9 to 13): of pairs of what the aggregation tokens gather."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        narrow = int(dim * config.attn_ratio)
        self.heads = config.heads
        self.split = [config.fusion_tokens, config.image_tokens, config.audio_tokens]
        self.scale = ((narrow if config.scale == "reduced" else dim) // config.heads) ** -0.5
        self.attn_v = Aggregation(dim, config)
        self.attn_a = Aggregation(dim, config)
        self.q = nn.Linear(dim, narrow)
        self.k = nn.Linear(2 * dim, narrow)
        self.v = nn.Linear(2 * dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.k.bias.requires_grad_(False)  # it does nothing; the authors' files have it

    def forward(self, tokens: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        """M [B, M, D], V, A [B, N, D] -> R [B, M, D]."""
        fusion, of_image, of_audio = tokens.split(self.split, dim=1)
        seen, heard = self.attn_v(of_image, image), self.attn_a(of_audio, audio)
        return torch.cat([self.pairs(fusion, seen, heard), seen, heard], dim=1)

    def pairs(self, fusion: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        """What the fusion tokens take of all pairs of image and audio aggregates (eqs. 11 to 13)."""
        attended = attend_to_pairs(
            self.q(fusion),
            image,
            audio,
            self.k.weight,
            self.v.weight,
            self.v.bias,
            heads=self.heads,
            scale=self.scale,
        )
        return self.proj(attended)


class NarrowAttention(nn.Module):
    """What dense interactions and token fusion have in common: queries, keys and values of a reduced width."""

    def __init__(self, dim: int, context_dim: int, config: FusionConfig) -> None:
        super().__init__()
        narrow = int(dim * config.attn_ratio)
        self.heads = config.heads
        self.full_scale, self.narrow_scale = (dim // self.heads) ** -0.5, (narrow // self.heads) ** -0.5
        self.q = nn.Linear(dim, narrow)
        self.kv = nn.Linear(context_dim, 2 * narrow)
        self.proj = nn.Linear(narrow, dim)


class DenseAttention(NarrowAttention):
    """R of dense interactions (eqs. 4 to 7): of all pairs [audio_i; image_j]."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__(dim, 2 * dim, config)
        self.scale = self.narrow_scale if config.scale == "reduced" else self.full_scale

    def forward(self, tokens: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        """M [B, M, D], V, A [B, N, D] -> R [B, M, D]."""
        keys, values = self.kv.weight.chunk(2)
        _, bias = self.kv.bias.chunk(2)
        attended = attend_to_pairs(self.q(tokens), audio, image, keys, values, bias, heads=self.heads, scale=self.scale)
        return self.proj(attended)


class TokenAttention(NarrowAttention):
    """R of token fusion: of the image and audio tokens, in `mbt` also of the fusion tokens."""

    def __init__(self, dim: int, config: FusionConfig, *, sees_itself: bool) -> None:
        super().__init__(dim, dim, config)
        self.sees_itself = sees_itself

    def forward(self, tokens: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        """M [B, M, D], V, A [B, N, D] -> R [B, M, D]."""
        context = [tokens, image, audio] if self.sees_itself else [image, audio]
        k, v = self.kv(torch.cat(context, dim=1)).chunk(2, dim=-1)
        return self.proj(attend(self.q(tokens), k, v, heads=self.heads, scale=self.narrow_scale))


class FusionBlock(nn.Module):
    """Phi of a layer (eqs. 7 and 8)."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.is_swapped = config.phi == "token"
        self.is_prenorm = config.residual == "prenorm"
        self.norm1_mm, self.norm1_img, self.norm1_aud = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attn = _attention(dim, config)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        init_linears(self)

    def forward(self, fusion: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        """m [B, M, D], v and a [B, N, D], all of the layer before -> m [B, M, D]."""
        tokens = self.norm1_mm(fusion)
        norm_image, norm_audio = self.norm1_img, self.norm1_aud
        if self.is_swapped:
            norm_image, norm_audio = norm_audio, norm_image
        z = (fusion if self.is_prenorm else tokens) + self.attn(tokens, norm_image(image), norm_audio(audio))
        return z + self.mlp(self.norm2(z))


class BlockwiseFactorized(nn.Module):
    """Phi of factorized interactions by the letter of eqs. 9 to 13: each step a block with residual and MLP.

    The aggregation tokens are updated first, and their new values make the pairs.
    """

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.is_prenorm = config.residual == "prenorm"
        self.norm1_mm, self.norm1_img, self.norm1_aud = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attn = FactorizedAttention(dim, config)
        hidden = int(dim * config.mlp_ratio)
        self.norm2, self.norm2_img, self.norm2_aud = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.mlp, self.mlp_img, self.mlp_aud = (Mlp(dim, hidden) for _ in range(3))
        init_linears(self)

    def forward(self, fusion: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        """m [B, M, D], v and a [B, N, D], all of the layer before -> m [B, M, D]."""
        tokens = self.norm1_mm(fusion)
        own, of_image, of_audio = tokens.split(self.attn.split, dim=1)
        stays, image_stays, audio_stays = (fusion if self.is_prenorm else tokens).split(self.attn.split, dim=1)
        seen = image_stays + self.attn.attn_v(of_image, self.norm1_img(image))  # eq. 10
        seen = seen + self.mlp_img(self.norm2_img(seen))
        heard = audio_stays + self.attn.attn_a(of_audio, self.norm1_aud(audio))  # eq. 9
        heard = heard + self.mlp_aud(self.norm2_aud(heard))
        z = stays + self.attn.pairs(own, seen, heard)  # eq. 13
        return torch.cat([z + self.mlp(self.norm2(z)), seen, heard], dim=1)


def fusion_block(dim: int, config: FusionConfig) -> nn.Module:
    """Phi of one layer."""
    if config.phi == "factorized_mmi" and config.aggregates == "block":
        return BlockwiseFactorized(dim, config)
    return FusionBlock(dim, config)


def _attention(dim: int, config: FusionConfig) -> nn.Module:
    if config.phi == "factorized_mmi":
        return FactorizedAttention(dim, config)
    if config.phi == "dense_mmi":
        return DenseAttention(dim, config)
    return TokenAttention(dim, config, sees_itself=config.phi == "mbt")
