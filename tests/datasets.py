"""Small datasets written with shards_spec alone, so that training is tested without any decoding."""

import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from shards_spec.atomic import atomic_path
from shards_spec.dataset import Dataset, ShardInfo, fingerprint, write_dataset
from shards_spec.sample import (
    FBANK_SHAPE,
    FRAME_SIZE,
    SAMPLE_RATE,
    encode_fbank,
    encode_json,
    extra_frame_member,
    member_column,
    member_names,
)
from shards_spec.tables import shard_schema, shard_stem, write_table
from shards_spec.tar import TarWriter


def make_dataset(
    folder: Path,
    shard_sizes: tuple[int, ...] = (5, 4, 3),
    seed: int = 0,
    failed: int = 1,
    frames: int = 1,
    seconds: float | None = None,
) -> Path:
    """A complete dataset of random frames and fbanks; every shard also has `failed` failed clips.

    Args:
        frames: as of make-shards; evenly spaced frame i has the brightness 10 i.
        seconds: of sound stored as FLAC, a ramp that tells the sample's place (`make-shards --keep-audio`).
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    shards = []
    for number, size in enumerate(shard_sizes):
        tar = folder / f"{shard_stem(number)}.tar"
        rows = []
        with atomic_path(tar) as temporary, temporary.open("wb") as file:
            writer = TarWriter(file)
            for i in range(size):
                rows.append(
                    _add_sample(writer, f"clip{number:02d}{i:05d}_{1000 * i}", number, generator, frames, seconds)
                )
            sha256 = writer.finish()
        for i in range(failed):
            rows.append({"key": f"gone{number:02d}{i:05d}_0", "shard": number, "status": "failed", "reason": "missing"})
        write_table(
            tar.with_suffix(".parquet"),
            rows,
            shard_schema(member_names(frames, seconds is not None)),
            {"sha256": sha256},
        )
        shards.append(ShardInfo(name=tar.name, samples=size, failed=failed, bytes=writer.size, sha256=sha256))
    write_dataset(
        folder,
        Dataset(
            recipe={},
            samples=sum(shard_sizes),
            failed=failed * len(shards),
            failures={"missing": failed * len(shards)},
            shards=shards,
            classes=[],
            mean=-4.0,
            std=4.0,
            fingerprint=fingerprint(shards),
            versions={},
        ),
    )
    return folder


def _add_sample(
    writer: TarWriter, key: str, shard: int, generator: np.random.Generator, frames: int, seconds: float | None
) -> dict[str, object]:
    colour = generator.integers(0, 256, 3)
    pixels = np.clip(colour + generator.normal(0, 20, (FRAME_SIZE, FRAME_SIZE, 3)), 0, 255).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=80)
    fbank = generator.normal(-4 + colour[0] / 128, 4, FBANK_SHAPE).astype(np.float16)
    fbank[998:] = 0
    payloads = {"json": encode_json({"key": key}), "jpg": jpeg.getvalue(), "fbank.npy": encode_fbank(fbank)}
    if frames > 1:
        payloads |= {extra_frame_member(i): _grey(10 * i) for i in range(frames)}
    if seconds is not None:
        payloads["flac"] = _ramp(seconds)
    span = writer.add(key, payloads)
    row: dict[str, object] = {
        "key": key,
        "shard": shard,
        "status": "ok",
        "offset": span.offset,
        "length": span.length,
        "valid_frames": 998 if seconds is None else min(round(seconds * 100) - 2, 998),
        "label_ids": [int(colour[0]) // 32],
    }
    for name, member in span.members.items():
        row[member_column(name, "offset")] = member.offset
        row[member_column(name, "length")] = member.length
        row[member_column(name, "crc32")] = member.crc32
    return row


def _grey(brightness: int) -> bytes:
    jpeg = io.BytesIO()
    Image.new("RGB", (FRAME_SIZE, FRAME_SIZE), (brightness,) * 3).save(jpeg, "JPEG")
    return jpeg.getvalue()


def _ramp(seconds: float) -> bytes:
    """Sound whose samples count up by one in every 8."""
    flac = io.BytesIO()
    samples = (np.arange(round(seconds * SAMPLE_RATE)) // 8).astype(np.int16)
    soundfile.write(flac, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return flac.getvalue()
