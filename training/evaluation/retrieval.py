"""Cross-modal retrieval: which image belongs to this sound, and the other way round.

The paper's Tables 4 to 7 (section 4.4), without fine-tuning: audio and image pass their encoders apart and
unmasked, the outputs are pooled, similarity is their cosine, and R@K is the share of queries whose own partner
is among the K most similar. Every result names its pool, since R@K means little without it.
"""

from dataclasses import dataclass
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from shards_spec.errors import UserError
from training.evaluation.features import Embeddings, LoadedModel, Pooling, load_model
from training.evaluation.metadata import label_ids
from training.evaluation.options import EvaluationOptions
from training.evaluation.pools import choose, parse_pool
from training.evaluation.results import Result, Rows

__all__ = ["RANKS", "LoadedModel", "RetrievalConfig", "load_model", "partner_ranks", "retrieval"]

# Q queries, C candidates, D features, L classes.
RANKS = (1, 5, 10)
_CHUNK = 512  # queries scored at once: memory is a few times _CHUNK x C, whatever Q

PAPER: Rows = {
    "CrossMAE ViT-B, Flickr-SoundNet, audio -> image": {"R@1": 16.8, "R@5": 45.2, "R@10": 64.0},
    "CrossMAE ViT-B, Flickr-SoundNet, image -> audio": {"R@1": 18.2, "R@5": 46.4, "R@10": 60.8},
}
PROTOCOL = (
    "Cosine of pooled unmasked features, no fine-tuning. R@K: share of queries whose own partner is among the K most"
    " similar; a candidate as similar as the partner ranks before it, so features that are all equal score no hit."
    " class R@K: share of the labelled queries with a candidate of a common label among the first K (their partner is"
    " one); at equal similarity, candidates without one rank before."
)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """One direction of retrieval. `recall` maps K to the share of queries with their partner in the first K, in %."""

    recall: dict[int, float]
    median_rank: float


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Both directions, with what they have to be read against. `chance` is R@K of a random ranking, in %."""

    pool: int
    chance: dict[int, float]
    audio_to_image: Recall
    image_to_audio: Recall


def partner_ranks(queries: Tensor, candidates: Tensor) -> Tensor:
    """The rank (1 = first) of each query's own partner among all candidates, int64 [Q].

    Query i's partner is candidate i. A tie counts against the query, so that collapsed features score no hit; so does
    a similarity that is no number.

    Args:
        queries: unit vectors, float [Q, D].
        candidates: unit vectors, float [C = Q, D].
    """
    ranks = []
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ candidates.T  # [chunk, C]
        own = similarity.diagonal(start).unsqueeze(1)
        ranks.append(len(candidates) - (similarity < own).sum(dim=1))  # its own similarity counts for rank 1
    return torch.cat(ranks)


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
    audio, image = F.normalize(audio.float(), dim=1), F.normalize(image.float(), dim=1)
    pool = len(audio)
    return RetrievalResult(
        pool=pool,
        chance={k: 100 * min(k / pool, 1.0) for k in RANKS},
        audio_to_image=_recall(partner_ranks(audio, image)),
        image_to_audio=_recall(partner_ranks(image, audio)),
    )


def class_retrieval(audio: Tensor, image: Tensor, labels: Tensor) -> dict[str, dict[int, float]]:
    """R@K by class in %, of both directions and of chance, from paired features [N, D] and labels, bool [N, L]."""
    audio, image = F.normalize(audio.float(), dim=1), F.normalize(image.float(), dim=1)
    return {
        "audio -> image": _recall(class_ranks(audio, image, labels)).recall,
        "image -> audio": _recall(class_ranks(image, audio, labels)).recall,
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
        numbers, rule = choose(session.index, parse_pool(self.pool), self.pool_seed)
        if len(numbers) < 2:
            raise UserError(f"--pool {self.pool} holds {len(numbers)} sample: retrieval needs at least 2")
        labels = label_matrix(label_ids(session.index, numbers))
        metrics, baselines = score(session.embed(numbers, pool=self.features), labels)
        if self.untrained:
            untrained = session.embed(numbers, loaded=session.untrained(), pool=self.features)
            baselines |= {f"untrained, {name}": row for name, row in score(untrained, labels)[0].items()}
        unlabelled = int((~labels.any(dim=1)).sum())
        notes = [f"the pools differ: ours has {len(numbers):,} samples, the paper's, by its digits, about 500"]
        if labels.any() and unlabelled:
            notes.append(f"class R@K: {unlabelled:,} samples without a label are left out")
        return session.finish(
            pool=len(numbers),
            pool_rule=rule,
            protocol=PROTOCOL + f" Features: {self.features}.",
            metrics=metrics,
            baselines=baselines,
            paper=PAPER,
            notes=tuple(notes),
        )


def score(embeddings: Embeddings, labels: Tensor) -> tuple[Rows, Rows]:
    """Rows of the result: the model's, and those of chance. labels: bool [N, L]; class columns where there are any."""
    result = retrieval(embeddings.audio, embeddings.image)
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
