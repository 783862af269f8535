"""The same folder in Hugging Face datasets; skipped where that is not installed, as in CI (`pip install datasets`)."""

import json

import numpy as np
import pytest
import webdataset

from shards_spec.sample import FBANK_SHAPE, encode_json
from shards_spec.tar import TarWriter
from tests.datasets import make_dataset

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")

PLAIN = {  # what make-shards writes for a file without a CSV, where the container does not say how long it is
    "channels": 2, "decoder": "pyav", "duration": None, "end": 10.0, "file_start": 0.0, "fps": None,
    "frame_time": 1.0, "height": 360, "label_ids": [], "labels": [], "sample_rate": 44100, "source": "a.mp4",
    "start": 0.0, "valid_frames": 200, "width": 640, "ytid": None,
}  # fmt: skip
LABELLED = PLAIN | {"duration": 10.1, "fps": 25.0, "ytid": "-abcdefghij", "labels": ["/m/09x0r"], "label_ids": [0]}
BOXES = LABELLED | {"boxes": [[0.1, 0.2, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]]}


def read_plainly(folder):
    tars = sorted(map(str, folder.glob("*.tar")))
    return list(webdataset.WebDataset(tars, shardshuffle=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards: the first five samples say neither duration nor labels, from which the builder would take types."""
    samples = read_plainly(make_dataset(tmp_path_factory.mktemp("made") / "made", (8, 8)))
    folder = tmp_path_factory.mktemp("data")
    for number, facts in enumerate(([PLAIN] * 6 + [LABELLED] * 2, [LABELLED] * 4 + [BOXES] * 4)):
        with (folder / f"shard-{number:06d}.tar").open("wb") as file:
            writer = TarWriter(file)
            for sample, fact in zip(samples[8 * number :], facts, strict=False):
                key = json.loads(sample["json"])["key"]
                metadata = encode_json(fact | {"key": key})
                writer.add(key, {"json": metadata, "jpg": sample["jpg"], "fbank.npy": sample["fbank.npy"]})
            writer.finish()
    return folder


def features():
    """As docs/streaming.md has them."""
    from datasets import Array2D, Features, Image, List, Value

    clip = dict.fromkeys(("start", "end", "file_start", "duration", "fps", "frame_time"), Value("float64"))
    clip |= dict.fromkeys(("width", "height", "sample_rate", "channels", "valid_frames"), Value("int64"))
    clip |= dict.fromkeys(("key", "ytid", "source", "decoder"), Value("string"))
    clip |= {"labels": List(Value("string")), "label_ids": List(Value("int64")), "boxes": List(List(Value("float64")))}
    columns = {"json": clip, "jpg": Image(), "fbank.npy": Array2D(FBANK_SHAPE, "float16")}
    return Features(columns | {"__key__": Value("string"), "__url__": Value("string")})


@pytest.mark.parametrize("streaming", [True, False])
def test_every_field_is_what_was_written(folder, tmp_path, streaming):
    files = {"train": str(folder / "shard-*.tar")}
    options = {"split": "train", "features": features(), "streaming": streaming, "cache_dir": str(tmp_path)}
    rows = list(datasets.load_dataset("webdataset", data_files=files, **options))
    written = read_plainly(folder)
    assert len(rows) == len(written) == 16
    for row, sample in zip(rows, written, strict=True):
        facts = json.loads(sample["json"])
        assert row["json"] == {"boxes": None} | facts
        fbank = np.frombuffer(sample["fbank.npy"], np.float16, offset=128).reshape(FBANK_SHAPE)
        assert np.array_equal(np.asarray(row["fbank.npy"], np.float16), fbank)
        assert row["jpg"].size == (224, 224)
