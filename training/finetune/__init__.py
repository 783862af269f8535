"""Fine-tuning: the pre-trained encoders, unmasked, and a linear head (`train.py finetune`).

config.py      what a run can be told
recipes.py     the paper's setting and the peers', as defaults of it
classifier.py  encoders, pooled features, head; the running mean of the weights
labels.py      which classes each sample has
augment.py     mixup, SpecAugment, shift and noise: functions of a sample's seed
balanced.py    the order in which rare classes come as often as frequent ones
finetune.py    all of it, for the loop
"""
