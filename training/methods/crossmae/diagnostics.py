"""What a loss does not tell: whether the features collapse, and whether each side's reconstruction uses the other.

An embedding loss that falls may only mean that its targets shrink, and a pixel loss may ignore the tokens that it is
conditioned on. docs/model.md says what each value means, and what healthy and sick ones look like.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.crossmae.view import View
from training.methods.interface import Inputs
from training.methods.shared.losses import embedding_target, pixel_target
from training.methods.shared.patches import patchify_fbank, patchify_image

if TYPE_CHECKING:
    from training.methods.crossmae.model import CrossMAE

MAX_TOKENS = 2048  # of a batch's targets that an effective rank is taken from


@dataclass(frozen=True)
class Seen:
    """A batch as `CrossMAE.forward` sees it: the inputs, and both masked views."""

    image: Tensor  # [B, 3, 224, 224]
    fbank: Tensor  # [B, 1024, 128]
    image_view: View
    audio_view: View


@torch.no_grad()
def diagnose(model: "CrossMAE", inputs: Inputs) -> dict[str, Tensor]:
    """Scalars on the device about a batch as `forward` takes it, by the names of docs/model.md.

    What a variant does not have is left out, and so is what needs two samples where B is 1. It looks at the batch of
    this process alone and talks to no other. About the work of a forward pass and a quarter; nothing waits for the
    device but the eigenvalues (torch's own solver does on CUDA).
    """
    image, fbank, seeds = inputs.image[:, 0], inputs.fbank, inputs.seeds
    seen = Seen(image, fbank, model.see_image(image, seeds), model.see_audio(fbank, seeds, inputs.valid_frames))
    found = global_features(model, seen)
    if model.config.pixel.target != "none":
        found |= pixels(model, seen)
    if model.config.embedding.enabled:
        found |= embeddings(model, seen)
    return found


def global_features(model: "CrossMAE", seen: Seen) -> dict[str, Tensor]:
    """Spread and rank of the global features, how often they find their partner, and where [CLS] looks."""
    found = {}
    audio, visual = seen.audio_view.features, seen.image_view.features
    contrast = model.contrast
    if len(seen.image) > 1:
        a, v = (audio.pooled, visual.pooled) if contrast is None else contrast.global_features(audio, visual)
        for side, features in (("audio", a), ("visual", v)):
            found[f"global_std_{side}"] = spread(features)
            found[f"global_rank_{side}"] = effective_rank(features)
        if contrast is not None:
            found |= accuracies(a, v)
    if model.config.pixel.target == "cross" or (
        model.config.embedding.enabled and model.config.embedding.queries == "tokens"
    ):
        for side, view in (("audio", seen.audio_view), ("visual", seen.image_view)):
            if view.places.shape[1]:
                found[f"attentive_share_{side}"] = attentive_share(view)
    return found


def pixels(model: "CrossMAE", seen: Seen) -> dict[str, Tensor]:
    """The pixel losses, the same with another clip's Attentive Tokens, and what each position's mean would get."""
    assert model.image_decoder is not None and model.audio_decoder is not None
    found = {}
    for side, decoder, view, other, patches in (
        ("visual", model.image_decoder, seen.image_view, seen.audio_view, patchify_image(seen.image)),
        ("audio", model.audio_decoder, seen.audio_view, seen.image_view, patchify_fbank(seen.fbank)),
    ):
        matched = model.decode_own(decoder, view, other.attentive, other.is_chosen)
        found[f"cdt_{side}_matched"] = model.pixel_loss(matched, patches, view.mask)
        if len(patches) == 1:
            continue
        if model.config.pixel.target == "cross" and other.places.shape[1]:
            shuffled = model.decode_own(decoder, view, rolled(other.attentive), rolled(other.is_chosen))
            found[f"cdt_{side}_shuffled"] = model.pixel_loss(shuffled, patches, view.mask)
        mean = mean_over_batch(pixel_target(patches, norm_pix=model.config.pixel.norm_pix), view.mask.is_valid)
        found[f"cdt_{side}_mean"] = model.pixel_loss(mean.expand_as(patches), patches, view.mask)
    return found


def embeddings(model: "CrossMAE", seen: Seen) -> dict[str, Tensor]:
    """Spread and rank of the targets, and the embedding losses: matched, out of another clip, of the mean."""
    assert model.image_from_audio is not None and model.audio_from_image is not None
    config = model.config.embedding
    image_target, audio_target = model.embedding_targets(seen.image, seen.fbank, seen.image_view, seen.audio_view)
    found = {}
    for side, decoder, view, other, target in (
        ("visual", model.image_from_audio, seen.image_view, seen.audio_view, image_target),
        ("audio", model.audio_from_image, seen.audio_view, seen.image_view, audio_target),
    ):
        is_valid = model.target_is_valid(view.mask)
        found[f"target_std_{side}"] = spread(target, is_valid)
        found[f"target_rank_{side}"] = effective_rank(target, is_valid)
        context, is_context = other.features.tokens, other.features.is_valid
        matched = model.decode_other(decoder, view, context, is_context)
        found[f"emb_{side}_matched"] = model.embedding_loss(matched, target, view.mask)
        if len(target) > 1:
            shuffled = model.decode_other(decoder, view, rolled(context), rolled(is_context))
            found[f"emb_{side}_shuffled"] = model.embedding_loss(shuffled, target, view.mask)
            if config.targets != "visible_only":  # there, a place holds another position in each sample
                mean = mean_over_batch(embedding_target(target, config.normalise, is_valid), is_valid)
                found[f"emb_{side}_mean"] = model.embedding_loss(mean.expand_as(target), target, view.mask)
    return found


Given = TypeVar("Given", Tensor, Tensor | None)


def rolled(values: Given) -> Given:
    """Each sample of [B, ...] with what the sample before it has."""
    return None if values is None else values.roll(1, dims=0)


def mean_over_batch(target: Tensor, is_valid: Tensor | None) -> Tensor:
    """The mean of each place of [B, N, D] over the samples in which it is no padding: [1, N, D]."""
    if is_valid is None:
        return target.mean(dim=0, keepdim=True)
    weight = is_valid.unsqueeze(-1)
    return (target * weight).sum(dim=0, keepdim=True) / weight.sum(dim=0, keepdim=True).clamp(min=1)


def spread(features: Tensor, is_valid: Tensor | None = None) -> Tensor:
    """Standard deviation of each feature over all rows of [..., D], its mean over the features: a scalar.

    With is_valid [...] over the rows that are no padding.
    """
    rows = features.float().flatten(0, -2)
    if is_valid is None:
        return rows.std(dim=0, correction=0).mean()
    return (about_mean(rows, is_valid.flatten()).square().sum(dim=0) / is_valid.sum()).sqrt().mean()


def about_mean(rows: Tensor, is_valid: Tensor) -> Tensor:
    """The rows [R, D] about the mean of those that are valid; the others are 0. is_valid [R]."""
    weight = is_valid.unsqueeze(-1)
    return (rows - (rows * weight).sum(dim=0) / weight.sum()) * weight


def effective_rank(features: Tensor, is_valid: Tensor | None = None) -> Tensor:
    """Effective rank of the rows of [..., D] about their mean: a scalar from 1 to D.

    The exponential of the entropy of the singular values, normalised to a sum of 1 (Roy and Vetterli, EUSIPCO 2007,
    eqs. 2 to 4). Of more than MAX_TOKENS rows as many are taken, evenly spaced. In float64: the square root would make
    much of float32's noise in small eigenvalues, and autocast leaves float64 alone. Constant features have rank 1,
    those with an infinity or a NaN the rank NaN. Rows that are padding by is_valid [...] are left out.
    """
    rows = features.flatten(0, -2)
    each = -(-len(rows) // MAX_TOKENS)
    rows = rows[::each].double()
    rows = rows - rows.mean(dim=0) if is_valid is None else about_mean(rows, is_valid.flatten()[::each])
    square = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows  # both have the same eigenvalues but for 0
    finite = square.isfinite().all()
    values = torch.linalg.eigvalsh(square.where(finite, 0.0)).clamp(min=0).sqrt()  # refuses what is not finite
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp().where(finite, torch.nan).float()


def attentive_share(view: View) -> Tensor:
    """Share of [CLS]'s attention to the visible patches that its Attentive Tokens have, the mean over samples."""
    attention = view.features.attention
    chosen = attention.gather(1, view.places)
    if view.is_chosen is not None:
        chosen = chosen * view.is_chosen
    return (chosen.sum(dim=1) / attention.sum(dim=1)).mean()


def accuracies(audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
    """How often a clip's own partner is the nearest, by cosine, of global features [B, D]; chance is 1 / B."""
    cosines = F.normalize(audio.double(), dim=-1) @ F.normalize(visual.double(), dim=-1).T  # [B, B], a row an audio
    own = torch.arange(len(cosines), device=cosines.device)
    return {
        "contrast_accuracy_audio_to_visual": (cosines.argmax(dim=1) == own).float().mean(),
        "contrast_accuracy_visual_to_audio": (cosines.argmax(dim=0) == own).float().mean(),
    }
