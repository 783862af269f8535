"""One number for each random choice of a sample: two streams of one seed have nothing to do with each other.

Every choice is a hash of (seed, stream, index), where the seed is that of the sample in its epoch. The numbers are part
of what a run is: they never change, and none is given twice.
"""

# Masks
IMAGE_MASK, AUDIO_MASK, AUDIO_TIME, AUDIO_FREQUENCY, IMAGE_ATTENTIVE, AUDIO_ATTENTIVE = range(6)
IMAGE_SECOND_VIEW, AUDIO_SECOND_VIEW = range(20, 22)  # MAViL's, for its intra-modal contrast
# Augmentation of the sound, and mixup
IS_MIXED, PARTNER, MIXED_SHARE, SPEC_BANDS, SPEC_ROWS, NOISE, LOUDNESS, SHIFT = range(100, 108)
# Augmentation of frames and waveforms
CROP, FLIP, GAIN = range(110, 113)
# What is read of a sample
FRAMES, SOUND = range(200, 202)
