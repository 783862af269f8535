"""What a training step has to compute, and what a device can: for model FLOPs utilisation (MFU).

A multiply-add counts as two FLOPs. Counted are matrix products, convolutions and attention, as torch's FlopCounterMode
has them; the rest (norms, GELU, softmax, masks, optimizer) is memory traffic.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shards_spec.sample import SAMPLE_RATE
from training.methods import METHODS
from training.methods.interface import Inputs, Model
from training.methods.shared.patches import FBANK_SHAPE, IMAGE_CHANNELS, IMAGE_SHAPE

# Dense bf16 (and fp16) FLOP/s by the name that CUDA gives, from NVIDIA's data sheets, whose figures "with sparsity" are
# twice these: A100 (312), H100 (SXM 989, PCIe 756, NVL 835), H200 (SXM 989, NVL 835).
_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100 80GB HBM3": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
}


def flops_per_sample(method: str, config: Any) -> int:
    """FLOPs of forward and backward of one sample, what has no gradient forward alone.

    Counted once on the meta device, in seconds and without memory, for a batch of one: the contrastive loss's matrix of
    a whole batch adds nothing that shows. What `checkpoint_activations` computes a second time does not count, so that
    MFU stays a measure of use.

    Args:
        method: as config.json names it.
        config: of its model.
    """
    with torch.device("meta"):
        model = METHODS[method].build(replace(config, checkpoint_activations=False))
    model.pretend_ready()
    with _counting() as counter:
        model(_meta_inputs(model)).loss.backward()
    return counter.get_total_flops()


def forward_flops(model: Model) -> int:
    """FLOPs of a forward pass of one sample by a model on the meta device."""
    with _counting() as counter:
        model(_meta_inputs(model))
    return counter.get_total_flops()


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """MATH: the counter knows matrix products everywhere, but the fused kernels of CUDA only. These compute a score
    matrix a second time in the backward pass, which is left out with the other recomputation.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def _meta_inputs(model: Model) -> Inputs:
    reads = model.reads
    with torch.device("meta"):
        return Inputs(
            image=torch.empty(1, reads.frames, IMAGE_CHANNELS, *IMAGE_SHAPE),
            fbank=torch.empty(1, *FBANK_SHAPE),
            seeds=torch.empty(1, dtype=torch.int64),
            numbers=torch.empty(1, dtype=torch.int64),
            valid_frames=torch.empty(1, dtype=torch.int64),
            waveform=torch.empty(1, round(reads.waveform_seconds * SAMPLE_RATE)) if reads.waveform_seconds else None,
        )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The most FLOP/s that a GPU reaches in dense matrix products of a 16-bit dtype; None where it is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """The entry for a CUDA device's name, as "NVIDIA H100 80GB HBM3"; None where there is none."""
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
