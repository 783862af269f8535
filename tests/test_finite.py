"""The fbank of every sample and the mean of every dataset are finite, whatever one damaged sample of sound says."""

import json
import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio import LOUDEST, check_samples
from pipeline.clip_error import ClipError
from pipeline.encode_sample import SampleOptions, make_sample
from pipeline.fbank import fbank
from shards_spec.dataset import DATASET_FILE, read_dataset
from shards_spec.errors import UserError
from shards_spec.sample import FBANK_MEMBER, SAMPLE_RATE, decode_fbank
from shards_spec.tables import read_table, shard_schema, write_table
from tests.clips import decode, make_clip, reason
from tests.fake_samples import make, ten_files
from tools.embedding.files import plan_row

MARK = 0.123  # the sample that is damaged


def damaged(folder: Path, value: float, *, second: float = 1.0, codec: str = "pcm_f32le") -> Path:
    """A clip of 4 s of silence in which one sample is `value`."""
    waveform = np.zeros((1, 4 * SAMPLE_RATE), np.float32)
    waveform[0, round(second * SAMPLE_RATE)] = MARK
    path = make_clip(folder / "damaged.mov", 4, waveform=waveform, audio_codec=codec)
    kind = "<f" if codec == "pcm_f32le" else "<d"
    data = path.read_bytes()
    marked = struct.pack(kind, np.float32(MARK))
    assert data.count(marked) == 1
    path.write_bytes(data.replace(marked, struct.pack(kind, value)))
    return path


@pytest.mark.parametrize("decoder", ["pyav", "decord", "auto"])
@pytest.mark.parametrize("value", [1e20, -1e30, 5000.0, math.inf, math.nan])
def test_a_damaged_sample_is_an_error_that_says_so(tmp_path: Path, value: float, decoder: str) -> None:
    path = damaged(tmp_path, value)
    with pytest.raises(ClipError, match="decode_error: the sound is damaged") as caught:
        decode(path, decoder)
    assert ("times full scale" in caught.value.detail) == math.isfinite(value)


def test_what_no_float_of_32_bits_holds_is_one_too(tmp_path: Path) -> None:
    path = damaged(tmp_path, 1e300, codec="pcm_f64le")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(path) == "decode_error"


def test_sound_over_full_scale_is_sound(tmp_path: Path) -> None:
    clip = decode(damaged(tmp_path, 4.0))
    assert clip.waveform.max() == 4.0


def test_a_damaged_sample_outside_of_the_segment_is_none_of_its(tmp_path: Path) -> None:
    path = damaged(tmp_path, 1e20, second=3.0)
    assert np.abs(decode(path, start=0.0, end=2.0, named_start=0.0).waveform).max() == 0
    assert reason(path, start=2.0, end=4.0, named_start=0.0) == "decode_error"


def test_the_loudest_sound_has_a_finite_fbank_and_finite_sums(tmp_path: Path) -> None:
    loudest = np.full(10 * SAMPLE_RATE, LOUDEST, np.float32) * (-1.0) ** np.arange(10 * SAMPLE_RATE, dtype=np.float32)
    check_samples(loudest)
    assert np.isfinite(fbank(loudest)[0]).all()
    encoded = make_sample(damaged(tmp_path, LOUDEST), plan_row(Path("a.mov"), None), options=SampleOptions())
    assert np.isfinite(decode_fbank(encoded.payloads[FBANK_MEMBER])).all()
    assert math.isfinite(encoded.fbank_sum) and math.isfinite(encoded.fbank_sumsq)


@pytest.mark.parametrize("column", ["fbank_sum", "fbank_sumsq"])
def test_no_dataset_without_a_mean_is_complete(tmp_path: Path, column: str) -> None:
    """Earlier versions wrote such samples."""
    raw, out = ten_files(tmp_path / "raw"), tmp_path / "out"
    whole = make(raw, out)
    parquet = out / "shard-000001.parquet"
    table, facts = read_table(parquet)
    rows = table.to_pylist()
    rows[2][column] = math.inf
    facts.pop("spec_version")
    write_table(parquet, rows, shard_schema(("json", "jpg", "fbank.npy")), facts)
    (out / DATASET_FILE).unlink()
    with pytest.raises(UserError, match=f"shard-000001.parquet: the fbank of sample {rows[2]['key']} is not finite"):
        make(raw, out)
    assert not (out / DATASET_FILE).exists()
    parquet.unlink()
    assert make(raw, out) == whole


def test_a_dataset_that_says_it_has_no_mean_is_not_read(tmp_path: Path) -> None:
    raw, out = ten_files(tmp_path / "raw"), tmp_path / "out"
    whole = make(raw, out)
    facts = json.loads((out / DATASET_FILE).read_text())
    (out / DATASET_FILE).write_text(json.dumps(facts | {"mean": math.nan}))
    with pytest.raises(UserError, match=r"fbank mean is nan.*run the same make-shards command again"):
        read_dataset(out)
    assert make(raw, out) == whole
