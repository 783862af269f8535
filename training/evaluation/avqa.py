"""Audio-visual question answering on MUSIC-AVQA (the paper's supplement, Table 8).

`python evaluate.py avqa --data DIR --annotations MUSIC-AVQA/data/json --checkpoint RUN`

The paper fine-tunes, and does not describe its head. Here the encoders are frozen, a question is the mean of its
words' learned embeddings, and an MLP sees it beside its products with the sound and with the image.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards_spec.errors import UserError
from shards_spec.sample import file_key
from training.evaluation.features import LoadedModel, Pooling
from training.evaluation.heads.avqa_questions import Question, read_questions
from training.evaluation.heads.fitting import Fit, HeadOptions, fit_head, make_head, standardise
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.intervals import Interval, of_means
from training.evaluation.metadata import all_numbers, sample_keys
from training.evaluation.options import Session
from training.evaluation.results import Result, Rows
from training.stream.order import Numbers

# N questions, B of a batch, L words of the longest, V videos, D features, H units, A answers.
_PAD, _UNKNOWN = 0, 1  # numbers of no word, and of a word that the training questions do not have
_CHUNK = 4096  # questions scored at once
_NO_ANSWER = -1  # of an answer that they do not have: it cannot be given
_KINDS = {
    "question + audio + image": ("audio", "image"),
    "question + audio": ("audio",),
    "question + image": ("image",),
    "question only": (),
}
_PAPER: Rows = {
    "CrossMAE, fine-tuned": {"accuracy": 71.36},
    "AVQA, as the paper cites it": {"accuracy": 69.51},
    "Pano-AVQA, as the paper cites it": {"accuracy": 66.64},
}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words and answers of the training questions, with their numbers."""

    words: dict[str, int]
    answers: dict[str, int]

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "Vocabulary":
        """Sorted, so that the order of questions does not matter."""
        words = sorted({word for question in questions for word in question.words})
        answers = sorted({question.answer for question in questions})
        return cls(
            words={word: number for number, word in enumerate(words, _UNKNOWN + 1)},
            answers={answer: number for number, answer in enumerate(answers)},
        )

    def encode(self, questions: Sequence[Question]) -> Tensor:
        """Numbers of the words, int64 [N, L], filled up with _PAD."""
        numbers = [torch.tensor([self.words.get(word, _UNKNOWN) for word in q.words]) for q in questions]
        return nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=_PAD)


class AnswerHead(nn.Module):
    """Question [B, L] and features [B, K, D] of K inputs -> scores of the answers [B, A]."""

    def __init__(self, *, words: int, answers: int, inputs: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, hidden, padding_idx=_PAD)
        self.inputs = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(inputs))
        self.answer = nn.Sequential(nn.Linear((1 + inputs) * hidden, hidden), nn.GELU(), nn.Linear(hidden, answers))

    def forward(self, words: Tensor, features: Tensor) -> Tensor:
        """words int64 [B, L] (_PAD is left out of the mean), features [B, K, D] -> [B, A]."""
        counts = (words != _PAD).sum(dim=1, keepdim=True)
        question = self.words(words).sum(dim=1) / counts
        products = [question * layer(features[:, i]) for i, layer in enumerate(self.inputs)]
        return self.answer(torch.cat([question, *products], dim=1))


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The questions of a split whose videos the dataset has."""

    questions: list[Question]
    words: Tensor  # int64 [N, L]
    answers: Tensor  # int64 [N], _NO_ANSWER where the training questions do not have it
    features: dict[str, Tensor]  # "audio", "image": float32 [N, D]


def accuracies(is_right: Tensor, questions: Sequence[Question]) -> dict[str, float | None]:
    """Accuracy in % over all questions, those about one modality, and those of one type, as MUSIC-AVQA prints it.

    Args:
        is_right: bool [N].
    """
    groups = _groups(questions)
    return {group: 100 * int(is_right[members].sum()) / int(members.sum()) for group, members in groups.items()}


def _groups(questions: Sequence[Question]) -> dict[str, Tensor]:
    """Which questions each column counts, bool [N]."""
    groups = {"accuracy": torch.ones(len(questions), dtype=torch.bool)}
    for modality, sort in sorted({question.kind for question in questions}):
        groups[modality] = torch.tensor([question.kind[0] == modality for question in questions])
        groups[f"{modality} {sort}"] = torch.tensor([question.kind == (modality, sort) for question in questions])
    return groups


def _intervals(is_right: Tensor, questions: Sequence[Question]) -> dict[str, Interval]:
    """Intervals of `accuracies`; the questions about a video are drawn together."""
    _, videos = np.unique([question.video_id for question in questions], return_inverse=True)
    values = {
        group: torch.where(members, is_right.double(), torch.nan) for group, members in _groups(questions).items()
    }
    return of_means({group: value.numpy() for group, value in values.items()}, groups=videos)


def _predictions(questions: Sequence[Question], said: dict[str, Tensor], vocabulary: Vocabulary) -> dict[str, Any]:
    """The table of --save-predictions, a row a question: what each head answers."""
    answers = list(vocabulary.answers)
    columns = {"key": [q.video_id for q in questions], "question": [" ".join(q.words) for q in questions]}
    columns |= {"type": [" ".join(q.kind) for q in questions], "truth": [q.answer for q in questions]}
    return columns | {name: [answers[number] for number in given.tolist()] for name, given in said.items()}


def _of_keys(questions: list[Question], samples: dict[str, list[int]], chosen: set[int]) -> list[Question]:
    """The questions about a video of which --keys names a sample."""
    found = [question for question in questions if chosen.intersection(samples[question.video_id])]
    if not found:
        raise UserError("--keys names no video of the test questions")
    return found


@dataclass(frozen=True, kw_only=True)
class AvqaConfig(HeadOptions):
    """Audio-visual question answering on MUSIC-AVQA: a head on frozen encoders, accuracy (supplement, Table 8)."""

    annotations: Path
    """Folder of MUSIC-AVQA's avqa-train.json, avqa-val.json and avqa-test.json. Samples are found by their keys:
    VIDEO_ID, or VIDEO_ID_MILLISECONDS; of several of one video the mean is taken."""
    hidden: int = 256
    """Units of the word embeddings and of the layers."""
    features: Pooling = "mean"
    """Of an encoder's patch tokens, or its [CLS]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ValueError(f"--hidden must be at least 1, got {self.hidden}")

    def run(self) -> Result:
        """Embeds the videos, trains heads with and without them, scores the test questions, prints the table.

        Raises:
            UserError: the questions cannot be used, or the dataset has no video of the training or test split.
        """
        left_out = LeftOut()
        listed = read_questions(self.annotations, left_out)
        session = self.begin("avqa")
        chosen = self.chosen(session.index)
        questions, samples = find_videos(session, listed, left_out)
        questions["test"] = _of_keys(questions["test"], samples, set(chosen.numbers.tolist()))
        vocabulary = Vocabulary.of(questions["train"])
        splits = self._splits(session, session.loaded, questions, samples, vocabulary)
        fits, said = self._score(session, splits, vocabulary, tuple(_KINDS))
        test = splits["test"]
        rows: Rows = {name: accuracies(given == test.answers, test.questions) for name, given in said.items()}
        baselines: Rows = {
            "most frequent answer": _most_frequent(splits),
            "question only": rows.pop("question only"),
        }
        if self.untrained:
            before = self._splits(session, session.untrained(), questions, samples, vocabulary)
            name = "question + audio + image"
            given = self._score(session, before, vocabulary, (name,))[1][name]
            baselines[f"untrained, {name}"] = accuracies(given == test.answers, test.questions)
        unknown = int((splits["test"].answers == _NO_ANSWER).sum())
        notes = list(left_out.notes())
        if unknown:
            notes.append(f"{unknown:,} test questions have an answer that no training question has: counted as wrong")
        result = session.finish(
            pool=len(questions["test"]),
            pool_rule="questions of avqa-test.json" + (f"; {chosen.rule}" if self.keys else ""),
            protocol_name="MUSIC-AVQA accuracy; frozen encoders",
            protocol=self._protocol(fits, splits, vocabulary),
            metrics=rows,
            baselines=baselines,
            paper=_PAPER,
            notes=(*notes, *chosen.notes),
            intervals={row: _intervals(said[row] == test.answers, test.questions) for row in rows},
        )
        self.save(session.accelerator, _predictions(test.questions, said, vocabulary))
        return result

    def _splits(
        self,
        session: Session,
        loaded: LoadedModel,
        questions: dict[str, list[Question]],
        samples: dict[str, list[int]],
        vocabulary: Vocabulary,
    ) -> dict[str, _Split]:
        videos = sorted({q.video_id for listed in questions.values() for q in listed})
        numbers: Numbers = np.unique(np.array([n for video in videos for n in samples[video]], np.int64))
        embedded = session.embed(numbers, loaded=loaded, pool=self.features)
        rows = {video: torch.from_numpy(np.searchsorted(numbers, samples[video])) for video in videos}
        splits = {}
        for split, listed in questions.items():
            answers = [vocabulary.answers.get(q.answer, _NO_ANSWER) for q in listed]
            features = {
                kind: _stacked([values[rows[q.video_id]].mean(dim=0) for q in listed], values.shape[1])
                for kind, values in (("audio", embedded.audio), ("image", embedded.image))
            }
            splits[split] = _Split(
                questions=listed,
                words=vocabulary.encode(listed) if listed else torch.empty(0, 1, dtype=torch.long),
                answers=torch.tensor(answers, dtype=torch.long),
                features=features,
            )
        return splits

    def _score(
        self, session: Session, splits: dict[str, _Split], vocabulary: Vocabulary, kinds: Sequence[str]
    ) -> tuple[dict[str, Fit], dict[str, Tensor]]:
        """Trains a head on each kind of input; which epoch was kept, and its answers [N] to the test questions."""
        fits: dict[str, Fit] = {}
        said: dict[str, Tensor] = {}
        for name in kinds:
            fits[name], said[name] = self._fit(session.accelerator.device, splits, _KINDS[name], vocabulary)
        return fits, said

    def _fit(
        self, device: torch.device, splits: dict[str, _Split], inputs: tuple[str, ...], vocabulary: Vocabulary
    ) -> tuple[Fit, Tensor]:
        names = ["train", "test", *(["val"] if splits["val"].questions else [])]
        x = {name: torch.empty(len(splits[name].questions), 0, 1, device=device) for name in names}
        if inputs:
            columns = [standardise(*(splits[name].features[kind] for name in names)) for kind in inputs]
            x = {name: torch.stack([c[i] for c in columns], dim=1).to(device) for i, name in enumerate(names)}
        words = {name: splits[name].words.to(device) for name in names}
        answers = {name: splits[name].answers.to(device) for name in names}
        sizes = {"words": len(vocabulary.words) + 2, "answers": len(vocabulary.answers), "hidden": self.hidden}
        head = make_head(lambda: AnswerHead(inputs=len(inputs), dim=x["train"].shape[2], **sizes), self, device)

        def loss(rows: Tensor) -> Tensor:
            rows = rows.to(device)
            return F.cross_entropy(head(words["train"][rows], x["train"][rows]), answers["train"][rows])

        def answer(name: str) -> Tensor:
            pieces = zip(words[name].split(_CHUNK), x[name].split(_CHUNK), strict=True)
            return torch.cat([head(w, f).argmax(dim=1) for w, f in pieces])

        def validate() -> float:
            return 100 * (answer("val") == answers["val"]).double().mean().item()

        fit = fit_head(head, loss, len(answers["train"]), options=self, validate=validate if "val" in names else None)
        with torch.no_grad():
            return fit, answer("test").cpu()

    def _protocol(self, fits: dict[str, Fit], splits: dict[str, _Split], vocabulary: Vocabulary) -> str:
        counts = ", ".join(f"{len(split.questions):,} {name}" for name, split in splits.items())
        kept = ", ".join(
            f"{name} {fit.epoch}" + ("" if fit.score is None else f" (val {fit.score:.2f})")
            for name, fit in fits.items()
        )
        return (
            f"MUSIC-AVQA, frozen encoders ({counts} questions), {len(vocabulary.answers)} answers and"
            f" {len(vocabulary.words)} words of the training questions. Head: an MLP ({self.hidden} units) on the mean"
            f" of the words' learned embeddings, and its products with the standardised pooled ({self.features}) sound"
            f" and image; cross-entropy, AdamW {self.learning_rate:g}, {self.epochs} epochs, seed {self.seed};"
            f" epochs kept: {kept}"
        )


def find_videos(
    session: Session, listed: dict[str, list[Question]], left_out: LeftOut
) -> tuple[dict[str, list[Question]], dict[str, list[int]]]:
    """The questions of each split whose video the dataset has, and the numbers of each video's samples.

    Raises:
        UserError: it has none of the training or the test split.
    """
    numbers = all_numbers(session.index)
    samples: dict[str, list[int]] = {}
    for number, key in zip(numbers.tolist(), sample_keys(session.index, numbers), strict=True):
        samples.setdefault(key, []).append(number)
        video, _, time = key.rpartition("_")
        if video and time.isdigit():
            samples.setdefault(video, []).append(number)
    found: dict[str, list[Question]] = {}
    of_video: dict[str, list[int]] = {}
    for split, questions in listed.items():
        found[split] = [q for q in questions if file_key(q.video_id) in samples]
        of_video |= {q.video_id: samples[file_key(q.video_id)] for q in found[split]}
        for question in questions:
            if question.video_id not in of_video:
                left_out.add(f"{split} questions about videos that the dataset does not have", question.video_id)
        if split != "val" and not found[split]:
            raise UserError(
                f"the dataset has none of the videos of the {len(questions)} {split} questions, such as"
                f" {questions[0].video_id}: its keys must be VIDEO_ID or VIDEO_ID_MILLISECONDS"
            )
    return found, of_video


def _most_frequent(splits: dict[str, _Split]) -> dict[str, float | None]:
    (answer, _) = Counter(sorted(splits["train"].answers.tolist())).most_common(1)[0]
    return accuracies(splits["test"].answers == answer, splits["test"].questions)


def _stacked(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, width)
