"""Datasets whose every byte is as make-shards writes it, without any decoding: a file's content picks its picture."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.clip_error import ClipError
from pipeline.encode_sample import Encoded
from pipeline.make_shards import MakeShardsConfig, run
from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE, encode_fbank, encode_json
from shards_spec.tables import LATER_COLUMNS, read_table, write_table
from tests.fake_samples import write_files, ytid

HOSTILE = "<script>alert('x')</script>\"&amp;"


def whole_sample(path: Path, row: dict[str, Any]) -> Encoded:
    """A sample that follows from the file's content; files that say `silent` have no audio."""
    content = path.read_bytes()
    if content == b"silent":
        raise ClipError("no_audio", f"no audio stream {HOSTILE}")
    generator = np.random.default_rng(zlib.crc32(content))
    valid = int(generator.integers(100, 999))
    fbank = np.zeros(FBANK_SHAPE, np.float16)
    fbank[:valid] = generator.normal(-5, 4, (valid, FBANK_SHAPE[1]))
    values = fbank[:valid].astype(np.float64)
    pixels = np.tile(np.arange(FRAME_SIZE, dtype=np.uint8)[:, None, None], (1, FRAME_SIZE, 3))
    jpeg = io.BytesIO()
    Image.fromarray(pixels ^ generator.integers(0, 256, 3, np.uint8)).save(jpeg, "JPEG", quality=60)
    metadata = {name: row[name] for name in ("key", "ytid", "start", "end", "source")}
    metadata |= {"labels": row["labels"] or [], "label_ids": row["label_ids"] or [], "file_start": 0.0}
    metadata |= {"duration": valid / 100, "fps": 25.0, "width": 640, "height": 360, "sample_rate": 44_100}
    metadata |= {"channels": 2, "frame_time": valid / 200, "valid_frames": valid, "decoder": "pyav"}
    if row["boxes"]:
        metadata["boxes"] = row["boxes"]
    payloads = {"json": encode_json(metadata), "jpg": jpeg.getvalue(), "fbank.npy": encode_fbank(fbank)}
    return Encoded(payloads, valid, float(values.sum()), float(np.square(values).sum()))


def whole_dataset(folder: Path, **options: Any) -> Path:
    """A dataset of ten clips in shards of four, with labels; one has no sound, one no file, one row is damaged."""
    folder.mkdir(exist_ok=True)
    numbers = [*range(8), 99]
    raw = write_files(folder / "raw", {f"{ytid(i)}_30.mp4": "silent" if i == 6 else f"clip {i}" for i in range(8)})
    csv = folder / "segments.csv"
    csv.write_text("".join(f'{ytid(i)}, 30.000, 40.000, "/m/{i % 3},/m/3"\n' for i in numbers) + "#NAME?, 1, 2, /m/1\n")
    labels = folder / "labels.csv"
    names = [HOSTILE.replace('"', '""'), "Dog", "Bell, small", "Music"]
    labels.write_text("index,mid,display_name\n" + "".join(f'{i},/m/{i},"{name}"\n' for i, name in enumerate(names)))
    settings: dict[str, Any] = {"segments": csv, "class_labels": labels, "shard_size": 4, "workers": 2, "max_failed": 1}
    config = MakeShardsConfig(raw=(raw,), out=folder / "out", **settings | options)
    assert run(config, make=whole_sample) == 0
    return folder / "out"


def rewrite_as_before(path: Path) -> None:
    """A table as versions wrote it that knew less."""
    table, facts = read_table(path)
    older = table.drop_columns(list(LATER_COLUMNS)).replace_schema_metadata(None)
    write_table(path, older, older.schema, {k: v for k, v in facts.items() if k != "spec_version"})
