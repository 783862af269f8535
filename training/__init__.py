"""From shards to a trained, evaluated model.

stream/         shards -> batches, exactly resumable
model/          CrossMAE and its losses
config.py       what a run can be told
train.py        the loop
checkpoint.py   folders that are whole or absent
evaluate.py     from a checkpoint to numbers (evaluation/)
finetune/       encoders and a linear head, for classification
"""
