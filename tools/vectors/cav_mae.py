"""CAV-MAE's golden vectors: pre-training, its gradients, retrieval features, and the fine-tuned model's five modes.

The authors' audio tokens run f * 64 + t; what leaves our model time-first is brought back to their order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.vectors.file import Vectors
from training.methods.cav_mae.classifier import CAVMAEClassifier
from training.methods.cav_mae.config import CAVMAEConfig, ContrastConfig, MaskConfig, StackConfig
from training.methods.cav_mae.losses import contrast
from training.methods.cav_mae.model import CAVMAE
from training.methods.cav_mae.weights import from_authors, order_time_first, our_name, tokens_time_first
from training.methods.shared.losses import pixel_loss
from training.methods.shared.masking import Mask
from training.methods.shared.patches import PATCH, Grids, patchify_fbank, patchify_image

_STRIDE = re.compile(r"_every_(\d+)\w\w$")
_SCALE = 32.0  # inputs are stored as int8, value * 32


@dataclass(frozen=True)
class Batch:
    """The file's inputs and masks, as our model takes them."""

    image: Tensor  # [B, 3, H, W]
    fbank: Tensor  # [B, T, M]
    image_mask: Mask
    audio_mask: Mask
    grids: Grids


def compute(vectors: Vectors) -> dict[str, Tensor]:
    """Every entry of outputs/, grads/ and grad_norms/."""
    batch = _batch(vectors)
    state, _ = from_authors(vectors.part("weights"), batch.grids.audio)
    head = {name: value for name, value in state.items() if name.startswith("head.")}
    model = CAVMAE(_config(vectors), batch.grids)
    model.load_state_dict({name: value for name, value in state.items() if name not in head})
    model.to(vectors.dtype)
    found = _pretraining(model, batch) | _features(model, batch)
    if head:
        found |= _finetuned(vectors, state, batch)
    outputs = {}
    for name in (entry.removeprefix("outputs/") for entry in vectors.tensors if entry.startswith("outputs/")):
        value = _entry(name, found)
        if value is not None:
            outputs[f"outputs/{name}"] = value[: len(vectors[f"outputs/{name}"])] if value.ndim else value
    return outputs | _gradients(vectors, model, found["total"])


def _config(vectors: Vectors) -> CAVMAEConfig:
    sizes = vectors.config
    return CAVMAEConfig(
        encoder=StackConfig(dim=sizes["dim"], depth=sizes["depth"], heads=sizes["heads"]),
        joint_depth=sizes["joint"],
        decoder=StackConfig(dim=sizes["ddim"], depth=sizes["ddepth"], heads=sizes["dheads"]),
        mask=MaskConfig(image_ratio=sizes["ratio_v"], audio_ratio=sizes["ratio_a"]),
        contrast=ContrastConfig(weight=sizes["lambda"], negatives="global"),
    )


def _batch(vectors: Vectors) -> Batch:
    image, fbank = (vectors[f"inputs/{name}"].to(vectors.dtype) / _SCALE for name in ("image", "audio"))
    rows, columns, times, bands = (size // PATCH for size in (*image.shape[2:], *fbank.shape[1:]))
    grids = Grids(image=(rows, columns), audio=(times, bands))
    hidden = vectors["masks/mask_a"].bool()[:, order_time_first(grids.audio)]
    return Batch(
        image=image,
        fbank=fbank,
        image_mask=Mask(visible=vectors["masks/ids_keep_v"].long(), is_masked=vectors["masks/mask_v"].bool()),
        audio_mask=Mask(visible=tokens_time_first(vectors["masks/ids_keep_a"].long(), grids.audio), is_masked=hidden),
        grids=grids,
    )


def _pretraining(model: CAVMAE, batch: Batch) -> dict[str, Tensor]:
    """The masked pass: streams, predictions in the authors' order, losses."""
    view = model.see(batch.image, batch.fbank, batch.image_mask, batch.audio_mask)
    assert view.joint is not None and view.audio is not None and view.image is not None
    audio_patches, image_patches = model.decode(view)
    weight, temperature = model.config.contrast.weight, model.config.contrast.temperature
    targets = {"a": patchify_fbank(batch.fbank), "v": patchify_image(batch.image)}
    predicted = {"a": audio_patches, "v": image_patches}
    masks = {"a": batch.audio_mask, "v": batch.image_mask}
    found = {
        "latent_av": view.joint,
        "latent_a": view.audio,
        "latent_v": view.image,
        "pooled_av": view.joint.mean(dim=1),
        "pooled_a": view.audio.mean(dim=1),
        "pooled_v": view.image.mean(dim=1),
        "pred_a": _their_patches(audio_patches, batch.grids),
        "pred_v": image_patches,
    }
    for side in ("a", "v"):
        found[f"pred_{side}_mean"] = found[f"pred_{side}"].mean(dim=-1)
        for suffix, norm_pix in (("", True), ("_raw_pixels", False)):
            found[f"mae_{side}{suffix}"] = pixel_loss(
                predicted[side], targets[side], masks[side].is_masked, on="masked", norm_pix=norm_pix, reduction="mean"
            )
    audio, image = model.pair(view)
    cosines = F.normalize(audio, dim=-1) @ F.normalize(image, dim=-1).T  # a row a sound, a column a frame
    own = torch.arange(len(cosines))
    to_audio = (cosines.argmax(dim=0) == own).to(cosines.dtype).mean()
    to_image = (cosines.argmax(dim=1) == own).to(cosines.dtype).mean()
    one_way = _contrast(audio, image, temperature, "video_to_audio")
    mae = found["mae_a"] + found["mae_v"]
    return found | {
        "contrast_video_to_audio": one_way,
        "contrast_video_to_audio_accuracy": to_audio,
        "contrast_bidirectional": _contrast(audio, image, temperature, "both"),
        "contrast_bidirectional_accuracy": (to_audio + to_image) / 2,
        "contrast_cosine_rows_audio": cosines,
        "contrast_weighted": weight * one_way,
        "mae": mae,
        "total": mae + weight * one_way,
        "total_cav": weight * one_way,
        "total_avmae": mae,
    }


def _contrast(audio: Tensor, image: Tensor, temperature: float, direction: str) -> Tensor:
    assert direction in ("video_to_audio", "both")
    return contrast(audio, image, temperature, direction=direction, in_groups=False)  # type: ignore[arg-type]


def _features(model: CAVMAE, batch: Batch) -> dict[str, Tensor]:
    """The unmasked single streams, as retrieval takes them."""
    encoded = model.encode(image=batch.image.unsqueeze(1), fbank=batch.fbank)
    assert encoded.audio is not None and encoded.image is not None
    audio, image = encoded.audio, encoded.image
    back = order_time_first(batch.grids.audio).argsort()
    return {
        "feat_a": audio.pooled,
        "feat_v": image.pooled,
        "feat_a_tokens": audio.tokens[:, back],
        "feat_v_tokens": image.tokens,
        "feat_cosine_rows_audio": F.normalize(audio.pooled, dim=-1) @ F.normalize(image.pooled, dim=-1).T,
    }


def _finetuned(vectors: Vectors, state: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The fine-tuned model's scores in its five modes, and its losses."""
    classifier = CAVMAEClassifier(_config(vectors), classes=vectors.config["classes"], grids=batch.grids)
    own = {name: value for name, value in state.items() if not name.startswith("decoder.")}
    classifier.load_state_dict(own)
    classifier.to(vectors.dtype)
    targets = vectors["inputs/finetune_targets"].to(vectors.dtype)
    modes: dict[str, Callable[[], Tensor]] = {
        "multimodal": lambda: classifier(batch.image, batch.fbank),
        "audioonly": lambda: classifier(None, batch.fbank),
        "videoonly": lambda: classifier(batch.image, None),
        "missingaudioonly": lambda: classifier(None, batch.fbank, other_is_missing=True),
        "missingvideoonly": lambda: classifier(batch.image, None, other_is_missing=True),
    }
    found = {f"logits_{mode}": scores() for mode, scores in modes.items()}
    scores = found["logits_multimodal"]
    return found | {
        "finetune_bce": F.binary_cross_entropy_with_logits(scores, targets),
        "finetune_ce": F.cross_entropy(scores, targets),
    }


def _entry(name: str, found: dict[str, Tensor]) -> Tensor | None:
    """An entry by its name: whole, or every so-manieth token of one."""
    if (stride := _STRIDE.search(name)) is not None:
        whole = found.get(name[: stride.start()])
        return None if whole is None else whole[:, :: int(stride.group(1))]
    return found.get(name)


def _gradients(vectors: Vectors, model: CAVMAE, total: Tensor) -> dict[str, Tensor]:
    """Of `total`, under the authors' names and in their order."""
    total.backward()
    own = dict(model.named_parameters())
    found = {}
    for entry in vectors.tensors:
        kind, _, theirs = entry.partition("/")
        if kind not in ("grads", "grad_norms"):
            continue
        ours = our_name(theirs)
        gradient = None if ours is None or ours not in own else own[ours].grad
        if ours is None or gradient is None:
            continue
        if kind == "grad_norms":
            found[entry] = torch.linalg.vector_norm(gradient).reshape(vectors[entry].shape)
        else:
            found[entry] = _their_order(ours, gradient)
    return found


def _their_order(name: str, value: Tensor) -> Tensor:
    """A gradient under our name, in the authors' order."""
    if name == "audio_encoder.proj.weight":
        return value.transpose(2, 3)
    if name.startswith("decoder.predict_audio."):
        return value.unflatten(0, (PATCH, PATCH)).transpose(0, 1).flatten(0, 1)
    return value


def _their_patches(patches: Tensor, grids: Grids) -> Tensor:
    """Patches [B, N, 256] of (time, mel) in our order as the authors': f * times + t, of (mel, time)."""
    back = order_time_first(grids.audio).argsort()
    return patches[:, back].unflatten(2, (PATCH, PATCH)).transpose(2, 3).flatten(2)
