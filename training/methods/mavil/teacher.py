"""Stage 2 (Sec. 3.3): the frozen model of the last stage, shown all of a sample, and the targets that it gives.

"It generates audio-video representations with complete-view inputs, which are used as the reconstruction targets."
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.methods.mavil.config import TOP, MAViLConfig
from training.methods.mavil.encoder import Encoder, video_input
from training.methods.mavil.fusion import Fusion
from training.methods.shared.frozen import Frozen
from training.methods.shared.losses import TOKEN_EPS


class Teacher(Frozen):
    """Copies of the encoders, and of the fusion where the target is its: without gradient, always in eval behaviour.

    A part of the state dict, so that a resumed run has the same targets.
    """

    def __init__(self, config: MAViLConfig, audio_encoder: Encoder, video_encoder: Encoder, fusion: Fusion) -> None:
        super().__init__()
        self.config = config
        self.audio_encoder = copy.deepcopy(audio_encoder)
        self.video_encoder = copy.deepcopy(video_encoder)
        self.fusion = copy.deepcopy(fusion) if config.target.source == "fusion" else None
        self.freeze(is_ready=False)

    @torch.no_grad()
    def forward(self, video: Tensor, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, F, 3, 224, 224] and fbanks [B, 1024, 128] -> targets of all tokens, [B, 512, D] and [B, 784, D].

        Raises:
            ValueError: it was given no weights.
        """
        if not self.is_ready:
            raise ValueError(
                f"target.source is {self.config.target.source!r}, but no teacher was loaded: give the run of the last"
                " stage"
            )
        last = min(TOP, self.config.encoder.depth) if self.config.target.normalised == "top3" else 1
        frames = video_input(video, self.config.tube)
        audio_states = self.audio_encoder.states(self.audio_encoder.embed(fbank.unsqueeze(1)), last=last)
        video_states = self.video_encoder.states(self.video_encoder.embed(frames), last=last)
        audio_norm, video_norm = self.audio_encoder.norm, self.video_encoder.norm
        if self.fusion is not None:
            fused = self.fusion.states(audio_norm(audio_states[-1]), video_norm(video_states[-1]))
            audio_states += [audio for audio, _ in fused]
            video_states += [video for _, video in fused]
            audio_norm = video_norm = self.fusion.norm
        return self._target(audio_states, audio_norm), self._target(video_states, video_norm)

    def _target(self, states: list[Tensor], norm: nn.Module) -> Tensor:
        """The targets [B, N, D] of outputs [B, 1 + N, D] of the last blocks."""
        normalised = self.config.target.normalised
        tokens = [state[:, 1:] for state in states[-TOP:]]
        if normalised == "norm":
            return norm(tokens[-1])
        if normalised == "none":
            return tokens[-1]
        if normalised == "layer_norm":
            return _layer_norm(tokens[-1])
        return torch.stack([_layer_norm(layer) for layer in tokens]).mean(dim=0)


def _layer_norm(tokens: Tensor) -> Tensor:
    """Each token in its own mean and deviation, without scales, in float32."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=TOKEN_EPS)
