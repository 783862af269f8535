"""The ablation: its figures against the truth, its table, and a run from end to end that is told twice."""

import json
import math
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from shards_spec.errors import UserError
from tests.runs import SMALL, environment, run_to_end
from tools import run_ablation
from tools.ablation.baselines import baselines
from tools.ablation.measure import VERSION, Clip, Scores, read_clips, strangers
from tools.ablation.plan import ROWS, Budget, Run, planned_runs
from tools.ablation.table import order_lines, table_rows, text_table
from tools.make_world import main as make_world
from tools.run_ablation import Ablation, main
from training.checkpoint import checkpoint_folder, checkpoints, read_state
from training.evaluation.localization import ground_truth
from training.run_folder import read_step_log
from training.stream.index import open_index


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("a world") / "world"
    make_world([str(out), "--direct", "--splits=init:16,train:40,test:40", "--classes=25", "--workers=1"])
    return out


def clip(*boxes, sounding=0, labels=(0,), in_view=()):
    gt = ground_truth([tuple(boxes[sounding])], "vggss")
    boxes = [list(box) for box in boxes]
    return Clip(
        gt=gt,
        labels=frozenset(labels),
        in_view=frozenset(in_view),
        boxes=boxes,
        sounding_boxes=[boxes[sounding]],
        sounding=sounding,
    )


def test_scores_by_hand():
    """Two clips: in one the map is high on the sounding half, in the other on the silent one."""
    left, right = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    on_left = torch.cat([torch.ones(224, 112), torch.zeros(224, 112)], dim=1) + torch.rand(224, 224) * 0.1
    scores = Scores()
    scores.add(torch.stack([on_left, on_left]), [clip(left, right), clip(left, right, sounding=1)])
    # cIoU 1 and 0: AUC is the mean of a rate that is 1 at threshold 0 and 0.5 from there on.
    assert scores.metrics() == {"CIoU": 50.0, "AUC": pytest.approx(51.25), "pointing": 50.0, "sounding first": 50.0}


def test_another_sound_is_of_no_class_in_view():
    box = (0, 0, 1, 1)
    # The silent object of the first is of class 2, so only the last one's sound is foreign to it.
    seen = [clip(box, labels=labels, in_view=view) for labels, view in (((0,), (0, 2)), ((0, 1), ()), ((2,), (2, 1)))]
    clips = [*seen, clip(box, labels=(3,), in_view=(0, 1, 2, 3))]
    with pytest.raises(UserError, match=r"of 4 test clips none sounds of a class .* classes \[0, 1, 2, 3\]"):
        strangers(clips)
    assert strangers([*seen, clip(box, labels=(3,), in_view=(1, 3))])[::3] == [3, 2]


def test_other_sounds_of_a_world_are_drawn_from_all_clips_and_fixed(world):
    clips = read_clips(open_index(str(world / "test")))
    found = strangers(clips)
    assert strangers(clips) == found
    assert all(not clips[other].labels & (clip.labels | clip.in_view) for clip, other in zip(clips, found, strict=True))
    assert any(clip.in_view - clip.labels for clip in clips)
    assert len({other - number for number, other in enumerate(found)}) > 20  # no neighbours by rule


def test_baselines_of_a_world(world):
    rows = baselines(open_index(str(world / "test")))
    truth, centre, chance, known = (
        rows[name] for name in ("where: near the sounding boxes", "where: near the centre", "chance", "class known")
    )
    assert truth["localization/CIoU"] > 90 and truth["localization/sounding first"] > 80
    assert centre["localization/CIoU"] < 45 and chance["localization/CIoU"] < 20
    assert chance["retrieval A->V/R@10"] == 25.0  # 10 of 40
    assert known["retrieval A->V/R@1"] > 3 * chance["retrieval A->V/R@1"] and known["retrieval A->V/class R@1"] == 100


def metrics(value):
    return {"localization/CIoU": value, "localization/AUC": 20.0}


def test_table_and_order_by_hand():
    runs = {Run(row="selfmae", start="scratch", seed=seed): metrics(value) for seed, value in enumerate((10, 12))}
    runs |= {Run(row="crossmae", start="scratch", seed=seed): metrics(value) for seed, value in enumerate((20, 26))}
    rows = table_rows(runs, {"chance": [metrics(1.0)]})
    assert [(row.name, row.start) for row in rows] == [
        ("selfmae", "scratch"),
        ("crossmae", "scratch"),
        ("chance", None),
    ]
    value = rows[0].values["localization/CIoU"]
    assert (value.mean, value.count) == (11, 2) and value.spread == pytest.approx(math.sqrt(2))
    assert "| crossmae | scratch | 23.0 ± 4.2 | 20.0 ± 0.0 |" in text_table(rows)
    ciou, auc = order_lines(rows, clips=500)
    assert "crossmae > selfmae; pairs as in the paper: 1, the other way: 0, undecided: 0" in ciou
    assert "pairs as in the paper: 0, the other way: 0, undecided: 1" in auc
    assert "(nearer than both spreads or one standard error of 500 test clips)" in auc


@pytest.mark.parametrize(
    ("low", "high", "clips", "counted"),
    [
        (5.4, 6.6, 500, "0, the other way: 0, undecided: 1"),  # 100 sqrt((.054 .946 + .066 .934) / 500) = 1.50
        (5.4, 7.0, 500, "1, the other way: 0, undecided: 0"),
        (7.0, 5.4, 500, "0, the other way: 1, undecided: 0"),
        (5.4, 6.6, 5000, "1, the other way: 0, undecided: 0"),
        (0.0, 0.2, 500, "0, the other way: 0, undecided: 1"),  # one clip
        (99.8, 100.0, 500, "0, the other way: 0, undecided: 1"),
    ],
)
def test_one_seed_decides_no_more_than_its_clips(low, high, clips, counted):
    runs = {
        Run(row=row, start="scratch", seed=0): {"localization/CIoU": value}
        for row, value in (("selfmae", low), ("crossmae", high))
    }
    line = order_lines(table_rows(runs, {}), clips)[0]
    assert f"pairs as in the paper: {counted} (" in line
    assert line.endswith("; 2 of 2 rows have one seed, their spread is unknown)")


@pytest.mark.parametrize(("single", "agreeing"), [(14, 2), (15, 3), (16, 2)])
def test_a_row_of_one_seed_is_taken_to_spread_as_the_others(single, agreeing):
    """selfmae 10 +- 1.41, crossmae 23 +- 4.24, pooled 3.16: cl-av must be 4.58 above the one, 7.40 below the other."""
    values = {("selfmae", 0): 9, ("selfmae", 1): 11, ("cl-av", 0): single, ("crossmae", 0): 20, ("crossmae", 1): 26}
    runs = {Run(row=row, start="scratch", seed=seed): metrics(value) for (row, seed), value in values.items()}
    ciou = order_lines(table_rows(runs, {}), clips=10**6)[0]
    assert f"pairs as in the paper: {agreeing}, the other way: 0, undecided: {3 - agreeing} (" in ciou
    assert ciou.endswith("; 1 of 3 rows have one seed, their spread is taken as 3.2)")


def test_text_table_is_two_and_leaves_out_what_is_not_measured():
    runs = {Run(row="selfmae", start="init", seed=0): {"retrieval V->A/class R@1": 5.0, "with another sound/AUC": 3.0}}
    retrieval, located = text_table(table_rows(runs, {"chance": [metrics(1.0)]})).split("\n\n")
    assert retrieval.splitlines() == ["| | start | V->A class |", "|---|---|---:|", "| selfmae | init | 5.0 |"]
    assert located.splitlines()[0] == "| | start | CIoU | AUC | AUC, other sound |"
    assert located.splitlines()[2:] == ["| selfmae | init |  |  | 3.0 |", "| chance |  | 1.0 | 20.0 |  |"]


def test_a_seed_is_whole_before_the_next():
    runs = planned_runs(("selfmae", "crossmae, zero tokens"), ("init", "scratch"), 2)
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4
    assert runs[1].name == "crossmae-zero-tokens-init-seed0"
    assert len({run.name for run in planned_runs(tuple(ROWS), ("init", "scratch"), 3)}) == 48


def test_trains_measures_and_goes_on(world, tmp_path, monkeypatch, capsys):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "ablation"
    small = [f"--options={flag}" for flag in SMALL[1:]]
    told = [f"--data={world}", f"--out={out}", "--variants=selfmae", "--variants=crossmae", "--seeds=1", "--jobs=2"]
    told += ["--starts", "scratch", "--steps=2", "--batch-size=8", *small]
    main(told)
    said = capsys.readouterr().out
    assert (
        f"run_ablation: crossmae-scratch-seed0: trains for 2 steps ({out}/runs/crossmae-scratch-seed0/train.log)"
        in said
    )
    assert "run_ablation: crossmae-scratch-seed0: is measured\n" in said and "runs: 2 of 2" in said
    results = json.loads((out / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names[:4] == ["selfmae", "crossmae", "untrained", "chance"]
    assert all(0 <= value["mean"] <= 100 for row in results["rows"] for value in row["values"].values())
    assert {"probe/both", "localization/CIoU", "with another sound/CIoU"} <= results["rows"][1]["values"].keys()
    assert (out / "report.html").read_text().count("<table") == 3
    logs = {path: path.read_bytes() for path in out.rglob("train.log")}
    table = (out / "table.md").read_text()
    main(told)  # nothing is done twice
    said = capsys.readouterr().out
    assert "runs: 2 of 2" in said and ": trains" not in said and ": is measured" not in said
    assert {path: path.read_bytes() for path in out.rglob("train.log")} == logs
    assert (out / "table.md").read_text() == table
    capsys.readouterr()
    assert mistake(capsys, *told, "--steps=3") == "--steps was 2, is 3: use another --out"


@pytest.fixture
def calls(monkeypatch):
    """Measures nothing, but writes figures; trains only where `calls.trains`. Holds (run, "train" or file, words)."""

    class Calls(list):
        trains = False

    found, real = Calls(), Ablation._call

    def call(self, command, folder):
        path = next(word for word in command if word.startswith("--out="))
        out = path.rpartition("/")[2] if "tools.ablation.measure" in command else "train"
        found.append((folder.name, out, command))
        if out != "train":
            (folder / out).write_text(json.dumps({"version": VERSION, "metrics": metrics(30.0)}))
        elif found.trains:
            real(self, command, folder)

    monkeypatch.setattr(Ablation, "_call", call)
    monkeypatch.setattr(run_ablation, "baselines", lambda test: {"chance": metrics(1.0)})
    return found


def test_only_the_rows_of_table_6(world, tmp_path, calls):
    rows = [f"--variants={name}" for name in ROWS if name.startswith("crossmae,")]
    main([f"--data={world}", f"--out={tmp_path}", "--starts", "scratch", "--seeds=1", *rows])
    assert [(name, out) for name, out, _ in calls if out == "world-untrained.json"] == [
        ("crossmae-random-tokens-scratch-seed0", "world-untrained.json")
    ]


def test_the_start_is_measured_and_the_untrained_model_once_a_seed(world, tmp_path, calls):
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=selfmae", "--variants=cl-av"]
    main([*told, "--seeds=1", "--starts", "init"])
    main([*told, "--seeds=2", "--starts", "init", "scratch"])
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert [rows[name]["values"]["localization/CIoU"]["count"] for name in ("start: SelfMAE", "untrained")] == [2, 2]
    assert [name for name, out, _ in calls if out == "world.json" and name.startswith("init")] == [
        "init-seed0",
        "init-seed1",
    ]
    assert sum(out == "world-untrained.json" for _, out, _ in calls) == 2
    assert [name for name, out, _ in calls if out == "train"].count("init-seed1") == 1
    given = {
        name: next((word for word in words if word.startswith("--init=")), "")
        for name, out, words in calls
        if out == "train"
    }
    assert all(given[f"{row}-init-seed1"].endswith("runs/init-seed1") for row in ("selfmae", "cl-av"))
    assert given["selfmae-scratch-seed1"] == given["init-seed1"] == ""


def test_figures_of_an_older_measurement_are_taken_again(world, tmp_path, calls):
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=selfmae", "--seeds=1", "--starts", "scratch"]
    run = tmp_path / "runs" / "selfmae-scratch-seed0"
    main(told)
    (run / "checkpoints" / "step-00001000").mkdir(parents=True)
    (run / "world.json").write_text(json.dumps({"step": 1000, "metrics": metrics(1.0)}))
    calls.clear()
    main(told)
    assert [(name, out) for name, out, _ in calls] == [("selfmae-scratch-seed0", "world.json")]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["version"] == VERSION and results["rows"][0]["values"]["localization/CIoU"]["mean"] == 30.0


def test_data_is_told_by_its_fingerprint(world, tmp_path, calls, capsys):
    same, other, out = tmp_path / "same", tmp_path / "other", tmp_path / "out"
    same.symlink_to(world)
    other.mkdir()
    for name, split in {"train": "test", "test": "train"}.items():
        (other / name).symlink_to(world / split)
    told = [f"--out={out}", "--variants=selfmae", "--seeds=1", "--starts", "scratch"]
    main([*told, f"--data={world}"])
    main([*told, f"--data={same}"])
    said = mistake(capsys, *told, f"--data={other}")
    assert said.startswith(f"{other / 'train'} is another dataset (fingerprint ") and "use another --out" in said

    agreed = json.loads((out / "ablation.json").read_text())
    old = {name: value for name, value in agreed.items() if name not in ("fingerprints", "rows")}
    (out / "ablation.json").write_text(json.dumps(old))  # as it was before there were fingerprints
    assert mistake(capsys, *told, f"--data={other}") == f"--data was {same}, is {other}: use another --out"
    main([*told, f"--data={same}"])
    assert json.loads((out / "ablation.json").read_text()) == agreed


def test_a_row_of_ones_own(world, tmp_path, calls, capsys):
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=cl-av", "--seeds=1", "--starts", "scratch"]
    row = "--row=feature=--variant crossmae --model.embedding.normalise 'feature'"
    main([*told, row])
    words = next(words for name, out, words in calls if (name, out) == ("feature-scratch-seed0", "train"))
    assert "--variant crossmae --model.embedding.normalise feature" in " ".join(words)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["rows"][:2]] == ["cl-av", "feature"] and not results["order"]
    assert mistake(capsys, *told, "--row=feature=--variant selfmae").startswith("--row feature was --variant crossmae")
    assert "--row crossmae: the table has such a row" in mistake(capsys, *told, "--row=crossmae=--variant selfmae")
    assert "--row a b: expected NAME=OPTIONS" in mistake(capsys, *told, "--row=a b")
    assert "--row a: given twice" in mistake(capsys, *told, "--row=a=", "--row=a=--variant selfmae")
    assert "cannot be split into words: No closing quotation" in mistake(capsys, *told, "--row=a='")


def test_rows_start_from_the_init_run_of_their_seed(world, tmp_path, monkeypatch, calls):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    calls.trains = True
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=selfmae", "--seeds=1", "--starts", "init", "--lr=3e-3"]
    told += ["--steps=2", "--init-steps=40", "--batch-size=8"]
    main([*told, *(f"--options={flag}" for flag in [*SMALL[1:], "--log-every=1"])])
    trained = {name: words for name, out, words in calls if out == "train"}
    assert list(trained) == ["init-seed0", "selfmae-init-seed0"]
    assert f"--init={tmp_path / 'runs' / 'init-seed0'}" in trained["selfmae-init-seed0"]
    logs = [read_step_log(tmp_path / "runs" / name / "metrics.jsonl") for name in trained]
    before, after = ([line["loss"] for line in lines] for lines in logs)
    assert (len(before), len(after)) == (40, 2)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1]), (before, after)


def test_a_table_stands_from_the_first_run_on(world, tmp_path, monkeypatch, capsys):
    def call(self, command, folder):
        if "tools.ablation.measure" in command:
            if folder.name.startswith("cl-av"):
                raise UserError("this one failed")
            (folder / "world.json").write_text(json.dumps({"version": VERSION, "metrics": metrics(30.0)}))

    monkeypatch.setattr(Ablation, "_call", call)
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=selfmae", "--variants=cl-av", "--seeds=1"]
    assert "this one failed" in mistake(capsys, *told, "--starts", "scratch")
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows[:2]] == ["selfmae", "chance"]
    assert rows[0]["values"]["localization/CIoU"]["mean"] == 30.0
    assert (tmp_path / "table.md").exists() and (tmp_path / "report.html").exists()


def mistake(capsys, *arguments):
    """What run_ablation says of a mistake: the end of its one line."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and said.count("\n") == 0
    return said.split("budget: ")[-1]


def test_a_run_that_fails_is_named(world, tmp_path, capsys):
    told = [f"--data={world}", f"--out={tmp_path}", "--starts", "scratch", "--steps=2", "--options=--init=not/there"]
    said = mistake(capsys, *told, "--variants=cl-av", "--seeds=1")
    assert "a run ended with status 2" in said and "cl-av-scratch-seed0/train.log" in said and "not/there" in said


def test_what_cannot_work_is_refused_before_anything_is_trained(world, tmp_path, capsys):
    out, few = tmp_path / "out", tmp_path / "few"
    told = [f"--out={out}", "--variants=cl-av", "--seeds=1", "--starts", "scratch"]
    said = mistake(capsys, *told, f"--data={world}", "--row=mine=--variant selfmae --no-such-flag")
    assert "row mine: Unrecognized options: --no-such-flag" in said
    said = mistake(capsys, *told, f"--data={world}", "--options=--model.mask.image-ratio=2")
    assert "row cl-av: Error parsing model.mask: mask.image_ratio is 2.0" in said
    make_world([str(few), "--direct", "--splits=train:2,test:1", "--classes=25", "--workers=1"])
    said = mistake(capsys, *told, f"--data={few}")
    assert "of 1 test clips none sounds of a class" in said
    assert not out.exists()


def test_what_earlier_commands_made_stays_in_the_table(world, tmp_path, calls):
    told = [f"--data={world}", f"--out={tmp_path}", "--seeds=1"]
    main([*told, "--variants=selfmae", "--starts", "init", "--row=own=--variant cl-av"])
    main([*told, "--variants=cl-av", "--starts", "scratch"])
    results = json.loads((tmp_path / "results.json").read_text())
    trained = [(row["name"], row["start"]) for row in results["rows"] if row["start"]]
    assert trained == [("selfmae", "init"), ("own", "init"), ("cl-av", "scratch")]
    assert "start: SelfMAE" in [row["name"] for row in results["rows"]]
    assert ["runs", "3 of 3"] in results["config"]
    assert sum(out == "world-untrained.json" for _, out, _ in calls) == 1


def test_an_unknown_row_is_named(world, tmp_path, capsys):
    said = mistake(capsys, f"--data={world}", f"--out={tmp_path}", "--variants=nonsense")
    assert "--variants nonsense: allowed are selfmae; cl-av;" in said


def test_a_signal_stops_the_runs_and_the_same_command_goes_on(world, tmp_path, monkeypatch, calls):
    small = [*SMALL[1:], "--log-every=1"]
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=cl-av", "--seeds=1", "--starts", "scratch"]
    told += ["--batch-size=8", "--steps=80", *(f"--options={flag}" for flag in small)]
    command = [sys.executable, "-m", "tools.run_ablation", *told]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "cl-av-scratch-seed0"
    while not (run / "metrics.jsonl").exists() or not read_step_log(run / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "python -m tools.run_ablation: stopped; the same command goes on"
    assert "Traceback" not in said
    assert 1 <= read_state(checkpoints(run)[-1]).step < 80  # it saved

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    calls.trains = True
    main(told)
    assert [out for _, out, _ in calls] == ["train", "world.json", "world-untrained.json"]
    budget = Budget(preset="world-tiny", batch_size=8, lr=1e-3, workers=1, launch=(), options=tuple(small))
    straight = tmp_path / "straight"
    run_to_end(budget.command(data=world / "train", out=straight, steps=80, seed=0, options=ROWS["cl-av"]))
    weights = [(checkpoint_folder(folder, 80) / "model.safetensors").read_bytes() for folder in (run, straight)]
    assert weights[0] == weights[1]
    losses = [[(x["step"], x["loss"]) for x in read_step_log(path / "metrics.jsonl")] for path in (run, straight)]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 81))


# A launcher as Accelerate's and torchrun for what matters here: its child is in a session of its own, saves on SIGTERM,
# and takes until after the launcher's end. For --variant=selfmae it fails as soon as the other one is up.
LAUNCHER = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
if "--variant=selfmae" in sys.argv:
    while not (folder / "up").exists():
        time.sleep(0.02)
    sys.exit(3)
if sys.argv[2] != "child":
    sys.exit(subprocess.Popen([sys.executable, "-S", __file__, str(folder), "child"], start_new_session=True).wait())
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
launcher = os.getppid()
(folder / "up").touch()
signal.sigwait([signal.SIGTERM])
while os.getppid() == launcher:
    time.sleep(0.02)
time.sleep(1)  # saves
(folder / "saved").touch()
"""


@pytest.fixture
def launched(world, tmp_path):
    """What run_ablation is told for it; the launcher's child makes the files up and saved in tmp_path."""
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    launch = shlex.join([sys.executable, "-S", str(script), str(tmp_path)])
    return [f"--data={world}", f"--out={tmp_path / 'out'}", "--seeds=1", "--starts", "scratch", "--launch", launch]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_what_a_launcher_started(launched, tmp_path, number):
    command = [sys.executable, "-m", "tools.run_ablation", *launched, "--variants=cl-av"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert (tmp_path / "saved").exists()


def test_the_failure_of_one_stops_what_a_launcher_started_for_another(launched, tmp_path, capsys):
    said = mistake(capsys, *launched, "--variants=cl-av", "--variants=selfmae", "--jobs=2")
    assert "a run ended with status 3" in said and "selfmae-scratch-seed0/train.log" in said
    assert (tmp_path / "saved").exists()


def test_a_launcher_that_is_not_there_is_named(world, tmp_path, capsys):
    told = [f"--data={world}", f"--out={tmp_path}", "--variants=cl-av", "--seeds=1", "--starts", "scratch"]
    said = mistake(capsys, *told, "--launch=no-such-launcher")
    assert "no-such-launcher cannot be started (No such file or directory): see --launch" in said
