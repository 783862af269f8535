"""AVSBench: its folders, IoU and F in each convention, and the command on frames with a square to find."""

import csv
import json
import os
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import fbeta_score, jaccard_score

from shards_spec.errors import UserError
from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE, SAMPLE_RATE
from tests.checkpoints import make_checkpoint
from training.evaluate import main as evaluate
from training.evaluation.heads.avsbench import (
    UNREADABLE,
    classes_of_colours,
    decode,
    is_foreground,
    kaldi_fbank,
    read_wav,
)
from training.evaluation.heads.avsbench_layouts import read_videos
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.segmentation_data import Split
from training.evaluation.heads.segmentation_metrics import f_curves, frame_scores, summarise
from training.evaluation.heads.semantic_metrics import class_scores, summarise_classes
from training.evaluation.segmentation import MaskHead, scores

# -------------------------------------------------------------------- metrics


def pictures(*rows):
    """Frames of a few pixels: [N, 1, pixels]."""
    return torch.tensor(rows).unsqueeze(1)


PROBABILITIES = pictures([0.9, 0.6, 0.4, 0.1], [0.9, 0.5, 0.2, 0.2], [0.7, 0.2, 0.1, 0.1])
MASKS = pictures([1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]).bool()


def test_frames_by_hand():
    scores = frame_scores(PROBABILITIES, MASKS)
    # Predicted at > 0.5: {0, 1}, {0}, {0}; annotated: {0, 2}, {1, 2}, none.
    assert scores.iou.tolist() == [1 / 3, 0, 3 / 4]  # of the empty frame, 3 of 4 pixels are rightly left
    assert scores.background_iou.tolist() == pytest.approx([1 / 3, 1 / 4, 3 / 4])
    assert scores.f_half.tolist() == pytest.approx([1.3 * 0.25 / (0.3 * 0.5 + 0.5), 0, 0])
    # Frame 0: levels to 0.1 take all (P 1/2, R 1), to 0.4 three (2/3, 1), to 0.6 two (1/2, 1/2), to 0.9 one (1, 1/2).
    all_of_it, three, two, one = (1.3 * p * r / (0.3 * p + r) for p, r in ((0.5, 1), (2 / 3, 1), (0.5, 0.5), (1, 0.5)))
    curve = scores.f_curve[0]
    assert curve.shape == (255,)
    assert curve[[0, 50, 130, 200, 254]].tolist() == pytest.approx([all_of_it, three, two, one, 0])
    assert scores.f_best[0].item() == pytest.approx(one) and scores.is_empty.tolist() == [False, False, True]


def test_videos_in_both_conventions_by_hand():
    first, second = frame_scores(PROBABILITIES[:2], MASKS[:2]), frame_scores(PROBABILITIES[1:], MASKS[1:])
    row = summarise([first, second])
    assert row["mIoU"] == pytest.approx(100 * ((1 / 3 + 0) / 2 + (0 + 3 / 4) / 2) / 2)
    # One threshold for both frames of the first video: its curves are averaged before the best is taken.
    curves = first.f_curve.mean(dim=0).max().item() + second.f_curve[0].max().item()
    assert row["F"] == pytest.approx(100 * curves / 2)
    # DeepAVFusion: frames with annotated pixels alone; the mean of both sides' means.
    foreground, background = (1 / 3 + 0 + 0) / 3, (1 / 3 + 1 / 4 + 1 / 4) / 3
    assert row["mIoU+bg"] == pytest.approx(100 * (foreground + background) / 2)
    # ACL-SSL: one threshold for the three frames with annotated pixels.
    together = torch.cat([first.f_curve, second.f_curve[:1]]).mean(dim=0).max().item()
    assert row["F one threshold"] == pytest.approx(100 * together)
    best = first.f_best.sum().item() + second.f_best[0].item()
    assert row["F per frame"] == pytest.approx(100 * best / 3)
    assert row["F one threshold"] < row["F per frame"] > row["F"]


def test_all_foreground_and_nothing_annotated():
    everything, empty = torch.ones(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    full = frame_scores(everything, ~empty)
    assert full.f_curve.eq(1).all()  # a pixel at a threshold counts: of certain pixels none is lost at 1
    assert full.iou.tolist() == [1, 1] and full.background_iou.isnan().all() and full.f_best.tolist() == [1, 1]
    columns = ("mIoU", "F", "F@0.5", "F one threshold", "mIoU+bg", "F per frame")
    assert summarise([full]) == dict.fromkeys(columns, 100)
    assert summarise([frame_scores(everything, empty)]) == dict.fromkeys(columns) | {"mIoU": 0, "F": 0}


def test_iou_and_f_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    probabilities, masks = torch.rand(4, 9, 9, generator=generator), torch.rand(4, 9, 9, generator=generator) > 0.7
    scores = frame_scores(probabilities, masks)
    curves = f_curves(probabilities, masks, 255)
    levels = torch.linspace(0, 1, 255)
    for frame in range(4):
        truth, said = masks[frame].flatten(), probabilities[frame].flatten()
        assert scores.iou[frame].item() == pytest.approx(jaccard_score(truth, said > 0.5))
        assert scores.background_iou[frame].item() == pytest.approx(jaccard_score(truth, said > 0.5, pos_label=0))
        assert scores.f_half[frame].item() == pytest.approx(fbeta_score(truth, said > 0.5, beta=0.3**0.5))
        for level in (0, 1, 100, 200, 254):
            expected = fbeta_score(truth, said >= levels[level], beta=0.3**0.5, zero_division=0)
            assert curves[frame, level].item() == pytest.approx(expected)


def test_probabilities_that_are_no_numbers_are_refused():
    broken = PROBABILITIES.clone()
    broken[1, 0, 0] = torch.nan
    with pytest.raises(UserError, match="masks are not finite"):
        frame_scores(broken, MASKS)


def test_classes_by_hand():
    """Three classes, two frames of four pixels. Class 2 is in no frame, and counts as 0 in AVSBench's mean."""
    annotated, predicted = pictures([0, 0, 1, 1], [0, 0, 0, 0]), pictures([0, 1, 1, 1], [0, 0, 0, 1])
    scores = class_scores(predicted, annotated, 3)
    assert scores.iou.tolist() == [[1 / 2, 2 / 3, 0], [3 / 4, 0, 0]]
    assert scores.is_there.tolist() == [[True, True, False], [True, True, False]]
    assert scores.f[0].tolist() == pytest.approx([1.3 * 0.5 / (0.3 + 0.5), 1.3 * 2 / 3 / (0.3 * 2 / 3 + 1), 0])
    row = summarise_classes([scores])
    zero, one = (1 / 2 + 3 / 4) / 2, (2 / 3 + 0) / 2
    assert row["mIoU"] == pytest.approx(100 * (zero + one) / 3)
    assert row["mIoU without 0"] == pytest.approx(100 * one / 2)
    assert row["mIoU there"] == pytest.approx(100 * (zero + one) / 2)
    assert row["F"] == pytest.approx(100 * scores.f.mean(dim=0).sum().item() / 3)
    whole = summarise_classes([class_scores(annotated, annotated, 2)])
    assert set(whole.values()) == {100}


# -------------------------------------------------------------------- files


def test_masks_of_any_brightness_are_read_alike():
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[0, 1:3, 2] = 1
    for brightness in (1, 38, 255):
        assert (is_foreground(mask * np.uint8(brightness)) == (mask == 1)).all()
    edges = np.array([[[0, 127, 128, 255]]], np.uint8)
    assert is_foreground(edges).tolist() == [[[False, False, True, True]]]


def write_wav(path, values, *, rate=SAMPLE_RATE, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(values)


def noise(samples, generator):
    return generator.integers(-8000, 8000, samples).astype("<i2").tobytes()


def write_video(data, place, name, generator):
    """Five dark frames with a bright square, masks of it, and 5 s of noise."""
    for second in range(1, 6):
        size, (x, y) = generator.integers(64, 128), generator.integers(0, 96, 2)
        frame = generator.integers(0, 60, (FRAME_SIZE, FRAME_SIZE, 3)).astype(np.uint8)
        mask = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
        mask[y : y + size, x : x + size] = 255
        frame[mask > 0] += 180
        for kind, picture in (("visual_frames", frame), ("gt_masks", mask)):
            if kind == "gt_masks" and place.startswith("train") and second > 1:
                continue  # as in S4: of the training split the first frame alone is annotated
            folder = data / kind / place / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{name}_{second}.png", compress_level=1)
    write_wav(data / "audio_wav" / place / f"{name}.wav", noise(5 * SAMPLE_RATE, generator))


def write_csv(folder, rows):
    with (folder / "s4_meta_data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "split", "category"), *rows])


@pytest.fixture(scope="module")
def single_source(tmp_path_factory):
    """AVSBench's Single-source folder with 14 + 2 + 4 videos."""
    folder = tmp_path_factory.mktemp("avsbench") / "Single-source"
    generator, rows = np.random.default_rng(0), []
    for number in range(20):
        split = "train" if number < 14 else "val" if number < 16 else "test"
        category = ("dog_barking", "playing_ukulele")[number % 2]
        rows.append((f"video_{number}", split, category))
        write_video(folder / "s4_data", f"{split}/{category}", f"video_{number}", generator)
    write_csv(folder, rows)
    return folder


def test_a_video_is_what_its_files_hold(single_source):
    videos = read_videos(single_source, LeftOut())
    assert [len(videos[split]) for split in ("train", "val", "test")] == [14, 2, 4]
    decoded = decode(videos["test"][0])
    assert decoded.frames.shape == (5, FRAME_SIZE, FRAME_SIZE, 3) and decoded.masks.shape == (5, FRAME_SIZE, FRAME_SIZE)
    assert decoded.masks.dtype == torch.bool and torch.equal(decoded.frames[..., 0] > 100, decoded.masks)
    assert decoded.fbank.shape == FBANK_SHAPE and decoded.fbank[498:].eq(0).all() and decoded.fbank[497].ne(0).all()
    assert decode(videos["train"][0]).masks.shape == (1, FRAME_SIZE, FRAME_SIZE)


def test_the_fbank_is_that_of_shards(tmp_path):
    from pipeline.fbank import fbank

    write_wav(tmp_path / "a.wav", noise(5 * SAMPLE_RATE, np.random.default_rng(1)))
    waveform = read_wav(tmp_path / "a.wav")
    theirs, rows = fbank(waveform.numpy())
    assert rows == 498
    difference = (kaldi_fbank(waveform).float() - torch.from_numpy(theirs).float()).abs()
    assert difference.max() < 0.02  # float16 of values about -5


def test_wavs_of_other_rates_and_channels(tmp_path):
    values = np.random.default_rng(1).integers(-8000, 8000, 44_100).astype("<i2")
    write_wav(tmp_path / "stereo.wav", np.stack([values, -values], 1).tobytes(), channels=2)
    assert read_wav(tmp_path / "stereo.wav").eq(0).all()
    write_wav(tmp_path / "rate.wav", values.tobytes(), rate=44_100)
    assert len(read_wav(tmp_path / "rate.wav")) == SAMPLE_RATE
    write_wav(tmp_path / "bytes.wav", bytes(4000), width=1)
    with pytest.raises(ValueError, match="8 bits at 16000 Hz, expected 16 bits"):
        read_wav(tmp_path / "bytes.wav")


def square(generator, colour):
    """A dark frame with a bright square, and its mask in a colour."""
    size, (x, y) = generator.integers(64, 128), generator.integers(0, 96, 2)
    frame = generator.integers(0, 60, (FRAME_SIZE, FRAME_SIZE, 3)).astype(np.uint8)
    mask = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    mask[y : y + size, x : x + size] = colour
    frame[mask.any(axis=2)] += 180
    return Image.fromarray(frame), Image.fromarray(mask)


def save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture(scope="module")
def multi_sources(tmp_path_factory):
    """AVSBench's Multi-sources folder with 2 + 1 videos, one of them without its last mask."""
    folder, generator = tmp_path_factory.mktemp("avsbench") / "Multi-sources", np.random.default_rng(0)
    rows = [("a_1", "train"), ("b", "test"), ("c", "train"), ("../a_1", "test"), ("d", "elsewhere")]
    for name, split in rows[:3]:
        for second in range(1, 6):
            frame, mask = square(generator, 255)
            save(frame, folder / "ms3_data/visual_frames" / name / f"{name}.mp4_{second}.png")
            if (name, second) != ("c", 5):
                save(mask.convert("L"), folder / "ms3_data/gt_masks" / split / name / f"{name}_{second}.png")
        write_wav(folder / "ms3_data/audio_wav" / split / f"{name}.wav", noise(5 * SAMPLE_RATE, generator))
    (folder / "ms3_meta_data.csv").write_text("".join(f"{n},{s}\n" for n, s in [("video_id", "split"), *rows]))
    return folder


def test_multi_sources_have_a_mask_a_second_in_every_split(multi_sources):
    left_out = LeftOut()
    videos = read_videos(multi_sources, left_out)
    assert {split: [video.name for video in found] for split, found in videos.items()} == {
        "train": ["a_1"],
        "val": [],
        "test": ["b"],
    }
    assert decode(videos["train"][0]).masks.shape == (5, FRAME_SIZE, FRAME_SIZE)
    decoded = decode(videos["test"][0])
    assert torch.equal(decoded.frames[..., 0] > 100, decoded.masks)
    assert left_out.notes() == (
        "left out, videos with a file missing in gt_masks: 1 (train/c)",
        "left out, rows without a name that can be a file: 1 (ms3_meta_data.csv:5)",
        "left out, rows whose split is none of train, val, test: 1 (ms3_meta_data.csv:6)",
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """AVSBench's release with classes, of which the synthetic ones have the colours 1 (v1s), 2 (v1m) and 9 (v2)."""
    folder, generator = tmp_path_factory.mktemp("avsbench") / "AVSS", np.random.default_rng(0)
    colours = {"v1s": (128, 0, 0), "v1m": (0, 128, 0), "v2": (192, 0, 0)}
    rows = [(f"{label}_{split}", split, label) for label in colours for split in ("train", "test")]
    for uid, split, label in rows:
        seconds = 10 if label == "v2" else 5
        for second in range(seconds):
            frame, mask = square(generator, colours[label])
            save(frame, folder / label / uid / "frames" / f"{second}.jpg")
            if second == 0 or (label, split) != ("v1s", "train"):
                save(mask, folder / label / uid / "labels_rgb" / f"{second}.png")
        write_wav(folder / label / uid / "audio.wav", noise(seconds * SAMPLE_RATE, generator))
    table = [("vid", "uid", "split", "label"), *(("x", *row) for row in [*rows, ("y", "test", "v3")])]
    (folder / "metadata.csv").write_text("".join(",".join(row) + "\n" for row in table))
    return folder


def test_masks_of_multi_sources_may_be_0_and_1(multi_sources, tmp_path):
    video = read_videos(multi_sources, LeftOut())["test"][0]
    dim = tuple(tmp_path / mask.name for mask in video.masks)
    for mask, path in zip(video.masks, dim, strict=True):
        Image.open(mask).point(lambda value: value // 255).save(path)
    assert torch.equal(decode(replace(video, masks=dim)).masks, decode(video).masks)


def test_the_release_holds_all_settings(release):
    s4, ms3, avss = (read_videos(release, LeftOut(), setting) for setting in ("s4", "ms3", "avss"))
    for setting, train, test in ((s4, [1], [5]), (ms3, [5], [5]), (avss, [1, 5, 10], [5, 5, 10])):
        assert [len(video.frames) for video in setting["train"]] == train
        assert [len(video.frames) for video in setting["test"]] == test
    binary, classes = decode(ms3["test"][0]), decode(ms3["test"][0], classes=True)
    assert binary.masks.dtype == torch.bool and torch.equal(classes.masks, 2 * binary.masks)
    long = decode(avss["test"][2], classes=True)
    assert long.masks.shape == (10, FRAME_SIZE, FRAME_SIZE) and long.masks.unique().tolist() == [0, 9]
    assert long.fbank[997].ne(0).all() and long.fbank[998:].eq(0).all()


def test_colours_are_those_of_pascal_voc():
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128], [64, 0, 0], [192, 128, 128], [0, 64, 0]])
    assert classes_of_colours(colours.astype(np.uint8)).tolist() == [0, 1, 2, 4, 8, 15, 16]
    assert classes_of_colours(np.array([[1, 2, 3], [0, 192, 64]], np.uint8)).tolist() == [0, 50]


# -------------------------------------------------------------------- evaluate.py segmentation


def test_the_decoder_hears():
    torch.manual_seed(0)
    head, tokens, sounds = MaskHead(6, channels=16), torch.randn(2, 196, 6), torch.randn(2, 6)
    masks = head(tokens, sounds)
    assert masks.shape == (2, FRAME_SIZE, FRAME_SIZE)
    torch.testing.assert_close(head(tokens[1:], sounds[1:]), masks[1:])
    assert not torch.allclose(head(tokens, sounds.flip(0)), masks)
    moved = tokens.view(2, 14, 14, 6).roll(2, dims=1).flatten(1, 2)  # two rows of tokens down are 32 pixels
    inside = slice(80, 176)
    torch.testing.assert_close(head(moved, sounds)[:, 112:144, inside], masks[:, 80:112, inside], atol=1e-4, rtol=1e-3)


def run_segmentation(folder, run, *more):
    small = ["--channels=16", "--learning-rate=0.01", "--epochs=20", "--head-batch-size=4", "--workers=0"]
    evaluate(["segmentation", f"--data={folder}", f"--checkpoint={run}", *small, *more])
    of = "".join(f"-{option.removeprefix('--setting=')}" for option in more if option.startswith("--setting="))
    return json.loads((run / "evaluation" / f"segmentation-{folder.name}{of}.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("segmentation") / "run")


def test_the_command_learns_to_find_a_square(single_source, run, tmp_path, capsys):
    result = run_segmentation(single_source, run)
    assert "mean training mask" in capsys.readouterr().out
    assert result["task"] == "segmentation" and result["pool"] == 4 and result["step"] == 7
    ours, trivial = result["metrics"]["audio + image"], result["baselines"]
    assert list(trivial) == ["all foreground", "centre box, half the side", "mean training mask"]
    assert list(ours) == ["mIoU", "F", "F@0.5", "F one threshold", "mIoU+bg", "F per frame"]
    best = max(row["mIoU"] for row in trivial.values())
    assert ours["mIoU"] > best + 15
    assert all(ours[column] > max(row[column] for row in trivial.values()) + 10 for column in ours)
    assert trivial["all foreground"]["mIoU"] == pytest.approx(mean_area(single_source), abs=1e-6)
    assert result["paper"]["CrossMAE, fine-tuned"] == {"mIoU": 81.86}
    saved = tmp_path / "frames.parquet"
    again = run_segmentation(single_source, run, "--cache-features=none", f"--save-predictions={saved}")
    assert again["metrics"] == result["metrics"]
    frames = parquet.read_table(saved).to_pydict()
    assert len(frames["key"]) == 20 and 100 * np.mean(frames["IoU"]) == pytest.approx(ours["mIoU"])
    low, high = result["intervals"]["audio + image"]["mIoU"]
    assert low <= ours["mIoU"] <= high


def test_the_command_takes_each_setting(multi_sources, release, run):
    result = run_segmentation(multi_sources, run, "--epochs=1", "--channels=4")
    assert result["protocol_name"].startswith("AVSBench MS3 (mIoU, F); ACL-SSL")
    assert "AVSBench MS3" in result["protocol"] and "the annotated frames (5)" in result["protocol"]
    assert result["pool"] == 1 and result["paper"] == {}
    result = run_segmentation(release, run, "--epochs=1", "--channels=4", "--setting=s4")
    assert "AVSBench S4" in result["protocol"] and "(1 train, 0 val, 1 test videos)" in result["protocol"]


def test_the_command_scores_classes(release, run):
    result = run_segmentation(release, run, "--epochs=1", "--channels=4")
    ours, trivial = result["metrics"]["audio + image"], result["baselines"]
    assert list(trivial) == ["no class", "centre box, most frequent class"]
    assert list(ours) == ["mIoU", "F", "mIoU without 0", "F without 0", "mIoU there"]
    assert result["pool_rule"] == "test videos, 5 or 10 frames each" and "AVSS" in result["protocol"]
    assert "left out, rows whose label is none of v1s, v1m, v2: 1 (metadata.csv:8)" in result["notes"]
    videos = read_videos(release, LeftOut())["test"]
    empty = torch.cat([decode(video, classes=True).masks == 0 for video in videos]).double().mean().item()
    assert trivial["no class"]["mIoU"] == pytest.approx(100 * empty / 71)
    assert trivial["no class"]["mIoU without 0"] == 0
    low, high = result["intervals"]["audio + image"]["mIoU there"]
    assert low <= ours["mIoU there"] <= high


def test_of_classes_some_videos_can_be_scored_and_saved(release, run, tmp_path):
    keys, saved = tmp_path / "some.txt", tmp_path / "frames.parquet"
    keys.write_text("v1m_test\nv2_test\ngone\n")
    result = run_segmentation(
        release, run, "--epochs=1", "--channels=4", f"--keys={keys}", f"--save-predictions={saved}"
    )
    assert result["pool"] == 2 and result["pool_rule"] == "test videos, 5 or 10 frames each; the names in some.txt"
    assert "--keys some.txt: 1 of 3 keys are not in the dataset (gone)" in result["notes"]
    frames = parquet.read_table(saved).to_pydict()
    assert frames["key"] == ["v1m_test"] * 5 + ["v2_test"] * 10 and frames["frame"] == [*range(5), *range(10)]
    assert frames["truth"] == ["0;2"] * 5 + ["0;9"] * 10
    assert all(0 <= value <= 1 for value in frames["mIoU"] + frames["mean F"])


def test_answers_of_classes_that_are_no_numbers_are_refused(release):
    video = read_videos(release, LeftOut(), "s4")["train"][0]  # of one frame
    split = Split(
        videos=[video], tokens=torch.empty(1), audio=torch.empty(1), masks=torch.zeros(1, 2, 2, dtype=torch.uint8)
    )
    with pytest.raises(UserError, match="classes are not finite"):
        scores(split, [torch.full((1, 3, 2, 2), torch.nan)])


def mean_area(folder):
    """What an answer of all pixels scores: the mean share of annotated pixels of the test frames, in %."""
    masks = sorted((folder / "s4_data" / "gt_masks" / "test").rglob("*.png"))
    return 100 * float(np.mean([np.asarray(Image.open(path)) > 127 for path in masks]))


@pytest.fixture
def damaged(tmp_path):
    """A folder without s4_data/, with two whole videos, and one of each damage."""
    folder, generator = tmp_path / "Single-source", np.random.default_rng(3)
    names = ("whole", "no_sound", "no_mask", "bad_frame", "bad_sound", "short_sound")
    rows = [("whole", "test", "dog"), *((name, "train", "dog") for name in names)]
    for name, split, category in rows:
        write_video(folder, f"{split}/{category}", name, generator)
    sounds = folder / "audio_wav" / "train" / "dog"
    (sounds / "no_sound.wav").unlink()
    (folder / "gt_masks" / "train" / "dog" / "no_mask" / "no_mask_1.png").unlink()
    frame = folder / "visual_frames" / "train" / "dog" / "bad_frame" / "bad_frame_1.png"
    frame.write_bytes(frame.read_bytes()[:5000])
    (sounds / "bad_sound.wav").write_bytes(b"RIFF, but no more")
    write_wav(sounds / "short_sound.wav", noise(100, generator))
    write_csv(folder, [*rows, ("x", "elsewhere", "dog"), ("../../whole", "test", "dog"), ("", "train", "dog"), ("y",)])
    return folder


def test_damage_is_counted_and_left_out(damaged, run):
    result = run_segmentation(damaged, run, "--epochs=1", "--cache-features=none")
    notes = result["notes"]
    assert result["pool"] == 1 and "(1 train, 0 val, 1 test videos)" in result["protocol"]
    for expected in (
        "left out, rows whose split is none of train, val, test: 2 (s4_meta_data.csv:9, s4_meta_data.csv:12)",
        "left out, rows without a name and a category that can be files: 2 (s4_meta_data.csv:10, s4_meta_data.csv:11)",
        "left out, videos with a file missing in audio_wav: 1 (train/no_sound)",
        "left out, videos with a file missing in gt_masks: 1 (train/no_mask)",
        f"left out, {UNREADABLE[0]}: 1 (train/dog/bad_frame)",
        f"left out, {UNREADABLE[1]}: 2 (train/dog/bad_sound, train/dog/short_sound)",
    ):
        assert expected in notes, notes


def test_a_folder_that_is_none_is_a_mistake(tmp_path, damaged, run, capsys):
    with pytest.raises(UserError, match="has no list of videos: --data takes AVSBench's Single-source folder"):
        read_videos(tmp_path, LeftOut())
    with pytest.raises(UserError, match=r"--setting ms3: .* is AVSBench's folder of s4: give --setting s4"):
        read_videos(damaged, LeftOut(), "ms3")
    write_csv(damaged, [("whole", "test", "dog"), ("no_sound", "train", "dog")])
    with pytest.raises(SystemExit) as ended:
        run_segmentation(damaged, run)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "has no whole video of the train split of s4" in said and said.count("\n") == 1
    (damaged / "s4_meta_data.csv").write_text("id,label\n1,2\n")
    with pytest.raises(UserError, match=r"columns \['id', 'label'\], expected name, category and split"):
        read_videos(damaged, LeftOut())


def test_no_place_for_the_results_is_said_before_any_work(single_source, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "training.evaluation.heads.segmentation_data.decode", lambda *_, **__: pytest.fail("a video was read")
    )
    evaluation, file = run.resolve() / "evaluation", tmp_path / "file"
    file.write_text("")
    for shut, more, expected in (
        (evaluation, [], f"the folder {evaluation} cannot be written to: give --out FILE"),
        (evaluation / "cache", [], f"the folder {evaluation / 'cache'} cannot be written to: give --cache-features"),
        (tmp_path, [f"--out={tmp_path / 'r.json'}"], f"the folder {tmp_path} cannot be written to: give --out FILE"),
        (None, [f"--cache-features={file}"], f"cannot make the folder {file} (File exists): give --cache-features"),
    ):
        monkeypatch.setattr(os, "access", lambda path, mode, shut=shut: Path(path) != shut)
        with pytest.raises(SystemExit) as ended:
            run_segmentation(single_source, run, *more)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and expected in said and said.count("\n") == 1, said
