"""The authors' files of DeepAVFusion under our names, and an AudioMAE as the start of the audio branch.

Our order of tokens and of a patch's values is theirs: a file's tensors are taken as they are.
"""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

Kernel = Literal["transposed", "as_code"]
_STEMS = {  # theirs: ours
    "encoder.image.pos_embed": "encoder.image.positions",
    "encoder.audio.pos_embed": "encoder.audio.positions",
    "encoder.image.patch_embed.proj": "encoder.image.proj",
    "encoder.audio.patch_embed.proj": "encoder.audio.proj",
}
_DECODER = re.compile(r"(image|audio)_decoder_(embed|mask_token|pos_embed|blocks|norm|pred)(\..+)?")
_DECODER_PARTS = {"pos_embed": "positions", "pred": "predict"}


def is_authors(names: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the authors' files, wrapped in `module.` or not."""
    return any(name.removeprefix("module.") == "encoder.fusion_tokens" for name in names) and any(
        name.removeprefix("module.") == "encoder.image.patch_embed.proj.weight" for name in names
    )


def from_authors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file of the authors (its "state_dict") as ours."""
    return {our_name(name): value for name, value in tensors.items()}


def our_name(theirs: str) -> str:
    """Our name of one of the authors' tensors."""
    theirs = theirs.removeprefix("module.")
    for stem, ours in _STEMS.items():
        if theirs == stem or theirs.startswith(f"{stem}."):
            return ours + theirs.removeprefix(stem)
    match = _DECODER.fullmatch(theirs)
    if match is None:
        return theirs
    side, part, rest = match.groups()
    return f"{side}_decoder.{_DECODER_PARTS.get(part, part)}{rest or ''}"


def from_audiomae(tensors: Mapping[str, Tensor], *, kernel: Kernel = "transposed") -> dict[str, Tensor]:
    """The encoder of an AudioMAE as our audio branch, without [CLS], positions and decoder.

    "The Spec-MAE model pre-trained on AudioSet" (Sec. 4.1).

    Args:
        kernel: AudioMAE sees its spectrogram as [time, mel], this model as [mel, time]. `as_code` takes its patch
            embedding as it is, as the authors did; `transposed` brings it to the other order.
    """
    found = {}
    for name, value in tensors.items():
        if name.startswith(("blocks.", "norm.")):
            found[f"encoder.audio.{name}"] = value
        elif name.startswith("patch_embed.proj."):
            turned = value.transpose(2, 3).contiguous() if value.ndim == 4 and kernel == "transposed" else value
            found[f"encoder.audio.{name.removeprefix('patch_embed.')}"] = turned
    return found


_SEGMENTATION = {"normv": "image_norms", "norma": "audio_norms", "proja": "audio_projs", "lat": "enlarge"}
_SEPARATION = {"cond": "image_projs", "lat": "enlarge", "up": "up", "xv_norm": "image_norm", "pred": "last"}


def segmentation_name(theirs: str) -> str:
    """Our name of a tensor of the authors' segmentation decoder."""
    first, _, rest = theirs.replace(".double_conv", "").partition(".")
    if first == "predictor":
        return ("first." if rest.startswith("0.") else "last.") + rest[2:]
    return f"{_SEGMENTATION.get(first, first)}.{rest}"


def separation_name(theirs: str) -> str:
    """Our name of a tensor of the authors' separation decoder: they count stages from the finest, we the coarsest."""
    theirs = theirs.replace(".double_conv", "")
    match = re.fullmatch(r"(cond|lat|up)(\d)\.(.+)", theirs)
    if match is not None:
        kind, stage, rest = match.group(1), 5 - int(match.group(2)), match.group(3)
        return f"{_SEPARATION[kind]}.{stage if kind == 'cond' else stage - 1}.{rest}"
    match = re.fullmatch(r"xa_norm\.(\d)\.(.+)", theirs)
    if match is not None:
        return f"audio_norms.{4 - int(match.group(1))}.{match.group(2)}"
    first, _, rest = theirs.partition(".")
    return f"{_SEPARATION.get(first, first)}.{rest}"
