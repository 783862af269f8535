"""CAV-MAE (Gong et al., ICLR 2023): the model and its losses.

Reading order:

model.py       mask, encode by three streams, contrast, decode both modalities together; eq. 10
config.py      every choice with its text in the paper and what the authors' code does
encoder.py     own blocks, and shared blocks with norms for each stream
decoder.py     all 708 tokens -> patches of both modalities
masking.py     uniform, time, frequency and time-frequency masks
losses.py      the contrastive loss, eq. 7
classifier.py  a fine-tuned model
weights.py     the authors' files, in our order of tokens
"""

from training.methods.cav_mae.config import VARIANTS, CAVMAEConfig, with_variant
from training.methods.cav_mae.model import CAVMAE

__all__ = ["CAVMAE", "VARIANTS", "CAVMAEConfig", "with_variant"]
