"""The decoder of one modality: its part of the fused tokens, mask tokens, fixed positions, blocks, a linear head."""

import torch
from torch import Tensor, nn

from training.methods.mavil.config import MAViLConfig
from training.methods.mavil.encoder import with_cls
from training.methods.shared.blocks import LayerNorm, init_linears, put, run_blocks, self_block
from training.methods.shared.masking import Mask


class Decoder(nn.Module):
    """A fused sequence [B, 1 + V, D] of what is visible -> predictions for all N tokens.

    "The fusion encoder's outputs are firstly projected and padded with trainable [MASK] tokens. After restoring the
    original order ..., we add the decoders' (fixed 2-D sinusoidal) positional embeddings" (Sec. 3.1).
    """

    positions: Tensor  # [1, 1 + N, width], [CLS] first

    def __init__(self, config: MAViLConfig, positions: Tensor, values: int) -> None:
        """For tokens at positions [N, width], of each of which `values` are predicted."""
        super().__init__()
        sizes = config.decoder
        self.recompute = config.checkpoint_activations
        self.embed = nn.Linear(config.encoder.dim, sizes.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.register_buffer("positions", with_cls(positions))
        self.blocks = nn.ModuleList(self_block(sizes.dim, sizes.heads) for _ in range(sizes.depth))
        self.norm = LayerNorm(sizes.dim)
        self.predict = nn.Linear(sizes.dim, values)
        init_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, fused: Tensor, mask: Mask) -> Tensor:
        """fused [B, 1 + V, D], [CLS] first, in the order of the mask -> [B, N, values]."""
        x = self.embed(fused)
        hidden = self.mask_token.expand(-1, self.positions.shape[1] - 1, -1)
        x = torch.cat([x[:, :1], put(hidden, mask.visible, x[:, 1:])], dim=1) + self.positions
        x = run_blocks(self.blocks, x, recompute=self.recompute)
        return self.predict(self.norm(x))[:, 1:]
