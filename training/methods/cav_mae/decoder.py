"""CAV-MAE's decoder: the joint stream alone, all 708 tokens of both modalities together."""

import torch
from torch import Tensor, nn

from training.methods.cav_mae.config import CAVMAEConfig
from training.methods.cav_mae.encoder import EPS, fbank_positions
from training.methods.shared.blocks import init_linears, put, run_blocks, self_block
from training.methods.shared.masking import Mask
from training.methods.shared.patches import IMAGE_CHANNELS, PATCH, Grids, sincos_positions


class Decoder(nn.Module):
    """Joint tokens of what is visible -> patches of both modalities. One mask token serves both."""

    def __init__(self, config: CAVMAEConfig, grids: Grids) -> None:
        super().__init__()
        sizes = config.decoder
        self.recompute = config.checkpoint_activations
        self.embed = nn.Linear(config.encoder.dim, sizes.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.audio_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.image_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.audio_positions = nn.Parameter(fbank_positions(sizes.dim, grids.audio).unsqueeze(0), requires_grad=False)
        image_positions = sincos_positions(sizes.dim, grids.image).unsqueeze(0)
        self.image_positions = nn.Parameter(image_positions, requires_grad=False)
        self.blocks = nn.ModuleList(self_block(sizes.dim, sizes.heads, eps=EPS) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.dim, eps=EPS)
        self.predict_audio = nn.Linear(sizes.dim, PATCH * PATCH)
        self.predict_image = nn.Linear(sizes.dim, PATCH * PATCH * IMAGE_CHANNELS)
        init_linears(self)
        for token in (self.mask_token, self.audio_token, self.image_token):
            nn.init.normal_(token, std=0.02)

    def forward(self, joint: Tensor, audio: Mask, image: Mask) -> tuple[Tensor, Tensor]:
        """Joint tokens [B, Va + Vi, D], audio first -> patches of fbank [B, 512, 256] and image [B, 196, 768]."""
        tokens = self.embed(joint)
        seen = audio.visible.shape[1]
        sides = []
        for own, mask, positions, token in (
            (tokens[:, :seen], audio, self.audio_positions, self.audio_token),
            (tokens[:, seen:], image, self.image_positions, self.image_token),
        ):
            hidden = self.mask_token.expand(-1, positions.shape[1], -1)
            sides.append(put(hidden, mask.visible, own) + positions + token)
        x = self.norm(run_blocks(self.blocks, torch.cat(sides, dim=1), recompute=self.recompute))
        count = self.audio_positions.shape[1]
        return self.predict_audio(x[:, :count]), self.predict_image(x[:, count:])
