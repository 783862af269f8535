"""Parameters and forward cost of a model by part, as a Markdown table.

    python -m tools.count_model                      crossmae-base, the paper's model
    python -m tools.count_model --preset crossmae-tiny --variant selfmae
    python -m tools.count_model --preset cav-mae-base

GMACs are a sample's multiply-adds in matrix products, convolutions and attention (half of torch's FLOP count), of the
forward pass; a backward pass costs twice as much, but the full view that makes targets has none. Nothing is computed:
the model lives on the meta device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shards_spec.command_line import one_line_errors, parse
from training.flops import forward_flops
from training.methods import METHODS
from training.methods.crossmae import CrossMAE, CrossMAEConfig
from training.methods.shared.patches import FBANK_SHAPE, IMAGE_CHANNELS, IMAGE_SHAPE
from training.recipes import recipe


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    """Counts parameters and multiply-adds of a model by part."""

    preset: str = "crossmae-base"
    """Whose model, as of train.py."""
    variant: str | None = None
    """The method's own, as of train.py."""


@dataclass(frozen=True)
class Part:
    """A row of the table."""

    name: str
    parameters: int | None  # None: counted in another row
    macs: int


def count(method: str, config: Any) -> list[Part]:
    """The whole of a model as `forward` runs it, and of CrossMAE its parts."""
    with torch.device("meta"):
        model = METHODS[method].build(config)
        model.pretend_ready()
    macs = forward_flops(model) // 2
    parts = count_crossmae(config) if isinstance(model, CrossMAE) else []
    return [*parts, Part("all", _size(model), macs)]


def count_crossmae(config: CrossMAEConfig) -> list[Part]:
    """The parts of a CrossMAE."""
    with torch.device("meta"):
        model = CrossMAE(config)
        image, fbank = torch.empty(1, IMAGE_CHANNELS, *IMAGE_SHAPE), torch.empty(1, *FBANK_SHAPE)
        seeds = torch.empty(1, dtype=torch.int64)
    image_view, audio_view = model.see_image(image, seeds), model.see_audio(fbank, seeds)
    parts = [
        Part("image encoder, visible tokens", _size(model.image_encoder), _macs(lambda: model.see_image(image, seeds))),
        Part("audio encoder, visible tokens", _size(model.audio_encoder), _macs(lambda: model.see_audio(fbank, seeds))),
    ]
    if model.image_decoder is not None and model.audio_decoder is not None:
        image_decoder, audio_decoder = model.image_decoder, model.audio_decoder
        to_image = _macs(lambda: image_decoder(image_view.features, image_view.mask.visible, audio_view.attentive))
        to_audio = _macs(lambda: audio_decoder(audio_view.features, audio_view.mask.visible, image_view.attentive))
        parts += [Part("image decoder, pixels", _size(image_decoder), to_image)]
        parts += [Part("audio decoder, pixels", _size(audio_decoder), to_audio)]
    if model.image_from_audio is not None and model.audio_from_image is not None:
        from_audio, from_image = model.image_from_audio, model.audio_from_image
        to_image = _macs(lambda: from_audio(audio_view.features.tokens))
        to_audio = _macs(lambda: from_image(image_view.features.tokens))
        parts += [Part("image from audio, embeddings", _size(from_audio), to_image)]
        parts += [Part("audio from image, embeddings", _size(from_image), to_audio)]
        if config.embedding.targets == "online":
            image_encoder, audio_encoder, spectrogram = model.image_encoder, model.audio_encoder, fbank.unsqueeze(1)
            of_image = _macs(lambda: image_encoder.full_view(image))
            of_audio = _macs(lambda: audio_encoder.full_view(spectrogram))
            parts += [Part("image encoder, full view (targets)", None, of_image)]
            parts += [Part("audio encoder, full view (targets)", None, of_audio)]
    return parts


def table(parts: list[Part]) -> str:
    """The parts as Markdown."""
    lines = ["| part | parameters (M) | forward GMACs |", "|---|---:|---:|"]
    for part in parts:
        parameters = "" if part.parameters is None else f"{part.parameters / 1e6:.2f}"
        lines.append(f"| {part.name} | {parameters} | {part.macs / 1e9:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.count_model"):
        config = parse(CountConfig, arguments)
        run = recipe(config.preset, config.variant)
        print(table(count(run.method, run.model)))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
