"""DeepAVFusion (Mo and Morgado, CVPR 2024): the model, its losses, and its heads.

Reading order:

model.py         mask, encode by three branches, decode each modality; eq. 16
config.py        every choice with its text in the paper and what the authors' code does
encoder.py       image, audio and fusion branch, each of which reads the others' layer before
fusion.py        the fusion blocks: factorized and dense interactions, tokens, MBT; the exact split of pairs
decoder.py       own visible tokens and the fusion branch -> patches
masking.py       uniform masks by the authors' counts
spectrogram.py   log-mel of 3 s of sound, the same from our fbank, and back to a waveform through a mask
unet.py          what both upsampling decoders are made of
segmentation.py  who sounds, pixel by pixel
separation.py    the sound of what is seen, as a mask of the mix
schedule.py      the ramp of pretrained encoders, and LARS
weights.py       the authors' files under our names
"""

from training.methods.deepavfusion.config import VARIANTS, DeepAVFusionConfig, with_variant
from training.methods.deepavfusion.model import DeepAVFusion

__all__ = ["VARIANTS", "DeepAVFusion", "DeepAVFusionConfig", "with_variant"]
