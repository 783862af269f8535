"""Weights from elsewhere under our names: the released files, MAE's for the video, another number of frames.

D is the width; released names are those that the authors' code for av-superb loads.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from training.methods.mavil.config import TUBE, MAViLConfig
from training.methods.shared.patches import IMAGE_CHANNELS, PATCH

_NAMES = {  # theirs, up to the last dot or whole: ours
    "patch_embed.proj": "audio_encoder.proj",
    "patch_embed_v.proj": "video_encoder.proj",
    "cls_token": "audio_encoder.cls_token",
    "cls_token_v": "video_encoder.cls_token",
    "pos_embed": "audio_encoder.positions",
    "pos_embed_v": "video_encoder.positions",
    "fc_norm_a": "heads.audio.norm",
    "head_a": "heads.audio.linear",
    "fc_norm_v": "heads.video.norm",
    "head_v": "heads.video.linear",
    "fc_norm_av": "heads.joint.norm",
    "head_av": "heads.joint.linear",
}
_STACKS = {"blocks": "audio_encoder.blocks", "blocks_v": "video_encoder.blocks", "blocks_av": "fusion.blocks"}
_BLOCK = re.compile(r"(\w+)\.(\d+\..+)")
_FRAME_VALUES = PATCH * PATCH * IMAGE_CHANNELS
_VIDEO_KERNEL = "video_encoder.proj.weight"
_VIDEO_POSITIONS = ("video_encoder.positions", "video_decoder.positions")
_VIDEO_HEAD = "video_decoder.predict."


def is_released(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the released files."""
    return "patch_embed_v.proj.weight" in names and "patch_embed.proj.weight" in names


def from_released(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A released file as ours, and the names of what we have no place for.

    There are three: pre-trained (both encoders, two fusion blocks); fine-tuned on both modalities (three fusion blocks,
    a head); fine-tuned on each (both encoders, two heads). They have no norms around the fusion (config: norms `raw`),
    and their position tables are taken as they are. The pre-trained file may hold more, of which only names are known
    (norm, norm_v, mask_token_v, decoder_..._v); that is left.
    """
    found: dict[str, Tensor] = {}
    left = []
    for theirs, value in tensors.items():
        ours = _our_name(theirs)
        if ours is None:
            left.append(theirs)
        else:
            found[ours] = value
    return found, left


def _our_name(theirs: str) -> str | None:
    if theirs in _NAMES:
        return _NAMES[theirs]
    stem, _, part = theirs.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{part}"
    match = _BLOCK.fullmatch(theirs)
    if match is None or match.group(1) not in _STACKS:
        return None
    return f"{_STACKS[match.group(1)]}.{match.group(2)}"


def from_mae(
    tensors: Mapping[str, Tensor],
    config: MAViLConfig,
    *,
    inflate: Literal["repeat", "halved"] = "repeat",
    fusion: Literal["mae", "fresh"] = "mae",
) -> tuple[dict[str, Tensor], list[str]]:
    """MAE's encoder of images as the start of the video's encoder and of the fusion; the names of what is left.

    "We simply repeat and inflate the convolution kernel in its patch-embedding to handle the additional temporal
    domain" (B.3): the kernel stands in both taps, so that a still gives twice MAE's activation; with `halved` it gives
    MAE's. The positions are repeated for each pair of frames (`sincos3d` keeps its own), and the fusion's blocks start
    as MAE's last ones, as in the authors' code for av-superb; the text says nothing of them.
    """
    found: dict[str, Tensor] = {}
    left = []
    first = config.encoder.depth - config.fusion.depth
    for theirs, value in tensors.items():
        stack, _, rest = theirs.partition(".")
        number, _, layer = rest.partition(".")
        if theirs == "patch_embed.proj.weight" and config.tube > 1:
            found[_VIDEO_KERNEL] = _inflated(value, halved=inflate == "halved")
        elif stack == "patch_embed":
            found[f"video_encoder.{rest}"] = value
        elif theirs == "pos_embed" and config.positions == "tiled":
            patches = value[:, 1:].repeat(1, config.slots, 1)
            found["video_encoder.positions"] = torch.cat([value[:, :1], patches], dim=1)
        elif theirs == "cls_token" or stack == "blocks" or (stack == "norm" and config.norms == "normed"):
            found[f"video_encoder.{theirs}"] = value
        else:
            left.append(theirs)
        if fusion == "mae" and stack == "blocks" and int(number) >= first:
            for blocks in _fusion_stacks(config):
                found[f"fusion.{blocks}.{int(number) - first}.{layer}"] = value
    return found, left


def _fusion_stacks(config: MAViLConfig) -> tuple[str, ...]:
    is_double = config.fusion.kind == "mbt" and config.fusion.mbt_blocks == "separate"
    return ("blocks", "video_blocks") if is_double else ("blocks",)


def in_form_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of MAViL in the form of a model whose state is `own`: another number of frames, or a still for video.

    A still is the video of two equal frames. So to a still the kernel is summed over time, the head's outputs for the
    two frames are averaged, and the first slot of the positions stays; to a video the kernel stands halved in both
    taps, the head says the same of both frames, and the model keeps its own positions where the state has too few.
    """
    converted = dict(state)
    for name, value in state.items():
        plain = name.removeprefix("teacher.")
        if name not in own or own[name].shape == value.shape:
            continue
        if plain == _VIDEO_KERNEL:
            converted[name] = value.sum(dim=2) if value.ndim > own[name].ndim else _inflated(value, halved=True)
        elif plain in _VIDEO_POSITIONS:
            rows = own[name].shape[1]
            converted[name] = value[:, :rows] if value.shape[1] > rows else own[name]
        elif plain.startswith(_VIDEO_HEAD):
            frames = value.unflatten(0, (-1, _FRAME_VALUES))
            mean = frames.mean(dim=0)
            converted[name] = mean if len(frames) > 1 else torch.cat([mean] * TUBE)
    return converted


def _inflated(kernel: Tensor, *, halved: bool) -> Tensor:
    """A kernel [D, 3, 16, 16] of images as one of two frames [D, 3, 2, 16, 16]."""
    both = torch.stack([kernel] * TUBE, dim=2)
    return both / TUBE if halved else both
