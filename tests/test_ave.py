"""AVE: its lists, seconds of a clip, segment accuracy, and the command on clips whose events are easy to tell."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from shards_spec.errors import UserError
from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE
from tests.checkpoints import make_checkpoint
from tests.chosen_samples import Chosen, write_samples
from training.evaluate import main as evaluate
from training.evaluation.ave import frame_of_second, segment_accuracy
from training.evaluation.heads.ave_lists import Event, read_lists
from training.evaluation.heads.fitting import Fit, HeadOptions, fit_head, make_head, standardise
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.seconds import overlaps, per_second

HEADER = "Category&VideoID&Quality&StartTime&EndTime"
GOOD = "Church bell&MH3m4AwEcRY&good&6&8\nMale speech, man speaking&-JDu_58J-vY&good&0&10\n"


def write_lists(folder, *, train=GOOD, val=GOOD, test=GOOD):
    for name, text in (("train", train), ("val", val), ("test", test)):
        if text is not None:
            (folder / f"{name}Set.txt").write_text(text)
    return folder


def test_lists_are_read_and_damaged_lines_counted(tmp_path):
    bad = ["Bark&E_1Asfq8it4&good&0", "Bark&short&good&0&3", "Bark&E_1Asfq8it4&good&x&3", "Bark&E_1Asfq8it4&good&3&2"]
    bad += ["Bark&E_1Asfq8it4&good&5&11", "&E_1Asfq8it4&good&5&6", "Bark&../../../ab&good&0&3", "\x00\xff", "9" * 5000]
    left_out = LeftOut()
    write_lists(tmp_path, train="\n".join([HEADER, *GOOD.splitlines(), *bad, ""]), val=None)
    lists = read_lists(tmp_path, left_out)
    assert lists["val"] == [] and len(lists["train"]) == len(lists["test"]) == 2
    assert lists["train"][0] == Event(category="Church bell", ytid="MH3m4AwEcRY", start=6, end=8)
    classes = ["Church bell", "Male speech, man speaking"]
    assert lists["train"][0].labels(classes).tolist() == [2, 2, 2, 2, 2, 2, 0, 0, 2, 2]
    assert lists["train"][1].labels(classes).tolist() == [1] * 10
    assert len(left_out) == len(bad)
    notes = left_out.notes()
    assert any("0 <= start <= end <= 10: 2 (trainSet.txt:7, trainSet.txt:8)" in note for note in notes), notes
    assert all("\n" not in note for note in notes)


def test_an_event_in_no_second_is_background_throughout(tmp_path):
    """One row of AVE's 4,143 is 0&0."""
    left_out = LeftOut()
    row = "Bark&E_1Asfq8it4&good&0&0"
    (event,) = read_lists(write_lists(tmp_path, test=row), left_out)["test"]
    assert event.labels(["Bark"]).tolist() == [1] * 10 and not len(left_out)


@pytest.mark.parametrize(("lists", "message"), [({"train": None}, "does not exist"), ({"test": "x\n"}, "no usable")])
def test_a_list_that_cannot_be_used_is_a_mistake(tmp_path, lists, message):
    with pytest.raises(UserError, match=message):
        read_lists(write_lists(tmp_path, **lists), LeftOut())


def test_a_second_is_the_mean_of_its_patches():
    weights = overlaps(10)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(10))
    assert weights[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(weights[0, 5:7], torch.tensor([0.16, 0.04]))  # rows 80 to 95, and 96 to 99 of 96 to 111
    torch.testing.assert_close(weights[1, 6], torch.tensor(0.12))  # rows 100 to 111
    rows = torch.arange(1024.0)  # of an fbank; a token is as the mean of its 16 rows, in all 8 bands
    tokens = rows.view(64, 16).mean(dim=1).repeat_interleave(8).view(1, 512, 1)
    found = per_second(tokens, 10).flatten()
    assert (found - rows[:1000].view(10, 100).mean(dim=1)).abs().max() < 1  # cut patches alone differ
    constant = per_second(torch.full((2, 512, 3), 7.0), 5)
    torch.testing.assert_close(constant, torch.full((2, 5, 3), 7.0))


def test_frames_stand_for_seconds():
    assert frame_of_second(10) == list(range(10))
    assert frame_of_second(5) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert frame_of_second(20)[:3] == [1, 3, 5]
    assert set(frame_of_second(0)) == set(frame_of_second(1)) == {0}


def test_segment_accuracy_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    predicted, labels = torch.randint(0, 4, (2, 7, 10), generator=generator)
    assert segment_accuracy(predicted, labels) == pytest.approx(
        100 * accuracy_score(labels.flatten(), predicted.flatten())
    )
    assert segment_accuracy(torch.tensor([[1, 2, 2, 0]]), torch.tensor([[1, 2, 0, 0]])) == 75


# -------------------------------------------------------------------- training a head


def options(**values):
    return HeadOptions(data="nowhere", checkpoint=Path("nowhere"), **values)


def test_a_head_follows_from_its_seed_alone():
    before = torch.random.get_rng_state()
    first, second, other = (make_head(lambda: nn.Linear(3, 2), options(seed=s), torch.device("cpu")) for s in (5, 5, 6))
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_best_epoch_is_kept_of_equals_the_first():
    head, seen = nn.Linear(1, 1), []
    scores = iter([1.0, 3.0, 3.0, 2.0])

    def validate():
        seen.append(head.weight.detach().clone())
        return next(scores)

    rows = []

    def loss(batch):
        rows.append(batch.tolist())
        return head(torch.ones(len(batch), 1)).square().mean()

    fit = fit_head(head, loss, 5, options=options(epochs=4, head_batch_size=2), validate=validate)
    assert fit == Fit(epoch=2, score=3.0) and torch.equal(head.weight, seen[1]) and not torch.equal(seen[1], seen[3])
    epochs = [[row for batch in rows[i : i + 3] for row in batch] for i in range(0, 12, 3)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and epochs[0] != epochs[1]
    assert fit_head(head, loss, 5, options=options(epochs=2)) == Fit(epoch=2, score=None)
    with pytest.raises(UserError, match="not finite in epoch 1: give a lower --learning-rate"):
        fit_head(head, lambda batch: head.weight.sum() * torch.nan, 5, options=options())


def test_features_are_standardised_as_the_training_ones():
    train = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]])  # the second feature is constant
    first, other = standardise(train, torch.tensor([[[5.0, 6.0]]]))
    assert first.tolist() == [[[-1, 0]], [[1, 0]]] and other.tolist() == [[[3, 1]]]


# -------------------------------------------------------------------- evaluate.py ave

COLOURS = {"Bark": (230, 30, 30), "Horn": (30, 30, 230)}


def clip(event, generator):
    """Dark and quiet, but for the event's seconds: a colour, and sound in the event's own half of the bands."""
    frames = generator.integers(0, 40, (10, FRAME_SIZE, FRAME_SIZE, 3)).astype(np.uint8)
    fbank = generator.normal(-10, 1, FBANK_SHAPE).astype(np.float16)
    fbank[1000:] = 0
    frames[event.start : event.end] = COLOURS[event.category]
    half = slice(0, 64) if event.category == "Bark" else slice(64, 128)
    fbank[100 * event.start : 100 * event.end, half] += 12
    return Chosen(frames, fbank)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset with --frames 10, AVE's lists for it, and a run."""
    folder = tmp_path_factory.mktemp("ave")
    generator = np.random.default_rng(0)
    events, lists = [], {"train": [], "val": [], "test": []}
    for number in range(18):
        start, end = sorted(generator.choice(11, 2, replace=False).tolist())
        event = Event(category=("Bark", "Horn")[number % 2], ytid=f"-_video_{number:03d}", start=start, end=end)
        events.append(event)
        lists["train" if number < 10 else "val" if number < 12 else "test"].append(event)
    texts = {
        name: HEADER + "\n" + "".join(f"{e.category}&{e.ytid}&good&{e.start}&{e.end}\n" for e in listed)
        for name, listed in lists.items()
    }
    texts["test"] += "Bark&notheretest_&good&0&3\nBark&notherete__&good&0&3\n"  # one of 12 characters, one absent
    write_lists(folder, **texts)
    samples = {f"{event.ytid}_{30_000 if i % 2 else 0}": clip(event, generator) for i, event in enumerate(events)}
    write_samples(folder / "clips", samples, frames=10)
    return folder, make_checkpoint(folder / "run")


def run_ave(made, *more):
    folder, run = made
    arguments = [f"--data={folder / 'clips'}", f"--annotations={folder}", f"--checkpoint={run}", "--workers=0"]
    evaluate(["ave", *arguments, "--learning-rate=0.01", *more])
    return json.loads((run / "evaluation" / "ave-clips.json").read_text())


def test_the_command_learns_easy_events(made, capsys):
    result = run_ave(made, "--untrained")
    assert "majority class" in capsys.readouterr().out
    assert result["task"] == "ave" and result["pool"] == 6 and result["step"] == 7
    majority = result["baselines"]["majority class"]["accuracy"]
    assert 0 < majority < 80
    assert list(result["metrics"]) == ["audio", "image", "audio + image"]
    for row in result["metrics"].values():
        assert row["accuracy"] > majority + 10
    assert result["metrics"]["audio + image"]["accuracy"] > 90
    assert "untrained, audio + image" in result["baselines"]
    assert result["paper"]["CrossMAE, fine-tuned"]["accuracy"] == 81.2
    assert any("that the dataset does not have: 1 (notherete__)" in note for note in result["notes"])
    assert any("11 characters: 1 (testSet.txt:8)" in note for note in result["notes"])
    again = run_ave(made, "--cache-features=none", "--epochs=30")
    assert again["metrics"] == result["metrics"]  # the same seed, features computed anew


def test_a_hidden_layer_and_the_middle_frame_alone(made, tmp_path):
    folder, run = made
    generator = np.random.default_rng(0)
    events = [event for listed in read_lists(folder, LeftOut()).values() for event in listed][:18]
    present = {event.ytid: clip(event, generator) for event in events}  # keys as of files named by their video
    write_samples(tmp_path / "clips", present)
    arguments = [f"--data={tmp_path / 'clips'}", f"--annotations={folder}", f"--checkpoint={run}", "--workers=0"]
    tested = [event.ytid for event in read_lists(folder, LeftOut())["test"] if event.ytid in present]
    (tmp_path / "keys.txt").write_text("\n".join(tested[:2]))
    told = [f"--keys={tmp_path / 'keys.txt'}", f"--save-predictions={tmp_path / 'ave.csv'}"]
    evaluate(["ave", *arguments, *told, "--hidden=16", "--epochs=3", f"--out={tmp_path / 'ave.json'}"])
    result = json.loads((tmp_path / "ave.json").read_text())
    with (tmp_path / "ave.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert result["pool"] == 2 and [row["key"] for row in rows] == [ytid for ytid in tested[:2] for _ in range(10)]
    right = [row["truth"] == row["prediction"] for row in rows]
    assert result["metrics"]["audio + image"]["accuracy"] == pytest.approx(100 * np.mean(right))
    assert sum(row["count"] for row in result["classes"]["audio"].values()) == 20
    assert "MLP of 16" in result["protocol"] and "middle frame in all seconds" in result["protocol"]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("Bark&somewhere__&good&0&3\n", [], "has none of the 1 clips of the train list, such as somewhere__"),
        (GOOD, ["--epochs=0"], "--epochs and --head-batch-size must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line(made, tmp_path, text, more, message, capsys):
    folder, run = made
    write_lists(tmp_path, train=text)
    arguments = [f"--data={folder / 'clips'}", f"--annotations={tmp_path}", f"--checkpoint={run}", "--workers=0"]
    with pytest.raises(SystemExit) as ended:
        evaluate(["ave", *arguments, *more])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1
