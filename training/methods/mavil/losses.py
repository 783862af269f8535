"""MAViL's contrastive losses (eqs. 2 and 3), with cosine similarity, in float32 whatever comes in.

With torch.distributed features are a rank's rows of the global batch, and the mean over the ranks is its loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.mavil.config import Negatives
from training.methods.shared.blocks import without_autocast
from training.methods.shared.contrast import all_pairs

_LOCAL = 8  # samples: the paper's 512 on its 64 GPUs


def contrast(x: Tensor, y: Tensor, temperature: float, *, negatives: Negatives, is_symmetric: bool) -> Tensor:
    """L_c(x, y) of eq. 2 of features [B, D], a scalar; the mean of L_c(x, y) and L_c(y, x) where `is_symmetric`."""
    pairs = all_pairs(F.normalize(x.float(), dim=-1), F.normalize(y.float(), dim=-1))
    all_x, all_y = pairs.all_audio, pairs.all_image  # the pairs' first and second
    if negatives == "no_gradient":
        all_x, all_y = all_x.detach(), all_y.detach()
    own = torch.arange(len(x), device=x.device) + pairs.first
    is_other = None
    if negatives == "local":
        is_other = own[:, None] // _LOCAL != torch.arange(len(all_x), device=x.device)[None, :] // _LOCAL
    one_way = _info_nce(pairs.audio, all_y, temperature, own, is_other)
    return (one_way + _info_nce(pairs.image, all_x, temperature, own, is_other)) / 2 if is_symmetric else one_way


def _info_nce(rows: Tensor, columns: Tensor, temperature: float, own: Tensor, is_other: Tensor | None) -> Tensor:
    """Eq. 2 of unit vectors: rows [B, D] beside all columns [W * B, D], those apart of which is_other tells."""
    with without_autocast(rows):  # bf16 leaves a handful of values to cosines that are nearly alike
        logits = rows @ columns.T / temperature
    if is_other is not None:
        logits = logits.masked_fill(is_other, -torch.inf)
    return F.cross_entropy(logits, own)
