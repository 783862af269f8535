"""The contract between the offline stage and training: what a dataset folder holds, to the byte.

sample.py   one sample: members, dtypes, shapes, fbank constants, keys
tar.py      samples -> tar bytes, with the place of every payload
tables.py   plan.parquet and shard-*.parquet
dataset.py  dataset.json
atomic.py   files that appear whole or not at all
storage.py  local folders and URLs, read and written alike
errors.py   what a user can mend, and what is damaged
"""

__version__ = "0.1.0"  # of the whole project; pyproject.toml reads it here
