"""CrossMAE: Cross-Modality Masked Autoencoders for Region-Aware Audio-Visual Pre-Training (Guo et al., CVPR 2024).

L = lambda * L_contrast + L_cross-cdt + L_cross-emb (eq. 13), each half of a reconstruction loss a part of its own.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.methods.crossmae.attentive import attentive_places, attentive_tokens
from training.methods.crossmae.config import CrossMAEConfig
from training.methods.crossmae.decoders import EmbeddingDecoder, PixelDecoder
from training.methods.crossmae.diagnostics import diagnose
from training.methods.crossmae.teacher import Teacher
from training.methods.crossmae.view import View
from training.methods.interface import CachedLoss, Encoded, Inputs, Model, Output, Rebuilt, Side
from training.methods.interface import Features as FeaturesOfAll
from training.methods.shared.blocks import drawn_aside, put, take
from training.methods.shared.contrast import Contrast
from training.methods.shared.encoder import Encoder, Features
from training.methods.shared.losses import embedding_loss, patch_statistics, pixel_loss
from training.methods.shared.masking import Mask, mask_audio, mask_image
from training.methods.shared.padding import share_of, valid_tokens
from training.methods.shared.patches import (
    FBANK_GRID,
    FBANK_SHAPE,
    IMAGE_CHANNELS,
    IMAGE_GRID,
    IMAGE_SHAPE,
    IMAGE_TOKENS,
    PATCH,
    patchify_fbank,
    patchify_image,
)
from training.methods.shared.streams import AUDIO_ATTENTIVE, IMAGE_ATTENTIVE


class CrossMAE(Model):
    """The model of Fig. 2. What the config does not use is not built."""

    def __init__(self, config: CrossMAEConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.encoder.dim
        again = config.checkpoint_activations
        self.image_encoder = Encoder(config.encoder, shape=IMAGE_SHAPE, channels=IMAGE_CHANNELS, recompute=again)
        self.audio_encoder = Encoder(config.encoder, shape=FBANK_SHAPE, channels=1, recompute=again)
        with drawn_aside():
            self.contrast = Contrast(config.contrast, config.encoder.dim) if config.contrast.enabled else None
            image_from_audio, audio_from_image = map(self._embedding_decoder, (IMAGE_GRID, FBANK_GRID))
        self.image_decoder = self._pixel_decoder(IMAGE_GRID, IMAGE_CHANNELS, config.attentive.audio_ratio)
        self.audio_decoder = self._pixel_decoder(FBANK_GRID, 1, config.attentive.image_ratio)
        self.image_from_audio, self.audio_from_image = image_from_audio, audio_from_image
        self.teacher: Teacher | None = None
        if config.embedding.enabled and config.embedding.targets in ("ema", "teacher"):
            is_ready = config.embedding.targets == "ema"
            self.teacher = Teacher(self.image_encoder, self.audio_encoder, is_ready=is_ready)

    def forward(self, inputs: Inputs, cached: dict[str, CachedLoss] | None = None) -> Output:
        """The loss of B pairs, eq. 13. `valid_frames` are looked at with encoder.padding `left_out` alone."""
        image, fbank = inputs.image[:, 0], inputs.fbank
        image_view = self.see_image(image, inputs.seeds)  # mask, encode, attend
        audio_view = self.see_audio(fbank, inputs.seeds, inputs.valid_frames)
        parts: dict[str, Tensor] = {}
        if self.contrast is not None:
            whole = None if cached is None else cached["contrast"]
            parts["contrast"] = self.contrast(audio_view.features, image_view.features, whole)  # eq. 1
        if self.config.pixel.target != "none":
            image_patches, audio_patches = self.decode_pixels(image_view, audio_view)  # eqs. 7, 8
            parts["cdt_visual"] = self.pixel_loss(image_patches, patchify_image(image), image_view.mask)  # eq. 9
            parts["cdt_audio"] = self.pixel_loss(audio_patches, patchify_fbank(fbank), audio_view.mask)
        if self.config.embedding.enabled:
            image_target, audio_target = self.embedding_targets(image, fbank, image_view, audio_view)
            image_features, audio_features = self.decode_embeddings(image_view, audio_view)  # eqs. 10, 11
            parts["emb_visual"] = self.embedding_loss(image_features, image_target, image_view.mask)  # eq. 12
            parts["emb_audio"] = self.embedding_loss(audio_features, audio_target, audio_view.mask)
        weights = {"contrast": self.config.contrast.weight}  # lambda; the others count whole
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()  # eq. 13
        return Output(loss=loss, parts={name: part.detach() for name, part in parts.items()})

    @property
    def has_contrast(self) -> bool:
        """Whether a part of its loss sees the whole batch."""
        return self.contrast is not None

    def contrast_features(self, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
        """Eq. 1's global features of the masked views, audio and image [B, D]."""
        if self.contrast is None:
            return {}
        image_view = self.see_image(inputs.image[:, 0], inputs.seeds)
        audio_view = self.see_audio(inputs.fbank, inputs.seeds, inputs.valid_frames)
        return {"contrast": self.contrast.global_features(audio_view.features, image_view.features)}

    def contrast_loss(self, name: str, features: Sequence[Tensor]) -> Tensor:
        """Eq. 1 of global features of audio and image, [B, D]."""
        assert self.contrast is not None
        audio, image = features
        return self.contrast.loss(audio, image)

    def contrast_parameters(self, name: str) -> tuple[nn.Parameter, ...]:
        """The temperature, where it is learned."""
        return () if self.contrast is None else self.contrast.own_parameters

    def encode(
        self, *, image: Tensor | None = None, fbank: Tensor | None = None, valid_frames: Tensor | None = None
    ) -> Encoded:
        """Features of all tokens of images [B, 1, 3, 224, 224] and fbanks [B, 1024, 128], each by its own encoder."""
        return Encoded(
            image=None if image is None else _of_all(self.encode_image(image[:, 0]), IMAGE_GRID),
            audio=None if fbank is None else _of_all(self.encode_audio(fbank, valid_frames), FBANK_GRID),
        )

    def encode_image(self, image: Tensor) -> Features:
        """Features of all 196 tokens of an image [B, 3, 224, 224]."""
        return self.image_encoder(image)

    def encode_audio(self, fbank: Tensor, valid_frames: Tensor | None = None) -> Features:
        """Features of all 512 tokens of an fbank [B, 1024, 128]; token t * 8 + f. valid_frames int64 [B]."""
        return self.audio_encoder(fbank.unsqueeze(1), None, self._valid_tokens(valid_frames))

    @torch.no_grad()
    def rebuild(self, inputs: Inputs) -> dict[Side, Rebuilt]:
        """What the pixel decoders make of a batch, in the units of the inputs; the Attentive Tokens are marked."""
        if self.config.pixel.target == "none":
            return {}
        image, fbank = inputs.image[:, 0], inputs.fbank
        image_view = self.see_image(image, inputs.seeds)
        audio_view = self.see_audio(fbank, inputs.seeds, inputs.valid_frames)
        image_patches, audio_patches = self.decode_pixels(image_view, audio_view)
        return {
            "image": self._rebuilt(image_patches, patchify_image(image), IMAGE_GRID, image_view),
            "audio": self._rebuilt(audio_patches, patchify_fbank(fbank), FBANK_GRID, audio_view),
        }

    def after_start(self) -> None:
        """Starts the running mean of targets `ema` at the encoders as they are."""
        self.reset_teacher()

    def after_step(self) -> None:
        """Moves the running mean of the encoders on, where that gives the targets; holds a learned temperature."""
        self.update_teacher()
        if self.contrast is not None:
            self.contrast.hold_temperature()

    def pretend_ready(self) -> None:
        """Takes the teacher to be loaded, for counting on the meta device."""
        if self.teacher is not None:
            self.teacher.is_ready = True

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """What docs/model.md lists."""
        return diagnose(self, inputs)

    def see_image(self, image: Tensor, seeds: Tensor) -> View:
        """Mask and encode the image, and choose its Attentive Tokens (eqs. 4 and 6)."""
        mask = mask_image(seeds, IMAGE_TOKENS, self.config.mask.image_ratio)
        features = self.image_encoder(image, mask.visible)
        return self._view(features, mask, seeds, self.config.attentive.image_ratio, IMAGE_ATTENTIVE)

    def see_audio(self, fbank: Tensor, seeds: Tensor, valid_frames: Tensor | None = None) -> View:
        """Mask and encode the fbank, and choose its Attentive Tokens (eqs. 3 and 5). valid_frames int64 [B]."""
        is_valid = self._valid_tokens(valid_frames)
        mask = mask_audio(seeds, FBANK_GRID, self.config.mask.audio_ratio, self.config.mask.audio_strategy, is_valid)
        features = self.audio_encoder(fbank.unsqueeze(1), mask.visible, is_valid)
        return self._view(features, mask, seeds, self.config.attentive.audio_ratio, AUDIO_ATTENTIVE)

    def decode_pixels(self, image: View, audio: View) -> tuple[Tensor, Tensor]:
        """Patches of the image [B, 196, 768] and of the fbank [B, 512, 256], as their decoders give them."""
        assert self.image_decoder is not None and self.audio_decoder is not None
        return (
            self.decode_own(self.image_decoder, image, audio.attentive, audio.is_chosen),
            self.decode_own(self.audio_decoder, audio, image.attentive, image.is_chosen),
        )

    def decode_own(self, decoder: PixelDecoder, view: View, attentive: Tensor, is_chosen: Tensor | None) -> Tensor:
        """Patches [B, N, P] of a view by its decoder, with Attentive Tokens [B, K, D] of another one."""
        return decoder(view.features, view.mask.visible, attentive, view.mask.is_valid, is_chosen)

    def decode_embeddings(self, image: View, audio: View) -> tuple[Tensor, Tensor]:
        """Features of the image [B, 196, D] out of the audio, and of the audio [B, 512, D] out of the image."""
        assert self.image_from_audio is not None and self.audio_from_image is not None
        return (
            self.decode_other(self.image_from_audio, image, audio.features.tokens, audio.features.is_valid),
            self.decode_other(self.audio_from_image, audio, image.features.tokens, image.features.is_valid),
        )

    def decode_other(self, decoder: EmbeddingDecoder, view: View, context: Tensor, is_context: Tensor | None) -> Tensor:
        """Features [B, N, D] of all of a view's tokens by its decoder, out of the tokens [B, V, D] of another one."""
        return decoder(context, self.hints(view), view.mask.is_valid, is_context)

    def embedding_targets(
        self, image: Tensor, fbank: Tensor, image_view: View, audio_view: View
    ) -> tuple[Tensor, Tensor]:
        """Eq. 12's "complete original features": [B, N, D] of both, or [B, V, D] with `visible_only`.

        To be called after the masked views: the autocast of older torch keeps a weight's first cast, and one made
        without gradient would leave the weight without.
        """
        if self.config.embedding.targets == "visible_only":
            targets = image_view.features.tokens, audio_view.features.tokens
            return targets if self.config.embedding.target_gradient else (targets[0].detach(), targets[1].detach())
        if self.teacher is not None:
            return self.teacher(image, fbank, audio_view.mask.is_valid)
        with torch.set_grad_enabled(self.config.embedding.target_gradient and torch.is_grad_enabled()):
            image_target = self.image_encoder.full_view(image)
            return image_target, self.audio_encoder.full_view(fbank.unsqueeze(1), audio_view.mask.is_valid)

    def update_teacher(self) -> None:
        """Moves the running mean of targets `ema` on; to be called after each optimizer step. Nothing with others."""
        if self.teacher is not None and self.config.embedding.targets == "ema":
            self.teacher.follow(self.image_encoder, self.audio_encoder, self.config.embedding.ema_momentum)

    def reset_teacher(self) -> None:
        """Starts the running mean of targets `ema` at the encoders as they are. Nothing with others.

        To be called after the encoders were given weights from elsewhere; not after resuming, which loads the mean.
        """
        if self.teacher is not None and self.config.embedding.targets == "ema":
            self.teacher.load(self.state_dict())

    def set_teacher(self, source: "CrossMAE | Mapping[str, Tensor]") -> None:
        """Gives targets `teacher` the encoders of another CrossMAE, or of its state dict.

        Raises:
            ValueError: the targets are others, or the encoders are missing or of another size.
        """
        if self.teacher is None or self.config.embedding.targets != "teacher":
            raise ValueError(
                f"a teacher was given, but embedding.enabled is {self.config.embedding.enabled} and embedding.targets"
                f" is {self.config.embedding.targets!r}: allowed is 'teacher'"
            )
        self.teacher.load(source.state_dict() if isinstance(source, CrossMAE) else source)

    def pixel_loss(self, predicted: Tensor, patches: Tensor, mask: Mask) -> Tensor:
        """One modality's half of eq. 9, from patches [B, N, P]."""
        pixel = self.config.pixel
        return pixel_loss(
            predicted,
            patches,
            mask.is_masked,
            mask.is_valid,
            on=pixel.loss_on,
            norm_pix=pixel.norm_pix,
            reduction=pixel.reduction,
        )

    def embedding_loss(self, predicted: Tensor, target: Tensor, mask: Mask) -> Tensor:
        """One modality's half of eq. 12, from features [B, N, D]."""
        embedding = self.config.embedding
        if embedding.targets == "visible_only":
            predicted = take(predicted, mask.visible)
        is_valid = self.target_is_valid(mask)
        return embedding_loss(predicted, target, is_valid, normalise=embedding.normalise, reduction=embedding.reduction)

    def target_is_valid(self, mask: Mask) -> Tensor | None:
        """Which of a modality's embedding targets are no padding, bool [B, N], or [B, V] with `visible_only`."""
        if mask.is_valid is None or self.config.embedding.targets != "visible_only":
            return mask.is_valid
        return mask.is_valid.gather(1, mask.visible)

    def _valid_tokens(self, valid_frames: Tensor | None) -> Tensor | None:
        return valid_tokens(self.config.encoder.padding, valid_frames)

    def _view(self, features: Features, mask: Mask, seeds: Tensor, ratio: float, stream: int) -> View:
        config = self.config.attentive
        count = self.config.attentive_count(ratio, mask.visible.shape[1], mask.is_masked.shape[1])
        places = attentive_places(config, features, mask, count, seeds=seeds, stream=stream)
        is_chosen = None
        if mask.is_valid is not None and features.is_valid is not None:
            shown = features.is_valid.sum(dim=1)  # at least 1
            of = shown if config.base == "visible" else mask.is_valid.sum(dim=1)
            counts = torch.minimum(share_of(of, ratio), shown)
            is_chosen = torch.arange(count, device=counts.device) < counts[:, None]
        return View(features, mask, places, attentive_tokens(config, features, places), is_chosen)

    def hints(self, view: View) -> Tensor | None:
        """The Attentive Tokens at their places among zeros [B, N, D]: Table 7's "tokens from the other modality"."""
        if self.config.embedding.queries != "tokens":
            return None
        tokens = take(view.features.tokens, view.places)
        if view.is_chosen is not None:
            tokens = tokens * view.is_chosen.unsqueeze(-1)
        zeros = tokens.new_zeros(1, view.mask.is_masked.shape[1], tokens.shape[-1])
        return put(zeros, view.mask.visible.gather(1, view.places), tokens)

    def _rebuilt(self, predicted: Tensor, patches: Tensor, grid: tuple[int, int], view: View) -> Rebuilt:
        predicted = predicted.float()
        if self.config.pixel.norm_pix:  # as MAE's demo: by the mean and deviation of the true patch
            mean, std = patch_statistics(patches)
            predicted = predicted * std + mean
        return Rebuilt(patches=predicted, grid=grid, is_masked=view.mask.is_masked, is_marked=view.is_attentive)

    def _pixel_decoder(self, grid: tuple[int, int], channels: int, other_ratio: float) -> PixelDecoder | None:
        pixel = self.config.pixel
        if pixel.target == "none":
            return None
        return PixelDecoder(
            pixel,
            encoder_dim=self.config.encoder.dim,
            grid=grid,
            patch_values=PATCH * PATCH * channels,
            is_conditioned=pixel.target == "cross" and other_ratio > 0,
            recompute=self.config.checkpoint_activations,
        )

    def _embedding_decoder(self, grid: tuple[int, int]) -> EmbeddingDecoder | None:
        if not self.config.embedding.enabled:
            return None
        return EmbeddingDecoder(
            self.config.embedding,
            encoder_dim=self.config.encoder.dim,
            grid=grid,
            recompute=self.config.checkpoint_activations,
        )


def _of_all(features: Features, grid: tuple[int, int]) -> FeaturesOfAll:
    return FeaturesOfAll(
        pooled=features.pooled,
        tokens=features.tokens,
        grid=grid,
        cls=features.cls,
        attention=features.attention,
        is_valid=features.is_valid,
    )
