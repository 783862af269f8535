"""From a dataset's shards to batches, every sample exactly once an epoch.

order.py    which sample comes when; a place in the endless run of epochs
index.py    where each sample lies: shard, offset, length, crc32
reader.py   one sample: read, check, decode into memory that is there
ring.py     worker processes and the batch slots that they fill
pinned.py   ... page-locked, for CUDA devices
waiting.py  waiting for data that can be broken off
loader.py   a rank's share of the order -> batches -> normalised inputs

Where the shards are remote:

ahead.py         which of them the next batches need
cache.py         those are on the local disk before they are needed
cache_folder.py  what the cache directory holds, who uses it, what goes first
fetch.py         one file from a server, whole and checked
"""
