"""MAViL: Masked Audio-Video Learners (Huang et al., NeurIPS 2023).

L = L_raw + alpha L_inter + beta L_intra (eq. 4), and in stage 2 L_context in place of L_raw (eq. 6).

B samples, F frames, D width; a sequence [B, 1 + V, D] is [CLS] and the visible tokens of one modality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.methods.interface import CachedLoss, Encoded, Features, Inputs, Model, Output, Reads, Rebuilt, Side
from training.methods.mavil.config import MAViLConfig, kept_count
from training.methods.mavil.decoder import Decoder
from training.methods.mavil.encoder import audio_encoder, video_encoder, video_input, video_positions
from training.methods.mavil.fusion import make_fusion
from training.methods.mavil.losses import contrast
from training.methods.mavil.masking import AUDIO_STREAMS, VIDEO_STREAMS, two_views
from training.methods.mavil.patches import first_frame, patches_by_frame, patchify_video, repeat_by_frame
from training.methods.mavil.teacher import Teacher
from training.methods.shared.losses import patch_statistics, pixel_loss
from training.methods.shared.masking import Mask
from training.methods.shared.patches import (
    FULL,
    IMAGE_CHANNELS,
    PATCH,
    Grids,
    patchify_fbank,
    sincos_positions,
)


@dataclass(frozen=True)
class Views:
    """The masks of a batch: the first view of each modality, and the second one."""

    audio: tuple[Mask, Mask]
    video: tuple[Mask, Mask]


@dataclass(frozen=True)
class Seen:
    """A masked batch after the encoders, each in its own norm: uni-modal."""

    audio: Tensor  # [B, 1 + Va, D], the first view
    video: Tensor  # [B, 1 + Vv, D]
    second_audio: Tensor | None  # the second view; None where no loss compares it
    second_video: Tensor | None


class MAViL(Model):
    """The model of Figs. 1 and 2: stage 1, or with a teacher (`set_teacher`) the student of stage 2."""

    def __init__(self, config: MAViLConfig, grids: Grids = FULL) -> None:
        super().__init__()
        self.config, self.grids, self.dim = config, grids, config.encoder.dim
        # B.1: "randomly sample a starting point and extracted the consecutive 4 seconds of the video"
        self.reads = Reads(frames=config.frames, choose="middle" if config.frames == 1 else "window")
        self.audio_encoder = audio_encoder(config, grids.audio)
        self.video_encoder = video_encoder(config, grids.image)
        self.fusion = make_fusion(config)
        self.audio_decoder, self.video_decoder = _decoders(config, grids)
        is_student = config.target.source != "raw"
        self.teacher = Teacher(config, self.audio_encoder, self.video_encoder, self.fusion) if is_student else None

    @property
    def has_contrast(self) -> bool:
        """Whether there is a contrastive loss."""
        return self.config.has_contrast

    def forward(self, inputs: Inputs, cached: dict[str, CachedLoss] | None = None) -> Output:
        """The loss of B samples: eq. 4, or eq. 6 with a teacher."""
        views = self.views(inputs.seeds)
        seen = self.see(inputs.image, inputs.fbank, views)
        predicted = self.decode(self.fusion(seen.audio, seen.video), views)
        parts = self.reconstruct(predicted, inputs, views)
        loss = torch.stack(list(parts.values())).sum()
        for name, features in self.compared(seen).items():
            whole = None if cached is None else cached[name]
            parts[name] = self.contrast_loss(name, features) if whole is None else whole.attach(features)
            loss = loss + self._weight(name) * parts[name]
        return Output(loss=loss, parts={name: part.detach() for name, part in parts.items()})

    def views(self, seeds: Tensor) -> Views:
        """The masks of both views, for seeds [B]."""
        options = self.config.mask
        rows, columns = self.grids.image
        audio, video = self.grids.audio, (self.config.slots, rows * columns)
        return Views(
            audio=two_views(
                seeds,
                audio,
                options.audio_ratio,
                kept_count(audio[0] * audio[1], options.audio_ratio, options.count),
                strategy=options.audio_strategy,
                second=options.second_view,
                streams=AUDIO_STREAMS,
            ),
            video=two_views(
                seeds,
                video,
                options.video_ratio,
                kept_count(video[0] * video[1], options.video_ratio, options.count),
                strategy=options.video_strategy,
                second=options.second_view,
                streams=VIDEO_STREAMS,
            ),
        )

    def see(self, video: Tensor, fbank: Tensor, views: Views) -> Seen:
        """Mask and encode frames [B, F, 3, 224, 224] and fbanks [B, 1024, 128], each by itself.

        Both views are of the same input (Sec. 3.2: "treat masking as a form of augmentation"), which is embedded once.
        """
        audio = self.audio_encoder.embed(fbank.unsqueeze(1))
        visual = self.video_encoder.embed(video_input(video, self.config.tube))
        with_second = self.config.contrast.intra_weight > 0
        return Seen(
            audio=self.audio_encoder(audio, views.audio[0]),
            video=self.video_encoder(visual, views.video[0]),
            second_audio=self.audio_encoder(audio, views.audio[1]) if with_second else None,
            second_video=self.video_encoder(visual, views.video[1]) if with_second else None,
        )

    def decode(self, fused: tuple[Tensor, Tensor], views: Views) -> tuple[Tensor, Tensor]:
        """What the decoders say of all tokens, from the fused sequences: [B, 512, values] and [B, 784, values]."""
        audio, video = fused
        return self.audio_decoder(audio, views.audio[0]), self.video_decoder(video, views.video[0])

    def reconstruct(self, predicted: tuple[Tensor, Tensor], inputs: Inputs, views: Views) -> dict[str, Tensor]:
        """Eq. 1 or eq. 5, its half of each modality by name."""
        options = self.config.target
        if self.teacher is None:
            prefix, targets = "pixel", self._patches(inputs.image, inputs.fbank)
        else:
            prefix, targets = "context", self.teacher(inputs.image, inputs.fbank)
        masks = {"audio": views.audio[0], "image": views.video[0]}
        return {
            f"{prefix}_{side}": pixel_loss(
                said,
                target,
                mask.is_masked,
                on=options.on,
                norm_pix=options.norm_pix and self.teacher is None,
                reduction=options.reduction,
            )
            for (side, mask), said, target in zip(masks.items(), predicted, targets, strict=True)
        }

    def _patches(self, video: Tensor, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """The raw targets: patches [B, 512, 256] and [B, 784, 1536], of the video as `target.video_values` has them."""
        tubes = patchify_video(video, self.config.tube)
        whole = self.config.target.video_values == "tube"
        return patchify_fbank(fbank), tubes if whole else first_frame(tubes, self.config.tube)

    def compared(self, seen: Seen) -> dict[str, tuple[Tensor, ...]]:
        """What eq. 3 compares, [B, D] each: under "inter" sound and video, under "intra" (a, a2, v, v2)."""
        audio, video = self.pool(seen.audio), self.pool(seen.video)
        pairs: dict[str, tuple[Tensor, ...]] = {}
        if self.config.contrast.inter_weight > 0:
            pairs["inter"] = (audio, video)
        if seen.second_audio is not None and seen.second_video is not None:
            pairs["intra"] = (audio, self.pool(seen.second_audio), video, self.pool(seen.second_video))
        return pairs

    def pool(self, sequence: Tensor) -> Tensor:
        """The instance [B, D] of a uni-modal sequence: "average the sequence" (Sec. 3.2)."""
        return (sequence if self.config.contrast.pooling == "with_cls" else sequence[:, 1:]).mean(dim=1)

    def contrast_features(self, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
        """What both losses of eq. 3 compare, by the name of the loss; the fusion takes no part in it."""
        if not self.has_contrast:
            return {}
        return self.compared(self.see(inputs.image, inputs.fbank, self.views(inputs.seeds)))

    def contrast_loss(self, name: str, features: Sequence[Tensor]) -> Tensor:
        """Eq. 3's "inter" of features (a, v), or "intra" of (a, a2, v, v2), [B, D] each."""
        options = self.config.contrast
        if name == "inter":
            audio, video = features
            return contrast(audio, video, options.inter_temperature, negatives=options.negatives, is_symmetric=True)
        both_ways = options.intra_direction == "symmetric"
        first_audio, second_audio, first_video, second_video = features
        of_audio, of_video = (
            contrast(x, y, options.intra_temperature, negatives=options.negatives, is_symmetric=both_ways)
            for x, y in ((first_audio, second_audio), (first_video, second_video))
        )
        return (of_audio + of_video) / 2

    def _weight(self, name: str) -> float:
        options = self.config.contrast
        return options.inter_weight if name == "inter" else options.intra_weight

    def set_teacher(self, state: Mapping[str, Tensor]) -> None:
        """Makes the weights of a finished run the teacher of stage 2, and the student's start where the config says so.

        Raises:
            ValueError: this is stage 1, a weight is missing, or one is of another shape.
        """
        if self.teacher is None:
            raise ValueError("target.source is 'raw', which is stage 1 and has no teacher: choose 'fusion'")
        self.teacher.load(state)
        if self.config.target.student == "teacher":
            for own in ("audio_encoder", "video_encoder", "fusion"):
                part = {name.removeprefix(f"{own}."): state[name] for name in state if name.startswith(f"{own}.")}
                getattr(self, own).load_state_dict(part)

    def pretend_ready(self) -> None:
        """A teacher of no weights is asked as if it had been given some."""
        if self.teacher is not None:
            self.teacher.is_ready = True

    def encode(
        self, *, image: Tensor | None = None, fbank: Tensor | None = None, valid_frames: Tensor | None = None
    ) -> Encoded:
        """Features of all tokens, padding too: of each modality by its encoder, and of both by the fusion.

        The joint pooled features are the means of both parts side by side, sound first: [B, 2 D].
        """
        audio = None if fbank is None else self.audio_encoder.attended(self.audio_encoder.embed(fbank.unsqueeze(1)))
        video = None
        if image is not None:
            video = self.video_encoder.attended(self.video_encoder.embed(video_input(image, self.config.tube)))
        joint = None
        if audio is not None and video is not None and self.config.fusion.depth:
            parts = [part[:, 1:] for part in self.fusion(audio[0], video[0])]
            joint = Features(
                pooled=torch.cat([part.mean(dim=1) for part in parts], dim=1), tokens=torch.cat(parts, dim=1)
            )
        time = () if self.config.tube == 1 else (self.config.slots,)
        return Encoded(
            audio=None if audio is None else self._features(*audio, self.grids.audio),
            image=None if video is None else self._features(*video, (*time, *self.grids.image)),
            joint=joint,
        )

    def _features(self, sequence: Tensor, attention: Tensor, grid: tuple[int, ...]) -> Features:
        pooled = self.pool(sequence)
        return Features(pooled=pooled, tokens=sequence[:, 1:], grid=grid, cls=sequence[:, 0], attention=attention)

    @torch.no_grad()
    def rebuild(self, inputs: Inputs) -> dict[Side, Rebuilt]:
        """Both modalities as the decoders make them (Fig. 3): frames one below the other; nothing in stage 2."""
        if self.teacher is not None:
            return {}
        views = self.views(inputs.seeds)
        seen = self.see(inputs.image, inputs.fbank, views)
        predicted = self.decode(self.fusion(seen.audio, seen.video), views)
        audio, tubes = (
            self._in_units(said, patches)
            for said, patches in zip(predicted, self._patches(inputs.image, inputs.fbank), strict=True)
        )
        frames = patches_by_frame(tubes, self.config.slots, PATCH * PATCH * IMAGE_CHANNELS)
        (rows, columns), slots = self.grids.image, self.config.slots
        shown = frames.shape[1] // (rows * columns)
        hidden = repeat_by_frame(views.video[0].is_masked, slots, shown // slots)
        return {
            "image": Rebuilt(patches=frames, grid=(shown * rows, columns), is_masked=hidden),
            "audio": Rebuilt(patches=audio, grid=self.grids.audio, is_masked=views.audio[0].is_masked),
        }

    def _in_units(self, predicted: Tensor, patches: Tensor) -> Tensor:
        """Predictions [B, N, P] in the units of the inputs."""
        predicted = predicted.float()
        if self.config.target.norm_pix:
            mean, std = patch_statistics(patches)
            predicted = predicted * std + mean
        return predicted


def _decoders(config: MAViLConfig, grids: Grids) -> tuple[Decoder, Decoder]:
    """Of sound and video, "to either predict the raw audio spectrogram and video frame patches in stage-1 ..., or ...
    the contextualized representations in stage-2" (B.2).
    """
    of_audio = PATCH * PATCH
    of_video = of_audio * IMAGE_CHANNELS * (config.tube if config.target.video_values == "tube" else 1)
    if config.target.source != "raw":
        of_audio = of_video = config.encoder.dim
    width = config.decoder.dim
    positions = video_positions(width, config.slots, grids.image, config.positions)
    return (
        Decoder(config, sincos_positions(width, grids.audio), of_audio),
        Decoder(config, positions, of_video),
    )
