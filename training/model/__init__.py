"""CrossMAE (Guo et al., CVPR 2024): the model and its losses; nothing here knows of data, devices or the trainer.

Reading order:

crossmae.py   the model: see (mask, encode, attend), contrast, reconstruct pixels, reconstruct embeddings; eq. 13
config.py     every switch with its text in the paper; sizes, and the variants of Table 2
masking.py    which tokens are hidden: a pure function of a sample's seed
encoder.py    the ViT of one modality, and the attention of its [CLS] token
attentive.py  Attentive Tokens, eqs. 5 and 6
decoders.py   pixels on the other side's Attentive Tokens (eqs. 7, 8); the other side's features (eqs. 10, 11)
contrast.py   the contrastive loss over the global batch, eq. 1
losses.py     reconstruction losses, eqs. 2, 9 and 12
teacher.py    who makes the targets of eq. 12, if not the model itself
blocks.py     cross-attention, and initialisation
patches.py    images and fbanks to patches and back; 2-D sin-cos positions

Beside the model, diagnostics.py: what a loss does not tell: collapse, and whether each side uses the other.

Letters: B samples, N patches (196 of an image, 512 of an fbank), V visible patches, K Attentive Tokens, D width,
P values of a patch. `is_masked` is True where a patch is hidden.
"""

from training.model.config import (
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
from training.model.crossmae import CrossMAE, CrossMAEOutput, Reconstructed, Reconstruction
from training.model.encoder import Features

__all__ = [
    "PRESETS",
    "VARIANTS",
    "CrossMAE",
    "CrossMAEConfig",
    "CrossMAEOutput",
    "Features",
    "Reconstructed",
    "Reconstruction",
    "config_from_dict",
    "config_to_dict",
    "crossmae_base",
    "crossmae_large",
    "crossmae_small",
    "crossmae_tiny",
    "with_variant",
]
