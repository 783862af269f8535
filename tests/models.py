"""Small models and batches for the tests of training/methods/crossmae."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.methods.crossmae import CrossMAE, CrossMAEConfig, crossmae_tiny
from training.methods.crossmae.config import EmbeddingConfig, PixelConfig
from training.methods.interface import Inputs
from training.methods.shared.encoder import EncoderConfig

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__path__[0],
    reason="torch.compile on the CPU needs g++, and cannot build below a path with a space",
)

PLAIN = crossmae_tiny()
TINY = replace(PLAIN, pixel=replace(PLAIN.pixel, condition_start="xavier"))  # every part works from the first step on
SMALLEST = replace(  # for what does not depend on size
    TINY,
    encoder=EncoderConfig(dim=32, depth=2, heads=2),
    pixel=PixelConfig(dim=32, depth=2, heads=2, condition_start="xavier"),
    embedding=EmbeddingConfig(dim=32, depth=1, heads=2),
)


def switched(section: str, **values: Any) -> CrossMAEConfig:
    """The smallest config with values of one section changed."""
    return replace(SMALLEST, **{section: replace(getattr(SMALLEST, section), **values)})


def build(config: CrossMAEConfig = SMALLEST) -> CrossMAE:
    """A model with the weights of seed 0."""
    torch.manual_seed(0)
    return CrossMAE(config)


def batch(size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Image, fbank and seeds of random samples."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, 3, 224, 224, generator=generator)
    return image, torch.randn(size, 1024, 128, generator=generator), torch.arange(size) + 100


def told(image: Tensor, fbank: Tensor, seeds: Tensor, valid_frames: Tensor | None = None) -> Inputs:
    """Images [B, 3, 224, 224], fbanks [B, 1024, 128] and seeds [B] as a method takes them."""
    numbers = torch.arange(len(seeds))
    return Inputs(image=image.unsqueeze(1), fbank=fbank, seeds=seeds, numbers=numbers, valid_frames=valid_frames)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter that has one."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
