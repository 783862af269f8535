"""The decoder of one modality: its visible tokens and the whole fusion branch -> its patches (eq. 16)."""

import torch
from torch import Tensor, nn

from training.methods.deepavfusion.config import DecoderConfig
from training.methods.deepavfusion.fusion import EPS
from training.methods.shared.blocks import init_linears, put, run_blocks, self_block
from training.methods.shared.masking import Mask
from training.methods.shared.patches import sincos_positions


class Decoder(nn.Module):
    """Blocks over [m; patches]; nothing of the other modality crosses over but by m."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        depth: int,
        encoder_dim: int,
        grid: tuple[int, int],
        patch_values: int,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.recompute = recompute  # of activations, in the backward pass
        self.sees_own = config.sees == "own_and_fusion"
        self.embed = nn.Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim))
        positions = sincos_positions(config.dim, grid).unsqueeze(0)
        self.positions = nn.Parameter(positions, requires_grad=config.positions == "trained")
        self.blocks = nn.ModuleList(self_block(config.dim, config.heads, eps=EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(config.dim, eps=EPS)
        self.predict = nn.Linear(config.dim, patch_values)
        init_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, own: Tensor, fusion: Tensor, mask: Mask) -> Tensor:
        """Own visible tokens [B, V, D] and fusion tokens [B, M, D] -> patches [B, N, P]. Positions go to patches."""
        fusion = self.embed(fusion)
        patches = self.mask_token.expand(len(fusion), self.positions.shape[1], -1)
        if self.sees_own:
            patches = put(patches, mask.visible, self.embed(own))
        x = torch.cat([fusion, patches + self.positions], dim=1)
        x = self.norm(run_blocks(self.blocks, x, recompute=self.recompute))
        return self.predict(x[:, fusion.shape[1] :])
