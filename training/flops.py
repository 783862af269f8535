"""What a training step has to compute, and what a device can: for model FLOPs utilisation (MFU).

A multiply-add counts as two FLOPs. Counted are matrix products, convolutions and attention, as torch's FlopCounterMode
has them; the rest (norms, GELU, softmax, masks, optimizer) is memory traffic.
"""

from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from training.methods.crossmae import CrossMAE, CrossMAEConfig
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


def flops_per_sample(config: CrossMAEConfig) -> int:
    """FLOPs of forward and backward of one sample, the targets' pass without gradient forward alone.

    Counted once on the meta device, in seconds and without memory, for a batch of one: the contrastive loss's matrix of
    a whole batch adds nothing that shows. What `checkpoint_activations` computes a second time does not count, so that
    MFU stays a measure of use.
    """
    embedding = config.embedding
    if embedding.targets == "teacher":  # the same work as `ema`, and no weights are asked for
        embedding = replace(embedding, targets="ema")
    with torch.device("meta"):
        model = CrossMAE(replace(config, checkpoint_activations=False, embedding=embedding))
        image, fbank = torch.empty(1, IMAGE_CHANNELS, *IMAGE_SHAPE), torch.empty(1, *FBANK_SHAPE)
        seeds, valid_frames = (torch.empty(1, dtype=torch.int64) for _ in range(2))
    # MATH: the counter knows matrix products everywhere, but the fused kernels of CUDA only. These compute a score
    # matrix a second time in the backward pass, which is left out with the other recomputation.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(image, fbank, seeds, valid_frames=valid_frames).loss.backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The most FLOP/s that a GPU reaches in dense matrix products of a 16-bit dtype; None where it is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """The entry for a CUDA device's name, as "NVIDIA H100 80GB HBM3"; None where there is none."""
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
