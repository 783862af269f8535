"""DeepAVFusion's masks: uniform, independent in both modalities, a pure function of each sample's seed.

Blocks see a sequence as a set, so visible tokens are in ascending order here, where the authors' are shuffled.
"""

from torch import Tensor

from training.methods.deepavfusion.config import kept_count
from training.methods.shared.masking import Mask, keep_first, noise


def uniform_mask(seeds: Tensor, stream: int, tokens: int, ratio: float) -> Mask:
    """Uniform masking of one modality's tokens, for seeds [B]; `stream` is that of the modality."""
    return keep_first(noise(seeds, stream, tokens).argsort(dim=1, stable=True), kept_count(tokens, ratio))
