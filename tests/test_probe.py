"""The linear probe against scikit-learn, and as a command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from shards_spec.dataset import read_dataset, write_dataset
from tests.datasets import make_dataset
from tests.runs import train
from training.evaluate import main as evaluate
from training.evaluation.probe import fit, linear_probe

N, D, C = 240, 6, 4


@pytest.fixture(scope="module")
def problem():
    """Features float64 [N, D] of which two tell the class, and one is constant; multi-hot labels of both tasks."""
    generator = torch.Generator().manual_seed(5)
    classes = torch.randint(0, C, (N,), generator=generator)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) * torch.tensor([1, 20, 0.1, 1, 1, 0])
    x[:, 0] += classes
    x[:, 1] += 15 * (classes % 2)
    x[:, 5] = 3.0
    single = torch.nn.functional.one_hot(classes, C)
    several = single | torch.nn.functional.one_hot((classes + (x[:, 3] > 0.5).long()) % C, C)
    return x, {"singlelabel": single, "multilabel": several}


def standardised(x):
    std = x.std(dim=0, correction=0)
    return (x - x.mean(dim=0)) / torch.where(std > 0, std, 1.0)


@pytest.mark.parametrize("weight_decay", [1e-3, 1e-1])
def test_it_is_scikit_learns_logistic_regression(problem, weight_decay):
    x, labels = standardised(problem[0]), problem[1]
    solver = LogisticRegression(C=1 / (weight_decay * N), tol=1e-10, max_iter=10_000)
    layer = fit(x, labels["singlelabel"], task="singlelabel", weight_decay=weight_decay)
    theirs = solver.fit(x, labels["singlelabel"].argmax(dim=1))
    np.testing.assert_allclose(layer[:, :-1], theirs.coef_, atol=2e-4)
    ours = (x @ layer[:, :-1].T + layer[:, -1]).softmax(dim=1)  # biases have a common part that softmax forgets
    np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=1e-4)
    layer = fit(x, labels["multilabel"], task="multilabel", weight_decay=weight_decay)
    for c in range(C):
        theirs = solver.fit(x, labels["multilabel"][:, c])
        np.testing.assert_allclose(layer[c, :-1], theirs.coef_[0], atol=2e-4)
        np.testing.assert_allclose(layer[c, -1], theirs.intercept_[0], atol=2e-4)


@pytest.mark.parametrize(("task", "metric"), [("singlelabel", "top-1"), ("multilabel", "mAP")])
def test_it_learns_what_features_tell_and_nothing_of_noise(problem, task, metric):
    x, labels = problem[0].float(), problem[1][task]
    half = N // 2
    told = linear_probe(x[:half], labels[:half], x[half:], labels[half:], task=task)
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    untold = linear_probe(noise[:half], labels[:half], noise[half:], labels[half:], task=task)
    assert told.metrics[metric] > untold.metrics[metric] + 20
    assert set(told.held_out) == {1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5}
    assert told.held_out[told.weight_decay] == max(told.held_out.values())
    again = linear_probe(x[:half], labels[:half], x[half:], labels[half:], task=task)
    assert torch.equal(again.scores, told.scores) and again.metrics == told.metrics


def test_the_scale_of_features_does_not_matter_and_a_given_decay_is_taken(problem):
    x, labels = problem[0], problem[1]["singlelabel"]
    first = linear_probe(x, labels, x, labels, task="singlelabel", weight_decays=(0.01,))
    scaled = x * torch.tensor([1, 100, 0.01, 7, 1, 1]) + 5
    second = linear_probe(scaled, labels, scaled, labels, task="singlelabel", weight_decays=(0.01,))
    torch.testing.assert_close(first.scores, second.scores, atol=2e-3, rtol=1e-3)
    assert first.weight_decay == 0.01 and first.held_out == {}


# -------------------------------------------------------------------- evaluate.py probe


def with_classes(folder, count=8):
    classes = [{"index": i, "mid": f"/m/{i}", "name": f"class {i}"} for i in range(count)]
    write_dataset(folder, replace(read_dataset(folder), classes=classes))
    return folder


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    return [with_classes(make_dataset(folder / f"set{seed}", (24, 16), seed=seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def run(datasets, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "pretrained"
    train(f"--data={datasets[0]}", f"--out={run}", "--steps=2", "--batch-size=4", "--workers=0")
    return run


def test_the_command_says_what_it_did(datasets, run, capsys):
    arguments = [f"--data={datasets[0]}", f"--eval-data={datasets[1]}", f"--checkpoint={run}", "--workers=0"]
    evaluate(["probe", *arguments])
    result = json.loads((run / "evaluation" / "probe-set1.json").read_text())
    assert result["task"] == "probe" and result["pool"] == 40 and result["step"] == 2
    assert result["data"] == str(datasets[1])
    assert result["dataset_fingerprint"] == read_dataset(datasets[1]).fingerprint
    kinds = ["audio", "image", "audio + image"]
    assert list(result["metrics"]) == kinds
    assert list(result["baselines"]) == ["class prior", *(f"untrained, {kind}" for kind in kinds)]
    # The label is the red of the frame, so its features tell it well above the most frequent class.
    assert result["metrics"]["image"]["top-1"] > result["baselines"]["class prior"]["top-1"] + 15
    capsys.readouterr()
    evaluate(["probe", *arguments, "--inputs=v", "--weight-decay", "0.01", "--no-untrained", "--task=multilabel"])
    assert list(json.loads((run / "evaluation" / "probe-set1.json").read_text())["metrics"]) == ["image"]
    assert (
        "weight decay given: image 0.01" in json.loads((run / "evaluation" / "probe-set1.json").read_text())["protocol"]
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [(7, "has another class list than"), (0, "has no class list")],
)
def test_a_mistake_gets_one_line(datasets, run, tmp_path, classes, message, capsys):
    other = with_classes(make_dataset(tmp_path / "other", (3, 2)), classes)
    data = other if classes == 0 else datasets[0]
    with pytest.raises(SystemExit) as ended:
        evaluate(["probe", f"--data={data}", f"--eval-data={other}", f"--checkpoint={run}", "--workers=0"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1
