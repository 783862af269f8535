"""MAViL's golden vectors: encoders, fusion and fine-tuned head as the authors' code for av-superb runs the released
weights, its fbanks, and its tables of positions. There is no code of theirs for masks and losses.
"""

import re
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.fbank import fbank
from tools.vectors.file import Vectors
from training.methods.mavil.classifier import Head, MAViLClassifier
from training.methods.mavil.config import FusionConfig, MAViLConfig
from training.methods.mavil.encoder import video_input, video_positions, with_cls
from training.methods.mavil.model import MAViL
from training.methods.mavil.weights import from_released
from training.methods.shared.config_values import StackConfig
from training.methods.shared.patches import Grids, sincos_positions

_POSITIONS_2D = re.compile(r"outputs/positions_2d_grid_(\d+)x(\d+)")
_POSITIONS_3D = re.compile(r"outputs/positions_3d_times_(\d+)_grid_(\d+)x(\d+)")
_MEAN, _STD = -4.268, 4.569  # of AudioSet (Table 9)

# An fbank is compared as shards store it: float16 rounds values up to 16 by as much as 0.004, and float32's round-off
# adds to that where a mel band holds next to nothing.
_ROWS = ("fbank_rows", "fbank_rows_own_statistics", "fbank_rows_dataset_statistics")
TOLERANCES = {f"outputs/{name}": 5e-4 for name in _ROWS}


def compute(vectors: Vectors) -> dict[str, Tensor]:
    """Every entry of outputs/."""
    config, grids = _config(vectors)
    fbanks = vectors["inputs/fbank"].to(vectors.dtype).squeeze(1)  # [B, T, M]
    video = vectors["inputs/video"].to(vectors.dtype).transpose(1, 2)  # [B, F, 3, H, W]
    found = _encoded(vectors, config, grids, fbanks, video)
    if "weights_finetuned/head_av.weight" in vectors.tensors:
        found |= _finetuned(vectors, config, grids, fbanks, video)
    if "inputs/waveform" in vectors.tensors:
        found |= _fbanks(vectors)
    return {f"outputs/{name}": value for name, value in found.items()} | _positions(vectors)


def _config(vectors: Vectors) -> tuple[MAViLConfig, Grids]:
    sizes, patch = vectors.config, vectors.config["patch"]
    frames, height, width = sizes["video_frames_height_width"]
    times, bands = sizes["fbank"]
    config = MAViLConfig(
        frames=frames,
        encoder=StackConfig(dim=sizes["dim"], depth=sizes["depth"], heads=sizes["heads"]),
        fusion=FusionConfig(depth=sizes["fusion_depth"]),
        norms="raw",
    )
    return config, Grids(image=(height // patch, width // patch), audio=(times // patch, bands // patch))


@torch.no_grad()
def _encoded(vectors: Vectors, config: MAViLConfig, grids: Grids, fbanks: Tensor, video: Tensor) -> dict[str, Tensor]:
    """The pre-trained encoders and fusion."""
    state, _ = from_released(vectors.part("weights"))
    model = MAViL(config, grids)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("_decoder." in name for name in missing), (missing, unexpected)
    model.to(vectors.dtype)
    embedded = (
        model.audio_encoder.embed(fbanks.unsqueeze(1)),
        model.video_encoder.embed(video_input(video, config.tube)),
    )
    audio, visual = model.audio_encoder(embedded[0]), model.video_encoder(embedded[1])
    fused_audio, fused_video = model.fusion(audio, visual)
    encoded = model.encode(image=video, fbank=fbanks)
    assert encoded.audio is not None and encoded.image is not None and encoded.joint is not None
    return {
        "audio_embedded": embedded[0],
        "video_embedded": embedded[1],
        "audio_tokens": encoded.audio.tokens,
        "video_tokens": encoded.image.tokens,
        "audio_pooled": encoded.audio.pooled.unsqueeze(1),
        "video_pooled": encoded.image.pooled.unsqueeze(1),
        "fusion_input": torch.cat([audio, visual], dim=1),
        "fused_sequence": torch.cat([fused_audio, fused_video], dim=1),
        "fused_audio_tokens": fused_audio[:, 1:],
        "fused_video_tokens": fused_video[:, 1:],
        "fused_pooled": encoded.joint.pooled.unsqueeze(1),
    }


@torch.no_grad()
def _finetuned(vectors: Vectors, config: MAViLConfig, grids: Grids, fbanks: Tensor, video: Tensor) -> dict[str, Tensor]:
    """The model that was fine-tuned on both modalities."""
    own = vectors.part("weights_finetuned")
    state, _ = from_released(vectors.part("weights") | own)
    deeper = replace(config, fusion=replace(config.fusion, depth=vectors.config["fusion_depth_finetuned"]))
    classifier = MAViLClassifier(deeper, inputs=("joint",), classes=len(own["head_av.weight"]), grids=grids)
    classifier.load_state_dict(state)
    classifier.to(vectors.dtype)
    head = classifier.heads["joint"]
    assert isinstance(head, Head)
    normed = head.norm(classifier.pool(video, fbanks))
    return {"finetuned_pooled": normed.unsqueeze(1), "finetuned_logits": classifier(video, fbanks)}


def _fbanks(vectors: Vectors) -> dict[str, Tensor]:
    """The fbank of the waveform as shards store it, in its own statistics, and in AudioSet's."""
    stored, _ = fbank(vectors["inputs/waveform"].numpy().astype(np.float32))
    rows = torch.from_numpy(stored.astype(np.float64))
    found = {
        "fbank_rows": rows,
        "fbank_rows_own_statistics": (rows - rows.mean()) / (2 * rows.std()),
        "fbank_rows_dataset_statistics": (rows - _MEAN) / (2 * _STD),
    }
    return {
        name: value[: len(vectors[f"outputs/{name}"])]
        for name, value in found.items()
        if f"outputs/{name}" in vectors.tensors
    }


def _positions(vectors: Vectors) -> dict[str, Tensor]:
    """Tables of positions, of the sizes that their names say; width and [CLS] row as theirs."""
    found = {}
    for name, value in vectors.tensors.items():
        width = value.shape[-1]
        if (flat := _POSITIONS_2D.fullmatch(name)) is not None:
            rows, columns = (int(size) for size in flat.groups())
            found[name] = with_cls(sincos_positions(width, (rows, columns)))[0]
        elif (cube := _POSITIONS_3D.fullmatch(name)) is not None:
            times, rows, columns = (int(size) for size in cube.groups())
            found[name] = with_cls(video_positions(width, times, (rows, columns), "sincos3d"))[0]
    return found
