"""Cross-modal retrieval: which image belongs to this sound, and the other way round.

The paper's Tables 4 to 7 (section 4.4), without fine-tuning: audio and image pass their encoders apart and
unmasked, the outputs are pooled, similarity is their cosine, and R@K is the share of queries whose own partner
is among the K most similar. Every result names its pool, since R@K means little without it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shards_spec.errors import UserError
from training.evaluation.features import Embeddings, LoadedModel, Pooling, load_model
from training.evaluation.intervals import of_means
from training.evaluation.metadata import label_ids
from training.evaluation.options import EvaluationOptions
from training.evaluation.pools import choose, parse_pool
from training.evaluation.results import Result, Rows

__all__ = ["RANKS", "LoadedModel", "RetrievalConfig", "load_model", "partner_ranks", "retrieval"]

# Q queries, C candidates, D features, L classes.
RANKS = (1, 5, 10)
AUDIO_TO_IMAGE, IMAGE_TO_AUDIO = "audio -> image", "image -> audio"
_CHUNK = 512  # queries scored at once: memory is a few times _CHUNK x C, whatever Q
_GRID = 2.0**26  # steps of `exact` from 0 to 1

PAPER: Rows = {
    "CrossMAE ViT-B, Flickr-SoundNet, audio -> image": {"R@1": 16.8, "R@5": 45.2, "R@10": 64.0},
    "CrossMAE ViT-B, Flickr-SoundNet, image -> audio": {"R@1": 18.2, "R@5": 46.4, "R@10": 60.8},
}
PROTOCOL = (
    "Cosine of pooled unmasked features, no fine-tuning. R@K: share of queries whose own partner is among the K most"
    " similar; a candidate as similar as the partner ranks before it, so features that are all equal score no hit;"
    " similarities are exact, so that equal features are equally similar, wherever they stand."
    " class R@K: share of the labelled queries with a candidate of a common label among the first K (their partner is"
    " one); at equal similarity, candidates without one rank before."
)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """One direction of retrieval. `recall` maps K to the share of queries with their partner in the first K, in %."""

    recall: dict[int, float]
    median_rank: float


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each query finds its own partner among C candidates."""

    better: Tensor  # int64 [Q], candidates more similar than the partner
    tied: Tensor  # int64 [Q], those as similar, the partner among them

    @property
    def last(self) -> Tensor:
        """The rank (1 = first) where ties count against the query, int64 [Q]."""
        return self.better + self.tied

    def with_all_ranks(self) -> Recall:
        """R@K and median rank as CAV-MAE's code counts them: a query has each of its tied ranks, as a query each.

        So features that are all equal score chance; without ties this is what `last` gives.
        """
        end = int(self.last.max())
        steps = torch.zeros(end + 1, dtype=torch.int64)
        steps.scatter_add_(0, self.better.cpu(), torch.ones_like(self.better.cpu()))
        steps.scatter_add_(0, self.last.cpu(), -torch.ones_like(self.last.cpu()))
        reached = steps.cumsum(0).cumsum(0)  # ranks of at most 1, 2, ...
        total = int(reached[-1])
        middle = [int((reached > place).nonzero()[0]) + 1 for place in ((total - 1) // 2, total // 2)]
        return Recall(
            recall={k: 100 * (int(reached[min(k, end) - 1]) / total) for k in RANKS}, median_rank=sum(middle) / 2
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Both directions, with what they have to be read against. `chance` is R@K of a random ranking, in %.

    By direction: `places` are those of the queries; `ties`, where there are any, the numbers as CAV-MAE counts them.
    """

    pool: int
    places: dict[str, Places]
    ties: dict[str, Recall]
    chance: dict[int, float]
    audio_to_image: Recall
    image_to_audio: Recall


def exact(vectors: Tensor) -> Tensor:
    """Unit vectors [N, D] as float64 on a grid so coarse that their cosines are exact, whatever the order of summation.

    Cosines in float32 depend in their last digit on the size of the product that they are part of, and with it who
    ties with whom. Here a product of coordinates is a multiple of 2^-52 and no partial sum of a cosine is above 1, so
    float64 holds each of them. A coordinate moves by at most 2^-27, which float32 does not resolve from 1/8 on.
    """
    return (F.normalize(vectors.double(), dim=1) * _GRID).round() / _GRID


def partner_places(queries: Tensor, candidates: Tensor) -> Places:
    """Where each query's own partner stands; query i's is candidate i. A similarity that is no number counts as tied.

    Args:
        queries: unit vectors, float [Q, D], of `exact` where ties matter.
        candidates: unit vectors, float [C = Q, D].
    """
    better, tied = [], []
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ candidates.T  # [chunk, C]
        own = similarity.diagonal(start).unsqueeze(1)
        better.append((similarity > own).sum(dim=1))
        tied.append(len(candidates) - better[-1] - (similarity < own).sum(dim=1))
    return Places(better=torch.cat(better), tied=torch.cat(tied))


def partner_ranks(queries: Tensor, candidates: Tensor) -> Tensor:
    """The rank (1 = first) of each query's own partner among all candidates, int64 [Q]; as `partner_places`.

    A tie counts against the query, so that collapsed features score no hit.
    """
    return partner_places(queries, candidates).last


def class_ranks(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
    """The rank of the first candidate that shares a label with the query, int64 [Q]; ties count against the query.

    Args:
        queries, candidates: unit vectors, float [Q, D] and [C = Q, D]; query i's partner is candidate i.
        labels: bool [Q, L], of query and partner. Every query must have one.
    """
    known = labels.float()
    ranks = []
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ candidates.T  # [chunk, C]
        is_other = (known[start : start + _CHUNK] @ known.T) == 0  # [chunk, C], no common label
        best = similarity.masked_fill(is_other, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + (is_other & ~(similarity < best)).sum(dim=1))
    return torch.cat(ranks)


def class_chance(labels: Tensor, k: int) -> float:
    """R@K by class of a random ranking, a share: 1 - C(N - m, K) / C(N, K), mean over queries with m relevant of N.

    Args:
        labels: bool [Q, L].
    """
    known, n = labels.float(), len(labels)
    relevant = torch.cat([((known[start : start + _CHUNK] @ known.T) > 0).sum(dim=1) for start in range(0, n, _CHUNK)])
    counts, times = relevant.unique(return_counts=True)
    drawn = min(k, n)
    shares = [1 - comb(n - m, drawn) / comb(n, drawn) for m in counts.tolist()]
    return float((torch.tensor(shares, dtype=torch.float64) * times).sum() / n)


def retrieval(audio: Tensor, image: Tensor) -> RetrievalResult:
    """Scores paired features, float [N, D] each, in both directions."""
    audio, image = exact(audio), exact(image)
    pool = len(audio)
    places = {AUDIO_TO_IMAGE: partner_places(audio, image), IMAGE_TO_AUDIO: partner_places(image, audio)}
    return RetrievalResult(
        pool=pool,
        places=places,
        ties={name: found.with_all_ranks() for name, found in places.items() if (found.tied > 1).any()},
        chance={k: 100 * min(k / pool, 1.0) for k in RANKS},
        audio_to_image=_recall(places[AUDIO_TO_IMAGE].last),
        image_to_audio=_recall(places[IMAGE_TO_AUDIO].last),
    )


def class_retrieval(audio: Tensor, image: Tensor, labels: Tensor) -> dict[str, dict[int, float]]:
    """R@K by class in %, of both directions and of chance, from paired features [N, D] and labels, bool [N, L]."""
    audio, image = exact(audio), exact(image)
    return {
        AUDIO_TO_IMAGE: _recall(class_ranks(audio, image, labels)).recall,
        IMAGE_TO_AUDIO: _recall(class_ranks(image, audio, labels)).recall,
        "chance": {k: 100 * class_chance(labels, k) for k in RANKS},
    }


def _recall(ranks: Tensor) -> Recall:
    recall = {k: 100 * (ranks <= k).double().mean().item() for k in RANKS}
    return Recall(recall=recall, median_rank=ranks.double().quantile(0.5).item())


# -------------------------------------------------------------------- the command


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(EvaluationOptions):
    """Audio-to-image and image-to-audio retrieval, R@1/5/10 (the paper's Tables 4 to 7)."""

    pool: str = "all"
    """all; per-class:N, N clips of each class, as CAV-MAE's 5; or keys:FILE, the samples that a file names."""
    pool_seed: int = 0
    """Which clips --pool per-class takes."""
    features: Pooling = "mean"
    """What is compared: the mean of the patch tokens, or [CLS]."""
    untrained: bool = False
    """Also evaluate the run's initial weights, as a baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pool(self.pool)

    def run(self) -> Result:
        """Evaluates, prints the table, writes the JSON."""
        session = self.begin("retrieval")
        chosen, pool = self.chosen(session.index), parse_pool(self.pool)
        if self.keys is not None and pool.kind == "keys":
            raise UserError("--keys and --pool keys:FILE both name the samples: give one of them")
        numbers, rule = choose(session.index, pool, self.pool_seed, chosen.numbers)
        rule = rule if self.keys is None else f"{rule} of {chosen.rule}"
        if len(numbers) < 2:
            raise UserError(f"--pool {self.pool} holds {len(numbers)} sample: retrieval needs at least 2")
        labels = label_matrix(label_ids(session.index, numbers))
        embedded = session.embed(numbers, pool=self.features)
        found = retrieval(embedded.audio, embedded.image)
        metrics, baselines = score(found, embedded, labels)
        metrics |= {
            f"{name}, ties as CAV-MAE counts them": {**_columns(one.recall), "median rank": one.median_rank}
            for name, one in found.ties.items()
        }
        if self.untrained:
            untrained = session.embed(numbers, loaded=session.untrained(), pool=self.features)
            before = retrieval(untrained.audio, untrained.image)
            baselines |= {f"untrained, {name}": row for name, row in score(before, untrained, labels)[0].items()}
        unlabelled = int((~labels.any(dim=1)).sum())
        notes = [f"the pools differ: ours has {len(numbers):,} samples, the paper's, by its digits, about 500"]
        notes += [*_notes_on_ties(found), *chosen.notes]
        if labels.any() and unlabelled:
            notes.append(f"class R@K: {unlabelled:,} samples without a label are left out")
        result = session.finish(
            pool=len(numbers),
            pool_rule=rule,
            protocol_name=f"retrieval, R@K among {len(numbers):,}, ties are misses",
            protocol=PROTOCOL + f" Features: {self.features}.",
            metrics=metrics,
            baselines=baselines,
            paper=PAPER,
            notes=tuple(notes),
            intervals={
                name: of_means({f"R@{k}": (places.last <= k).numpy().astype(float) for k in RANKS})
                for name, places in found.places.items()
            },
        )
        self.save(session.accelerator, _predictions(embedded, found))
        return result


def _notes_on_ties(found: RetrievalResult) -> Iterator[str]:
    for name, places in found.places.items():
        if tied := int((places.tied > 1).sum()):
            yield f"{name}: of {tied:,} queries another candidate is as similar as the partner, which counts as a miss"


def _predictions(embedded: Embeddings, found: RetrievalResult) -> dict[str, Any]:
    """The table of --save-predictions: how the partner of each sample fares, and who comes first."""
    audio, image = exact(embedded.audio), exact(embedded.image)
    columns: dict[str, Any] = {
        "key": embedded.keys,
        "truth": embedded.keys,
        "similarity": (audio * image).sum(1).numpy(),
    }
    for name, given, theirs in ((AUDIO_TO_IMAGE, audio, image), (IMAGE_TO_AUDIO, image, audio)):
        first = torch.cat([(part @ theirs.T).argmax(dim=1) for part in given.split(_CHUNK)])
        columns[f"{name}: rank"] = found.places[name].last.numpy()
        columns[f"{name}: first"] = [embedded.keys[i] for i in first.tolist()]
    return columns


def score(result: RetrievalResult, embeddings: Embeddings, labels: Tensor) -> tuple[Rows, Rows]:
    """Rows of the result: the model's, and those of chance. labels: bool [N, L]; class columns where there are any."""
    rows: Rows = {
        "audio -> image": {**_columns(result.audio_to_image.recall), "median rank": result.audio_to_image.median_rank},
        "image -> audio": {**_columns(result.image_to_audio.recall), "median rank": result.image_to_audio.median_rank},
        "chance": {**_columns(result.chance), "median rank": (result.pool + 1) / 2},
    }
    known = labels.any(dim=1)
    if known.any():
        by_class = class_retrieval(embeddings.audio[known], embeddings.image[known], labels[known])
        for name, recall in by_class.items():
            rows[name] |= {f"class {column}": value for column, value in _columns(recall).items()}
    return rows, {"chance": rows.pop("chance")}


def _columns(recall: dict[int, float]) -> dict[str, float | None]:
    return {f"R@{k}": value for k, value in recall.items()}


def label_matrix(label_ids: list[list[int]]) -> Tensor:
    """Which of the classes that occur each sample has, bool [N, L]."""
    classes = {c: column for column, c in enumerate(sorted({c for ids in label_ids for c in ids}))}
    matrix = torch.zeros(len(label_ids), len(classes), dtype=torch.bool)
    for row, ids in enumerate(label_ids):
        matrix[row, [classes[c] for c in ids]] = True
    return matrix
