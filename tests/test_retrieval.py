"""Retrieval metrics against a sort done by hand."""

import numpy as np
import pytest
import torch

from training.evaluation.retrieval import partner_ranks, retrieval


def naive_ranks(queries, candidates):
    """Ranks by sorting, one query at a time; on a tie the partner comes last."""
    ranks = []
    for i, query in enumerate(queries):
        scores = [float(np.dot(query, candidate)) for candidate in candidates]
        order = sorted(range(len(scores)), key=lambda j: (-scores[j], j == i))
        ranks.append(order.index(i) + 1)
    return ranks


def test_ranks_equal_a_sort(monkeypatch):
    monkeypatch.setattr("training.evaluation.retrieval._CHUNK", 7)  # several chunks, the last one short
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (40, 3)).astype(np.float64)  # small integers: many exact ties
    candidates = generator.integers(-2, 3, (40, 3)).astype(np.float64)
    ranks = partner_ranks(torch.from_numpy(queries), torch.from_numpy(candidates))
    assert ranks.tolist() == naive_ranks(queries, candidates)


def test_by_hand():
    # Audio 0 is nearest image 0; audio 1 nearest image 0, then image 1; audio 2 nearest image 2.
    audio = torch.tensor([[1.0, 0.0], [0.9, 0.5], [-1.0, 0.1]])
    image = torch.tensor([[2.0, 0.3], [0.1, 3.0], [-5.0, 0.0]])
    result = retrieval(audio, image)
    assert result.pool == 3
    assert result.audio_to_image.recall[1] == pytest.approx(200 / 3)
    assert result.audio_to_image.recall[5] == 100
    assert result.audio_to_image.median_rank == 1
    assert result.chance == {1: pytest.approx(100 / 3), 5: 100, 10: 100}


def test_collapsed_features_score_no_hit():
    same = torch.ones(20, 4)
    result = retrieval(same, same)
    assert result.audio_to_image.recall == {1: 0, 5: 0, 10: 0}
    assert result.image_to_audio.median_rank == 20


def test_random_features_score_at_chance():
    generator = torch.Generator().manual_seed(0)
    n = 2000
    result = retrieval(torch.randn(n, 16, generator=generator), torch.randn(n, 16, generator=generator))
    hits = result.audio_to_image.recall[10] * n / 100
    assert abs(hits - 10) < 13  # binomial(2000, 1/200): mean 10, deviation 3.2
