"""Metrics of classification against scikit-learn, and against what can be counted by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from shards_spec.errors import UserError
from training.evaluation.classification_metrics import (
    average_precision,
    count_tied,
    d_prime,
    multilabel_metrics,
    notes_on_classes,
    prior_metrics,
    roc_auc,
    singlelabel_metrics,
)


@pytest.fixture(params=[None, 1], ids=["distinct", "with ties"])
def problem(request):
    generator = np.random.default_rng(3)
    is_positive = generator.random((200, 12)) < 0.15
    is_positive[:, 7] = False
    scores = generator.normal(size=(200, 12)) + is_positive
    return (scores if request.param is None else scores.round(request.param)), is_positive


def test_average_precision_is_that_of_scikit_learn(problem):
    scores, is_positive = problem
    ours = average_precision(scores, is_positive)
    occurring = [c for c in range(12) if c != 7]
    theirs = [average_precision_score(is_positive[:, c], scores[:, c]) for c in occurring]
    np.testing.assert_allclose(ours[occurring], theirs, rtol=1e-12)
    assert np.isnan(ours[7])
    assert multilabel_metrics(scores, is_positive)["mAP"] == pytest.approx(100 * np.mean(theirs))


def test_area_under_the_curve_is_that_of_scikit_learn(problem):
    scores, is_positive = problem
    ours = roc_auc(scores, is_positive)
    theirs = [roc_auc_score(is_positive[:, c], scores[:, c]) for c in range(12) if c != 7]
    np.testing.assert_allclose(np.delete(ours, 7), theirs, rtol=1e-12)
    assert np.isnan(ours[7])


def test_d_prime_of_the_mean_area():
    assert d_prime(0.5) == 0
    assert d_prime(0.95) == pytest.approx(math.sqrt(2) * 1.644854, abs=1e-5)  # of a table of the normal distribution
    assert d_prime(1.0) is None and d_prime(0.0) is None
    perfect = multilabel_metrics(np.eye(3), np.eye(3, dtype=bool))
    assert perfect == {"mAP": 100.0, "AUC": 100.0, "d'": None}


def test_accuracy_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 9, 300)
    is_positive = np.eye(9, dtype=bool)[classes]
    scores = generator.normal(size=(300, 9)) + 0.5 * is_positive
    ours = singlelabel_metrics(scores, is_positive)
    for k in (1, 5):
        theirs = top_k_accuracy_score(classes, scores, k=k, labels=range(9))
        assert ours[f"top-{k}"] == pytest.approx(100 * theirs)


def test_of_equal_scores_the_first_class_ranks_first():
    """As the argmax by which CAV-MAE's code counts: a tie is a hit or a miss by the place of the right class."""
    generator = np.random.default_rng(1)
    classes = generator.integers(0, 9, 400)
    is_positive = np.eye(9, dtype=bool)[classes]
    scores = generator.integers(0, 3, (400, 9)).astype(np.float32)  # ties nearly everywhere
    expected = 100 * np.mean(scores.argmax(axis=1) == is_positive.argmax(axis=1))
    assert singlelabel_metrics(scores, is_positive)["top-1"] == expected
    assert singlelabel_metrics(np.zeros((9, 9)), np.eye(9, dtype=bool)) == {"top-1": 100 / 9, "top-5": 100 * 5 / 9}
    assert count_tied(scores, is_positive) == sum((s == s[c]).sum() > 1 for s, c in zip(scores, classes, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [singlelabel_metrics, multilabel_metrics, average_precision, roc_auc])
def test_scores_that_are_no_numbers_are_refused(metric, bad):
    scores = np.ones((3, 4))
    scores[1, 2] = bad
    with pytest.raises(UserError, match="scores of 1 of 3 samples are not finite"):
        metric(scores, np.eye(4, dtype=bool)[:3])


def test_the_same_answer_for_all_scores_the_share_of_positives():
    is_positive = np.zeros((10, 3), bool)
    is_positive[:4, 0] = is_positive[:1, 1] = True
    found = prior_metrics("multilabel", is_positive.sum(axis=0), is_positive)
    assert found == {"mAP": pytest.approx(25.0), "AUC": pytest.approx(50.0), "d'": pytest.approx(0.0)}
    assert notes_on_classes(is_positive)[0].startswith("1 of 3 classes have no positive")


def test_the_most_frequent_class_is_that_of_the_training_set():
    is_positive = np.eye(6, dtype=bool)[[0, 0, 0, 1, 5]]
    assert prior_metrics("singlelabel", np.array([1, 9, 3, 3, 3, 3]), is_positive) == {"top-1": 20.0, "top-5": 40.0}


def test_nothing_to_score_is_said_not_guessed():
    nothing = multilabel_metrics(np.zeros((3, 2)), np.zeros((3, 2), bool))
    assert nothing == {"mAP": None, "AUC": None, "d'": None} and not any(
        map(math.isnan, filter(None, nothing.values()))
    )
