"""CrossMAE (Guo et al., CVPR 2024): the model and its losses.

Reading order:

model.py      the model: see (mask, encode, attend), contrast, reconstruct pixels, reconstruct embeddings; eq. 13
config.py     every switch with its text in the paper; sizes, and the variants of Table 2
attentive.py  Attentive Tokens, eqs. 5 and 6
decoders.py   pixels on the other side's Attentive Tokens (eqs. 7, 8); the other side's features (eqs. 10, 11)
view.py       one modality as its encoder sees it: masked, its Attentive Tokens chosen
teacher.py    who makes the targets of eq. 12, if not the model itself

Beside the model, diagnostics.py: what a loss does not tell: collapse, and whether each side uses the other.

Letters: B samples, N patches (196 of an image, 512 of an fbank), V visible patches, K Attentive Tokens, D width,
P values of a patch. `is_masked` is True where a patch is hidden.
"""

from training.methods.crossmae.config import (
    PRESETS,
    VARIANTS,
    CrossMAEConfig,
    config_from_dict,
    config_to_dict,
    crossmae_base,
    crossmae_large,
    crossmae_small,
    crossmae_tiny,
    with_variant,
)
from training.methods.crossmae.model import CrossMAE
from training.methods.shared.encoder import Features

__all__ = [
    "PRESETS",
    "VARIANTS",
    "CrossMAE",
    "CrossMAEConfig",
    "Features",
    "config_from_dict",
    "config_to_dict",
    "crossmae_base",
    "crossmae_large",
    "crossmae_small",
    "crossmae_tiny",
    "with_variant",
]
