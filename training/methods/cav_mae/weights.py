"""The authors' files of CAV-MAE under our names, and their order of tokens in ours.

They see the spectrogram as a picture of mel rows and time columns, with token f * 64 + t and patch values (mel, time);
ours is time first, t * 8 + f, with patch values (time, mel). So the rows of the sound's positions are permuted, its
kernel is transposed, and so are the outputs of its head: what comes out is the same, permuted likewise.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from training.methods.shared.patches import FBANK_GRID, PATCH

_NAMES = {  # theirs, up to the first dot or whole: ours
    "patch_embed_a.proj": "audio_encoder.proj",
    "patch_embed_v.proj": "image_encoder.proj",
    "modality_a": "audio_encoder.token",
    "modality_v": "image_encoder.token",
    "pos_embed_a": "audio_encoder.positions",
    "pos_embed_v": "image_encoder.positions",
    "norm": "shared.norms.joint",
    "norm_a": "shared.norms.audio",
    "norm_v": "shared.norms.image",
    "decoder_embed": "decoder.embed",
    "mask_token": "decoder.mask_token",
    "decoder_modality_a": "decoder.audio_token",
    "decoder_modality_v": "decoder.image_token",
    "decoder_pos_embed_a": "decoder.audio_positions",
    "decoder_pos_embed_v": "decoder.image_positions",
    "decoder_norm": "decoder.norm",
    "decoder_pred_a": "decoder.predict_audio",
    "decoder_pred_v": "decoder.predict_image",
    "mlp_head.0": "head.norm",
    "mlp_head.1": "head.linear",
}
_STACKS = {"blocks_a": "audio_encoder.blocks", "blocks_v": "image_encoder.blocks", "decoder_blocks": "decoder.blocks"}
_SHARED_NORMS = {"norm1": "joint.0", "norm2": "joint.1", "norm1_a": "audio.0", "norm2_a": "audio.1"}
_SHARED_NORMS |= {"norm1_v": "image.0", "norm2_v": "image.1"}
_BLOCK = re.compile(r"(\w+)\.(\d+)\.(.+)\.(weight|bias)")


def is_authors(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the authors' files, wrapped in `module.` or not."""
    return any(name.removeprefix("module.") == "patch_embed_a.proj.weight" for name in names)


def from_authors(
    tensors: Mapping[str, Tensor], grid: tuple[int, int] = FBANK_GRID
) -> tuple[dict[str, Tensor], list[str]]:
    """A file of the authors, pre-trained or fine-tuned, as ours; and the names of what we have no place for.

    Every block of theirs owns all three pairs of norms; those of the blocks that one modality has for itself, and of
    the decoder's, are never used but for the first pair, and are left.

    Args:
        grid: times and bands of the sound's tokens.
    """
    found: dict[str, Tensor] = {}
    left = []
    for full, value in tensors.items():
        theirs = full.removeprefix("module.")
        ours = _our_name(theirs)
        if ours is None:
            left.append(theirs)
        else:
            found[ours] = _time_first(ours, value, grid)
    return found, left


def our_name(theirs: str) -> str | None:
    """Our name of one of the authors' tensors; None where we have no place for it."""
    return _our_name(theirs.removeprefix("module."))


def tokens_time_first(index: Tensor, grid: tuple[int, int] = FBANK_GRID) -> Tensor:
    """Indices f * 64 + t of the authors' audio tokens as ours, t * 8 + f; int64 of any shape."""
    times, bands = grid
    return index % times * bands + index // times


def order_time_first(grid: tuple[int, int] = FBANK_GRID) -> Tensor:
    """The permutation of tokens that brings the authors' order to ours: ours = theirs[order]."""
    times, bands = grid
    return torch.arange(times * bands).view(bands, times).T.flatten()


def _our_name(theirs: str) -> str | None:
    """Without `module.`."""
    if theirs in _NAMES:
        return _NAMES[theirs]
    stem, _, part = theirs.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{part}"
    match = _BLOCK.fullmatch(theirs)
    if match is None:
        return None
    stack, number, layer, part = match.groups()
    if stack == "blocks_u":
        layer = f"norms.{_SHARED_NORMS[layer]}" if layer in _SHARED_NORMS else layer
        return f"shared.blocks.{number}.{layer}.{part}"
    if stack not in _STACKS or layer.endswith(("_a", "_v")):
        return None
    return f"{_STACKS[stack]}.{number}.{layer}.{part}"


def _time_first(name: str, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """A tensor under our name in our order."""
    if name in ("audio_encoder.positions", "decoder.audio_positions"):
        return value[:, order_time_first(grid)]
    if name == "audio_encoder.proj.weight":
        return value.transpose(2, 3).contiguous()
    if name.startswith("decoder.predict_audio."):
        return value.unflatten(0, (PATCH, PATCH)).transpose(0, 1).flatten(0, 1).contiguous()
    return value
