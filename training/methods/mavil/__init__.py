"""MAViL (Huang et al., NeurIPS 2023): the model and its losses.

Reading order:

model.py       mask twice, encode, fuse, decode, contrast; eqs. 4 and 6
config.py      every choice with its text in the paper, and what there is of the authors' code
encoder.py     the ViT of one modality: sound, a frame, or tubes of two frames; its positions
fusion.py      vanilla blocks on all tokens of both, or bottleneck tokens between them
decoder.py     fused tokens of one modality -> its patches, or the teacher's tokens
teacher.py     stage 2: the frozen model of the last stage, and what it makes targets of
masking.py     two views of a sample; the masks of fine-tuning
losses.py      the contrastive loss, eq. 2
patches.py     frames to patches of tubes
classifier.py  a fine-tuned model
weights.py     the released files, MAE's for the video, and other numbers of frames
"""

from training.methods.mavil.config import MAViLConfig
from training.methods.mavil.model import MAViL

__all__ = ["MAViL", "MAViLConfig"]
