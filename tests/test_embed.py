"""Embedding of media files: the samples of make-shards, to the bit, and the embeddings of evaluating them."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encode_sample import SampleOptions, make_sample
from pipeline.make_shards import main as make_shards
from shards_spec.sample import member_column
from shards_spec.tables import read_table
from tests.clips import make_clip, number_of
from tests.refusals import longest_file
from tests.runs import train
from tools.embed import Embedded, embed, main, table
from tools.embedding.files import Failed, plan_row, read_files
from training.evaluation.features import embed_dataset, load_model
from training.evaluation.localization import heatmaps
from training.stream.index import open_index

NAMES = ["one.mp4", "Two (2).mp4", "three.mkv"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for i, name in enumerate(NAMES):
        make_clip(folder / name, seconds=4 + 4 * i)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def dataset(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "shards"
    assert make_shards([str(files[0].parent), "--out", str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(f"--data={dataset}", f"--out={folder}", "--steps=1", "--batch-size=2", "--workers=0")
    return folder


def ended(capsys, *arguments):
    """Exit status, stdout and lines of stderr of the command; what a progress bar says does not count."""
    status = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr()
    return status, said.out, [line for line in said.err.splitlines() if line]


def test_samples_are_those_of_make_shards_to_the_bit(files, dataset):
    rows, _ = read_table(dataset / "shard-000000.parquet")
    tar = (dataset / "shard-000000.tar").read_bytes()
    rows = {row["source"]: row for row in rows.to_pylist()}
    assert sorted(rows) == [path.name for path in files]
    for path in files:
        planned, row = plan_row(path, None), rows[path.name]
        assert planned["key"] == row["key"]
        for member, payload in make_sample(path, planned, options=SampleOptions()).payloads.items():
            offset, length = (row[member_column(member, field)] for field in ("offset", "length"))
            assert payload == tar[offset : offset + length], (path, member)


def test_embeddings_are_those_of_evaluating_the_dataset(files, dataset, run):
    expected = embed_dataset(open_index(dataset), load_model(run, torch.device("cpu")), batch_size=2, workers=0)
    result = embed([str(path) for path in files], str(run), batch_size=2)
    assert result.keys == expected.keys and result.paths == [str(path) for path in files] and not result.failures
    assert np.array_equal(result.audio, expected.audio.numpy()) and result.audio.dtype == np.float32
    assert np.array_equal(result.image, expected.image.numpy())
    cosine = torch.nn.functional.cosine_similarity(expected.audio[:, None], expected.image[None], dim=-1)
    np.testing.assert_allclose(result.similarity, cosine.numpy(), atol=1e-6)


def test_the_command(files, run, tmp_path, capsys):
    out, pictures = tmp_path / "emb.npz", tmp_path / "pictures"
    copy = shutil.copy(files[0], tmp_path / files[0].name)  # the same key again
    given = [*files, copy]
    status, said, errors = ended(
        capsys, *given, "--checkpoint", run, "--out", out, "--heatmap", pictures, "--batch-size", "3"
    )
    assert status == 0 and not errors
    expected = embed(given, run, batch_size=3)  # in this process: decoded alike
    with np.load(out) as written:
        assert sorted(written) == ["audio", "image", "keys", "paths"]
        assert np.array_equal(written["audio"], expected.audio) and np.array_equal(written["image"], expected.image)
        assert written["keys"].tolist() == expected.keys and written["paths"].tolist() == [str(p) for p in given]
    assert [f"{value:.3f}" for value in expected.similarity[1]] == said.splitlines()[3].split()[-4:]
    key = expected.keys[0]
    assert sorted(p.name for p in pictures.iterdir()) == sorted(
        f"{name}.png" for name in [*expected.keys[:3], f"{key}-2"]
    )


def test_a_picture_shows_frame_heatmap_and_sound(files, run, tmp_path):
    embed(files[:1], run, heatmap=tmp_path / "maps")
    (path,) = (tmp_path / "maps").iterdir()
    picture = np.asarray(Image.open(path)).astype(int)
    (sample,) = read_files(files[:1], start=None, options=SampleOptions(), isolate=False)
    frame = np.asarray(Image.fromarray(sample.frame).resize((336, 336), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(picture[40:376, 18:354] - frame).max() == 0
    loaded = load_model(run, torch.device("cpu"))
    tokens = loaded.encode_image(torch.from_numpy(sample.frame)[None]).tokens
    values = heatmaps(tokens, loaded.encode_audio(torch.from_numpy(sample.fbank.copy())[None]).pooled)[0].numpy()
    y, x = np.unravel_index(values.argmax(), values.shape)
    low_y, low_x = np.unravel_index(values.argmin(), values.shape)

    def warmth(row, column):
        red, _, blue = picture[40 + int(1.5 * row), 366 + int(1.5 * column)]
        return red - blue

    assert warmth(y, x) > 10 > abs(warmth(low_y, low_x)) - 6


def test_a_start_takes_ten_seconds_from_there(tmp_path):
    clip = make_clip(tmp_path / "long.mp4", seconds=20)
    first, later = (
        next(read_files([clip], start=start, options=SampleOptions(), isolate=False)) for start in (None, 7.5)
    )
    assert (first.key, later.key) == ("long", "long_7500")
    assert abs(number_of(first.frame) - 50) <= 1 and abs(number_of(later.frame) - 125) <= 1


def test_files_that_cannot_be_read_are_named_and_the_others_go_on(files, run, tmp_path, capsys):
    empty, folder = tmp_path / "empty.mp4", tmp_path / "folder.mp4"
    empty.touch()
    folder.mkdir()
    silent = make_clip(tmp_path / "silent.mp4", seconds=2, waveform=np.zeros((1, 0), np.float32))
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"no media at all" * 100)
    bad = [tmp_path / "nowhere.mp4", empty, folder, silent, noise]
    status, said, errors = ended(capsys, bad[0], files[0], *bad[1:], files[1], "--checkpoint", run)
    assert status == 1 and "5 of 7 files gave no sample" in errors[-1] and len(errors) == 6
    reasons = ["missing", "empty_file", "unreadable", ("no_audio", "too_short"), "unreadable"]
    for path, reason, line in zip(bad, reasons, errors, strict=False):
        assert line.startswith(tuple(f"python -m tools.embed: {path}: {r}: " for r in np.atleast_1d(reason)))
    assert len(said.splitlines()) == 4  # both others are in the table
    here = embed(bad, run)
    assert [str(f.path) for f in here.failures] == [str(path) for path in bad] and here.audio.shape == (0, 32)
    out = tmp_path / "emb.npz"
    status, said, errors = ended(capsys, *bad, "--checkpoint", run, "--out", out)
    assert status == 1 and not said and not out.exists() and "none of the 5 files gave a sample" in errors[-1]


def test_names_in_any_script(files, run, tmp_path, capsys):
    names = ["视频.mp4", "音频.mp4", "__.mp4", os.fsdecode(b"caf\xe9.mp4")]
    odd = [shutil.copy(files[0], tmp_path / name) for name in names]
    out = tmp_path / "emb.npz"
    status, _, errors = ended(capsys, *odd, "--checkpoint", run, "--out", out, "--heatmap", tmp_path / "pictures")
    assert status == 0 and not errors
    keys = np.load(out)["keys"].tolist()
    assert keys[2:] == ["__", "caf_"] and all(key.startswith("__-") for key in keys[:2]) and len(set(keys)) == 4
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == sorted(keys)


def test_mistakes_are_answered_in_one_line(files, run, tmp_path, capsys):
    for message, *arguments in (
        ("is no checkpoint", files[0], "--checkpoint", tmp_path),
        ("ends in .npz", files[0], "--checkpoint", run, "--out", tmp_path / "x.json"),
        ("the folder", files[0], "--checkpoint", run, "--heatmap", tmp_path / "a" / "b"),
        ("at least 1", files[0], "--checkpoint", run, "--batch-size", 0),
        ("at least 0", files[0], "--checkpoint", run, "--start", -1),
        ("no file given", "--checkpoint", run),
    ):
        status, said, errors = ended(capsys, *arguments)
        assert status == 2 and not said and len(errors) == 1 and message in errors[0], errors


def test_embeddings_that_cannot_be_written_end_in_one_line(tmp_path, monkeypatch, capsys):
    vectors = np.ones((2, 300), np.float32)
    found = Embedded(paths=["a", "b"], keys=["a", "b"], audio=vectors, image=vectors, failures=[])
    monkeypatch.setattr("tools.embed.embed", lambda *_, **__: found)
    out = tmp_path / "embeddings.npz"
    with longest_file(1000):
        status, printed, said = ended(capsys, "a", "b", "--checkpoint=run", f"--out={out}")
    assert status == 1 and said == [f"python -m tools.embed: error: {out}: File too large"]
    assert "cosine of sound" in printed and not list(tmp_path.iterdir())


def test_a_table_of_many_files_names_the_best_match():
    vectors = np.eye(9, dtype=np.float32)
    result = Embedded(
        paths=[f"{i}.mp4" for i in range(9)],
        keys=[f"key{i}" for i in range(9)],
        audio=vectors,
        image=vectors[[1, 0, *range(2, 9)]],
        failures=[Failed(path="x", reason="missing", detail="gone")],
    )
    lines = table(result).splitlines()
    assert lines[1].split() == ["key0", "0.000", "1.000", "key1"]
    assert lines[3].split() == ["key2", "1.000", "1.000", "own"]
    assert lines[-1] == "7 of 9 sounds are most alike their own image"
    assert str(result.failures[0]) == "x: missing: gone"
