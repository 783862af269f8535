"""VGGSounder: its labels, metrics against scikit-learn and by hand, and the command."""

import json

import numpy as np
import pytest
from pyarrow import parquet
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.runs import command_line, run_to_end
from tests.test_probe import with_classes
from training.evaluate import main as evaluate
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.vggsounder_labels import read_vggsounder
from training.evaluation.vggsounder import score, spelled, top_metrics

HEAD = "video_id,label,modality,background_music,static_image,voice_over\n"


def write(folder, *rows):
    path = folder / "vggsounder.csv"
    path.write_text(HEAD + "".join(f"{row},False,False,True\n" for row in rows))
    return path


def test_labels_are_read_clip_by_clip_and_damaged_rows_counted(tmp_path):
    rows = ["--i-y1v8Hy8_000030,child singing,AV", '--i-y1v8Hy8_000030,"child speech, kid speaking",A']
    rows += ["no clip,child singing,AV", "--i-y1v8Hy8_000007,,V", "--i-y1v8Hy8_000007,wind noise,VA"]
    rows += ["-0BIyqJj9ZU_000107,wind noise,V"]
    left_out = LeftOut()
    assert read_vggsounder(write(tmp_path, *rows), left_out) == {
        "--i-y1v8Hy8_30000": {"child singing": "AV", "child speech, kid speaking": "A"},
        "-0BIyqJj9ZU_107000": {"wind noise": "V"},
    }
    assert left_out.notes() == (
        "left out, rows whose video_id is not as --i-y1v8Hy8_000000: 1 (vggsounder.csv:4)",
        "left out, rows without a label: 1 (vggsounder.csv:5)",
        "left out, rows whose modality is none of A, V, AV: 1 (vggsounder.csv:6)",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .No such file or directory.: --annotations takes VGGSounder's vggsounder.csv"),
        ("---g-f_I2yQ,1,people marching,test\n", "expected video_id, label and modality"),
        (HEAD + "x,y,Z\n", "has no usable row; left out, rows whose video_id"),
    ],
)
def test_a_file_that_is_none_is_a_mistake(tmp_path, content, message):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_vggsounder(path, LeftOut())


def test_each_kind_of_label_is_a_row_of_its_own():
    """Two clips of four classes. The first is heard as 0 and seen as 1, the second is both 2 and 3."""
    modalities = np.array([[1, 2, 0, 0], [0, 0, 3, 3]], np.int8)
    scores = np.array([[0.7, 0.1, 0.2, 0.0], [0.1, 0.0, 0.5, 0.4]])
    rows = score(scores, modalities)
    assert {name: (row["clips"], row["Hit@1"], row["exact@1"]) for name, row in rows.items()} == {
        "heard (A, AV)": (2, 100, 50),
        "seen (V, AV)": (2, 50, 0),
        "heard and seen (AV)": (1, 100, 0),
        "only heard (A)": (1, 100, 100),
        "only seen (V)": (1, 0, 0),
        "all labels": (2, 100, 0),
    }
    assert rows["heard (A, AV)"]["F1@1"] == pytest.approx(100 * 2 * 2 / (2 + 3))
    assert rows["all labels"]["F1@3"] == pytest.approx(100 * 2 * 4 / (6 + 4))
    frequent = score(None, np.array([[1, 0], [1, 0], [0, 1]], np.int8))
    assert list(frequent) == ["heard (A, AV)", "only heard (A)", "all labels"]  # nothing is seen
    assert frequent["all labels"]["Hit@1"] == pytest.approx(200 / 3)
    assert frequent["all labels"]["AUC"] == 50


def test_the_metrics_are_scikit_learns():
    generator = np.random.default_rng(0)
    scores, truth = generator.random((40, 12)), generator.random((40, 12)) > 0.8
    truth[:, 0] |= ~truth.any(axis=1)
    found, modalities = top_metrics(scores, truth), np.where(truth, 3, 0).astype(np.int8)
    for k in (1, 3, 5, 10):
        said = np.zeros_like(truth)
        np.put_along_axis(said, np.argsort(scores, axis=1)[:, -k:], True, axis=1)
        assert found[f"F1@{k}"] == pytest.approx(100 * f1_score(truth, said, average="micro"))
        assert found[f"Hit@{k}"] == pytest.approx(100 * (truth & said).any(axis=1).mean())
        if k == 1:
            assert found["exact@1"] == pytest.approx(100 * accuracy_score(truth, said))
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in range(12)]
    assert score(scores, modalities)["heard and seen (AV)"]["mAP"] == pytest.approx(100 * np.mean(expected))


def test_classes_that_score_the_same_are_no_hit():
    assert top_metrics(np.zeros((2, 4)), np.eye(4, dtype=bool)[:2])["Hit@3"] == 0


def test_the_command_scores_a_model_of_one_label_a_clip(tmp_path, capsys):
    data, run = with_classes(make_dataset(tmp_path / "shards", (4, 3)), 12), tmp_path / "run"
    size = ["--encoder.dim=16", "--encoder.depth=1", "--encoder.heads=2", "--inputs=av", "--task=singlelabel"]
    run_to_end(
        command_line("train.py", "finetune", f"--data={data}", f"--out={run}", *size, "--steps=1", "--batch-size=4")
    )
    rows = ["clip0000000_000000,class 3,A", "clip0000000_000000,class_5,AV", "clip0000001_000001,class 5,V"]
    csv = write(tmp_path, *rows, "gone0000000_000000,class 1,A", "clip0100002_000002,no class,A")
    arguments = [f"--data={data}", f"--checkpoint={run}", "--workers=0"]
    evaluate(["vggsounder", f"--annotations={csv}", *arguments])
    assert "most frequent, seen (V, AV)" in capsys.readouterr().out
    result = json.loads((run / "evaluation" / "vggsounder-shards.json").read_text())
    assert result["task"] == "vggsounder" and result["pool"] == 2
    assert {name: row["clips"] for name, row in result["metrics"].items()} == {
        "heard (A, AV)": 1,
        "seen (V, AV)": 2,
        "heard and seen (AV)": 1,
        "only heard (A)": 1,
        "only seen (V)": 1,
        "all labels": 2,
    }
    assert result["baselines"]["most frequent, seen (V, AV)"]["Hit@1"] == 100
    assert 'in the row "heard and seen (AV)"' in result["protocol"]
    assert [note.partition(" (")[0] for note in result["notes"]] == [
        "left out, clips that the dataset does not have: 1",
        "left out, samples without a row in the CSV: 4",
        "left out, labels that are not in the class list: 1",
    ]
    for name, ends in result["intervals"].items():
        assert list(ends) == ["Hit@1", "F1@1", "exact@1", *(f"{m}@{k}" for k in (3, 5, 10) for m in ("Hit", "F1"))]
        assert all(low <= result["metrics"][name][column] <= high for column, (low, high) in ends.items())
    keys, saved = tmp_path / "some.txt", tmp_path / "answers.parquet"
    keys.write_text("clip0000000_000000\ngone0000000_000000\n")
    evaluate(["vggsounder", f"--annotations={csv}", f"--keys={keys}", f"--save-predictions={saved}", *arguments])
    some = json.loads((run / "evaluation" / "vggsounder-shards.json").read_text())
    assert some["pool"] == 1 and some["pool_rule"] == "clips of vggsounder.csv; the keys in some.txt"
    assert "--keys some.txt: 1 of 2 keys are not in the dataset (gone0000000_000000)" in some["notes"]
    table = parquet.read_table(saved).to_pydict()
    assert (table["key"], table["truth"], table["modality"]) == (["clip0000000_0"], ["class 3;class 5"], ["A;AV"])
    assert len([column for column in table if column.startswith("score of ")]) == 12
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        evaluate(["vggsounder", f"--annotations={write(tmp_path, 'gone0000000_000000,class 1,A')}", *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "its keys must be VIDEO_ID_MILLISECONDS, as gone0000000_0" in said
    assert said.count("\n") == 1


def test_labels_are_found_as_file_names_spell_them():
    assert spelled("bird chirping, tweeting") == "bird_chirping_tweeting"
