"""DeepAVFusion's golden vectors: five encoders, their losses and gradients, and the heads (deepavfusion_heads.py)."""

import re
from dataclasses import dataclass, replace
from typing import cast, get_args

import torch
from torch import Tensor

from tools.vectors import deepavfusion_heads as heads
from tools.vectors.file import Vectors
from training.methods.deepavfusion import DeepAVFusion, DeepAVFusionConfig
from training.methods.deepavfusion.config import DecoderConfig, FusionConfig, MaskConfig, Phi, StackConfig
from training.methods.deepavfusion.encoder import Streams
from training.methods.deepavfusion.weights import from_authors, our_name
from training.methods.shared.losses import pixel_loss
from training.methods.shared.masking import Mask
from training.methods.shared.patches import PATCH, Grids, patchify_fbank, patchify_image

_IMAGE_MEAN, _IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FUSION_BLOCKS = "encoder.fusion_blocks."
TOLERANCES = dict.fromkeys(heads.OF_FLOAT32_TABLES, 1e-4)
_GRADIENT, _NORM = "grad", "grad_norm"
_VARIANT = re.compile(rf"({'|'.join(get_args(Phi))}|none)(?:_layers?(\d+(?:-\d+)*))?")


@dataclass(frozen=True)
class Batch:
    """The file's inputs and masks, as our model takes them."""

    image: Tensor  # [B, 3, H, W]
    spectrogram: Tensor  # [B, mel, time]
    image_mask: Mask
    audio_mask: Mask
    grids: Grids


def compute(vectors: Vectors) -> dict[str, Tensor]:
    """Every entry of outputs/."""
    batch = _batch(vectors)
    found: dict[str, Tensor] = {}
    for name in _variants(vectors):
        model = _model(vectors, name, batch.grids)
        found |= {f"outputs/{name}/{entry}": value for entry, value in _variant(model, batch).items()}
        found |= _gradients(vectors, model, name, found)
    if "inputs/separation_target" in vectors.tensors:
        model = _model(vectors, "factorized_mmi", batch.grids)
        found |= heads.separation(vectors, model, batch.image, batch.spectrogram)
    found |= heads.segmentation(vectors) | heads.sounds(vectors) | heads.metrics(vectors)
    found |= heads.schedule(vectors) | heads.lars(vectors) | _parts(vectors, found)
    return {
        name: value.reshape(vectors[name].shape) if value.numel() == 1 else value
        for name, value in found.items()
        if name in vectors.tensors
    }


def _variants(vectors: Vectors) -> list[str]:
    """The models that the file has losses of, among those that are known here."""
    names = {entry.split("/")[1] for entry in vectors.tensors if entry.endswith("/loss_image")}
    return sorted(name for name in names if _VARIANT.fullmatch(name))


def _batch(vectors: Vectors) -> Batch:
    pixels = vectors["inputs/image"].to(vectors.dtype) / 255
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (_IMAGE_MEAN, _IMAGE_STD))
    spectrogram = vectors["inputs/audio"].to(vectors.dtype)[:, 0]
    rows, columns, mels, times = (size // PATCH for size in (*pixels.shape[2:], *spectrogram.shape[1:]))
    return Batch(
        image=(pixels - mean) / std,
        spectrogram=spectrogram,
        image_mask=_mask(vectors, "image"),
        audio_mask=_mask(vectors, "audio"),
        grids=Grids(image=(rows, columns), audio=(mels, times)),
    )


def _mask(vectors: Vectors, side: str) -> Mask:
    visible, is_masked = vectors[f"masks/{side}_ids_keep"].long(), vectors[f"masks/{side}_mask"].bool()
    return Mask(visible=visible, is_masked=is_masked)


def _model(vectors: Vectors, variant: str, grids: Grids) -> DeepAVFusion:
    """One of the file's models; all of them share the weights outside the fusion blocks."""
    config = _config(vectors, variant)
    weights = vectors.part("weights")
    own = vectors.part(f"weights.{config.fusion.phi}")
    if own:
        weights = {name: value for name, value in weights.items() if not name.startswith(_FUSION_BLOCKS)} | own
    kept = {f"{_FUSION_BLOCKS}{layer}." for layer in config.fusion_layers}
    weights = {
        name: value
        for name, value in weights.items()
        if not name.startswith(_FUSION_BLOCKS) or name.startswith(tuple(kept))
    }
    model = DeepAVFusion(config, grids)
    model.load_state_dict(from_authors(weights))
    return model.to(vectors.dtype)


def _config(vectors: Vectors, variant: str) -> DeepAVFusionConfig:
    """Of a variant: a Phi, with `_layer1` in that layer alone, with `_layer1-2` in two; none."""
    sizes = vectors.config
    match = _VARIANT.fullmatch(variant)
    assert match is not None
    phi, layers = match.groups()
    fusion, image, audio = sizes["tokens"]
    config = FusionConfig(
        fusion_tokens=fusion,
        image_tokens=image,
        audio_tokens=audio,
        heads=sizes["fusion_heads"],
        attn_ratio=sizes["attn_ratio"],
        mlp_ratio=sizes["mlp_ratio"],
        layers=() if phi == "none" else tuple(int(layer) for layer in layers.split("-")) if layers else None,
    )
    return DeepAVFusionConfig(
        encoder=StackConfig(dim=sizes["dim"], depth=sizes["depth"], heads=sizes["heads"]),
        fusion=config if phi == "none" else replace(config, phi=cast(Phi, phi)),
        decoder=DecoderConfig(
            dim=sizes["ddim"],
            heads=sizes["dheads"],
            image_depth=sizes["image_depth"],
            audio_depth=sizes["audio_depth"],
        ),
        mask=MaskConfig(image_ratio=sizes["image_mask"], audio_ratio=sizes["audio_mask"]),
    )


def _variant(model: DeepAVFusion, batch: Batch) -> dict[str, Tensor]:
    """What a model makes of the batch, masked and whole."""
    found: dict[str, Tensor] = {}
    masks = batch.image_mask, batch.audio_mask
    view = model.see(batch.image, batch.spectrogram, *masks)
    layers = model.encoder.layers(batch.image, batch.spectrogram, *masks)
    whole = model.encoder(batch.image, batch.spectrogram)
    steps = {"masked": view.streams, "full": whole} | {f"masked/layer{i}": layer for i, layer in enumerate(layers)}
    for step, streams in steps.items():
        found |= {f"{step}/{name}": value for name, value in _tokens(streams).items()}
    image_patches, audio_patches = model.decode(view)
    found |= {"pred_image": image_patches, "pred_audio": audio_patches}
    targets = {"image": patchify_image(batch.image), "audio": patchify_fbank(batch.spectrogram)}
    for (side, target), mask in zip(targets.items(), masks, strict=True):
        predicted = found[f"pred_{side}"]
        found[f"pred_{side}_mean_std"] = torch.stack([predicted.mean(-1), predicted.std(-1, correction=0)], dim=-1)
        for suffix, norm_pix in (("", True), ("_raw", False)):
            found[f"loss_{side}{suffix}"] = pixel_loss(
                predicted, target, mask.is_masked, on="masked", norm_pix=norm_pix, reduction="mean"
            )
    return found


def _tokens(streams: Streams) -> dict[str, Tensor]:
    tokens = {"image": streams.image, "audio": streams.audio, "fusion": streams.fusion}
    return tokens | {f"{name}_mean": value.mean(dim=1) for name, value in tokens.items()}


def _gradients(vectors: Vectors, model: DeepAVFusion, variant: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum of both losses. What has none by design is 0."""
    start = f"outputs/{variant}/"
    (found[f"{start}loss_image"] + found[f"{start}loss_audio"]).backward()
    own = dict(model.named_parameters())
    gradients = {}
    for entry in vectors.tensors:
        kind, _, theirs = entry.removeprefix(start).partition("/")
        if not entry.startswith(start) or kind not in (_GRADIENT, _NORM) or our_name(theirs) not in own:
            continue
        parameter = own[our_name(theirs)]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients[entry] = gradient if kind == _GRADIENT else torch.linalg.vector_norm(gradient)
    return gradients


def _parts(vectors: Vectors, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries that are every so-manieth value of what was computed."""
    parts = {}
    for entry in vectors.tensors:
        name, is_part, step = entry.rpartition("_every")
        if is_part and name in found and step.isdigit():
            whole = found[name]
            every = slice(None, None, int(step))
            if name.endswith(("pred_image", "pred_audio")):
                parts[entry] = whole[:, every]
            else:
                parts[entry] = whole[..., every] if whole.ndim < 4 else whole[..., every, every]
    return parts
