"""Localization: metrics against values worked by hand, numpy and scikit-learn; the command on boxes of make-shards."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics

from pipeline.encode_sample import Encoded
from pipeline.make_shards import MakeShardsConfig
from pipeline.make_shards import run as make_shards
from shards_spec.errors import UserError
from shards_spec.sample import encode_json
from tests.checkpoints import make_checkpoint
from tests.fake_samples import write_files, ytid
from tests.whole_samples import whole_dataset, whole_sample
from training.evaluate import main
from training.evaluation import localization as loc
from training.evaluation import slavc
from training.evaluation.boxes import read_annotations
from training.evaluation.features import dense_features, load_model
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.localization import Detections
from training.evaluation.localization_rows import beside_negatives, detection_row
from training.evaluation.pairs import in_rounds, read_pairs
from training.evaluation.trivial_maps import other_sounds, random_maps, trivial_regions
from training.stream.index import open_index


def image_of(box, value=1.0):
    """float [1, 224, 224]: `value` in a box of pixels x0, y0, x1, y1, else 0."""
    image = torch.zeros(1, 224, 224)
    x0, y0, x1, y1 = box
    image[0, y0:y1, x0:x1] = value
    return image


# Heatmaps.


def test_cosines_by_hand():
    tokens = torch.zeros(1, 196, 2)
    tokens[0, :, 0] = 1
    tokens[0, 14 * 3 + 5] = torch.tensor([3.0, 4.0])  # row 3, column 5
    maps = loc.cosine_maps(tokens, torch.tensor([[0.0, 2.0]]))
    assert maps.shape == (1, 14, 14) and maps[0, 3, 5] == pytest.approx(0.8)
    assert maps.count_nonzero() == 1


def test_heatmaps_lie_where_the_tokens_are():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 196, 8, generator=generator)
    audio = torch.stack([tokens[0, 14 * 2 + 11], tokens[1, 195]])
    heat = loc.heatmaps(tokens, audio)
    assert heat.shape == (2, 224, 224) and heat.amin() == 0 and heat.amax() == 1
    y, x = divmod(int(heat[0].argmax()), 224)
    assert abs(y - 2 * 223 / 13) <= 1 and abs(x - 11 * 223 / 13) <= 1  # aligned corners: token i at i * 223 / 13
    assert int(heat[1].argmax()) == 224 * 224 - 1


def test_upsampling_is_linear_between_aligned_corners():
    ramp = torch.arange(14.0).expand(1, 14, 14)
    up = loc.upsample(ramp)
    torch.testing.assert_close(up[0, 100], torch.linspace(0, 13, 224))


def test_min_max_leaves_a_constant_map():
    assert torch.equal(loc.min_max(torch.full((1, 4, 4), 0.3)), torch.full((1, 4, 4), 0.3))


def test_the_region_is_half_of_the_image_or_more():
    generator = torch.Generator().manual_seed(0)
    assert loc.predicted_region(torch.rand(3, 224, 224, generator=generator)).sum(dim=(1, 2)).tolist() == [25088] * 3
    assert loc.predicted_region(torch.ones(1, 224, 224)).all()
    assert loc.predicted_region(image_of((0, 0, 10, 10))).all()  # the median is 0, and all is at or above it


# Ground truth.


def test_flickr_takes_the_consensus():
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.5, 0.5), (0.25, 0.0, 1.0, 0.25)]
    gt = loc.ground_truth(boxes, "flickr")
    values = {
        (10, 10): 0.5,
        (10, 60): 1.0,
        (10, 100): 1.0,
        (10, 200): 0.5,
        (100, 60): 1.0,
        (100, 10): 0.5,
        (200, 9): 0.0,
    }
    assert {place: gt[place].item() for place in values} == values
    assert loc.ground_truth(boxes, "vggss").unique().tolist() == [0, 1]
    assert loc.ground_truth(boxes, "vggss").sum() == 112 * 112 + 112 * 56  # the union


def test_boxes_are_cut_to_whole_pixels():
    gt = loc.ground_truth([(0.403125, 0.253125, 0.6, 0.75)], "vggss")  # of vggss.json: 90.3, 56.7, 134.4, 168
    assert gt.sum() == (134 - 90) * (168 - 56) and gt[56, 90] == gt[167, 133] == 1 and gt[168, 133] == 0


def test_damaged_boxes_are_left_out_and_named():
    good = [[0.1, 0.2, 0.3, 0.4], [-0.1, 0, 1.2, 1]]
    bad = [
        [0.5, 0, 0.5, 1], [0.6, 0.1, 0.2, 0.9], [0, 0, 1, -2.88e16], [0, 0, 10**400, 1], [0.001, 0, 0.002, 1],
        [0, 0, 1], None, "0 0 1 1", [0, 0, 1, True], [0, 0, 1, float("nan")], [0, 0, 1, "1"], {},
    ]  # fmt: skip
    found = loc.usable_boxes([*good, *bad])
    assert found.boxes == [(0.1, 0.2, 0.3, 0.4), (0, 0, 1, 1)] and len(found.left_out) == len(bad)
    assert found.left_out[0] == "box [0.5, 0, 0.5, 1] is inverted or empty"
    assert "far outside" in found.left_out[2] and "far outside" in found.left_out[3]
    assert loc.usable_boxes({"x0": 1}).left_out == ["boxes are {'x0': 1}, expected a list"]


# Scores.


def test_ciou_by_hand():
    region = image_of((0, 0, 112, 224)).bool()  # the left half
    # A quarter, whole: 12544 found / (12544 + the 12544 predicted elsewhere).
    assert loc.ciou(region, image_of((0, 0, 112, 112))).item() == pytest.approx(0.5)
    # The same marked by one annotator of several: 6272 / (6272 + 12544).
    assert loc.ciou(region, image_of((0, 0, 112, 112), 0.5)).item() == pytest.approx(1 / 3)
    assert loc.ciou(region, image_of((112, 0, 224, 224))).item() == 0
    assert loc.ciou(region, image_of((0, 0, 112, 224))).item() == 1
    assert loc.ciou(region, torch.zeros(1, 224, 224)).item() == 0


def test_ciou_is_that_of_the_published_evaluator():
    """EZ-VSL's formula in numpy, with its own threshold, on random maps and boxes."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        heat = generator.random((224, 224)).astype(np.float32)
        corners = np.sort(generator.random((3, 2, 2)), axis=1)
        boxes = [(c[0, 0], c[0, 1], c[1, 0], c[1, 1]) for c in corners]
        gt = np.zeros((224, 224))
        for x0, y0, x1, y1 in (np.array(boxes) * 224).astype(int):
            gt[y0:y1, x0:x1] += 1
        gt = np.minimum(gt / 2, 1)
        predicted = heat >= np.sort(heat.flatten())[int(224 * 224 * 0.5)]
        expected = (predicted * gt).sum() / (gt.sum() + (predicted * (gt == 0)).sum())
        ours = loc.ciou(loc.predicted_region(torch.from_numpy(heat)[None]), loc.ground_truth(boxes, "flickr")[None])
        assert ours.item() == pytest.approx(expected, rel=1e-6)


def test_success_and_auc():
    cious = torch.tensor([0.0, 0.5, 0.49999, 1.0], dtype=torch.float64)
    assert loc.success(cious) == 0.5
    assert loc.auc(torch.ones(3)) == pytest.approx(1) and loc.auc(torch.zeros(3)) == pytest.approx(0.025)
    values = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    thresholds = [0.05 * i for i in range(21)]
    rates = [np.mean(values.numpy() >= t) for t in thresholds]
    assert loc.auc(values) == pytest.approx(sklearn_metrics.auc(thresholds, rates))


def test_pointing():
    gt = torch.cat([image_of((10, 20, 30, 40), 0.5)] * 3)
    maps = torch.cat([image_of((12, 39, 13, 40)), image_of((12, 40, 13, 41)), torch.zeros(1, 224, 224)])
    assert loc.pointing(maps, gt).tolist() == [True, False, False]


def test_ranks_of_objects():
    heat = (image_of((0, 0, 112, 112), 0.9) + image_of((112, 0, 224, 112), 0.4))[0]
    boxes = [(0.5, 0.0, 1.0, 0.5), (0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 1.0, 1.0)]
    assert [loc.rank_objects(heat, boxes, i) for i in range(3)] == [2, 1, 3]
    assert loc.rank_objects(torch.ones(224, 224), boxes) == 3  # ties count against it
    with pytest.raises(ValueError, match="holds no pixel"):
        loc.rank_objects(heat, [(0.5, 0.5, 0.5, 0.9)])


def test_confidence_is_the_mean_of_the_top_quarter():
    values = torch.arange(16.0).reshape(1, 4, 4)
    assert loc.confidence(values).item() == (15 + 14 + 13 + 12) / 4


# AP and F1.


def detections(rows):
    positive, ciou, confidence = zip(*rows, strict=True)
    return Detections(is_positive=torch.tensor(positive), ciou=torch.tensor(ciou), confidence=torch.tensor(confidence))


FIVE = [  # two found, one found in the wrong place, two negatives
    (True, 0.9, 0.9), (True, 0.1, 0.8), (False, 0.0, 0.7), (True, 0.6, 0.6), (False, 0.0, 0.5),
]  # fmt: skip


def test_ap_and_f1_by_hand():
    found = detections(FIVE)
    assert loc.max_f1(found) == pytest.approx(2 * 2 / (4 + 3))  # at 0.6: two hits among four, of three
    assert slavc.counts(found, 0.6, 0.5) == (2, 2, 0) and slavc.counts(found, 0.6, 0.75) == (1, 3, 0)
    assert loc.average_precision(found) == pytest.approx((1 / 1 + 2 / 4) / 3)
    # SLAVC tries 0.8, 0.7, 0.6, 0.5: precision 1/2, 1/3, 2/4, 2/5, recall (a misplaced one leaves it) 1/2, 1/2, 1, 1.
    assert slavc.average_precision(found, 0.5) == pytest.approx(0.5 * 0.5)
    # F1 at 0.9: precision 1, recall 1/3; at 0.6: 2/4 and 1; at 0.5: 2/5 and 1.
    assert slavc.max_f1(found, 0.5) == pytest.approx(2 * 0.5 * 1 / 1.5)


@pytest.mark.parametrize("ties", [False, True])
def test_ap_is_that_of_scikit_learn(ties):
    generator = np.random.default_rng(0)
    confidence = generator.random(300).round(1 if ties else 9)
    positive, ciou = generator.random(300) < 0.6, generator.random(300)
    hits = positive & (ciou >= 0.5)
    expected = sklearn_metrics.average_precision_score(hits, confidence) * hits.sum() / positive.sum()
    found = Detections(
        is_positive=torch.from_numpy(positive), ciou=torch.from_numpy(ciou), confidence=torch.from_numpy(confidence)
    )
    assert loc.average_precision(found) == pytest.approx(expected)


@pytest.mark.parametrize("hit", [0.5, 0.75])
def test_slavc_scores_are_those_of_its_rules(hit):
    """Its published rules written again as loops: 700 confidences, so every third and every seventieth are tried."""
    generator = np.random.default_rng(1)
    n = 700
    positive, ciou, confidence = generator.random(n) < 0.5, generator.random(n), generator.random(n)

    def precision_recall(threshold):
        tp = sum(c >= threshold and p and u >= hit for p, u, c in zip(positive, ciou, confidence, strict=True))
        fp = sum(c >= threshold and not (p and u >= hit) for p, u, c in zip(positive, ciou, confidence, strict=True))
        fn = sum(c < threshold and p for p, c in zip(positive, confidence, strict=True))
        return (tp / (tp + fp) if tp + fp else 1.0), (tp / (tp + fn) if tp + fn else 1.0)

    ascending = sorted(confidence)
    curve = [precision_recall(t) for t in ascending[:-1][::-3]]
    area = sum(max(p for p, _ in curve[i:]) * (curve[i + 1][1] - curve[i][1]) for i in range(len(curve) - 1))
    best = max(2 * r * p / (r + p) for p, r in (precision_recall(t) for t in ascending[::70]) if p + r > 0)
    found = Detections(
        is_positive=torch.from_numpy(positive), ciou=torch.from_numpy(ciou), confidence=torch.from_numpy(confidence)
    )
    assert slavc.average_precision(found, hit) == area and slavc.max_f1(found, hit) == best  # to the last digit


def test_nothing_positive_or_alone():
    alone = detections([(True, 0.9, 0.5)])
    assert loc.average_precision(alone) == loc.max_f1(alone) == 1
    assert slavc.average_precision(alone, 0.5) == 0 and slavc.max_f1(alone, 0.5) == 1
    assert loc.average_precision(detections([(False, 0.0, 0.5)])) == 0


def test_slavc_subsets_go_by_the_area_to_find():
    areas = torch.tensor([32**2 - 1, 32**2, 96**2, 144**2, 0.0], dtype=torch.float64)
    found = Detections(is_positive=areas > 0, ciou=torch.tensor([0.8, 0.6, 0.8, 0.1, 0]), confidence=areas + 1)
    rows = slavc.rows(found, areas)
    assert list(rows) == ["all", "visible", "small", "medium", "large", "huge"]
    assert [rows[name]["precision@50"] for name in rows] == [60, 75, 100, 100, 100, 0]
    assert [rows[name]["precision@75"] for name in rows] == [40, 50, 100, 0, 100, 0]
    assert rows["all"]["AUC"] == rows["visible"]["AUC"]
    assert "small" not in slavc.rows(found.take(torch.tensor([1, 4])), areas[[1, 4]])


def test_slavc_maps_are_bicubic():
    """torch's interpolation is the one that its test.py calls; of a step it swings beyond the values."""
    maps = torch.zeros(1, 14, 14)
    maps[0, :, 7:] = 1
    truth = torch.zeros(224, 224)
    truth[:, 120:] = 1
    assert loc.upsample(maps, "bicubic").amax() > 1 >= loc.upsample(maps).amax()
    found, areas = slavc.detect(maps, [truth])
    raw = torch.nn.functional.interpolate(maps[None], size=(224, 224), mode="bicubic", align_corners=True)[0, 0].numpy()
    predicted = raw >= np.sort(raw.flatten())[224 * 224 // 2]
    expected = (predicted * truth.numpy()).sum() / (truth.numpy().sum() + (predicted * (truth.numpy() == 0)).sum())
    assert found.ciou.item() == pytest.approx(expected) and areas.item() == 224 * 104
    assert found.confidence.item() == pytest.approx(np.sort(raw.flatten())[-(224 * 224) // 4 :].mean())


# What a model is compared with.


def test_other_sounds_share_no_label_where_possible():
    assert other_sounds([["a"], ["a"], ["b"], ["a", "b"]]) == [2, 2, 0, 0]
    assert other_sounds([[], [], []]) == [1, 2, 0]
    assert other_sounds([["a"]] * 3) == [1, 2, 0]
    assert other_sounds([["a"]]) is None


def test_random_maps_depend_on_the_key_alone():
    maps = random_maps(["a", "b", "c"])
    assert torch.equal(random_maps(["c", "a"]), maps[[2, 0]]) and not torch.equal(maps[0], maps[1])


def test_trivial_regions():
    areas = {name: region.double().mean().item() for name, region in trivial_regions().items()}
    assert areas["whole image"] == 1 and areas["centre box, half the side"] == 0.25
    assert areas["centre box, half the area"] == pytest.approx(0.5, abs=0.01)


# The command.


def spoilt_sample(path: Path, row: dict) -> Encoded:
    """Samples with and without boxes, and with damaged ones, as no make-shards of ours writes them."""
    made = whole_sample(path, row)
    boxes = {
        b"good": [[0, 0, 0.5, 0.5]], b"mixed": [[0.5, 0.5, 1, 1], [0.9, 0, 0.1, 1], "x"], b"none": None,
        b"spoilt": [[0, 0, 1, -2.88e16]],
    }[path.read_bytes().split()[0]]  # fmt: skip
    metadata = json.loads(made.payloads["json"]) | ({} if boxes is None else {"boxes": boxes})
    return made._replace(payloads={**made.payloads, "json": encode_json(metadata)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    kinds = ["good", "good", "mixed", "none", "spoilt", "good"]
    raw = write_files(folder / "raw", {f"{ytid(i)}_30.mp4": f"{kind} {i}" for i, kind in enumerate(kinds)})
    config = MakeShardsConfig(raw=(raw,), out=folder / "boxed", shard_size=4, workers=2)
    assert make_shards(config, make=spoilt_sample) == 0
    return folder / "boxed"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("run") / "run")


def test_annotations_are_sorted(dataset):
    found = read_annotations(open_index(str(dataset)))
    assert (len(found.numbers), len(found.unboxed), len(found.spoilt), len(found.left_out)) == (4, 1, 1, 3)
    assert found.boxes[2] == [(0.5, 0.5, 1.0, 1.0)]
    assert any("is inverted or empty" in line for line in found.left_out)


def test_localization_beside_trivial_answers(dataset, run, capsys):
    main(["localization", f"--data={dataset}", f"--checkpoint={run}", "--benchmark=vggss", "--workers=0"])
    printed = capsys.readouterr().out
    result = json.loads((run / "evaluation" / "localization-boxed.json").read_text())
    assert (result["task"], result["pool"], result["step"]) == ("localization", 4, 7)
    assert set(result["baselines"]) == {
        "another clip's sound", "untrained", "random map", "whole image", "centre box, half the side",
        "centre box, half the area",
    }  # fmt: skip
    whole = result["baselines"]["whole image"]  # every ground truth is a quarter of the image
    assert whole == {"CIoU": 0, "AUC": pytest.approx(100 * (5.5 * 0.05)), "mean cIoU": 25, "pointing": 25}
    centre = result["baselines"]["centre box, half the side"]  # a sixteenth in common, of 7 sixteenths
    assert centre["mean cIoU"] == pytest.approx(100 / 7) and centre["pointing"] == 25
    model = result["metrics"]["model"]
    assert set(model) == {"CIoU", "AUC", "mean cIoU", "pointing", "AP (ours)", "max-F1 (ours)"}
    assert result["paper"] == {"CrossMAE ViT-B": {"CIoU": 39.80, "AUC": 27.13}}
    notes = "\n".join(result["notes"])
    assert (
        "damaged boxes are left out: 3 (" in notes
        and "samples whose boxes are all damaged are neither scored nor negatives: 1 (" in notes
    )
    assert "39.80" in printed and "whole image" in printed

    with (run / "evaluation" / "localization-boxed.samples.csv").open() as file:
        samples = list(csv.DictReader(file))
    cious = torch.tensor([float(row["ciou"]) for row in samples], dtype=torch.float64)
    assert len(samples) == 4 and 100 * cious.mean().item() == pytest.approx(model["mean cIoU"], abs=1e-3)
    pictures = sorted((run / "evaluation" / "localization-boxed").glob("*.jpg"))
    assert len(pictures) == 5 and Image.open(pictures[-1]).size[0] > 4 * 448
    with Image.open(next(p for p in pictures if p.name != "contact.jpg")) as picture:
        assert picture.size == (452, 258)


def test_the_other_sound_is_the_other_clips(dataset, run, tmp_path):
    """The two rows again, from dense features alone: the unlabelled samples 0, 1, 2, 5 hear 1, 2, 5, 0."""
    out = tmp_path / "r.json"
    common = ["localization", f"--data={dataset}", f"--checkpoint={run}", "--benchmark=vggss", "--workers=0"]
    main([*common, f"--out={out}", "--cache-features=none", "--picture-count=0", "--no-untrained"])
    result = json.loads(out.read_text())
    index = open_index(str(dataset))
    (batch,) = dense_features(index, load_model(run, torch.device("cpu")), np.array([0, 1, 2, 5]), workers=0)
    gt = torch.stack([loc.ground_truth(boxes, "vggss") for boxes in read_annotations(index).boxes])
    found = []
    for sound in (batch.audio.pooled, batch.audio.pooled[[1, 2, 3, 0]]):
        region = loc.predicted_region(loc.heatmaps(batch.image.tokens, sound))
        found.append(100 * loc.ciou(region, gt).mean().item())
    assert result["metrics"]["model"]["mean cIoU"] == pytest.approx(found[0], abs=1e-3)
    assert result["baselines"]["another clip's sound"]["mean cIoU"] == pytest.approx(found[1], abs=1e-3)
    assert abs(found[0] - found[1]) > 0.01


def test_maps_come_out_of_the_cache(dataset, run, tmp_path, monkeypatch, capsys):
    arguments = ["localization", f"--data={dataset}", f"--checkpoint={run}", "--benchmark=flickr", "--workers=0"]
    arguments += [f"--cache-features={tmp_path / 'cache'}", "--picture-count=0"]
    main([*arguments, f"--out={tmp_path / 'a.json'}"])

    def encoded(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("training.evaluation.features.LoadedModel.encode_image", encoded)
    main([*arguments, f"--out={tmp_path / 'b.json'}"])
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert not (tmp_path / "a").exists()


def test_other_heatmaps_and_negatives(dataset, run, tmp_path):
    out = tmp_path / "r.json"
    common = ["localization", f"--data={dataset}", f"--checkpoint={run}", "--benchmark=vggss", "--workers=0"]
    common += [f"--out={out}", "--cache-features=none", "--picture-count=0", "--no-untrained"]
    main([*common, "--heatmap=cls-attention", "--negatives=unboxed"])
    result = json.loads(out.read_text())
    ours, other = result["metrics"]["model"], result["baselines"]["another clip's sound"]
    assert {column: ours[column] for column in other} == other  # this map hears nothing
    assert "AP (ours)" in ours and "negatives: the samples without boxes, 1" in result["notes"][2]
    assert "untrained" not in result["baselines"]
    main([*common, "--features=cls", "--negatives=none"])
    assert "AP (ours)" not in json.loads(out.read_text())["metrics"]["model"]


def test_ap_of_the_row():
    class Found:
        ciou = torch.tensor([0.9, 0.1, 0.6], dtype=torch.float64)
        confidence = torch.tensor([0.9, 0.8, 0.6], dtype=torch.float64)

    row = detection_row(beside_negatives(Found(), torch.tensor([0.7, 0.5], dtype=torch.float64)))
    assert row == {"AP (ours)": pytest.approx(50), "max-F1 (ours)": pytest.approx(400 / 7)}


def test_a_dataset_without_boxes_is_refused(run, tmp_path, capsys):
    dataset = whole_dataset(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["localization", f"--data={dataset}", f"--checkpoint={run}", "--benchmark=vggss", "--workers=0"])
    assert ended.value.code == 2 and "has a usable box: give make-shards --boxes" in capsys.readouterr().err


def test_boxes_of_make_shards_reach_the_evaluation(tmp_path):
    published = [
        {"file": f"{ytid(i)}_000030", "class": "x", "bbox": [[0, 0, 0.5, 1], [0.5, 0, 1, 0.5]]} for i in (1, 4)
    ]
    (tmp_path / "vggss.json").write_text(json.dumps(published))
    index = open_index(str(whole_dataset(tmp_path, boxes=tmp_path / "vggss.json")))
    found = read_annotations(index)
    assert found.keys == [f"{ytid(1)}_30000", f"{ytid(4)}_30000"]
    assert loc.ground_truth(found.boxes[0], "vggss").sum() == 224 * 224 * 3 / 4
    assert found.labels[0] == ["/m/1", "/m/3"]


def write_pairs(path, *rows):
    path.write_text("".join(f"{image},{sound},{kind}\n" for image, sound, kind in rows))
    return path


def test_pairs_are_found_by_the_names_of_their_clips(dataset, tmp_path):
    index = open_index(str(dataset))
    scored, left_out = set(read_annotations(index).numbers.tolist()), LeftOut()
    name = [f"{ytid(i)}_30" for i in range(6)]
    rows = [(name[0], name[0], "sounding"), (name[0], name[3], "non-sounding"), (name[3], name[3], "sounding")]
    rows += [("gone", name[0], "non-sounding"), (name[1], name[4], "Non-sounding")]
    path = write_pairs(tmp_path / "pairs.csv", *rows)
    pairs = read_pairs(path, index, scored, left_out)
    assert [(p.image, p.sound, p.is_sounding) for p in pairs] == [(0, 0, True), (0, 3, False), (1, 4, False)]
    assert left_out.notes() == (
        f"left out, sounding pairs whose frame has no usable box: 1 ({name[3]})",
        "left out, non-sounding pairs of which the dataset lacks a clip: 1 (gone)",
    )
    assert in_rounds(pairs) == [{0: pairs[0], 1: pairs[2]}, {0: pairs[1]}]
    alone = read_pairs(write_pairs(path, rows[1]), index, scored, LeftOut())  # as SLAVC takes positives from elsewhere
    assert [p.image for p in alone if p.is_sounding] == sorted(scored) and len(alone) == 5
    with pytest.raises(UserError, match="no non-sounding pair is in the dataset"):
        read_pairs(write_pairs(path, rows[0]), index, scored, LeftOut())
    with pytest.raises(UserError, match=r"gone.csv: cannot be read"):
        read_pairs(tmp_path / "gone.csv", index, scored, LeftOut())


def test_slavc_rows_stand_beside_ours(dataset, run, tmp_path):
    """Its pairs again, from dense features alone; and what is saved of each."""
    out, saved = tmp_path / "r.json", tmp_path / "each.csv"
    name = [f"{ytid(i)}_30" for i in range(6)]
    silent = [(name[0], name[4], "non-sounding"), (name[3], name[1], "non-sounding")]
    path = write_pairs(tmp_path / "pairs.csv", *silent)
    (tmp_path / "keys.txt").write_text("\n".join(name[:5]))  # without the last one with boxes
    told = [f"--data={dataset}", f"--checkpoint={run}", "--benchmark=vggss", "--workers=0", f"--pairs={path}"]
    told += [f"--out={out}", "--cache-features=none", "--picture-count=0", "--no-untrained"]
    main(["localization", *told, f"--save-predictions={saved}", f"--keys={tmp_path / 'keys.txt'}"])
    result = json.loads(out.read_text())
    index = open_index(str(dataset))
    pairs = [(0, 4), (3, 1), (0, 0), (1, 1), (2, 2)]
    (batch,) = dense_features(index, load_model(run, torch.device("cpu")), np.arange(6), workers=0)
    images, sounds = map(list, zip(*pairs, strict=True))
    maps = loc.cosine_maps(batch.image.tokens[images], batch.audio.pooled[sounds])
    boxes = [[], [], *read_annotations(index).boxes[:3]]
    expected = slavc.rows(*slavc.detect(maps, [loc.ground_truth(b, "vggss") for b in boxes]))
    for subset, row in expected.items():
        assert result["metrics"][f"SLAVC, {subset}"] == pytest.approx(row, abs=1e-3)
    assert result["pool"] == 3 and "SLAVC" in result["protocol_name"]
    assert set(result["intervals"]) == {"model", "SLAVC, all"}
    low, high = result["intervals"]["model"]["mean cIoU"]
    assert low <= result["metrics"]["model"]["mean cIoU"] <= high
    assert "rows SLAVC: 3 sounding and 2 non-sounding pairs" in result["notes"]
    with saved.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["protocol"] for row in rows] == ["EZ-VSL"] * 3 + ["SLAVC"] * 5
    assert [row["key"] for row in rows[3:]] == [index.key(i) for i in images]


def test_no_place_for_pictures_is_said_before_any_work(dataset, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.evaluation.localize.read_annotations", lambda *_: pytest.fail("it began"))
    file = tmp_path / "file"
    file.write_text("")
    told = [f"--data={dataset}", f"--checkpoint={run}", "--benchmark=vggss", f"--pictures={file}"]
    with pytest.raises(SystemExit) as ended:
        main(["localization", *told])
    assert ended.value.code == 2
    assert f"cannot make the folder {file} (File exists): give --pictures" in capsys.readouterr().err
