"""What a loss does not tell: whether the features collapse, and whether each side's reconstruction uses the other.

An embedding loss that falls may only mean that its targets shrink, and a pixel loss may ignore the tokens that it is
conditioned on. docs/model.md says what each value means, and what healthy and sick ones look like.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.crossmae.model import CrossMAE, View
from training.methods.shared.losses import embedding_target, pixel_target
from training.methods.shared.patches import patchify_fbank, patchify_image

MAX_TOKENS = 2048  # of a batch's targets that an effective rank is taken from


@dataclass(frozen=True)
class Seen:
    """A batch as `CrossMAE.forward` sees it: the inputs, and both masked views."""

    image: Tensor  # [B, 3, 224, 224]
    fbank: Tensor  # [B, 1024, 128]
    image_view: View
    audio_view: View


@torch.no_grad()
def diagnose(model: CrossMAE, image: Tensor, fbank: Tensor, seeds: Tensor) -> dict[str, Tensor]:
    """Scalars on the device about a batch as `forward` takes it, by the names of docs/model.md.

    What a variant does not have is left out, and so is what needs two samples where B is 1. It looks at the batch of
    this process alone and talks to no other. About the work of a forward pass and a quarter; nothing waits for the
    device but the eigenvalues (torch's own solver does on CUDA).
    """
    seen = Seen(image, fbank, model.see_image(image, seeds), model.see_audio(fbank, seeds))
    found = global_features(model, seen)
    if model.config.pixel.target != "none":
        found |= pixels(model, seen)
    if model.config.embedding.enabled:
        found |= embeddings(model, seen)
    return found


def global_features(model: CrossMAE, seen: Seen) -> dict[str, Tensor]:
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


def pixels(model: CrossMAE, seen: Seen) -> dict[str, Tensor]:
    """The pixel losses, the same with another clip's Attentive Tokens, and what each position's mean would get."""
    assert model.image_decoder is not None and model.audio_decoder is not None
    found = {}
    for side, decoder, view, other, patches in (
        ("visual", model.image_decoder, seen.image_view, seen.audio_view, patchify_image(seen.image)),
        ("audio", model.audio_decoder, seen.audio_view, seen.image_view, patchify_fbank(seen.fbank)),
    ):
        visible = view.mask.visible
        matched = decoder(view.features, visible, other.attentive)
        found[f"cdt_{side}_matched"] = model.pixel_loss(matched, patches, view.mask)
        if len(patches) == 1:
            continue
        if model.config.pixel.target == "cross" and other.places.shape[1]:
            shuffled = decoder(view.features, visible, other.attentive.roll(1, dims=0))
            found[f"cdt_{side}_shuffled"] = model.pixel_loss(shuffled, patches, view.mask)
        mean = pixel_target(patches, norm_pix=model.config.pixel.norm_pix).mean(dim=0, keepdim=True)
        found[f"cdt_{side}_mean"] = model.pixel_loss(mean.expand_as(patches), patches, view.mask)
    return found


def embeddings(model: CrossMAE, seen: Seen) -> dict[str, Tensor]:
    """Spread and rank of the targets, and the embedding losses: matched, out of another clip, of the mean."""
    assert model.image_from_audio is not None and model.audio_from_image is not None
    config = model.config.embedding
    image_target, audio_target = model.embedding_targets(seen.image, seen.fbank, seen.image_view, seen.audio_view)
    found = {}
    for side, decoder, view, other, target in (
        ("visual", model.image_from_audio, seen.image_view, seen.audio_view, image_target),
        ("audio", model.audio_from_image, seen.audio_view, seen.image_view, audio_target),
    ):
        found[f"target_std_{side}"] = spread(target)
        found[f"target_rank_{side}"] = effective_rank(target)
        context, hints = other.features.tokens, model.hints(view)
        found[f"emb_{side}_matched"] = model.embedding_loss(decoder(context, hints), target, view.mask)
        if len(target) > 1:
            shuffled = decoder(context.roll(1, dims=0), hints)
            found[f"emb_{side}_shuffled"] = model.embedding_loss(shuffled, target, view.mask)
            if config.targets != "visible_only":  # there, a place holds another position in each sample
                mean = embedding_target(target, config.normalise).mean(dim=0, keepdim=True)
                found[f"emb_{side}_mean"] = model.embedding_loss(mean.expand_as(target), target, view.mask)
    return found


def spread(features: Tensor) -> Tensor:
    """Standard deviation of each feature over all rows of [..., D], its mean over the features: a scalar."""
    return features.float().flatten(0, -2).std(dim=0, correction=0).mean()


def effective_rank(features: Tensor) -> Tensor:
    """Effective rank of the rows of [..., D] about their mean: a scalar from 1 to D.

    The exponential of the entropy of the singular values, normalised to a sum of 1 (Roy and Vetterli, EUSIPCO 2007,
    eqs. 2 to 4). Of more than MAX_TOKENS rows as many are taken, evenly spaced. In float64: the square root would make
    much of float32's noise in small eigenvalues, and autocast leaves float64 alone. Constant features have rank 1,
    those with an infinity or a NaN the rank NaN.
    """
    rows = features.flatten(0, -2)
    rows = rows[:: -(-len(rows) // MAX_TOKENS)].double()
    rows = rows - rows.mean(dim=0)
    square = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows  # both have the same eigenvalues but for 0
    finite = square.isfinite().all()
    values = torch.linalg.eigvalsh(square.where(finite, 0.0)).clamp(min=0).sqrt()  # refuses what is not finite
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp().where(finite, torch.nan).float()


def attentive_share(view: View) -> Tensor:
    """Share of [CLS]'s attention to the visible patches that its Attentive Tokens have, the mean over samples."""
    attention = view.features.attention
    return (attention.gather(1, view.places).sum(dim=1) / attention.sum(dim=1)).mean()


def accuracies(audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
    """How often a clip's own partner is the nearest, by cosine, of global features [B, D]; chance is 1 / B."""
    cosines = F.normalize(audio.double(), dim=-1) @ F.normalize(visual.double(), dim=-1).T  # [B, B], a row an audio
    own = torch.arange(len(cosines), device=cosines.device)
    return {
        "contrast_accuracy_audio_to_visual": (cosines.argmax(dim=1) == own).float().mean(),
        "contrast_accuracy_visual_to_audio": (cosines.argmax(dim=0) == own).float().mean(),
    }
