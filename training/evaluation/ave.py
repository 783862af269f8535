"""Audio-visual event localization on AVE: which event, in which seconds of a clip (the paper's supplement, Table 7).

`python evaluate.py ave --data DIR --annotations AVE_FOLDER --checkpoint RUN`, DIR made with `make-shards --frames 10`

The paper fine-tunes, and does not describe its head. Here the encoders are frozen, and a linear layer (or an MLP of
one hidden layer) says of each second which of the 28 events it holds, or none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards_spec.errors import UserError
from training.evaluation.class_tables import confusion, recalls
from training.evaluation.features import LoadedModel, cache_folder, check_finite
from training.evaluation.frames import FrameReader
from training.evaluation.heads.ave_lists import SECONDS, Event, read_lists
from training.evaluation.heads.fitting import Fit, HeadOptions, fit_head, make_head, standardise
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.seconds import per_second
from training.evaluation.intervals import of_means
from training.evaluation.metadata import all_numbers, sample_keys
from training.evaluation.options import Session
from training.evaluation.results import Result, Rows
from training.evaluation.row_cache import PIECE, cached_rows
from training.stream.loader import load
from training.stream.order import Numbers
from training.stream.shares import Share

# N clips, B of a batch, SECONDS = 10 segments of each, D features, C events.
_YTID_LENGTH = 11
BACKGROUND = "background"
_KINDS = {"audio": ("audio",), "image": ("image",), "audio + image": ("audio", "image")}
_PAPER: Rows = {
    "CrossMAE, fine-tuned": {"accuracy": 81.2},
    "CMBS, as the paper cites it": {"accuracy": 79.7},
    "CMRAN, as the paper cites it": {"accuracy": 78.3},
}


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The clips of a split that the dataset has."""

    features: dict[str, Tensor]  # "audio", "image": float32 [N, SECONDS, D]
    labels: Tensor  # int64 [N, SECONDS]


def segment_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of segments whose class is right, in %, background being one of the classes (Tian et al., 2018).

    Args:
        predicted, labels: int64 [N, SECONDS].
    """
    return 100 * (predicted == labels).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class AveConfig(HeadOptions):
    """Audio-visual event localization on AVE: a head on frozen encoders, segment accuracy (supplement, Table 7)."""

    annotations: Path
    """Folder of AVE's trainSet.txt, valSet.txt and testSet.txt. Samples are found by the first 11 characters of their
    keys."""
    hidden: int = 0
    """Units of a hidden layer; 0 for a linear head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 0:
            raise ValueError(f"--hidden must be at least 0, got {self.hidden}")

    def run(self) -> Result:
        """Encodes the clips, trains heads on sound, frames and both, scores the test list, prints the table.

        Raises:
            UserError: the lists cannot be used, or the dataset has no clip of the training or test list.
        """
        left_out = LeftOut()
        lists = read_lists(self.annotations, left_out)
        classes = sorted({event.category for events in lists.values() for event in events})
        session = self.begin("ave")
        chosen = self.chosen(session.index)
        found = find_clips(session, lists, left_out, tested=set(chosen.numbers.tolist()))
        numbers = np.unique(np.concatenate([np.array([n for _, n in found[split]], np.int64) for split in found]))
        frames = FrameReader(session.index)
        splits = _splits(numbers, self._features(session, session.loaded, frames, numbers), found, classes)
        fits, said = self._score(session, splits, len(classes))
        test = splits["test"].labels
        names = [*classes, BACKGROUND]
        kinds = {name: logits.argmax(dim=2) for name, logits in said.items()}
        keys = sample_keys(session.index, np.array([number for _, number in found["test"]], np.int64))
        majority = splits["train"].labels.flatten().bincount(minlength=len(classes) + 1).argmax()
        baselines: Rows = {"majority class": {"accuracy": segment_accuracy(majority.expand_as(test), test)}}
        if self.untrained:
            features = self._features(session, session.untrained(), frames, numbers)
            before = self._score(session, _splits(numbers, features, found, classes), len(classes))[1]
            baselines |= {
                f"untrained, {name}": {"accuracy": segment_accuracy(logits.argmax(dim=2), test)}
                for name, logits in before.items()
            }
        result = session.finish(
            pool=len(test),
            pool_rule=f"clips of testSet.txt, {SECONDS} segments each" + (f"; {chosen.rule}" if self.keys else ""),
            protocol_name="AVE, supervised segment accuracy; frozen encoders",
            protocol=self._protocol(fits, splits, len(classes), frames.count),
            metrics={name: {"accuracy": segment_accuracy(given, test)} for name, given in kinds.items()},
            baselines=baselines,
            paper=_PAPER,
            notes=(*left_out.notes(), *chosen.notes),
            intervals={
                name: of_means({"accuracy": (given == test).double().mean(dim=1).numpy()})
                for name, given in kinds.items()
            },
            classes={name: recalls(*_numbers(test, given), names) for name, given in kinds.items()},
            confusion={name: confusion(*_numbers(test, given), names) for name, given in kinds.items()},
        )
        self.save(session.accelerator, _predictions(keys, said["audio + image"], test, names))
        return result

    def _features(
        self, session: Session, loaded: LoadedModel, frames: FrameReader, numbers: Numbers
    ) -> dict[str, Tensor]:
        """Features of each second of samples, float32 [N, SECONDS, D] for `audio` and `image`; cached."""
        size = min(self.batch_size, PIECE)

        def compute(shares: Iterable[Share]) -> Iterator[tuple[Numbers, dict[str, Tensor]]]:
            for batch in load(session.index, shares, seed=0, batch_size=size, workers=self.workers):
                taken = batch.numbers.numpy()
                rows = {"audio": per_second(loaded.encode_audio(batch.fbank).tokens, SECONDS).cpu()}
                if frames.count:
                    rows["image"] = _encode_frames(loaded, torch.from_numpy(frames.read(taken)), size)
                else:
                    rows["image"] = loaded.encode_image(batch.image[:, 0]).pooled.float().cpu().unsqueeze(1)
                check_finite(loaded, rows, batch.keys)
                yield taken, rows

        kind = {"kind": "seconds", "seconds": SECONDS, "frames": frames.count}
        rows = cached_rows(
            numbers,
            compute,
            folder=cache_folder(session.cache, loaded, session.index, kind),
            batch_size=size,
            accelerator=session.accelerator,
            title="encode" if loaded.is_trained else "encode, untrained",
        )
        return {"audio": rows["audio"], "image": rows["image"][:, frame_of_second(frames.count)]}

    def _score(
        self, session: Session, splits: dict[str, _Split], classes: int
    ) -> tuple[dict[str, Fit], dict[str, Tensor]]:
        """Trains a head on each kind of input; which epoch was kept, and its logits [N, SECONDS, C + 1] on the test."""
        fits: dict[str, Fit] = {}
        said: dict[str, Tensor] = {}
        for name, inputs in _KINDS.items():
            fits[name], said[name] = self._fit(session.accelerator.device, splits, inputs, classes)
        return fits, said

    def _fit(
        self, device: torch.device, splits: dict[str, _Split], inputs: tuple[str, ...], classes: int
    ) -> tuple[Fit, Tensor]:
        names = [name for name, split in splits.items() if len(split.labels)]
        side_by_side = [torch.cat([splits[name].features[kind] for kind in inputs], dim=2) for name in names]
        standardised = standardise(*side_by_side)  # "train" is the first
        x = {name: values.to(device) for name, values in zip(names, standardised, strict=True)}
        y = {name: splits[name].labels.to(device) for name in names}
        head = make_head(lambda: _head(x["train"].shape[2], self.hidden, classes + 1), self, device)

        def loss(rows: Tensor) -> Tensor:
            rows = rows.to(device)
            return F.cross_entropy(head(x["train"][rows]).flatten(0, 1), y["train"][rows].flatten())

        def accuracy(name: str) -> float:
            return segment_accuracy(head(x[name]).argmax(dim=2), y[name])

        fit = fit_head(
            head, loss, len(y["train"]), options=self, validate=(lambda: accuracy("val")) if "val" in x else None
        )
        with torch.no_grad():
            return fit, head(x["test"]).cpu()

    def _protocol(self, fits: dict[str, Fit], splits: dict[str, _Split], classes: int, frames: int) -> str:
        counts = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
        kept = ", ".join(
            f"{name} {fit.epoch}" + ("" if fit.score is None else f" (val {fit.score:.2f})")
            for name, fit in fits.items()
        )
        views = f"frame of the second, of {frames} evenly spaced ones" if frames else "middle frame in all seconds"
        return (
            f"AVE, supervised, frozen encoders ({counts} clips); {classes} events and background. Head:"
            f" {f'an MLP of {self.hidden} hidden units' if self.hidden else 'linear'} on the standardised mean of the"
            f" second's audio tokens (one pass over the clip) and the mean-pooled tokens of the {views};"
            f" cross-entropy, AdamW {self.learning_rate:g}, {self.epochs} epochs, seed {self.seed}; epochs kept: {kept}"
        )


def _numbers(test: Tensor, given: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Right and given class of each segment."""
    return test.flatten().numpy(), given.flatten().numpy()


def _predictions(keys: list[str], logits: Tensor, test: Tensor, names: list[str]) -> dict[str, Any]:
    """The table of --save-predictions, a row a segment: logits [N, SECONDS, C + 1], right classes [N, SECONDS]."""
    flat = logits.flatten(0, 1)
    return {
        "key": [key for key in keys for _ in range(SECONDS)],
        "second": list(range(SECONDS)) * len(keys),
        "truth": [names[c] for c in test.flatten().tolist()],
        "prediction": [names[c] for c in flat.argmax(dim=1).tolist()],
    } | {f"score of {name}": flat[:, c].numpy() for c, name in enumerate(names)}


def find_clips(
    session: Session, lists: dict[str, list[Event]], left_out: LeftOut, *, tested: set[int]
) -> dict[str, list[tuple[Event, int]]]:
    """The events of each split whose video the dataset has, with the number of its sample.

    Args:
        tested: the samples that --keys names; of the test list only these are taken.

    Raises:
        UserError: it has none of the training or the test list.
    """
    numbers = all_numbers(session.index)
    samples: dict[str, int] = {}
    for number, key in zip(numbers.tolist(), sample_keys(session.index, numbers), strict=True):
        if key[:_YTID_LENGTH] in samples:
            left_out.add("further samples of a video", key)
        else:
            samples[key[:_YTID_LENGTH]] = number
    found = {}
    for split, events in lists.items():
        found[split] = [(event, samples[event.ytid]) for event in events if event.ytid in samples]
        for event in events:
            if event.ytid not in samples:
                left_out.add(f"clips of the {split} list that the dataset does not have", event.ytid)
        if split == "test" and found[split] and not tested.intersection(number for _, number in found[split]):
            raise UserError("--keys names no clip of the test list")
        if split == "test":
            found[split] = [(event, number) for event, number in found[split] if number in tested]
        if split != "val" and not found[split]:
            raise UserError(
                f"the dataset has none of the {len(events)} clips of the {split} list, such as {events[0].ytid}:"
                " its keys must begin with the videos' 11-character ids"
            )
    return found


def frame_of_second(frames: int) -> list[int]:
    """Which of evenly spaced frames (at the middles of equal parts) shows each second; 0 where only one is stored."""
    return [int((second + 0.5) * frames / SECONDS) for second in range(SECONDS)]


def _encode_frames(loaded: LoadedModel, frames: Tensor, size: int) -> Tensor:
    """uint8 [B, F, S, S, 3] -> pooled tokens, float32 [B, F, D], on the CPU."""
    pooled = [loaded.encode_image(part).pooled.float().cpu() for part in frames.flatten(0, 1).split(size)]
    return torch.cat(pooled).unflatten(0, frames.shape[:2])


def _splits(
    numbers: Numbers,
    features: dict[str, Tensor],
    found: dict[str, list[tuple[Event, int]]],
    classes: list[str],
) -> dict[str, _Split]:
    splits = {}
    for split, clips in found.items():
        rows = torch.from_numpy(np.searchsorted(numbers, np.array([number for _, number in clips], np.int64)))
        labels = [event.labels(classes) for event, _ in clips]
        splits[split] = _Split(
            features={kind: values[rows] for kind, values in features.items()},
            labels=torch.stack(labels) if labels else torch.empty(0, SECONDS, dtype=torch.long),
        )
    return {"train": splits.pop("train"), **splits}


def _head(dim: int, hidden: int, classes: int) -> nn.Module:
    if not hidden:
        return nn.Linear(dim, classes)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, classes))
