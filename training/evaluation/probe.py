"""Linear probe: what a linear classifier makes of the frozen encoders' pooled features.

`python evaluate.py probe --data TRAIN --eval-data EVAL --checkpoint PRETRAINING_RUN`
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from shards_spec.errors import UserError
from training.evaluation.class_tables import class_names, score_columns, scored, tables_of
from training.evaluation.classification_metrics import Metrics, metrics_of, notes_on_classes, prior_metrics
from training.evaluation.features import Embeddings, LoadedModel, Pooling
from training.evaluation.metadata import sample_keys
from training.evaluation.options import EvaluationOptions, Session
from training.evaluation.results import Result, result_path
from training.finetune.labels import Labels, Task, check_single, choose_task, read_labels
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

# N training samples, M evaluated ones, D features, C classes.
WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_HELD_OUT = 0.2  # share of the training samples that chooses the weight decay
_ITERATIONS = 200
_CHUNK = 1 << 16  # samples whose scores are held at once: AudioSet-2M's would take 4 GB
_MAIN_METRIC = {"multilabel": "mAP", "singlelabel": "top-1"}
_ROWS = {"a": "audio", "v": "image", "av": "audio + image"}


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How well a linear classifier does. Shares are in %."""

    metrics: Metrics
    weight_decay: float
    held_out: dict[float, float]  # weight decay -> main metric on the held-out share; empty where it was given
    scores: Tensor  # [M, C], before sigmoid or softmax


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    eval_x: Tensor,
    eval_y: Tensor,
    *,
    task: Task,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seed: int = 0,
) -> ProbeResult:
    """Fits a linear classifier on features, and scores it on others. Deterministic; nothing outside is touched.

    Features are standardised by the mean and deviation of the training ones. The loss is logistic for each class apart
    (multilabel) or softmax cross-entropy (singlelabel), a mean over samples, plus weight_decay / 2 times the squared
    norm of the weights, biases free: scikit-learn's LogisticRegression with C = 1 / (weight_decay N). It is convex,
    and minimised over all samples at once by L-BFGS. Of several weight decays the one is taken that does best on
    a fifth of the training samples, held out by `seed`; then all are used.

    Args:
        train_x, eval_x: [N, D] and [M, D], float, on one device.
        train_y, eval_y: [N, C] and [M, C], 1 where a sample has a class; one a row for singlelabel.
        weight_decays: one is taken as it is.
    """
    mean, std = train_x.mean(dim=0), train_x.std(dim=0, correction=0)
    std = torch.where(std > 1e-5 * mean.abs(), std, 1.0)  # a constant feature, but for round-off, stays one
    train_x, eval_x = (train_x - mean) / std, (eval_x - mean) / std
    held_out = {}
    best = weight_decays[0]
    if len(weight_decays) > 1:
        held_out = _held_out_metrics(train_x, train_y, task, weight_decays, seed)
        best = max(sorted(held_out, reverse=True), key=held_out.__getitem__)  # of equals, the strongest decay
    layer = fit(train_x, train_y, task=task, weight_decay=best)
    scores = _scores(layer, eval_x)
    return ProbeResult(
        metrics=_metrics(task, scores, eval_y), weight_decay=best, held_out=held_out, scores=scores.cpu()
    )


def fit(x: Tensor, y: Tensor, *, task: Task, weight_decay: float, start: Tensor | None = None) -> Tensor:
    """Weights and biases [C, D + 1] that minimise the loss of `linear_probe` on x [N, D], y [N, C].

    Args:
        start: where to begin, as returned; zeros where None.
    """
    layer = torch.zeros(y.shape[1], x.shape[1] + 1, dtype=x.dtype, device=x.device) if start is None else start.clone()
    layer.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [layer],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        total = 0.5 * weight_decay * layer[:, :-1].square().sum()
        total.backward()
        for begin in range(0, len(x), _CHUNK):
            part = _loss(task, _scores(layer, x[begin : begin + _CHUNK]), y[begin : begin + _CHUNK]) / len(x)
            part.backward()
            total = total.detach() + part.detach()
        return total

    solver.step(closure)  # type: ignore[no-untyped-call, unused-ignore]
    return layer.detach()


def _loss(task: Task, scores: Tensor, y: Tensor) -> Tensor:
    """The sum over samples."""
    targets = y.to(scores.dtype)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return F.cross_entropy(scores, targets, reduction="sum")


def _scores(layer: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, layer[:, :-1], layer[:, -1])


def _held_out_metrics(
    x: Tensor, y: Tensor, task: Task, weight_decays: Sequence[float], seed: int
) -> dict[float, float]:
    """The main metric of each weight decay on held-out samples; each fit begins where the one before it ended."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))).to(x.device)
    held, rest = order.split([max(1, int(_HELD_OUT * len(x))), len(x) - max(1, int(_HELD_OUT * len(x)))])
    layer, found = None, {}
    for weight_decay in sorted(weight_decays, reverse=True):
        layer = fit(x[rest], y[rest], task=task, weight_decay=weight_decay, start=layer)
        value = _metrics(task, _scores(layer, x[held]), y[held])[_MAIN_METRIC[task]]
        found[weight_decay] = -1.0 if value is None else value
    return found


def _metrics(task: Task, scores: Tensor, y: Tensor) -> Metrics:
    return metrics_of(task, scores.cpu().numpy(), y.cpu().numpy().astype(bool))


# -------------------------------------------------------------------- evaluate.py probe


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(EvaluationOptions):
    """Linear probe on frozen features: trained on --data, scored on --eval-data."""

    eval_data: str
    """Dataset whose samples are scored; its class list must be that of --data."""
    inputs: Literal["a", "v", "av", "all"] = "all"
    """Features of the audio encoder, of the image encoder, both side by side, or each of these in turn."""
    task: Task | None = None
    """Several classes a sample, or exactly one. Default: one where every sample of both datasets has exactly one."""
    pool: Pooling = "mean"
    """Of an encoder's patch tokens, or its [CLS]."""
    weight_decay: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT [FLOAT ...]")] = WEIGHT_DECAYS
    """One value is taken as it is; of several, the one that does best on a fifth of --data."""
    seed: int = 0
    """Of that fifth."""
    untrained: bool = True
    """Also probe the model's initial weights, as a baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight_decay or min(self.weight_decay) < 0:
            raise ValueError(f"--weight-decay takes numbers from 0 on, got {self.weight_decay}")

    def run(self) -> Result:
        """Embeds both datasets, probes, prints the table."""
        session = self.begin("probe", looks=self.inputs != "a")
        index = self.open_data(self.eval_data, session.accelerator, looks=self.inputs != "a")
        labels, eval_labels = self._labels(session.index, index)
        chosen = self.chosen(index)
        out = result_path(session.loaded.checkpoint, "probe", index) if self.out is None else self.out
        session_of_eval = replace(session, index=index, out=out)
        task = self.task or choose_task(labels, eval_labels)
        check_single(task, labels, session.index)
        check_single(task, eval_labels, index)
        places = (session, session_of_eval, chosen.numbers)
        probed = self._probe(*places, session.loaded, labels, eval_labels, task)
        eval_y = eval_labels.matrix(chosen.numbers).astype(bool)
        names = class_names(index.classes)
        found = {_ROWS[kind]: scored(task, result.scores.numpy(), eval_y, names) for kind, result in probed.items()}
        baselines = {"class prior": prior_metrics(task, labels.per_class, eval_y)}
        if self.untrained:
            before = self._probe(*places, session.untrained(), labels, eval_labels, task)
            baselines |= {f"untrained, {_ROWS[kind]}": result.metrics for kind, result in before.items()}
        decays = ", ".join(f"{_ROWS[kind]} {result.weight_decay:g}" for kind, result in probed.items())
        keys = sample_keys(index, chosen.numbers)
        tables = [
            {"features": [_ROWS[kind]] * len(keys)} | score_columns(keys, result.scores.numpy(), eval_y, names)
            for kind, result in probed.items()
        ]
        told = session_of_eval.finish(
            pool=len(chosen.numbers),
            pool_rule=f"{chosen.rule} of --eval-data",
            protocol_name=f"linear probe, {task}",
            protocol=(
                f"{task} linear probe on the frozen encoders' pooled ({self.pool}) unmasked features, standardised;"
                f" L-BFGS on all {len(session.index)} samples of {self.data}; weight decay"
                f" {'chosen on a held-out fifth of them' if len(self.weight_decay) > 1 else 'given'}: {decays}"
            ),
            metrics={row: numbers.metrics for row, numbers in found.items()},
            baselines=baselines,
            notes=(*(notes_on_classes(eval_y) if task == "multilabel" else ()), *chosen.notes),
            **tables_of(found),
        )
        self.save(session.accelerator, *tables)
        return told

    def _labels(self, index: DatasetIndex, eval_index: DatasetIndex) -> tuple[Labels, Labels]:
        if index.classes != eval_index.classes:
            raise UserError(
                f"{self.eval_data} has another class list than {self.data}: use the same --class-labels for both"
            )
        return read_labels(index), read_labels(eval_index)

    def _probe(
        self,
        session: Session,
        session_of_eval: Session,
        chosen: Numbers,
        loaded: LoadedModel,
        labels: Labels,
        eval_labels: Labels,
        task: Task,
    ) -> dict[str, ProbeResult]:
        """The probe of each kind of input on the features of `loaded`; the chosen samples of the other are scored."""
        device = session.accelerator.device
        train_x = session.embed(loaded=loaded, pool=self.pool)
        eval_x = session_of_eval.embed(chosen, loaded=loaded, pool=self.pool)
        y = torch.from_numpy(labels.matrix(train_x.numbers).astype(np.uint8)).to(device)
        eval_y = torch.from_numpy(eval_labels.matrix(eval_x.numbers).astype(np.uint8)).to(device)
        kinds = ("a", "v", "av") if self.inputs == "all" else (self.inputs,)
        options: dict[str, Any] = {"task": task, "weight_decays": self.weight_decay, "seed": self.seed}
        result = {}
        for kind in kinds:
            x, other = _side_by_side(train_x, kind).to(device), _side_by_side(eval_x, kind).to(device)
            result[kind] = linear_probe(x, y, other, eval_y, **options)
        return result


def _side_by_side(embeddings: Embeddings, kind: str) -> Tensor:
    parts = {"a": embeddings.audio, "v": embeddings.image}
    return torch.cat([parts[letter] for letter in kind], dim=1)
