"""CAV-MAE: Contrastive Audio-Visual Masked Autoencoder (Gong et al., ICLR 2023).

L = L_reconstruction + lambda * L_contrast (eq. 10), of one masked pass whose shared blocks are taken by three streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from training.methods.cav_mae.config import CAVMAEConfig
from training.methods.cav_mae.decoder import Decoder
from training.methods.cav_mae.encoder import SharedEncoder, Stream, audio_encoder, image_encoder
from training.methods.cav_mae.losses import GROUPS, contrast
from training.methods.cav_mae.masking import mask_audio, mask_image
from training.methods.interface import CachedLoss, Encoded, Features, Inputs, Model, Output, Reads, Rebuilt, Side
from training.methods.shared.losses import patch_statistics, pixel_loss
from training.methods.shared.masking import Mask
from training.methods.shared.patches import FULL, Grids, patchify_fbank, patchify_image


@dataclass(frozen=True)
class View:
    """A masked batch after the encoder: the three streams, each after its own norm."""

    joint: Tensor | None  # [B, Va + Vi, D], audio first; None where nothing is decoded
    audio: Tensor | None  # [B, Va, D]; None where nothing is compared
    image: Tensor | None  # [B, Vi, D]
    audio_mask: Mask
    image_mask: Mask


class CAVMAE(Model):
    """The model of Fig. 1(c). Without one of the losses it is CAV or AV-MAE; what these do not use gets no gradient."""

    def __init__(self, config: CAVMAEConfig, grids: Grids = FULL) -> None:
        super().__init__()
        self.config, self.grids, self.dim = config, grids, config.encoder.dim
        self.reads = Reads(choose=config.frame)
        self.audio_encoder = audio_encoder(config, grids.audio)
        self.image_encoder = image_encoder(config, grids.image)
        self.shared = SharedEncoder(config)
        self.decoder = Decoder(config, grids) if config.pixel.weight else None
        unused: list[Stream] = [] if config.pixel.weight else ["joint"]
        unused += [] if self.has_contrast else ["audio", "image"]
        for stream in unused:  # fine-tuning may train them
            for norms in (self.shared.norms, *(cast(nn.ModuleDict, block.norms) for block in self.shared.blocks)):
                norms[stream].requires_grad_(False)

    @property
    def has_contrast(self) -> bool:
        """Whether there is a contrastive loss: in CAV-MAE and CAV."""
        return self.config.contrast.weight > 0

    def check_batch(self, pairs: int) -> None:
        """Groups of a single pair would have no negatives, and a contrastive loss of 0."""
        if self.has_contrast and self.config.contrast.negatives == "groups" and pairs <= GROUPS:
            raise ValueError(
                f"the contrastive loss compares within each of {GROUPS} groups of the batch, which has {pairs} samples:"
                f" give --batch-size {2 * GROUPS} or more (--contrast-cache where it is taken in pieces), or"
                " --model.contrast.negatives global"
            )

    def forward(self, inputs: Inputs, cached: dict[str, CachedLoss] | None = None) -> Output:
        """The loss of B pairs, eq. 10."""
        config = self.config
        image, fbank = inputs.image[:, 0], inputs.fbank
        view = self.see(image, fbank, self.image_mask(inputs.seeds), self.audio_mask(inputs.seeds))
        parts: dict[str, Tensor] = {}
        weights = {"contrast": config.contrast.weight}
        if self.decoder is not None:
            audio_patches, image_patches = self.decode(view)
            parts["pixel_audio"] = self.pixel_loss(audio_patches, patchify_fbank(fbank), view.audio_mask)  # eq. 8
            parts["pixel_image"] = self.pixel_loss(image_patches, patchify_image(image), view.image_mask)
            weights |= dict.fromkeys(parts, config.pixel.weight)
        if self.has_contrast:
            pair = self.pair(view)
            whole = None if cached is None else cached["contrast"]
            parts["contrast"] = self.contrast_loss("contrast", pair) if whole is None else whole.attach(pair)
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return Output(loss=loss, parts={name: part.detach() for name, part in parts.items()})

    def image_mask(self, seeds: Tensor) -> Mask:
        """The masks of images, for seeds [B]."""
        rows, columns = self.grids.image
        return mask_image(seeds, rows * columns, self.config.mask.image_ratio)

    def audio_mask(self, seeds: Tensor) -> Mask:
        """The masks of fbanks, for seeds [B]."""
        return mask_audio(seeds, self.grids.audio, self.config.mask.audio_ratio, self.config.mask.audio_strategy)

    def see(self, image: Tensor, fbank: Tensor, image_mask: Mask, audio_mask: Mask) -> View:
        """Mask and encode images [B, 3, 224, 224] and fbanks [B, 1024, 128]: the streams that a loss needs."""
        audio = self.audio_encoder(fbank.unsqueeze(1), audio_mask)
        visual = self.image_encoder(image, image_mask)
        last = self.config.single_streams == "last"
        return View(
            joint=self.shared(torch.cat([audio, visual], dim=1), "joint") if self.decoder is not None else None,
            audio=self.shared(audio, "audio", only_last=last) if self.has_contrast else None,
            image=self.shared(visual, "image", only_last=last) if self.has_contrast else None,
            audio_mask=audio_mask,
            image_mask=image_mask,
        )

    def decode(self, view: View) -> tuple[Tensor, Tensor]:
        """Patches of the fbank [B, 512, 256] and of the image [B, 196, 768], as the decoder gives them."""
        assert self.decoder is not None and view.joint is not None
        patches: tuple[Tensor, Tensor] = self.decoder(view.joint, view.audio_mask, view.image_mask)
        return patches

    def pixel_loss(self, predicted: Tensor, patches: Tensor, mask: Mask) -> Tensor:
        """One modality's half of eqs. 8 and 9, of patches [B, N, P]: the mean over values of the masked patches.

        Eq. 9 is the squared norm of a patch over the number of masked ones; the code divides by its values too.
        """
        return pixel_loss(
            predicted, patches, mask.is_masked, on="masked", norm_pix=self.config.pixel.norm_pix, reduction="mean"
        )

    def pair(self, view: View) -> tuple[Tensor, Tensor]:
        """What eq. 7 compares: the mean of the visible tokens of the single streams, audio and image [B, D]."""
        assert view.audio is not None and view.image is not None
        return view.audio.mean(dim=1), view.image.mean(dim=1)

    def contrast_features(self, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
        """The pair of eq. 7 under "contrast"."""
        if not self.has_contrast:
            return {}
        image_mask, audio_mask = self.image_mask(inputs.seeds), self.audio_mask(inputs.seeds)
        audio = self.audio_encoder(inputs.fbank.unsqueeze(1), audio_mask)
        visual = self.image_encoder(inputs.image[:, 0], image_mask)
        last = self.config.single_streams == "last"
        audio, visual = (self.shared(audio, "audio", only_last=last), self.shared(visual, "image", only_last=last))
        return {"contrast": (audio.mean(dim=1), visual.mean(dim=1))}

    def contrast_loss(self, name: str, features: Sequence[Tensor]) -> Tensor:
        """Eq. 7 of audio and image features [B, D]."""
        options = self.config.contrast
        audio, image = features
        return contrast(
            audio, image, options.temperature, direction=options.direction, in_groups=options.negatives == "groups"
        )

    def encode(
        self, *, image: Tensor | None = None, fbank: Tensor | None = None, valid_frames: Tensor | None = None
    ) -> Encoded:
        """Features of all tokens, padding too: each modality by its own stream, both together by the joint one."""
        audio = None if fbank is None else self.audio_encoder(fbank.unsqueeze(1))
        visual = None if image is None else self.image_encoder(image[:, 0])
        joint = None
        if audio is not None and visual is not None:
            joint = _features(self.shared(torch.cat([audio, visual], dim=1), "joint"), None)
        return Encoded(
            audio=None if audio is None else _features(self.shared(audio, "audio"), self.grids.audio),
            image=None if visual is None else _features(self.shared(visual, "image"), self.grids.image),
            joint=joint,
        )

    @torch.no_grad()
    def rebuild(self, inputs: Inputs) -> dict[Side, Rebuilt]:
        """Both modalities as the decoder makes them, in the units of the inputs (App. H, inpainting)."""
        if self.decoder is None:
            return {}
        image, fbank = inputs.image[:, 0], inputs.fbank
        view = self.see(image, fbank, self.image_mask(inputs.seeds), self.audio_mask(inputs.seeds))
        audio_patches, image_patches = self.decode(view)
        return {
            "image": self._rebuilt(image_patches, patchify_image(image), self.grids.image, view.image_mask),
            "audio": self._rebuilt(audio_patches, patchify_fbank(fbank), self.grids.audio, view.audio_mask),
        }

    def _rebuilt(self, predicted: Tensor, patches: Tensor, grid: tuple[int, int], mask: Mask) -> Rebuilt:
        predicted = predicted.float()
        if self.config.pixel.norm_pix:
            mean, std = patch_statistics(patches)
            predicted = predicted * std + mean
        return Rebuilt(patches=predicted, grid=grid, is_masked=mask.is_masked)


def _features(tokens: Tensor, grid: tuple[int, int] | None) -> Features:
    return Features(pooled=tokens.mean(dim=1), tokens=tokens, grid=grid)
