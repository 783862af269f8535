"""DeepAVFusion's golden vectors beside the encoder: separation, segmentation, sound, metrics, schedule, optimizer."""

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tools.vectors.file import Vectors
from training.evaluation.heads.class_metrics import semantic_scores
from training.methods.deepavfusion import DeepAVFusion
from training.methods.deepavfusion.encoder import Streams
from training.methods.deepavfusion.schedule import LARS, pretrained_share, rate_at
from training.methods.deepavfusion.segmentation import SegmentationDecoder, segmentation_loss
from training.methods.deepavfusion.separation import MaskTarget, SeparationDecoder, mask_target, separation_loss
from training.methods.deepavfusion.spectrogram import LogMel, three_seconds
from training.methods.deepavfusion.weights import segmentation_name, separation_name
from training.methods.shared.patches import PATCH

_RATE, _EPOCHS, _WARMUP = 3e-4, 200, 40
_LARS_RATE = 1.2
OF_FLOAT32_TABLES = ("outputs/spectrogram", "outputs/separated_waveform_every4")  # in the authors' code


def separation(vectors: Vectors, model: DeepAVFusion, image: Tensor, mix: Tensor) -> dict[str, Tensor]:
    """The separation decoder on the unmasked encoder: inputs/audio is the mix."""
    prefix = "avss_decoder."
    decoder = SeparationDecoder(vectors.config["dim"], grid=model.grids.audio)
    weights = vectors.part("weights.avsrcsep")
    _load(decoder, {separation_name(name.removeprefix(prefix)): value for name, value in weights.items()})
    decoder.to(vectors.dtype).eval()
    scores = decoder(model.encoder.layers(image, mix))
    source = vectors["inputs/separation_target"].to(vectors.dtype)[:, 0]
    kinds: tuple[MaskTarget, MaskTarget] = ("ratio", "louder_than_mix")
    targets = [mask_target(source, mix, kind=kind) for kind in kinds]
    found = {"logits": scores.unsqueeze(1), "mask_target": targets[0].unsqueeze(1)}
    for weighted in (0, 1):
        for binary, target in enumerate(targets):
            loss = separation_loss(scores, target, mix, is_weighted=bool(weighted))
            found[f"loss_weighted{weighted}_binary{binary}"] = loss
    return {f"outputs/avsrcsep/{name}": value for name, value in found.items()}


def segmentation(vectors: Vectors) -> dict[str, Tensor]:
    """The segmentation decoder, whose weights and inputs are a formula."""
    names: list[tuple[str, list[int]]] = json.loads(vectors.metadata.get("avsegm_names", "[]"))
    found = {}
    for classes in _classes(vectors, "outputs/avsegm/loss_classes"):
        dim = dict(names)["top.double_conv.0.weight"][0]
        rows, columns = vectors[f"outputs/avsegm/logits_classes{classes}_every8"].shape[2:]
        grid = (rows * 8 // PATCH, columns * 8 // PATCH)
        layers = _segmentation_layers(vectors, dim, grid)
        decoder = SegmentationDecoder(dim, classes=classes, grid=grid)
        weights = {}
        for number, (name, shape) in enumerate(names):
            full = [classes, *shape[1:]] if name.startswith("predictor.2.") else shape
            weights[segmentation_name(name)] = _weight(name, full, number)
        _load(decoder, weights)
        scores = decoder.to(vectors.dtype).eval()(layers)
        found[f"outputs/avsegm/logits_classes{classes}"] = scores
        target = _target(classes, (1, *scores.shape[2:]))
        found[f"outputs/avsegm/loss_classes{classes}"] = segmentation_loss(scores, target)
    return found


def _segmentation_layers(vectors: Vectors, dim: int, grid: tuple[int, int]) -> list[Streams]:
    audio_tokens = vectors["masks/audio_mask"].shape[1]
    return [
        Streams(
            image=wave([1, math.prod(grid), dim], layer + 0.5, 1).to(vectors.dtype),
            audio=wave([1, audio_tokens, dim], layer + 0.25, 1).to(vectors.dtype),
            fusion=torch.empty(1, 0, dim),
        )
        for layer in range(vectors.config["seg_layers"])
    ]


def _weight(name: str, shape: list[int], number: int) -> Tensor:
    if name.endswith("running_var"):
        return 1 + 0.5 * wave(shape, number, 1)
    if len(shape) > 1:
        return wave(shape, number, 2 / math.sqrt(math.prod(shape[1:])))
    return 1 + wave(shape, number, 0.3) if name.endswith(".weight") else wave(shape, number, 0.2)


def _target(classes: int, shape: tuple[int, ...]) -> Tensor:
    if classes == 1:
        return (wave(shape, 3, 1) > 0.3).long()
    return (wave(shape, 3, classes / 2 - 0.01) + classes / 2).floor().long()


def wave(shape: Sequence[int], offset: float, amplitude: float) -> Tensor:
    """f of the vectors' README: amplitude * sin(0.37 i + offset) at the flat index i."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * (0.37 * index + offset).sin()).float().view(*shape)


def sounds(vectors: Vectors) -> dict[str, Tensor]:
    """The spectrogram of a waveform, and the same through a mask."""
    if "inputs/waveform" not in vectors.tensors:
        return {}
    log_mel = LogMel().to(vectors.dtype)
    waveform = three_seconds(vectors["inputs/waveform"].to(vectors.dtype) / 2**15)
    found = {"outputs/spectrogram": log_mel(waveform)}
    if "inputs/separation_mask_logits" in vectors.tensors:
        logits = vectors["inputs/separation_mask_logits"].to(vectors.dtype)
        found["outputs/separated_waveform"] = log_mel.masked(waveform, logits)
    return found


def metrics(vectors: Vectors) -> dict[str, Tensor]:
    """Segmentation metrics of scores that the file has."""
    found: dict[str, Tensor] = {}
    for classes in _classes(vectors, "inputs/metrics_classes", "/logits"):
        stem = f"metrics_classes{classes}"
        scores = semantic_scores(
            vectors[f"inputs/{stem}/logits"].to(vectors.dtype), vectors[f"inputs/{stem}/target"].long()
        )
        found |= {f"outputs/{stem}/{name}": torch.tensor(value) for name, value in scores.items()}
    return found


def schedule(vectors: Vectors) -> dict[str, Tensor]:
    """The rates of new and of pretrained parts."""
    if "inputs/schedule_epochs" not in vectors.tensors:
        return {}
    rates = []
    for epoch in vectors["inputs/schedule_epochs"].tolist():
        rate = rate_at(epoch, peak=_RATE, epochs=_EPOCHS, warmup=_WARMUP)
        rates.append([rate, rate * pretrained_share(epoch / _EPOCHS)])
    return {"outputs/schedule_lr": torch.tensor(rates, dtype=torch.float64)}


def lars(vectors: Vectors) -> dict[str, Tensor]:
    """Weight and bias after steps of LARS; the last column of the gradients is the bias's."""
    start = "inputs/lars/"
    if f"{start}grads" not in vectors.tensors:
        return {}
    weight, bias = (vectors[f"{start}{name}"].to(vectors.dtype, copy=True) for name in ("weight", "bias"))
    optimizer = LARS([weight, bias], lr=_LARS_RATE)
    for gradient in vectors[f"{start}grads"].to(vectors.dtype):
        weight.grad, bias.grad = gradient[:, :-1], gradient[:, -1]
        optimizer.step()
    return {"outputs/lars/weight": weight, "outputs/lars/bias": bias}


def _classes(vectors: Vectors, start: str, end: str = "") -> list[int]:
    """The numbers of classes C of the entries START C END."""
    middles = [name[len(start) :] for name in vectors.tensors if name.startswith(start) and name.endswith(end)]
    return sorted(int(middle.removesuffix(end)) for middle in middles)


def _load(decoder: nn.Module, weights: dict[str, Tensor]) -> None:
    """Strictly, but for the numbers of batches that batch norms have seen, which no file has."""
    counts = {name: value for name, value in decoder.state_dict().items() if name.endswith(".num_batches_tracked")}
    decoder.load_state_dict(weights | counts)
