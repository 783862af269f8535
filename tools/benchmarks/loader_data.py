"""Made datasets for tools/bench_loader.py: of AudioSet's sample size, and of AudioSet-2M's length.

Samples are about 278 KB each: a smooth 224 x 224 JPEG of some 13.5 KB (that is what video frames take at quality 95),
a random float16 fbank, a little JSON. More frames are of the same kind; sound is ten seconds of a voice-like hum.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from shards_spec.dataset import Dataset, ShardInfo, fingerprint, read_dataset, write_dataset
from shards_spec.sample import (
    AUDIO_MEMBER,
    CLIP_SECONDS,
    FBANK_SHAPE,
    FRAME_SIZE,
    JPEG_QUALITY,
    SAMPLE_RATE,
    audioset_key,
    encode_fbank,
    encode_json,
    extra_frame_member,
    member_column,
    member_names,
)
from shards_spec.tables import shard_schema, shard_stem, write_table
from shards_spec.tar import TarWriter

SHARD_SAMPLES = 512
_COARSE = 10  # pixels a side of the noise that becomes a smooth frame
_GRAIN = 1.0  # standard deviation of the noise on top: sets the size of the JPEG


def write_samples(folder: Path, samples: int, seed: int = 0, *, frames: int = 1, keep_audio: bool = False) -> None:
    """Writes a complete dataset of made samples, SHARD_SAMPLES to a shard, as make-shards with these options would."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    shards = []
    for number, first in enumerate(range(0, samples, SHARD_SAMPLES)):
        tar = folder / f"{shard_stem(number)}.tar"
        keys = [audioset_key(f"clip{i:07d}", 30.0) for i in range(first, min(first + SHARD_SAMPLES, samples))]
        with tar.open("wb") as file:
            writer = TarWriter(file)
            rows = [_add_sample(writer, key, number, generator, frames, keep_audio) for key in keys]
            sha256 = writer.finish()
        write_table(
            tar.with_suffix(".parquet"), rows, shard_schema(member_names(frames, keep_audio)), {"sha256": sha256}
        )
        shards.append(ShardInfo(name=tar.name, samples=len(keys), failed=0, bytes=writer.size, sha256=sha256))
    _write_facts(folder, shards)


def write_long(folder: Path, source: Path, shards: int) -> None:
    """Writes a dataset of `shards` shards that are all hard links to the first shard of `source`.

    It is as long as it says for the index, the order and the loader, and takes no room.
    """
    folder.mkdir(parents=True)
    tar = source / f"{shard_stem(0)}.tar"
    sha256 = read_dataset(source).shards[0].sha256
    infos = []
    for number in range(shards):
        link = folder / f"{shard_stem(number)}.tar"
        os.link(tar, link)
        os.link(tar.with_suffix(".parquet"), link.with_suffix(".parquet"))
        infos.append(
            ShardInfo(name=link.name, samples=SHARD_SAMPLES, failed=0, bytes=tar.stat().st_size, sha256=sha256)
        )
    _write_facts(folder, infos)


def _write_facts(folder: Path, shards: list[ShardInfo]) -> None:
    write_dataset(
        folder,
        Dataset(
            recipe={},
            samples=sum(shard.samples for shard in shards),
            failed=0,
            failures={},
            shards=shards,
            classes=[],
            mean=0.0,
            std=1.0,
            fingerprint=fingerprint(shards),
            versions={},
        ),
    )


def _add_sample(
    writer: TarWriter, key: str, shard: int, generator: np.random.Generator, frames: int, keep_audio: bool
) -> dict[str, Any]:
    """Appends a made sample to a tar; returns its row of the shard's table."""
    fbank = generator.standard_normal(FBANK_SHAPE, np.float32).astype(np.float16)
    payloads = {"json": encode_json({"key": key}), "jpg": _frame(generator), "fbank.npy": encode_fbank(fbank)}
    if frames > 1:
        payloads |= {extra_frame_member(i): _frame(generator) for i in range(frames)}
    if keep_audio:
        payloads[AUDIO_MEMBER] = _sound(generator)
    span = writer.add(key, payloads)
    row: dict[str, Any] = {
        "key": key,
        "source": f"{key}.mp4",
        "start": 30.0,
        "end": 40.0,
        "labels": ["/m/09x0r", "/m/04rlf"],
        "label_ids": [0, 137],
        "shard": shard,
        "status": "ok",
        "offset": span.offset,
        "length": span.length,
        "valid_frames": 998,
    }
    for name, member in span.members.items():
        row[member_column(name, "offset")] = member.offset
        row[member_column(name, "length")] = member.length
        row[member_column(name, "crc32")] = member.crc32
    return row


def _sound(generator: np.random.Generator) -> bytes:
    """Ten seconds of harmonics under a slow envelope, with a little noise, as FLAC."""
    seconds = np.arange(round(CLIP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = generator.uniform(90, 250)
    tone = sum(np.sin(2 * np.pi * pitch * k * seconds) / k for k in range(1, 12))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * seconds)
    wave = 3000 * tone * envelope + generator.normal(0, 60, len(seconds))
    flac = io.BytesIO()
    soundfile.write(flac, wave.astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return flac.getvalue()


def _frame(generator: np.random.Generator) -> bytes:
    """A smooth picture with a little grain, as JPEG."""
    coarse = Image.fromarray(generator.integers(0, 256, (_COARSE, _COARSE, 3), np.uint8))
    smooth = np.asarray(coarse.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC), np.float32)
    grain = generator.standard_normal((FRAME_SIZE, FRAME_SIZE, 1), np.float32) * _GRAIN
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return jpeg.getvalue()
