"""What several methods are made of.

patches.py        images and fbanks to patches and back; 2-D sin-cos positions
masking.py        which tokens are hidden: a pure function of a sample's seed
padding.py        which tokens hold no sound, for models that leave them out
encoder.py        the ViT of one modality, and the attention of its [CLS] token
blocks.py         cross-attention, and initialisation
contrast.py       the contrastive loss over the global batch
losses.py         reconstruction losses
config_values.py  what several configs hold; configs to JSON values and back
"""
