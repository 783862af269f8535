"""One number for each random choice of a sample: two streams of one seed have nothing to do with each other.

Every choice is a hash of (seed, stream, index), where the seed is that of the sample in its epoch. The numbers are part
of what a run is: they never change, and none is given twice.
"""

# Masks
IMAGE_MASK, AUDIO_MASK, AUDIO_TIME, AUDIO_FREQUENCY, IMAGE_ATTENTIVE, AUDIO_ATTENTIVE = range(6)
IMAGE_TIME, IMAGE_SPACE = range(20, 22)  # of MAViL, as are its second views:
IMAGE_MASK_2, IMAGE_TIME_2, IMAGE_SPACE_2, AUDIO_MASK_2, AUDIO_TIME_2, AUDIO_FREQUENCY_2 = range(22, 28)
# Augmentation of the sound, and mixup
IS_MIXED, PARTNER, MIXED_SHARE, SPEC_BANDS, SPEC_ROWS, NOISE, LOUDNESS, SHIFT = range(100, 108)
# Augmentation of frames and waveforms
CROP, FLIP, GAIN = range(110, 113)
# What is read of a sample
FRAMES, SOUND = range(200, 202)
