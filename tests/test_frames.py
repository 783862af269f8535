"""The evenly spaced frames of a dataset made with --frames, and predictions averaged over them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from shards_spec.dataset import ShardInfo, fingerprint, read_dataset, write_dataset
from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE, encode_fbank, encode_json, member_column, member_names
from shards_spec.tables import shard_schema, write_table
from shards_spec.tar import TarWriter
from tests.datasets import make_dataset
from training.evaluation.classification import classify
from training.evaluation.frames import FrameReader
from training.finetune.classifier import Classifier, LoadedClassifier
from training.methods.shared.encoder import EncoderConfig
from training.stream.index import open_index
from training.stream.loader import Normalise

F = 3


def jpeg(level):
    return simplejpeg.encode_jpeg(np.full((FRAME_SIZE, FRAME_SIZE, 3), level, np.uint8), quality=95)


def with_frames(folder):
    """Two shards of samples whose frame f is of the grey 10 x number + f; a failed clip comes first in each."""
    make_dataset(folder, (2, 3))
    number, shards = 0, []
    for shard, size in enumerate((2, 3)):
        tar = folder / f"shard-{shard:06d}.tar"
        rows = [{"key": f"gone{shard}", "shard": shard, "status": "failed", "reason": "missing"}]
        with tar.open("wb") as file:
            writer = TarWriter(file)
            for _ in range(size):
                payloads = {"json": encode_json({"key": f"clip{number}"}), "jpg": jpeg(255)}
                payloads["fbank.npy"] = encode_fbank(np.zeros(FBANK_SHAPE, np.float16))
                payloads |= {f"frame{f:02d}.jpg": jpeg(40 * number + f) for f in range(F)}
                span = writer.add(f"clip{number}", payloads)
                row = {"key": f"clip{number}", "shard": shard, "status": "ok", "label_ids": [number % 2]}
                row |= {"offset": span.offset, "length": span.length, "valid_frames": 998}
                for name, member in span.members.items():
                    for field in ("offset", "length", "crc32"):
                        row[member_column(name, field)] = getattr(member, field)
                rows.append(row)
                number += 1
            sha256 = writer.finish()
        write_table(tar.with_suffix(".parquet"), rows, shard_schema(member_names(F)), {"sha256": sha256})
        shards.append(ShardInfo(name=tar.name, samples=size, failed=1, bytes=writer.size, sha256=sha256))
    dataset = replace(read_dataset(folder), shards=shards, fingerprint=fingerprint(shards))
    write_dataset(folder, dataset)
    return folder


def test_frames_come_in_order_from_whatever_shard(tmp_path):
    reader = FrameReader(open_index(with_frames(tmp_path / "set")))
    assert reader.count == F
    frames = reader.read(np.array([4, 0, 3, 1]))
    assert frames.shape == (4, F, FRAME_SIZE, FRAME_SIZE, 3)
    expected = [[40 * number + f for f in range(F)] for number in (4, 0, 3, 1)]
    assert frames[:, :, 100, 100, 0].tolist() == expected  # a uniform grey survives JPEG


def test_a_dataset_of_middle_frames_has_none(tmp_path):
    assert FrameReader(open_index(make_dataset(tmp_path / "set", (2, 1)))).count == 0


def test_a_damaged_frame_is_named(tmp_path):
    folder = with_frames(tmp_path / "set")
    tar = Path(folder / "shard-000001.tar")
    data = bytearray(tar.read_bytes())
    place = data.find(jpeg(40 * 3 + 1)) + 300
    data[place] ^= 1
    tar.write_bytes(data)
    reader = FrameReader(open_index(folder))
    reader.read(np.array([0, 2, 4]))
    with pytest.raises(DamagedSampleError, match=r"000001.tar: sample clip3: its frame 1 at byte \d+ has"):
        reader.read(np.array([3]))


@pytest.mark.parametrize("task", ["singlelabel", "multilabel"])
@pytest.mark.parametrize("inputs", ["av", "v", "a"])
def test_probabilities_are_averaged_over_frames(task, inputs):
    torch.manual_seed(0)
    classifier = Classifier(EncoderConfig(dim=16, depth=1, heads=2), inputs=inputs, classes=4).eval()
    torch.nn.init.normal_(classifier.head.weight)
    facts = {"inputs": inputs, "task": task, "class_list": "", "averaged": 0, "checkpoint": Path(), "step": 0}
    loaded = LoadedClassifier(classifier=classifier, normalise=Normalise(-4.0, 4.0), **facts)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, F, FRAME_SIZE, FRAME_SIZE, 3), generator=generator, dtype=torch.uint8)
    fbank = torch.randn(2, *FBANK_SHAPE, generator=generator).half()
    each = [classify(loaded, frames[:, f : f + 1], fbank) for f in range(F)]
    together = classify(loaded, frames if "v" in inputs else frames[:, :1], fbank)
    if inputs == "a":
        assert torch.equal(together, each[0]) and torch.equal(each[0], each[1])
        return
    expected = sum(s.softmax(dim=1) if task == "singlelabel" else s.sigmoid() for s in each) / F
    torch.testing.assert_close(together, expected)
    assert not torch.allclose(each[0], each[1])
