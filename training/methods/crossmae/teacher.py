"""Who makes the embedding targets, if not the model itself: a second pair of encoders that no gradient moves.

`ema` (data2vec, BYOL): a running mean of the model's own encoders. `teacher` (supplement, Table 6, "+Teacher-student
stage", after MAViL): the encoders of a finished first run, frozen.
"""

import copy

import torch
from torch import Tensor

from training.methods.shared.encoder import Encoder
from training.methods.shared.frozen import Frozen


class Teacher(Frozen):
    """Copies of both encoders: parts of the state dict, without gradient, always in eval behaviour."""

    def __init__(self, image_encoder: Encoder, audio_encoder: Encoder, *, is_ready: bool) -> None:
        """With is_ready False it must be given weights (`load`, or a state dict that holds them) before it is asked."""
        super().__init__()
        self.image_encoder = copy.deepcopy(image_encoder)
        self.audio_encoder = copy.deepcopy(audio_encoder)
        self.freeze(is_ready=is_ready)

    @torch.no_grad()
    def forward(self, image: Tensor, fbank: Tensor, is_valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image [B, 3, 224, 224] and fbank [B, 1024, 128] -> features of all tokens, [B, 196, D] and [B, 512, D].

        is_valid [B, 512] as of Encoder.forward.

        Raises:
            ValueError: it was given no weights.
        """
        if not self.is_ready:
            raise ValueError(
                "embedding.targets is 'teacher', but no teacher was loaded: give the run of the first stage"
            )
        return self.image_encoder.full_view(image), self.audio_encoder.full_view(fbank.unsqueeze(1), is_valid)

    @torch.no_grad()
    def follow(self, image_encoder: Encoder, audio_encoder: Encoder, momentum: float) -> None:
        """Moves each weight to momentum * itself + (1 - momentum) * the model's, in one fused call without a wait.

        The position tables are buffers, which no step moves.
        """
        own: list[Tensor] = [*self.image_encoder.parameters(), *self.audio_encoder.parameters()]
        online: list[Tensor] = [*image_encoder.parameters(), *audio_encoder.parameters()]
        torch._foreach_lerp_(own, online, 1 - momentum)
