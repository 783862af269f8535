"""What every evaluation takes and tells beside its numbers: --keys, --save-predictions, intervals, classes."""

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix

from shards_spec.errors import UserError
from tests.checkpoints import make_checkpoint
from tests.datasets import make_dataset
from tests.fake_samples import ytid
from tests.test_probe import with_classes
from tests.whole_samples import whole_dataset
from training.evaluate import main
from training.evaluation.class_tables import (
    class_names,
    class_rows,
    confusion,
    recalls,
    score_intervals,
    weighted_precision,
)
from training.evaluation.classification_metrics import average_precision
from training.evaluation.intervals import draws, of_means
from training.evaluation.keys import SampleNames, choose_keys, choose_names, read_keys
from training.evaluation.predictions import check_place, write_predictions
from training.stream.index import open_index

# -------------------------------------------------------------------- keys


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return whole_dataset(tmp_path_factory.mktemp("data"))


def test_clips_are_found_by_key_and_by_the_names_of_benchmarks(dataset):
    names = SampleNames(open_index(str(dataset)))
    for name in (f"{ytid(1)}_30000", f"{ytid(1)}_000030", f"{ytid(1)}_000030.mp4", f"{ytid(1)}_30000.wav"):
        assert names.find(name) == 1
    for name in (f"{ytid(1)}_000031", f"{ytid(1)}_30", "", ".mp4"):
        assert names.find(name) is None


def test_keys_choose_samples_and_what_is_missing_is_said(dataset, tmp_path):
    index, file = open_index(str(dataset)), tmp_path / "heard.csv"
    file.write_text(f"{ytid(3)}_000030,dog barking\n\n{ytid(0)}_30000,cat\ngone_000030,cow\n")
    chosen = choose_keys(index, file)
    assert (chosen.numbers.tolist(), chosen.rule) == ([0, 3], "the keys in heard.csv")
    assert chosen.notes == ("--keys heard.csv: 1 of 3 keys are not in the dataset (gone_000030)",)
    assert choose_keys(index, None).numbers.tolist() == list(range(len(index)))
    file.write_text("gone\n")
    with pytest.raises(UserError, match="none of its 1 keys is in the dataset, the first: gone; the dataset's are as"):
        choose_keys(index, file)
    with pytest.raises(UserError, match="names is in the test split, as gone"):
        choose_names(["a"], file)
    assert choose_names(["gone", "b"], file) == ({"gone"}, ())
    for text, said in (("", "names no key"), ("a\nb\na,x\n", "a stands there twice")):
        file.write_text(text)
        with pytest.raises(UserError, match=f"--keys F: (the file )?{said}"):
            read_keys(file, "--keys F")


# -------------------------------------------------------------------- predictions


def test_predictions_are_written_as_csv_or_parquet(tmp_path):
    tables = [{"key": ["a", "b"], "score": np.array([0.5, 2.0])}, {"key": ["c"], "score": np.array([1.0])}]
    write_predictions(tmp_path / "p.csv", tables)
    with (tmp_path / "p.csv").open() as file:
        assert [(row["key"], float(row["score"])) for row in csv.DictReader(file)] == [("a", 0.5), ("b", 2), ("c", 1)]
    write_predictions(tmp_path / "p.parquet", tables)
    assert pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict() == {
        "key": ["a", "b", "c"], "score": [0.5, 2.0, 1.0],
    }  # fmt: skip


def test_a_place_that_can_be_no_file_is_said_at_once(tmp_path):
    (tmp_path / "d.csv").mkdir()
    for path, said in (("p.txt", "must end in"), ("d.csv", "is a folder"), ("x/p.csv", "does not exist")):
        with pytest.raises(UserError, match=f"--save-predictions .*{said}"):
            check_place(tmp_path / path)


# -------------------------------------------------------------------- intervals


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).random(2000)
    low, high = of_means({"x": values})["x"]
    width = 100 * 1.96 * values.std() / 2000**0.5
    assert low == pytest.approx(100 * values.mean() - width, abs=width / 6)
    assert high == pytest.approx(100 * values.mean() + width, abs=width / 6)
    assert of_means({"x": values}) == of_means({"x": values})


def test_what_belongs_together_is_drawn_together():
    """Ten copies of each value say no more than one: the interval is as wide as without them."""
    values = np.random.default_rng(0).random(50)
    groups = np.repeat(np.arange(50), 10)
    assert of_means({"x": values.repeat(10)}, groups=groups)["x"] == pytest.approx(of_means({"x": values})["x"])
    assert all((drawn[::10] == drawn[9::10]).all() for drawn in draws(500, groups=groups, resamples=3))


def test_what_a_column_does_not_count_is_left_out():
    values = np.array([1.0, np.nan, 1.0, np.nan] * 10)
    assert of_means({"x": values, "none": np.full(40, np.nan)}) == {"x": [100, 100]}


@pytest.mark.parametrize("digits", [1, 9])
def test_weighted_precision_is_that_of_repeated_samples(digits):
    generator = np.random.default_rng(2)
    scores, is_positive = generator.random(60).round(digits), generator.random(60) < 0.3
    weights = np.stack(list(draws(60, resamples=5)))
    found = weighted_precision(weights, scores, is_positive)
    for drawn, precision in zip(weights, found, strict=True):
        repeated = np.repeat(np.arange(60), drawn)
        expected = average_precision_score(is_positive[repeated], scores[repeated])
        assert precision == pytest.approx(expected)


def test_intervals_of_scores_hold_the_numbers():
    generator = np.random.default_rng(0)
    is_positive = np.eye(9, dtype=bool)[generator.integers(0, 9, 300)]
    scores = generator.normal(size=(300, 9)) + is_positive
    low, high = score_intervals("multilabel", scores, is_positive)["mAP"]
    assert low < 100 * average_precision(scores, is_positive).mean() < high < low + 20
    assert set(score_intervals("singlelabel", scores, is_positive)) == {"top-1", "top-5"}


# -------------------------------------------------------------------- classes


def test_classes_and_confusions_are_scikit_learns():
    generator = np.random.default_rng(0)
    names = ["a", "b", "c", "never"]
    right = generator.integers(0, 3, 200)
    scores = generator.normal(size=(200, 4)) + np.eye(4)[right]
    is_positive = np.eye(4, dtype=bool)[right]
    said = scores.argmax(axis=1)
    matrix = confusion_matrix(right, said, labels=range(4))
    rows = class_rows("singlelabel", scores, is_positive, names)
    assert list(rows) == ["a", "b", "c"]
    for c in range(3):
        assert rows[names[c]]["count"] == matrix[c].sum()
        assert rows[names[c]]["accuracy"] == pytest.approx(100 * matrix[c, c] / matrix[c].sum())
        assert rows[names[c]]["AP"] == pytest.approx(100 * average_precision_score(is_positive[:, c], scores[:, c]))
    assert recalls(right, said, names) == {
        name: {"count": row["count"], "accuracy": row["accuracy"]} for name, row in rows.items()
    }
    table = confusion(right, said, names)
    assert {(r, s): n for r, row in table.items() for s, n in row.items()} == {
        (names[i], names[j]): matrix[i, j] for i, j in zip(*matrix.nonzero(), strict=True)
    }
    assert all(list(row.values()) == sorted(row.values(), reverse=True) for row in table.values())


def test_classes_of_one_name_stay_apart():
    assert class_names([{"name": "x"}, {"mid": "/m/1"}, {"name": "x"}, {}]) == ["x (0)", "/m/1", "x (2)", "3"]


# -------------------------------------------------------------------- the command


def test_the_probe_tells_all_of_it_of_the_keys_alone(tmp_path, capsys):
    train, scored = (with_classes(make_dataset(tmp_path / name, (20,), seed=seed)) for seed, name in enumerate("ab"))
    run, index = make_checkpoint(tmp_path / "run"), open_index(str(scored))
    (tmp_path / "keys.txt").write_text("\n".join(index.key(i) for i in (5, 2, 9, 11)))
    told = [f"--data={train}", f"--eval-data={scored}", f"--checkpoint={run}", "--workers=0", "--inputs=av"]
    told += ["--weight-decay=0.1", "--no-untrained", f"--out={tmp_path / 'r.json'}"]
    main(["probe", *told, f"--keys={tmp_path / 'keys.txt'}", f"--save-predictions={tmp_path / 'p.csv'}"])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [index.key(i) for i in (2, 5, 9, 11)]
    scores = [name for name in rows[0] if name.startswith("score of ")]
    right = [max(scores, key=lambda name, row=row: float(row[name])) == f"score of {row['truth']}" for row in rows]
    assert result["metrics"]["audio + image"]["top-1"] == pytest.approx(100 * np.mean(right))
    assert result["pool"] == 4 and result["pool_rule"] == "the keys in keys.txt of --eval-data"
    assert sum(row["count"] for row in result["classes"]["audio + image"].values()) == 4
    assert sum(n for row in result["confusion"]["audio + image"].values() for n in row.values()) == 4
    low, high = result["intervals"]["audio + image"]["top-1"]
    assert f"{low:.1f}..{high:.1f}" in printed and "protocol: linear probe, singlelabel" in printed
