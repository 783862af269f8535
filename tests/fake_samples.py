"""Runs of make-shards without any decoding: what a file holds says what happens to its clip."""

import ctypes
import hashlib
import mmap
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clip_error import ClipError
from pipeline.encode_sample import Encoded
from pipeline.make_shards import MakeShardsConfig, run
from shards_spec.dataset import Dataset, read_dataset
from shards_spec.sample import FBANK_SHAPE, encode_fbank, encode_json
from shards_spec.tables import read_table


def fake_sample(path: Path, row: dict[str, Any]) -> Encoded:
    """A sample that follows from the file's content, or the accident that the content names."""
    content = path.read_bytes()
    match content:
        case b"hang":
            time.sleep(1000)
        case b"abort":
            os.abort()
        case b"segfault":
            ctypes.string_at(0)
        case b"exit":
            os._exit(3)
        case b"hoard":
            hoard = []
            while True:
                hoard.append(bytearray(20_000_000))
        case b"hoard what no limit of the kernel counts":
            shared = mmap.mmap(-1, 4_000_000_000)
            while shared.tell() < len(shared):
                shared.write(b"x" * 10_000_000)
                time.sleep(0.002)
        case b"defect":
            raise KeyError("a mistake of ours")
        case b"no_audio":
            raise ClipError("no_audio", "no audio stream")
    generator = np.random.default_rng(zlib.crc32(content))
    fbank = np.zeros(FBANK_SHAPE, np.float16)
    fbank[:10] = generator.normal(-5, 4, (10, FBANK_SHAPE[1]))
    valid = fbank[:10].astype(np.float64)
    metadata = {"key": row["key"], "content": content.decode()}
    payloads = {"json": encode_json(metadata), "jpg": content, "fbank.npy": encode_fbank(fbank)}
    return Encoded(payloads, 10, float(valid.sum()), float(np.square(valid).sum()))


leaked: list[bytearray] = []


def leaking_sample(path: Path, row: dict[str, Any]) -> Encoded:
    """Each clip leaves as many MB behind as its file says."""
    leaked.append(bytearray(1_000_000 * int(path.read_text())))
    return fake_sample(path, row)


def ytid(number: int) -> str:
    return f"-_{number:09d}"


def make(raw: Path, out: Path, **options: Any) -> Dataset:
    """A run with fake samples that must succeed."""
    options.setdefault("shard_size", 4)
    config = MakeShardsConfig(raw=(raw,), out=out, **{"max_failed": 1.0, "workers": 2} | options)
    assert run(config, make=fake_sample) == 0
    return read_dataset(out)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("shard-*.parquet")) for row in read_table(path)[0].to_pylist()]


def reasons(out: Path) -> dict[str, str | None]:
    return {row["source"] or row["key"]: row["reason"] for row in rows(out)}


def write_files(raw: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text(content)
    return raw


def write_csv(path: Path, numbers: list[int]) -> Path:
    path.write_text("".join(f'{ytid(i)}, 30.000, 40.000, "/m/{i}"\n' for i in numbers))
    return path


def ten_files(raw: Path) -> Path:
    return write_files(raw, {f"{ytid(i)}_30.mp4": f"clip {i}" for i in range(10)})


def thirty_files(raw: Path) -> Path:
    """In three folders; two of them give no sample."""
    files = {f"{'a b' if i % 3 else '_'}/{ytid(i)}_30.mp4": f"clip {i}" for i in range(28)}
    return write_files(raw, files | {f"{ytid(98)}_30.mp4": "no_audio", f"{ytid(99)}_30.mkv": "abort"})


def hashes(out: Path) -> list[str]:
    """sha256 of the tars that are there, in order."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.tar"))]


def fake_sample_with_options(path: Path, row: dict[str, Any], *, options: object) -> Encoded:
    """Takes the place of make_sample."""
    return fake_sample(path, row)
