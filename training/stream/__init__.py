"""From a dataset's shards to batches, every sample exactly once an epoch.

order.py    which sample comes when; a place in the endless run of epochs
index.py    where each sample lies: shard, offset, length, crc32
reader.py   one sample: read, check, decode into memory that is there
ring.py     worker processes and the batch slots that they fill
loader.py   a rank's share of the order -> batches -> normalised inputs
"""
