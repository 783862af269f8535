"""The ablation: its figures against the truth, its table, and a run from end to end that is told twice."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch

from shards_spec.errors import UserError
from tests.runs import SMALL, environment
from tools.ablation.baselines import baselines
from tools.ablation.measure import Clip, Scores, _strangers
from tools.ablation.plan import ROWS, Run, planned_runs
from tools.ablation.table import order_lines, table_rows, text_table
from tools.make_world import main as make_world
from tools.run_ablation import Ablation, main
from training.checkpoint import checkpoints, read_state
from training.evaluation.localization import ground_truth
from training.run_folder import read_step_log
from training.stream.index import open_index


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("a world") / "world"
    make_world([str(out), "--direct", "--splits=train:40,test:40", "--classes=25", "--workers=1"])
    return out


def clip(*boxes, sounding=0, labels=(0,)):
    gt = ground_truth([tuple(boxes[sounding])], "vggss")
    boxes = [list(box) for box in boxes]
    return Clip(gt=gt, labels=frozenset(labels), boxes=boxes, sounding_boxes=[boxes[sounding]], sounding=sounding)


def test_scores_by_hand():
    """Two clips: in one the map is high on the sounding half, in the other on the silent one."""
    left, right = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    on_left = torch.cat([torch.ones(224, 112), torch.zeros(224, 112)], dim=1) + torch.rand(224, 224) * 0.1
    scores = Scores()
    scores.add(torch.stack([on_left, on_left]), [clip(left, right), clip(left, right, sounding=1)])
    # cIoU 1 and 0: AUC is the mean of a rate that is 1 at threshold 0 and 0.5 from there on.
    assert scores.metrics() == {"CIoU": 50.0, "AUC": pytest.approx(51.25), "pointing": 50.0, "sounding first": 50.0}


def test_another_sound_is_of_no_class_that_is_heard():
    box = (0, 0, 1, 1)
    clips = [clip(box, labels=labels) for labels in ((0,), (0, 1), (2,), (1,))]
    assert _strangers(clips) == [2, 2, 3, 0]
    assert _strangers([clip(box), clip(box)]) == [0, 1]  # there is none


def test_baselines_of_a_world(world):
    rows = baselines(open_index(str(world / "test")))
    truth, centre, chance, known = (
        rows[name] for name in ("where: the sounding boxes", "where: the centre", "chance", "class known")
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
    ciou, auc = order_lines(rows)
    assert "crossmae > selfmae; pairs as in the paper: 1, the other way: 0, undecided: 0" in ciou
    assert "pairs as in the paper: 0, the other way: 0, undecided: 1" in auc


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
    results = json.loads((out / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names[:4] == ["selfmae", "crossmae", "untrained", "chance"]
    assert all(0 <= value["mean"] <= 100 for row in results["rows"] for value in row["values"].values())
    assert {"probe/both", "localization/CIoU", "with another sound/CIoU"} <= results["rows"][1]["values"].keys()
    assert (out / "report.html").read_text().count("<table") == 3
    logs = {path: path.read_bytes() for path in out.rglob("train.log")}
    table = (out / "table.md").read_text()
    main(told)  # nothing is done twice
    assert {path: path.read_bytes() for path in out.rglob("train.log")} == logs
    assert (out / "table.md").read_text() == table
    capsys.readouterr()
    assert mistake(capsys, *told, "--steps=3") == "--steps was 2, is 3: use another --out"


def test_a_table_stands_from_the_first_run_on(world, tmp_path, monkeypatch, capsys):
    def call(self, command, folder):
        if "tools.ablation.measure" in command:
            if folder.name.startswith("cl-av"):
                raise UserError("this one failed")
            (folder / "world.json").write_text(json.dumps({"metrics": metrics(30.0)}))

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
    told = [f"--data={world}", f"--out={tmp_path}", "--starts", "scratch", "--steps=2", "--options=--no-such-flag"]
    said = mistake(capsys, *told, "--variants=cl-av", "--seeds=1").splitlines()[-1]
    assert "a run ended with status 2" in said and "cl-av-scratch-seed0/train.log" in said and "--no-such-flag" in said


def test_an_unknown_row_is_named(world, tmp_path, capsys):
    said = mistake(capsys, f"--data={world}", f"--out={tmp_path}", "--variants=nonsense")
    assert "--variants nonsense: allowed are selfmae; cl-av;" in said


def test_a_signal_stops_the_runs_and_the_same_command_goes_on(world, tmp_path):
    told = ["--variants=cl-av", "--seeds=1", "--starts", "scratch", "--batch-size=8"]
    told += [f"--options={flag}" for flag in [*SMALL[1:], "--log-every=1"]]
    command = [sys.executable, "-m", "tools.run_ablation", f"--data={world}", f"--out={tmp_path}", *told]
    process = subprocess.Popen([*command, "--steps=400"], env=environment(), stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "cl-av-scratch-seed0"
    while not (run / "metrics.jsonl").exists() or not read_step_log(run / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "run_ablation: stopped; the same command goes on" and "Traceback" not in said
    assert 1 <= read_state(checkpoints(run)[-1]).step < 400  # it saved
