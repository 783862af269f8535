"""Retrieval metrics against a sort done by hand; pools; the command."""

import json

import numpy as np
import pytest
import torch

from shards_spec.errors import UserError
from tests.checkpoints import make_checkpoint
from tests.datasets import make_dataset
from training.evaluate import main
from training.evaluation.features import Embeddings
from training.evaluation.metadata import label_ids
from training.evaluation.pools import choose, parse_pool
from training.evaluation.retrieval import (
    AUDIO_TO_IMAGE,
    IMAGE_TO_AUDIO,
    class_chance,
    class_ranks,
    exact,
    label_matrix,
    partner_ranks,
    retrieval,
    score,
)
from training.stream.index import open_index
from training.stream.order import sample_seeds


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


@pytest.mark.parametrize("n", [513, 1025])
def test_collapsed_features_score_no_hit_whatever_the_chunks(n):
    """Of one row alone the last digit of a float32 product is another than of 512 together."""
    generator = torch.Generator().manual_seed(0)
    for width in (192, 200, 768):
        same = torch.randn(1, width, generator=generator).expand(n, -1).contiguous()
        result = retrieval(same, same * 3)
        assert result.audio_to_image.recall == result.image_to_audio.recall == {1: 0, 5: 0, 10: 0}


def test_similarities_do_not_depend_on_the_order_of_summation():
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (exact(torch.randn(300, 77, generator=generator)) for _ in range(2))
    order = torch.randperm(77, generator=generator)
    assert torch.equal(queries @ candidates.T, queries[:, order] @ candidates[:, order].T)
    assert torch.equal((queries @ candidates.T)[5], (queries[5:6] @ candidates.T)[0])
    assert (exact(queries) - queries).abs().max() < 2**-26


def cav_mae_metrics(similarity):
    """What its retrieval.py computes, by its rule: every place of a sorted row that equals the partner's counts."""
    places = np.where(np.sort(-similarity, axis=1) + np.diag(similarity)[:, None] == 0)[1]
    return {k: 100 * (float((places < k).sum()) / len(places)) for k in (1, 5, 10)}, np.median(places) + 1


def test_ties_as_cav_mae_counts_them():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(7, 5, generator=generator)
    audio, image = few[torch.randint(7, (40,), generator=generator)], few[torch.randint(7, (40,), generator=generator)]
    result = retrieval(audio, image)
    for name, one, other in ((AUDIO_TO_IMAGE, audio, image), (IMAGE_TO_AUDIO, image, audio)):
        recall, median = cav_mae_metrics((exact(one) @ exact(other).T).numpy())
        assert (result.ties[name].recall, result.ties[name].median_rank) == (recall, median)
    same = torch.ones(20, 4)
    assert retrieval(same, same).ties[AUDIO_TO_IMAGE].recall == {1: 5, 5: 25, 10: 50}
    apart = torch.randn(2, 30, 16, generator=generator)
    assert not retrieval(*apart).ties
    recall, median = cav_mae_metrics((exact(apart[0]) @ exact(apart[1]).T).numpy())
    found = retrieval(*apart).audio_to_image
    assert (found.recall, found.median_rank) == (recall, median)


def test_random_features_score_at_chance():
    generator = torch.Generator().manual_seed(0)
    n = 2000
    result = retrieval(torch.randn(n, 16, generator=generator), torch.randn(n, 16, generator=generator))
    hits = result.audio_to_image.recall[10] * n / 100
    assert abs(hits - 10) < 13  # binomial(2000, 1/200): mean 10, deviation 3.2


def test_similarities_that_are_no_numbers_score_no_hit():
    broken = torch.full((20, 4), float("nan"))
    assert partner_ranks(broken, broken).tolist() == [20] * 20


def naive_class_ranks(queries, candidates, labels):
    """Ranks by sorting; at equal similarity, candidates without a common label first."""
    ranks = []
    for i, query in enumerate(queries):
        common = [bool(set(labels[i]) & set(labels[j])) for j in range(len(candidates))]
        order = sorted(range(len(candidates)), key=lambda j: (-float(np.dot(query, candidates[j])), common[j]))
        ranks.append([common[j] for j in order].index(True) + 1)
    return ranks


def test_class_ranks_equal_a_sort(monkeypatch):
    monkeypatch.setattr("training.evaluation.retrieval._CHUNK", 7)
    generator = np.random.default_rng(1)
    labels = [sorted(set(generator.integers(0, 12, 2).tolist())) for _ in range(40)]
    queries = generator.integers(-2, 3, (40, 3)).astype(np.float64)
    candidates = generator.integers(-2, 3, (40, 3)).astype(np.float64)
    ranks = class_ranks(torch.from_numpy(queries), torch.from_numpy(candidates), label_matrix(labels))
    assert ranks.tolist() == naive_class_ranks(queries, candidates, labels)


def test_class_chance_by_hand():
    # Classes of 3, 2 and 1 of six: R@1 = mean of m / 6; R@2: 1 - C(6 - m, 2) / 15 = 12/15, 9/15, 5/15.
    labels = label_matrix([[7], [7], [7], [1], [1], [4]])
    assert class_chance(labels, 1) == pytest.approx((3 * 3 + 2 * 2 + 1) / 36)
    assert class_chance(labels, 2) == pytest.approx((3 * 12 + 2 * 9 + 5) / 15 / 6)
    assert class_chance(labels, 10) == 1


def scored(embeddings, labels):
    return score(retrieval(embeddings.audio, embeddings.image), embeddings, labels)


def test_class_chance_is_what_random_rankings_score():
    generator = torch.Generator().manual_seed(0)
    labels = label_matrix([[i % 36] for i in range(1500)])
    audio, image = torch.randn(2, 1500, 32, generator=generator)
    rows, baselines = scored(Embeddings(numbers=np.arange(1500), keys=[], audio=audio, image=image), labels)
    for column in ("class R@1", "class R@5", "class R@10"):
        p = baselines["chance"][column] / 100
        assert abs(rows["audio -> image"][column] / 100 - p) < 4 * (p * (1 - p) / 1500) ** 0.5
    assert baselines["chance"]["class R@1"] == pytest.approx(100 * 42 / 1500, rel=0.01)


def test_samples_without_labels_are_left_out_of_the_classes():
    eye = torch.eye(4)
    embeddings = Embeddings(numbers=np.arange(4), keys=[], audio=eye, image=eye)
    rows, baselines = scored(embeddings, label_matrix([[0], [], [1], [0, 1]]))
    assert rows["audio -> image"] == {
        "R@1": 100, "R@5": 100, "R@10": 100, "median rank": 1, "class R@1": 100, "class R@5": 100, "class R@10": 100,
    }  # fmt: skip
    assert baselines["chance"]["class R@1"] == pytest.approx(100 * (2 + 2 + 3) / 9)
    assert "class R@1" not in scored(embeddings, label_matrix([[], [], [], []]))[0]["audio -> image"]


# Pools.


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(str(make_dataset(tmp_path_factory.mktemp("data") / "d", (20, 15))))


def test_a_pool_of_some_of_each_class(index):
    """Against the rule written again: the N smallest hashes of each first label."""
    labels = [ids[0] for ids in label_ids(index, np.arange(35))]
    keys = [index.key(number) for number in range(35)]
    seeds = sample_seeds(3, np.zeros(35, np.int64), keys)
    expected = []
    for c in set(labels):
        members = sorted((int(seeds[i]), i) for i in range(35) if labels[i] == c)
        expected += [i for _, i in members[:2]]
    numbers, rule = choose(index, parse_pool("per-class:2"), seed=3)
    assert numbers.tolist() == sorted(expected)
    assert rule.startswith(f"2 a class by first label, seed 3; {len(set(labels))} classes")
    assert set(numbers) <= set(choose(index, parse_pool("per-class:3"), seed=3)[0])
    assert numbers.tolist() != choose(index, parse_pool("per-class:2"), seed=4)[0].tolist()
    assert choose(index, parse_pool("per-class:99"), seed=0)[0].tolist() == list(range(35))


def test_the_choice_does_not_depend_on_shards(tmp_path, index):
    other = open_index(str(make_dataset(tmp_path / "d", (20, 15), failed=3)))
    ours, theirs = (choose(i, parse_pool("per-class:1"), seed=0)[0] for i in (index, other))
    assert ours.tolist() == theirs.tolist()


def test_a_pool_of_named_keys(index, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(f"{index.key(30)}\n\n{index.key(4)}\n")
    numbers, rule = choose(index, parse_pool(f"keys:{file}"), seed=0)
    assert (numbers.tolist(), rule) == ([4, 30], "the keys in keys.txt")
    for text, said in (("", "names no key"), ("a\na\n", "a stands there twice"), ("zz\n", "1 of 1 keys are not in")):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            choose(index, parse_pool(f"keys:{file}"), seed=0)
    with pytest.raises(UserError, match=r"gone.txt: cannot be read"):
        choose(index, parse_pool(f"keys:{tmp_path / 'gone.txt'}"), seed=0)


def test_a_pool_of_cav_maes_list(index, tmp_path):
    """Keys are of the form clip0000004_4000: named as VGGSound's clips, as AudioSet's videos, or as they are."""
    file = tmp_path / "vgg_test_5_per_class.json"
    ids = [
        index.key(4).replace("_4000", "_000004"),
        index.key(30).rpartition("_")[0],
        index.key(7),
        "gone0000000_000001",
    ]
    file.write_text(json.dumps({"data": [{"video_id": name, "wav": "/x/a.wav", "labels": "/m/1"} for name in ids]}))
    numbers, rule = choose(index, parse_pool(f"keys:{file}"), seed=0)
    assert numbers.tolist() == [4, 7, 30]
    assert rule == "the clips in vgg_test_5_per_class.json, of which the dataset lacks 1 of 4"
    file.write_text(json.dumps({"data": [{"video_id": f"{ids[0]}.mp4"}]}))
    assert choose(index, parse_pool(f"keys:{file}"), seed=0)[0].tolist() == [4]
    for text, said in (
        ('{"data": [{"wav": "a"}]}', "is no list of CAV-MAE's"),
        ('{"data": [{"video_id": "a"}, {"video_id": "a"}]}', "a stands there twice"),
        ('{"data": []}', "names no key"),
        ('{"data": [{"video_id": "gone0000000"}]}', "the dataset has none of its 1 clips, as .'gone0000000'."),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            choose(index, parse_pool(f"keys:{file}"), seed=0)


@pytest.mark.parametrize("text", ["", "some", "per-class", "per-class:0", "per-class:x", "keys:"])
def test_pools_that_are_none(text):
    with pytest.raises(ValueError, match="--pool is all, per-class:N"):
        parse_pool(text)


# The command.


def test_the_command_writes_what_it_prints(index, tmp_path, capsys):
    run = make_checkpoint(tmp_path / "run")
    main(["retrieval", f"--data={index.folders[0]}", f"--checkpoint={run}", "--workers=0", "--untrained"])
    printed = capsys.readouterr().out
    result = json.loads((run / "evaluation" / "retrieval-d.json").read_text())
    assert list(result) == [
        "task", "data", "dataset_fingerprint", "checkpoint", "step", "pool", "pool_rule", "protocol_name", "protocol",
        "metrics", "baselines", "paper", "notes", "intervals", "classes", "confusion",
    ]  # fmt: skip
    assert (result["task"], result["pool"], result["step"]) == ("retrieval", 35, 7)
    assert result["dataset_fingerprint"] == index.fingerprint
    assert set(result["baselines"]) == {"chance", "untrained, audio -> image", "untrained, image -> audio"}
    assert result["baselines"]["chance"]["R@5"] == pytest.approx(100 * 5 / 35)
    assert result["paper"]["CrossMAE ViT-B, Flickr-SoundNet, audio -> image"] == {"R@1": 16.8, "R@5": 45.2, "R@10": 64}
    for row in [*result["metrics"].values(), *result["baselines"].values()]:
        assert all(f"{value:.2f}" in printed for value in row.values())
    assert "the pools differ" in printed
    common = ["retrieval", f"--data={index.folders[0]}", f"--checkpoint={run}", "--workers=0", "--pool=per-class:1"]
    main([*common, f"--save-predictions={tmp_path / 'each.csv'}"])
    saved = (tmp_path / "each.csv").read_text().splitlines()
    first = json.loads((run / "evaluation" / "retrieval-d.json").read_text())
    assert saved[0] == '"key","truth","similarity",' + ",".join(
        f'"{way}: {what}"' for way in (AUDIO_TO_IMAGE, IMAGE_TO_AUDIO) for what in ("rank", "first")
    )
    assert len(saved) == 1 + first["pool"]
    assert "a class by first label" in capsys.readouterr().out


def test_a_pool_of_one_is_refused(index, tmp_path, capsys):
    run, file = make_checkpoint(tmp_path / "run"), tmp_path / "keys.txt"
    file.write_text(index.key(0))
    with pytest.raises(SystemExit) as ended:
        main(["retrieval", f"--data={index.folders[0]}", f"--checkpoint={run}", f"--pool=keys:{file}"])
    assert ended.value.code == 2 and "holds 1 sample: retrieval needs at least 2" in capsys.readouterr().err
