"""DeepAVFusion: Unveiling the Power of Audio-Visual Early Fusion Transformers (Mo and Morgado, CVPR 2024).

L = L_MAE(image) + L_MAE(sound) (eq. 16), of one masked pass through three branches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.methods.deepavfusion.config import DeepAVFusionConfig
from training.methods.deepavfusion.decoder import Decoder
from training.methods.deepavfusion.encoder import Encoder, Streams
from training.methods.deepavfusion.masking import uniform_mask
from training.methods.deepavfusion.spectrogram import (
    FRAMES,
    MELS,
    SECONDS,
    LogMel,
    from_fbank,
    three_seconds,
)
from training.methods.interface import CachedLoss, Encoded, Features, Inputs, Model, Output, Reads, Rebuilt, Side
from training.methods.shared.losses import patch_statistics, pixel_loss
from training.methods.shared.masking import AUDIO_MASK, IMAGE_MASK, Mask, uniform
from training.methods.shared.patches import IMAGE_CHANNELS, IMAGE_GRID, PATCH, Grids, patchify_fbank, patchify_image
from training.methods.shared.streams import SOUND

# Rows and columns of the tokens. The spectrogram is a picture of mel rows and time columns: token f * 12 + t.
FULL = Grids(image=IMAGE_GRID, audio=(MELS // PATCH, FRAMES // PATCH))


@dataclass(frozen=True)
class View:
    """A masked batch after the encoder."""

    streams: Streams
    image_mask: Mask
    audio_mask: Mask


class DeepAVFusion(Model):
    """The model of Fig. 2. It encodes no modality alone, and what it makes of one tells of the other."""

    encodes_apart = False

    def __init__(self, config: DeepAVFusionConfig, grids: Grids = FULL) -> None:
        super().__init__()
        self.config, self.grids, self.dim = config, grids, config.encoder.dim
        if config.sound.source == "waveform":  # "single frames from within the time window" of the 3 s (Sec. 4.1)
            self.reads = Reads(frames=1, choose="random", waveform_seconds=SECONDS)
        self.log_mel = LogMel()
        self.encoder = Encoder(config, grids)
        self.image_decoder = self._decoder(config.decoder.image_depth, grids.image, PATCH * PATCH * IMAGE_CHANNELS)
        self.audio_decoder = self._decoder(config.decoder.audio_depth, grids.audio, PATCH * PATCH)
        if config.decoder.sees == "fusion_only":  # what comes after the last fusion block is not decoded
            for branch in (self.encoder.image, self.encoder.audio):
                branch.blocks[config.fusion_layers[-1] :].requires_grad_(False)
                branch.norm.requires_grad_(False)

    def _decoder(self, depth: int, grid: tuple[int, int], patch_values: int) -> Decoder:
        return Decoder(
            self.config.decoder,
            depth=depth,
            encoder_dim=self.config.encoder.dim,
            grid=grid,
            patch_values=patch_values,
            recompute=self.config.checkpoint_activations,
        )

    def forward(self, inputs: Inputs, cached: dict[str, CachedLoss] | None = None) -> Output:
        """The loss of B pairs, eq. 16."""
        image, spectrogram = inputs.image[:, 0], self.spectrogram(inputs)
        view = self.see(image, spectrogram, self.image_mask(inputs.seeds), self.audio_mask(inputs.seeds))
        image_patches, audio_patches = self.decode(view)
        parts = {
            "pixel_image": self.pixel_loss(image_patches, patchify_image(image), view.image_mask),
            "pixel_audio": self.pixel_loss(audio_patches, patchify_fbank(spectrogram), view.audio_mask),
        }
        loss = torch.stack(list(parts.values())).sum()
        return Output(loss=loss, parts={name: part.detach() for name, part in parts.items()})

    def spectrogram(self, inputs: Inputs) -> Tensor:
        """Log-mels [B, 128, 192] of the sound that a batch is trained with."""
        if self.config.sound.source == "fbank":
            place = uniform(inputs.seeds, SOUND, 1)[:, 0]
            return from_fbank(self._stored(inputs.fbank), inputs.valid_frames, place)
        assert inputs.waveform is not None
        spectrogram: Tensor = self.log_mel(three_seconds(inputs.waveform, inputs.heard))
        return spectrogram

    def _stored(self, fbank: Tensor) -> Tensor:
        """Normalised fbanks as they were."""
        sound = self.config.sound
        assert sound.fbank_mean is not None and sound.fbank_std is not None
        return fbank.float() * sound.fbank_std + sound.fbank_mean

    def image_mask(self, seeds: Tensor) -> Mask:
        """The masks of images, for seeds [B]."""
        rows, columns = self.grids.image
        return uniform_mask(seeds, IMAGE_MASK, rows * columns, self.config.mask.image_ratio)

    def audio_mask(self, seeds: Tensor) -> Mask:
        """The masks of spectrograms, for seeds [B]."""
        rows, columns = self.grids.audio
        return uniform_mask(seeds, AUDIO_MASK, rows * columns, self.config.mask.audio_ratio)

    def see(self, image: Tensor, spectrogram: Tensor, image_mask: Mask, audio_mask: Mask) -> View:
        """Mask and encode images [B, 3, 224, 224] and spectrograms [B, 128, 192] (eq. 15)."""
        return View(self.encoder(image, spectrogram, image_mask, audio_mask), image_mask, audio_mask)

    def decode(self, view: View) -> tuple[Tensor, Tensor]:
        """Patches of the image [B, 196, 768] as (y, x, channel), and of the spectrogram [B, 96, 256] as (mel, time)."""
        streams = view.streams
        return (
            self.image_decoder(streams.image, streams.fusion, view.image_mask),
            self.audio_decoder(streams.audio, streams.fusion, view.audio_mask),
        )

    def pixel_loss(self, predicted: Tensor, patches: Tensor, mask: Mask) -> Tensor:
        """Eq. 14 of patches [B, N, P]: the mean over values of the masked patches.

        Eq. 14 is the squared norm of a patch over the number of masked ones; the code divides by its values too.
        """
        norm_pix = self.config.decoder.norm_pix
        return pixel_loss(predicted, patches, mask.is_masked, on="masked", norm_pix=norm_pix, reduction="mean")

    def encode(
        self,
        *,
        image: Tensor | None = None,
        fbank: Tensor | None = None,
        valid_frames: Tensor | None = None,
        waveform: Tensor | None = None,
    ) -> Encoded:
        """Features of all tokens of both modalities, each of which has seen the other, and of the fusion branch.

        Args:
            waveform: [B, S] in [-1, 1], whose middle 3 s are taken; what a model that reads waveforms needs.
            valid_frames: rows of the fbank before its padding [B], where the sound comes from the fbank.
        """
        if image is None or (fbank is None and waveform is None):
            raise ValueError("DeepAVFusion encodes image and sound together, one of them is missing: give both")
        if self.config.sound.source == "fbank":
            if fbank is None:
                raise ValueError("sound.source is 'fbank', but no fbank is given")
            spectrogram = from_fbank(self._stored(fbank), valid_frames)
        elif waveform is None:
            raise ValueError("sound.source is 'waveform', but no waveform is given (make-shards --keep-audio)")
        else:
            spectrogram = self.log_mel(three_seconds(waveform))
        return self.encode_both(image[:, 0], spectrogram)

    def encode_both(self, image: Tensor, spectrogram: Tensor) -> Encoded:
        """Features of images [B, 3, 224, 224] and spectrograms [B, 128, 192]."""
        streams = self.encoder(image, spectrogram)
        return Encoded(
            image=_features(streams.image, self.grids.image),
            audio=_features(streams.audio, self.grids.audio),
            joint=_features(streams.fusion, None),
        )

    @torch.no_grad()
    def rebuild(self, inputs: Inputs) -> dict[Side, Rebuilt]:
        """Both modalities as the decoders make them, in the units of the inputs."""
        image, spectrogram = inputs.image[:, 0], self.spectrogram(inputs)
        view = self.see(image, spectrogram, self.image_mask(inputs.seeds), self.audio_mask(inputs.seeds))
        image_patches, audio_patches = self.decode(view)
        return {
            "image": self._rebuilt(image_patches, patchify_image(image), self.grids.image, view.image_mask),
            "audio": self._rebuilt(audio_patches, patchify_fbank(spectrogram), self.grids.audio, view.audio_mask),
        }

    def _rebuilt(self, predicted: Tensor, patches: Tensor, grid: tuple[int, int], mask: Mask) -> Rebuilt:
        predicted = predicted.float()
        if self.config.decoder.norm_pix:
            mean, std = patch_statistics(patches)
            predicted = predicted * std + mean
        return Rebuilt(patches=predicted, grid=grid, is_masked=mask.is_masked)


def _features(tokens: Tensor, grid: tuple[int, int] | None) -> Features:
    return Features(pooled=tokens.mean(dim=1), tokens=tokens, grid=grid)
