"""The decoder of a full file of MAE, or of AudioMAE with plain blocks, for the pixel decoder of its modality.

Our decoder is MAE's, and the cross-attention that CrossMAE's has more starts at zero: it begins as the one in the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.methods.crossmae.decoders import PixelDecoder

_EMBED = "decoder_embed.weight"
_POSITIONS = "decoder_pos_embed"
_OURS = {"decoder_embed": "embed", "decoder_blocks": "blocks", "decoder_norm": "norm", "decoder_pred": "predict"}
_CROSS = re.compile(r"condition\.|blocks\.\d+\.cross\.")  # what MAE's decoder has not
_WINDOWS = ("attn.tau", "attn.meta_mlp", "attn.logit_scale")  # of AudioMAE's blocks with shifted windows
_TOLERANCE = 1e-2  # of sines and cosines that a file may hold in 16 bits


@dataclass(frozen=True)
class FoundDecoder:
    """The decoder in a file: its state under our names, or why ours cannot start from it."""

    state: dict[str, Tensor]
    names: frozenset[str]  # the file's, that are used
    misfit: str | None  # None where it fits


def find_decoder(tensors: Mapping[str, Tensor], decoder: PixelDecoder) -> FoundDecoder | None:
    """What a file of MAE's layout has for a decoder; None where it holds none."""
    if _EMBED not in tensors:
        return None
    state, names = {}, {_POSITIONS}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if first in _OURS or name == "mask_token":
            state[f"{_OURS[first]}.{rest}" if rest else name] = value
            names.add(name)
    misfit = _misfit(state, decoder) or _misplaced(tensors.get(_POSITIONS), decoder.pos_embed)
    return FoundDecoder({} if misfit else state, frozenset() if misfit else frozenset(names), misfit)


def _misfit(state: Mapping[str, Tensor], decoder: PixelDecoder) -> str | None:
    """Why these weights are not those of a decoder of ours."""
    own = {name: value for name, value in decoder.state_dict().items() if not _CROSS.match(name)}
    layers = {name.split(".", 2)[2] for name in state if name.startswith("blocks.")}
    if any(layer.startswith(_WINDOWS) for layer in layers):
        return "its blocks have shifted windows, ours attend to all tokens"
    theirs, ours = ((_blocks(names), names["embed.weight"].shape[0]) for names in (state, own))
    if theirs != ours:
        return f"it has {theirs[0]} blocks of width {theirs[1]}, ours {ours[0]} of width {ours[1]}"
    if unlike := sorted(state.keys() ^ own.keys()):
        return f"it has {unlike[0]} and ours has not" if unlike[0] in state else f"it lacks {unlike[0]}"
    for name, value in state.items():
        if value.shape != own[name].shape:
            return f"its {name} is {list(value.shape)}, ours {list(own[name].shape)}"
    return None


def _blocks(names: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("blocks.")})


def _misplaced(theirs: Tensor | None, ours: Tensor) -> str | None:
    """Why a table of positions [1, 1 + N, D] is not ours [1, N, D], which is computed and not saved."""
    if theirs is None or theirs.shape[1:] != (ours.shape[1] + 1, ours.shape[2]):
        count = "no" if theirs is None else theirs.shape[1] - 1
        return f"it has positions for {count} patches, ours for {ours.shape[1]}"
    expected = torch.cat([torch.zeros_like(ours[:, :1]), ours], dim=1)
    if (theirs.float() - expected).abs().max() > _TOLERANCE:
        return "its positions are not the fixed sines and cosines of ours"
    return None
