"""Datasets of samples that a test chooses, with several frames each if it likes, written with shards_spec alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from shards_spec.dataset import Dataset, ShardInfo, fingerprint, write_dataset
from shards_spec.sample import encode_fbank, encode_json, member_column, member_names
from shards_spec.tables import shard_schema, shard_stem, write_table
from shards_spec.tar import TarWriter


class Chosen(NamedTuple):
    """One sample: its frames uint8 [F, S, S, 3], of which the middle one is the sample's, and its fbank."""

    frames: npt.NDArray[np.uint8]
    fbank: npt.NDArray[np.float16]


def write_samples(folder: Path, samples: Mapping[str, Chosen], *, frames: int = 1) -> Path:
    """A complete dataset of one shard; `frames` as in `make-shards --frames`."""
    folder.mkdir(parents=True)
    tar, rows = folder / f"{shard_stem(0)}.tar", []
    with tar.open("wb") as file:
        writer = TarWriter(file)
        for key, sample in samples.items():
            jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95) for frame in sample.frames]
            payloads = {"json": encode_json({"key": key}), "jpg": jpegs[len(jpegs) // 2]}
            payloads["fbank.npy"] = encode_fbank(sample.fbank)
            if frames > 1:
                payloads |= {f"frame{f:02d}.jpg": jpeg for f, jpeg in enumerate(jpegs)}
            span = writer.add(key, payloads)
            row = {"key": key, "shard": 0, "status": "ok", "label_ids": [], "valid_frames": 998}
            row |= {"offset": span.offset, "length": span.length}
            for name, member in span.members.items():
                for field in ("offset", "length", "crc32"):
                    row[member_column(name, field)] = getattr(member, field)
            rows.append(row)
        sha256 = writer.finish()
    write_table(tar.with_suffix(".parquet"), rows, shard_schema(member_names(frames)), {"sha256": sha256})
    shard = ShardInfo(name=tar.name, samples=len(rows), failed=0, bytes=writer.size, sha256=sha256)
    facts = {"recipe": {}, "failed": 0, "failures": {}, "classes": [], "mean": -4.0, "std": 4.0, "versions": {}}
    write_dataset(folder, Dataset(samples=len(rows), shards=[shard], fingerprint=fingerprint([shard]), **facts))
    return folder
