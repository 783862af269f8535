"""Weights to start from: --init-visual FILE, --init-audio FILE, --init RUN, --teacher RUN.

initialise           encoders from files of MAE, AudioMAE, timm, CAV-MAE or CrossMAE; of a full MAE the decoder, too
initialise_from_run  every part that another CrossMAE run shares with the model
take_teacher         the encoders of a finished run, for the targets

docs/checkpoints.md says what of each layout is loaded, adapted and left. D is the width, N the patches: 196 or 512.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from shards_spec.errors import UserError
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from training.first_stage import FirstStage, read_first_stage
from training.initial_decoders import find_decoder
from training.methods.crossmae import CrossMAE, CrossMAEConfig
from training.methods.shared.patches import FBANK_GRID
from training.tensor_files import check_types, read_safetensors, read_torch
from training.trained import FbankScale

Modality = Literal["image", "audio"]
_KERNEL = "patch_embed.proj.weight"
_POSITIONS = "pos_embed"
_ENCODERS = ("image_encoder.", "audio_encoder.")
_TEACHER = "teacher."
_VIT = "MAE, AudioMAE, timm"  # a layout
# What may stay in a file without changing what its encoder computes; of anything else we would not know.
_NOT_ENCODER = ("decoder", "mask_token", "head", "pre_logits")
_CAV_LETTER: dict[Modality, str] = {"image": "v", "audio": "a"}


@dataclass
class _Found:
    """What a file holds for one encoder, under our names, and what is to be said of it."""

    layout: str
    state: dict[str, Tensor]
    left: list[str] = field(default_factory=list)  # the file's names that are not used
    adapted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # ours, where the file has nothing that fits
    own: set[str] = field(default_factory=set)  # names of the encoder's state that keep their start


def initialise(model: CrossMAE, *, visual: Path | None, audio: Path | None, scale: FbankScale) -> list[str]:
    """Loads the encoders from files, and the pixel decoders that are there; None leaves a side as it is.

    To be called before the model is moved, wrapped or trained, and not when resuming. A running mean of the encoders
    (targets `ema`) starts at what was loaded.

    Args:
        scale: what the model's fbanks are normalised with.

    Returns:
        The lines to print.

    Raises:
        UserError: a file cannot be read, is of a layout that is not known, or of another size than the encoder; the
            model is then as it was.
    """
    lines: list[str] = []
    ready: list[tuple[nn.Module, dict[str, Tensor]]] = []
    files: tuple[tuple[Modality, Path | None], ...] = (("image", visual), ("audio", audio))
    for modality, path in files:
        if path is not None:
            try:
                parts, said = _prepare(model, modality, path, scale)
            except (IndexError, RuntimeError) as error:
                raise UserError(f"{path} holds tensors of other dimensions than their names say: {error}") from error
            ready += parts
            lines += said
    for module, state in ready:
        module.load_state_dict(state)
    model.reset_teacher()
    return lines


def _prepare(
    model: CrossMAE, modality: Modality, path: Path, scale: FbankScale
) -> tuple[list[tuple[nn.Module, dict[str, Tensor]]], list[str]]:
    """What to load into which part of the model, and the lines to print; the model is as it was."""
    encoder = model.image_encoder if modality == "image" else model.audio_encoder
    decoder = model.image_decoder if modality == "image" else model.audio_decoder
    own, tensors = encoder.state_dict(), _read(path)
    first = _first_stage_of(path, tensors, model, modality)
    found = _translate(tensors if first is None else first.to_scale(tensors, scale), modality, path)
    _fit_positions(found, own, modality)
    _check(found, own, modality, path)
    parts: list[tuple[nn.Module, dict[str, Tensor]]] = [
        (encoder, {name: own[name] for name in found.own} | found.state)
    ]
    said = [] if first is None or modality == "image" else first.said_of_scale(scale)
    if decoder is not None and found.layout == _VIT and (rest := find_decoder(tensors, decoder)) is not None:
        check_types(rest.state, decoder.state_dict(), path)
        parts.append((decoder, decoder.state_dict() | rest.state))
        found.left = [name for name in found.left if name not in rest.names]
        what = f"{len(rest.state)} tensors from" if rest.misfit is None else f"{rest.misfit}, so not from"
        said.append(f"{modality} decoder: {what} {path}")
    return parts, _lines(found, modality, path) + said


def _first_stage_of(path: Path, tensors: dict[str, Tensor], model: CrossMAE, modality: Modality) -> FirstStage | None:
    """What config.json says beside the weights of a checkpoint of ours; None beside any other file."""
    is_ours = f"{modality}_encoder.{_KERNEL}" in tensors and path.name == WEIGHTS_FILE
    if not is_ours or not (path.parent / CONFIG_FILE).is_file():
        return None
    option = "--init-visual" if modality == "image" else "--init-audio"
    first = read_first_stage(path.parent, option)
    first.check_encoders(model.config.encoder, option=option, flag="--model.encoder")
    return first


def initialise_from_run(model: CrossMAE, checkpoint: Path, scale: FbankScale) -> list[str]:
    """Loads every part that a CrossMAE checkpoint has under the same name and shape. Returns the lines to print.

    The encoders must be there whole; the other parts of the model keep their start where the checkpoint has nothing
    for them, as a decoder's cross-attention when the run was a SelfMAE, or where its heads are others. A teacher is not
    taken over: targets `ema` start at the encoders.

    Args:
        model: fresh, not yet moved or wrapped.
        checkpoint: a checkpoint, a run folder (its newest), or a folder of `save_pretrained`.
        scale: what the model's fbanks are normalised with.

    Raises:
        UserError: there is none, or its encoders are of another size or other heads.
    """
    first = read_first_stage(checkpoint, "--init")
    first.check_encoders(model.config.encoder, option="--init", flag="--model.encoder")
    path = first.folder / WEIGHTS_FILE
    state = first.to_scale(read_safetensors(path, "use another checkpoint"), scale)
    theirs = {name: value for name, value in state.items() if not name.startswith(_TEACHER)}
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith(_TEACHER)}
    for name, value in ours.items():
        if name.startswith(_ENCODERS) and (name not in theirs or theirs[name].shape != value.shape):
            got = list(theirs[name].shape) if name in theirs else "missing"
            raise UserError(f"{path} holds other encoders: {name} is {got}, expected {list(value.shape)}")
    unlike = _of_other_heads(first.model, model.config)
    matched = {
        name: theirs[name]
        for name in ours
        if name in theirs and theirs[name].shape == ours[name].shape and not name.startswith(tuple(unlike))
    }
    check_types(matched, ours, path)
    model.load_state_dict(matched, strict=False)
    model.reset_teacher()
    lines = [f"{len(matched)} of {len(ours)} tensors from {first.folder}: {_groups(matched)}"]
    lines += first.said_of_scale(scale)
    if heads := {said for prefix, said in unlike.items() if any(name.startswith(prefix) for name in theirs)}:
        lines.append(f"  not taken, for other heads: {', '.join(sorted(heads))}")
    if fresh := [name for name in ours if name not in matched]:
        lines.append(f"  not in it, or of another shape, so from a random start: {_groups(fresh)}")
    if left := [name for name in theirs if name not in matched]:
        lines.append(f"  left in the file: {_groups(left)}")
    return lines


def _of_other_heads(theirs: CrossMAEConfig, ours: CrossMAEConfig) -> dict[str, str]:
    """The decoders whose weights would compute something else here, by prefix, with what is to be said."""
    decoders = (
        ("pixel", ("image_decoder.", "audio_decoder.")),
        ("embedding", ("image_from_audio.", "audio_from_image.")),
    )
    return {
        prefix: f"{name} decoders ({getattr(theirs, name).heads} there, {getattr(ours, name).heads} here)"
        for name, prefixes in decoders
        for prefix in prefixes
        if getattr(theirs, name).heads != getattr(ours, name).heads
    }


def take_teacher(model: CrossMAE, checkpoint: Path, scale: FbankScale) -> list[str]:
    """Gives targets `teacher` the encoders of a finished run. Returns the lines to print.

    Args:
        scale: what the model's fbanks are normalised with.

    Raises:
        UserError: there is none, its encoders are of another size or other heads, or the targets are others.
    """
    first = read_first_stage(checkpoint, "--teacher")
    first.check_encoders(model.config.encoder, option="--teacher", flag="--model.encoder")
    path = first.folder / WEIGHTS_FILE
    weights = read_safetensors(path, "use another checkpoint")
    check_types(weights, model.state_dict(), path)
    try:
        model.set_teacher(first.to_scale(weights, scale))
    except ValueError as error:
        raise UserError(f"--teacher {first.folder}: {error}") from error
    return [f"the embedding targets are those of {first.folder}", *first.said_of_scale(scale)]


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without the wrapping of trainers. Nothing in the file is executed."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file of weights: to start from a CrossMAE run use --init")
    instead = "expected a whole PyTorch or safetensors file, fetch it again"
    if path.suffix == ".safetensors":
        return read_safetensors(path, instead)
    with torch.serialization.safe_globals([argparse.Namespace]):  # MAE's files hold their options beside the model
        content = read_torch(path, instead)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {}
    if isinstance(content, dict):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _translate(tensors: dict[str, Tensor], modality: Modality, path: Path) -> _Found:
    """A file's tensors under the names of our encoder."""
    prefix = f"{modality}_encoder."
    if f"{prefix}{_KERNEL}" in tensors:
        return _Found(
            "CrossMAE",
            state={name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)},
            left=[name for name in tensors if not name.startswith(prefix)],
        )
    if "patch_embed_a.proj.weight" in tensors and "blocks_a.0.attn.qkv.weight" in tensors:
        return _from_cav_mae(tensors, modality, path)
    if _KERNEL in tensors and "blocks.0.attn.qkv.weight" in tensors:
        return _from_vit(tensors, modality)
    begins = ", ".join(list(tensors)[:3]) or "no tensors"
    raise UserError(
        f"{path} has none of the layouts that can be read (MAE, AudioMAE, timm's ViT, CAV-MAE, CrossMAE):"
        f" it begins with {begins}"
    )


def _from_vit(tensors: dict[str, Tensor], modality: Modality) -> _Found:
    """MAE, AudioMAE and timm: our names. A decoder and a classifier's head are none of the encoder."""
    left = [name for name in tensors if name.startswith(_NOT_ENCODER)]
    found = _Found(_VIT, {name: v for name, v in tensors.items() if name not in set(left)}, left)
    kernel = found.state[_KERNEL]
    if modality == "audio" and kernel.ndim == 4 and kernel.shape[1] == 3:
        found.state[_KERNEL] = kernel.sum(dim=1, keepdim=True)
        found.adapted.append(f"{_KERNEL} (summed over the three colours)")
    return found


def _from_cav_mae(tensors: dict[str, Tensor], modality: Modality, path: Path) -> _Found:
    """One modality of CAV-MAE, as its forward_encoder takes it: own blocks, then the shared one with its own norms.

    CAV-MAE sees the spectrogram as [mel, time], with patch f * 64 + t; ours is [time, mel], with patch t * 8 + f. So
    the positions are permuted and the kernel is transposed; the output is then the same, permuted likewise.
    """
    letter = _CAV_LETTER[modality]
    state = {f"norm.{part}": f"norm_{letter}.{part}" for part in ("weight", "bias")}  # our name: its name
    state |= {f"patch_embed.proj.{part}": f"patch_embed_{letter}.proj.{part}" for part in ("weight", "bias")}
    own, shared = (_depth(tensors, stem) for stem in (f"blocks_{letter}.", "blocks_u."))
    for i in range(own + shared):
        source, norm = (f"blocks_{letter}.{i}", "") if i < own else (f"blocks_u.{i - own}", f"_{letter}")
        for layer in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            for part in ("weight", "bias"):
                theirs = f"{layer}{norm}" if layer.startswith("norm") else layer
                state[f"blocks.{i}.{layer}.{part}"] = f"{source}.{theirs}.{part}"
    positions, token = f"pos_embed_{letter}", f"modality_{letter}"
    for name in (*state.values(), positions, token):
        if name not in tensors:
            raise UserError(f"{path} is a damaged file of CAV-MAE: {name} is missing")
    found = _Found("CAV-MAE", {ours: tensors[theirs] for ours, theirs in state.items()})
    table = tensors[positions]
    if modality == "audio":
        time, mel = FBANK_GRID
        if table.shape[1] != time * mel:
            raise UserError(f"{path}: {positions} has {table.shape[1]} positions, expected {time * mel}")
        table = table.unflatten(1, (mel, time)).transpose(1, 2).flatten(1, 2)
        found.state[_KERNEL] = found.state[_KERNEL].transpose(2, 3).contiguous()
        found.adapted += ["order of positions (f * 64 + t to t * 8 + f)", f"{_KERNEL} (transposed)"]
    found.state[_POSITIONS] = table + tensors[token]
    found.adapted += [f"{token} (added to the positions)", "layer norms (eps 1e-5 there, 1e-6 here)"]
    found.own.add("cls_token")
    found.kept.append("cls_token (there is none)")
    used = {*state.values(), positions, token}
    found.left = [name for name in tensors if name not in used]
    return found


def _fit_positions(found: _Found, own: dict[str, Tensor], modality: Modality) -> None:
    """Makes the file's table fit ours, [1, 1 + N, D], where the sum of token and position stays what it was."""
    ours, theirs = own[_POSITIONS], found.state.get(_POSITIONS)
    if theirs is None or theirs.ndim != 3 or theirs.shape[2] != ours.shape[2] or theirs.shape == ours.shape:
        return  # fits, or `_check` says what is wrong
    if theirs.shape[1] == ours.shape[1] - 1:  # none for [CLS]
        found.state[_POSITIONS] = torch.cat([torch.zeros_like(theirs[:, :1]), theirs], dim=1)
    elif modality == "audio" and theirs.shape[1] == 197 and found.layout != "CAV-MAE":
        found.state[_POSITIONS] = torch.cat([theirs[:, :1], ours[:, 1:].to(theirs.dtype)], dim=1)
        found.kept.append("positions of the patches (14 x 14 do not fit 64 x 8), but that of [CLS] is the file's")


def _check(found: _Found, own: dict[str, Tensor], modality: Modality, path: Path) -> None:
    """Refuses what does not fit the encoder, naming the first difference."""
    check_types(found.state, own, path)
    depth, width = (_depth(own, "blocks."), own["norm.weight"].shape[0])
    got = (_depth(found.state, "blocks."), found.state[_KERNEL].shape[0])
    if got != (depth, width):
        raise UserError(
            f"{path} holds {got[0]} blocks of width {got[1]}, the encoder has {depth} of width {width}:"
            " choose the --preset or the --model.encoder that fits, or another file"
        )
    if unknown := [name for name in found.state if name not in own]:
        raise UserError(f"{path} holds a ViT of another kind: it has {_groups(unknown)}, which our encoder has not")
    if missing := [name for name in own if name not in found.state and name not in found.own]:
        raise UserError(f"{path} holds no whole encoder: {len(missing)} tensors are missing, the first is {missing[0]}")
    for name, value in found.state.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{path}: {name} is {list(value.shape)}, expected {list(own[name].shape)} of the {modality} encoder"
            )


def _depth(names: Iterable[str], stem: str) -> int:
    return len({name.removeprefix(stem).split(".")[0] for name in names if name.startswith(stem)})


def _lines(found: _Found, modality: Modality, path: Path) -> list[str]:
    lines = [f"{modality} encoder: {len(found.state)} tensors from {path} (layout of {found.layout})"]
    if found.adapted:
        lines.append(f"  adapted: {', '.join(found.adapted)}")
    if found.kept:
        lines.append(f"  kept as they start here: {', '.join(found.kept)}")
    if found.left:
        lines.append(f"  left in the file: {_groups(found.left)}")
    return lines


def _groups(names: Iterable[str]) -> str:
    """Names by their first part, counted: `decoder_blocks (96), mask_token`."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())
