"""Audio-visual segmentation on AVSBench: which pixels sound, and of which class (the paper's supplement, Table 9).

`python evaluate.py segmentation --data AVSBench/Single-source --checkpoint RUN`

The paper fine-tunes on S4, and does not describe its decoder. Here the encoders are frozen, and the simplest decoder
that fits is trained on the annotated frames of the training videos, with cross-entropy, as AVSBench trains.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards_spec.errors import UserError
from shards_spec.sample import FRAME_SIZE, file_key
from training.evaluation.features import LoadedModel, load_model
from training.evaluation.heads.avsbench import CLASSES, fingerprint
from training.evaluation.heads.avsbench_layouts import SPLITS, Setting, Video, find_setting, read_videos
from training.evaluation.heads.fitting import Fit, HeadOptions, fit_head, make_head, standardise
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.segmentation_data import Split, SplitEncoder
from training.evaluation.heads.segmentation_metrics import FrameScores, frame_scores, summarise
from training.evaluation.heads.semantic_metrics import ClassScores, class_scores, summarise_classes
from training.evaluation.intervals import FEW_RESAMPLES, Interval, draws, spread
from training.evaluation.keys import choose_names
from training.evaluation.options import publish
from training.evaluation.predictions import joined
from training.evaluation.results import Result, Rows, run_folder
from training.methods.shared.patches import IMAGE_GRID

# F annotated frames of a video, N of all, B of a batch, D features, C channels, L classes, S pixels a side.
_PAPER: dict[Setting, Rows] = {
    "s4": {
        "CrossMAE, fine-tuned": {"mIoU": 81.86},
        "AVS (TPAVI), as the paper cites it": {"mIoU": 78.70},
        "DiffusionAVS, as the paper cites it": {"mIoU": 81.38},
    },
    "ms3": {},
    "avss": {},
}
_COLUMNS = "(mIoU, F); ACL-SSL (F one threshold); DeepAVFusion (mIoU+bg, F per frame); frozen encoders"
_PROTOCOLS: dict[Setting, str] = {
    "s4": f"AVSBench S4 {_COLUMNS}",
    "ms3": f"AVSBench MS3 {_COLUMNS}",
    "avss": "AVSBench AVSS (mIoU, F over 71 classes); frozen encoders",
}
VideoScores = FrameScores | ClassScores
_NAMES: dict[Setting, str] = {"s4": "S4", "ms3": "MS3", "avss": "AVSS"}


class MaskHead(nn.Module):
    """Image tokens and sound -> a mask: tokens times sound, channel by channel, then four times twice the size.

    The sound decides which channels of a token count; a convolution follows each bilinear step from 14 to 224 pixels.
    With `classes` above 1 there is a map of each.
    """

    def __init__(self, dim: int, channels: int = 128, classes: int = 1) -> None:
        super().__init__()
        self.image = nn.Linear(dim, channels)
        self.audio = nn.Linear(dim, channels)
        least = min(channels, 8 if classes == 1 else 32)
        widths = [max(channels >> step, least) for step in range(5)]
        self.steps = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.mask = nn.Conv2d(widths[-1], classes, 1)

    def forward(self, tokens: Tensor, audio: Tensor) -> Tensor:
        """tokens [B, 196, D], audio [B, D] -> logits [B, S, S], or [B, L, S, S] of classes."""
        fused = self.image(tokens) * (1 + self.audio(audio).unsqueeze(1))
        x = fused.transpose(1, 2).unflatten(2, IMAGE_GRID)
        for step in self.steps:
            x = F.gelu(step(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)))
        return self.mask(x).squeeze(1)  # which leaves several classes as they are


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(HeadOptions):
    """Audio-visual segmentation on AVSBench: a decoder on frozen encoders, mIoU and F (supplement, Table 9)."""

    data: str
    """AVSBench's Single-source folder (s4_meta_data.csv), its Multi-sources folder (ms3_meta_data.csv), or the release
    with classes (metadata.csv; v1s, v1m and v2)."""
    setting: Setting | None = None
    """Of the release with classes: s4 (masks of v1s), ms3 (masks of v1m), or avss, the classes of all of it (default).
    The other folders are s4 and ms3."""
    batch_size: int = 16
    """Videos that a process reads and encodes at once; a test video has five or ten frames."""
    head_batch_size: int = 16
    """Frames of a step of the head."""
    channels: int = 128
    """Of the decoder at 14 x 14; each step to twice the size halves them, down to 8, for classes to 32."""
    workers: int = 2
    """Threads that read files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise ValueError(f"--channels must be at least 1, got {self.channels}")

    def run(self) -> Result:
        """Encodes all videos, trains the head, scores the test split, prints the table.

        Raises:
            UserError: the folder, the checkpoint or the place for results cannot be used.
        """
        accelerator = self.join()
        left_out = LeftOut()
        folder = Path(self.data)
        setting = find_setting(folder, self.setting)
        listed = read_videos(folder, left_out, setting)
        names, notes = choose_names([video.name for video in listed["test"]], self.keys)
        listed["test"] = [video for video in listed["test"] if video.name in names]
        loaded = load_model(self.checkpoint, accelerator.device, precision=self.precision)
        out = self.result_file(accelerator, loaded.checkpoint, _result_path(loaded, folder, self.setting))

        def encoded(model: LoadedModel, left_out: LeftOut) -> dict[str, Split]:
            encoder = SplitEncoder(
                loaded=model,
                accelerator=accelerator,
                cache=self.feature_folder(loaded.checkpoint),
                batch_size=self.batch_size,
                threads=self.workers,
                classes=setting == "avss",
            )
            return {split: encoder.encode(split, listed[split], left_out) for split in SPLITS}

        splits = encoded(loaded, left_out)
        for split in ("train", "test"):
            if not splits[split].videos:
                raise UserError(
                    f"{self.data}: no video of the {split} split can be read; {'; '.join(left_out.notes())}"
                )
        fit, found = self._fit(loaded, splits)
        baselines = trivial(splits["train"], splits["test"])
        if self.untrained:
            first = load_model(self.checkpoint, loaded.device, untrained=True, precision=self.precision)
            baselines["untrained"] = summary(self._fit(first, encoded(first, LeftOut()))[1])
        result = Result(
            task="segmentation",
            data=self.data,
            dataset_fingerprint=fingerprint([video for videos in listed.values() for video in videos]),
            checkpoint=str(loaded.checkpoint),
            step=loaded.step,
            pool=len(splits["test"].videos),
            pool_rule=f"test videos, {_frames(splits['test'].videos)} frames each"
            + (f"; the names in {self.keys.name}" if self.keys else ""),
            protocol_name=_PROTOCOLS[setting],
            protocol=_protocol(self, setting, fit, splits),
            metrics={"audio + image": summary(found)},
            baselines=baselines,
            paper=_PAPER[setting],
            notes=("dataset_fingerprint is of file names and sizes", *left_out.notes(), *notes),
            intervals={"audio + image": _intervals(found)},
        )
        publish(result, out, accelerator)
        test = splits["test"]
        masks = map(test.frame_masks, test.masks.split(test.counts))
        self.save(accelerator, *map(predictions, test.videos, found, masks))
        return result

    def _fit(self, loaded: LoadedModel, splits: dict[str, Split]) -> tuple[Fit, Sequence[VideoScores]]:
        """Trains a head on the training split; its scores on the test split, an item a video."""
        train, val, test = splits["train"], splits["val"], splits["test"]
        sounds = standardise(*(split.audio for split in (train, test, val) if split.videos))
        train_sound, device = sounds[0], loaded.device
        classes = CLASSES if train.has_classes else 1
        head = make_head(lambda: MaskHead(train.tokens.shape[-1], self.channels, classes), self, device)

        def loss(rows: Tensor) -> Tensor:
            logits = head(train.tokens[rows].float().to(device), train_sound[rows].to(device))
            masks = train.frame_masks(train.masks[rows]).to(device)
            if train.has_classes:
                return F.cross_entropy(logits, masks)
            return F.binary_cross_entropy_with_logits(logits, masks.float())

        def answers(split: Split, sound: Tensor) -> Iterator[Tensor]:
            for tokens, heard in zip(split.tokens.split(split.counts), sound.split(split.counts), strict=True):
                yield head(tokens.float().to(device), heard.to(device))

        def validate() -> float:
            return summary(scores(val, answers(val, sounds[2])))["mIoU"] or 0.0

        fit = fit_head(head, loss, len(train.tokens), options=self, validate=validate if val.videos else None)
        with torch.no_grad():
            return fit, scores(test, answers(test, sounds[1]))


def scores(split: Split, answers: Iterable[Tensor]) -> list[VideoScores]:
    """The scores of an answer for each video: logits [F, S, S], or of classes [F, L, S, S].

    Raises:
        UserError: an answer is no finite number.
    """
    found: list[VideoScores] = []
    for logits, rows in zip(answers, split.masks.split(split.counts), strict=True):
        truth = split.frame_masks(rows).to(logits.device)
        if not split.has_classes:
            found.append(frame_scores(logits.sigmoid(), truth))
        elif logits.isfinite().all():
            found.append(class_scores(logits.argmax(dim=1), truth, CLASSES))
        else:
            raise UserError("the predicted classes are not finite numbers: evaluate an older checkpoint")
    return found


def summary(videos: Iterable[VideoScores]) -> dict[str, float | None]:
    """The columns of the result, in %, from scores of one kind, an item a video."""
    items = list(videos)
    of_classes = [item for item in items if isinstance(item, ClassScores)]
    return summarise_classes(of_classes) if of_classes else summarise(i for i in items if isinstance(i, FrameScores))


def _intervals(videos: Sequence[VideoScores]) -> dict[str, Interval]:
    """Intervals of `summary`; the frames of a video are drawn together."""
    return spread(
        summary(video for video, times in zip(videos, drawn.tolist(), strict=True) for _ in range(times))
        for drawn in draws(len(videos), resamples=FEW_RESAMPLES)
    )


def predictions(video: Video, scores: VideoScores, masks: Tensor) -> dict[str, Any]:
    """The table of --save-predictions for a video, a row a frame: what is to be found, and its scores.

    Args:
        masks: as `Split.frame_masks` gives them.
    """
    count = len(masks)
    table: dict[str, Any] = {"key": [video.name] * count, "frame": list(range(count))}
    if isinstance(scores, ClassScores):
        there = scores.is_there.sum(dim=1)  # at least one class is in a frame, if only class 0
        return table | {
            "truth": [joined([str(number) for number in frame.unique().tolist()]) for frame in masks],
            "mIoU": (scores.iou.sum(dim=1) / there).numpy(),
            "mean F": (scores.f.sum(dim=1) / there).numpy(),
        }
    return table | {
        "truth": ["empty" if empty else "foreground" for empty in scores.is_empty.tolist()],
        "IoU": scores.iou.numpy(),
        "background IoU": scores.background_iou.numpy(),
        "F@0.5": scores.f_half.numpy(),
        "best F": scores.f_best.numpy(),
    }


def trivial(train: Split, test: Split) -> Rows:
    """What answers score that look at nothing: all pixels, the centre, and the mean of the training masks.

    Of classes: none anywhere, and in the centre the class that has most pixels in training.
    """
    if train.has_classes:
        return _trivial_classes(train, test)
    everything = torch.ones(FRAME_SIZE, FRAME_SIZE)
    mean = sum(train.frame_masks(rows).double().sum(dim=0) for rows in train.masks.split(16))
    assert isinstance(mean, Tensor)
    answers = {
        "all foreground": everything,
        "centre box, half the side": _centre().float(),
        "mean training mask": (mean / len(train.masks)).float(),
    }
    videos = test.masks.split(test.counts)
    return {
        name: summarise(frame_scores(answer.expand(len(masks), -1, -1), test.frame_masks(masks)) for masks in videos)
        for name, answer in answers.items()
    }


def _trivial_classes(train: Split, test: Split) -> Rows:
    pixels = sum(torch.bincount(rows.flatten().long(), minlength=CLASSES) for rows in train.masks.split(16))
    assert isinstance(pixels, Tensor)
    most = 1 + int(pixels[1:].argmax())
    answers = {"no class": torch.zeros(FRAME_SIZE, FRAME_SIZE, dtype=torch.long)}
    answers["centre box, most frequent class"] = most * _centre().long()
    videos = test.masks.split(test.counts)
    return {
        name: summarise_classes(
            class_scores(answer.expand(len(masks), -1, -1), test.frame_masks(masks), CLASSES) for masks in videos
        )
        for name, answer in answers.items()
    }


def _centre() -> Tensor:
    """A box of half the side, bool [S, S]."""
    quarter = FRAME_SIZE // 4
    centre = torch.zeros(FRAME_SIZE, FRAME_SIZE, dtype=torch.bool)
    centre[quarter:-quarter, quarter:-quarter] = True
    return centre


def _frames(videos: list[Video]) -> str:
    """How many annotated frames videos have, as `5` or `5 or 10`."""
    return " or ".join(map(str, sorted({len(video.frames) for video in videos})))


def _protocol(options: SegmentationConfig, setting: Setting, fit: Fit, splits: dict[str, Split]) -> str:
    counts = ", ".join(f"{len(split.videos):,} {name}" for name, split in splits.items())
    chosen = "of the last epoch" if fit.score is None else f"of epoch {fit.epoch}, val mIoU {fit.score:.2f}"
    trained = "the first frame" if setting == "s4" else f"the annotated frames ({_frames(splits['train'].videos)})"
    loss, columns = (
        "binary cross-entropy",
        "mIoU, F: AVSBench's, of the foreground at 0.5 and at the best threshold a video; F one threshold: ACL-SSL's;"
        " mIoU+bg, F per frame: DeepAVFusion's",
    )
    if setting == "avss":
        loss = "cross-entropy over 71 classes"
        columns = "mIoU, F: AVSBench's, means over classes of the means over the frames with the class"
    return (
        f"AVSBench {_NAMES[setting]}, frozen encoders ({counts} videos). Decoder: image tokens times (1 + sound of the"
        f" frame's second) in {options.channels} channels, four bilinear steps with a 3 x 3 convolution each, on"
        f" {trained} of each training video, {loss}, AdamW {options.learning_rate:g}, {options.epochs} epochs,"
        f" seed {options.seed}; weights {chosen}. {columns}. The sound is the clip's, zeros after its end."
    )


def _result_path(loaded: LoadedModel, folder: Path, setting: Setting | None) -> Path:
    name = file_key(folder.resolve().name) or "dataset"
    of = "" if setting is None else f"-{setting}"
    return run_folder(loaded.checkpoint) / "evaluation" / f"segmentation-{name}{of}.json"
