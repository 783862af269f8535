"""A small MAViL and a batch for it."""

import torch

from training.methods.interface import Inputs
from training.methods.mavil import MAViL, MAViLConfig
from training.methods.shared.config_values import StackConfig
from training.methods.shared.patches import Grids

GRIDS = Grids(image=(4, 3), audio=(8, 5))
TINY = MAViLConfig(
    frames=4, encoder=StackConfig(dim=32, depth=2, heads=2), decoder=StackConfig(dim=16, depth=1, heads=2)
)


def tiny(config=TINY, seed=0):
    torch.manual_seed(seed)
    return MAViL(config, GRIDS)


def batch(size=4, frames=4, grids=GRIDS):
    generator = torch.Generator().manual_seed(0)
    (rows, columns), (times, bands) = grids.image, grids.audio
    return Inputs(
        image=torch.randn(size, frames, 3, 16 * rows, 16 * columns, generator=generator),
        fbank=torch.randn(size, 16 * times, 16 * bands, generator=generator),
        valid_frames=torch.full((size,), 100),
        seeds=torch.arange(size),
        numbers=torch.arange(size),
    )


def piece(inputs, rows):
    return Inputs(
        image=inputs.image[rows],
        fbank=inputs.fbank[rows],
        valid_frames=inputs.valid_frames[rows],
        seeds=inputs.seeds[rows],
        numbers=inputs.numbers[rows],
    )


def on_meta(**choices):
    """A model of the paper's size without memory, and a sample for it."""
    with torch.device("meta"):
        model = MAViL(MAViLConfig(**choices))
        inputs = Inputs(
            image=torch.empty(1, model.config.frames, 3, 224, 224),
            fbank=torch.empty(1, 1024, 128),
            valid_frames=torch.empty(1, dtype=torch.int64),
            seeds=torch.empty(1, dtype=torch.int64),
            numbers=torch.empty(1, dtype=torch.int64),
        )
    model.pretend_ready()
    return model, inputs
