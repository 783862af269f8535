"""The decoders of both levels: a modality's own pixels (Sec. 3.2), and the other modality's features (Sec. 3.3)."""

import torch
from torch import Tensor, nn

from training.methods.crossmae.config import EmbeddingConfig, PixelConfig
from training.methods.shared.blocks import (
    CrossAttention,
    CrossBlock,
    LayerNorm,
    init_linears,
    put,
    run_blocks,
    self_block,
)
from training.methods.shared.encoder import Features
from training.methods.shared.padding import attention_bias
from training.methods.shared.patches import sincos_positions


class PixelDecoder(nn.Module):
    """MAE's decoder; with Attentive Tokens of the other modality, cross-conditioned (eqs. 7 and 8).

    `first`: the visible tokens attend to the Attentive Tokens, then the mask tokens join them. `every_block`: all
    tokens attend to them in each block.
    """

    pos_embed: Tensor  # [1, N, D]

    def __init__(
        self,
        config: PixelConfig,
        *,
        encoder_dim: int,
        grid: tuple[int, int],
        patch_values: int,
        is_conditioned: bool,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute  # of activations, in the backward pass
        self.embed = nn.Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_buffer("pos_embed", sincos_positions(config.dim, grid).unsqueeze(0), persistent=False)
        starts_at_zero = config.condition_start == "zero"
        self.in_blocks = is_conditioned and config.conditioning == "every_block"
        self.condition = None
        if is_conditioned and not self.in_blocks:
            self.condition = CrossAttention(config.dim, encoder_dim, config.heads, starts_at_zero=starts_at_zero)
        self.blocks = nn.ModuleList(
            CrossBlock(config.dim, encoder_dim, config.heads, starts_at_zero=starts_at_zero)
            if self.in_blocks
            else self_block(config.dim, config.heads)
            for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.dim)
        self.predict = nn.Linear(config.dim, patch_values)
        init_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        features: Features,
        visible: Tensor,
        attentive: Tensor,
        is_valid: Tensor | None = None,
        is_chosen: Tensor | None = None,
    ) -> Tensor:
        """Features of the visible tokens [B, V], attentive [B, K, D] of the other side -> patches [B, N, P].

        No token attends to patches where is_valid [B, N] is False, nor to Attentive Tokens where is_chosen [B, K] is.
        """
        bias, attentive_bias = attention_bias(is_valid, has_cls=True), attention_bias(is_chosen)
        cls, tokens = self.embed(features.cls).unsqueeze(1), self.embed(features.tokens)
        # Also under autocast the residual stream is float32: bf16 would round away what a block adds to it.
        cls, tokens = cls.to(self.mask_token.dtype), tokens.to(self.mask_token.dtype)
        if self.condition is not None:
            tokens = self.condition(tokens, attentive, attentive_bias)
        patches = self.mask_token.expand(-1, self.pos_embed.shape[1], -1)
        x = put(patches, visible, tokens) + self.pos_embed
        x = torch.cat([cls, x], dim=1)
        given = (attentive, bias, attentive_bias) if self.in_blocks else (bias,)
        x = run_blocks(self.blocks, x, *given, recompute=self.recompute)
        return self.predict(self.norm(x))[:, 1:]


class EmbeddingDecoder(nn.Module):
    """Queries, a place each of the other modality, gather its features from this one's visible tokens (eqs. 10, 11)."""

    queries: Tensor  # [1, N, D of the encoder]

    def __init__(
        self, config: EmbeddingConfig, *, encoder_dim: int, grid: tuple[int, int], recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute
        positions = sincos_positions(encoder_dim, grid).unsqueeze(0)
        if config.queries == "learnable":
            self.queries = nn.Parameter(torch.zeros_like(positions).normal_(std=0.02))
        else:
            empty = torch.zeros_like(positions)
            self.register_buffer("queries", empty if config.queries == "zeros" else positions, persistent=False)
        self.embed = nn.Linear(encoder_dim, config.dim)
        self.blocks = nn.ModuleList(CrossBlock(config.dim, encoder_dim, config.heads) for _ in range(config.depth))
        self.norm = LayerNorm(config.dim)
        self.predict = nn.Linear(config.dim, encoder_dim)
        init_linears(self)

    def forward(
        self,
        context: Tensor,
        hints: Tensor | None = None,
        is_valid: Tensor | None = None,
        is_context: Tensor | None = None,
    ) -> Tensor:
        """Context [B, V, D], the visible tokens of one modality -> features [B, N, D] of the other.

        hints [B, N, D] are added to the queries (Table 7's "tokens from the other modality"). No query attends to
        queries where is_valid [B, N] is False, nor to context where is_context [B, V] is.
        """
        queries = self.queries.expand(context.shape[0], -1, -1)
        x = self.embed(queries if hints is None else queries + hints)
        x = x.to(queries.dtype)  # the residual stream is float32, as the pixel decoder's
        biases = attention_bias(is_valid), attention_bias(is_context)
        x = run_blocks(self.blocks, x, context, *biases, recompute=self.recompute)
        return self.predict(self.norm(x))
