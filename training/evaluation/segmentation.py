"""Audio-visual segmentation on AVSBench S4: which pixels sound (the paper's supplement, Table 9).

`python evaluate.py segmentation --data AVSBench/Single-source --checkpoint RUN`

The paper fine-tunes, and does not describe its decoder. Here the encoders are frozen, and the simplest decoder that
fits is trained on the first frame of each training video, with binary cross-entropy, as AVSBench trains on S4.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shards_spec.errors import UserError
from shards_spec.sample import FRAME_SIZE, file_key
from training.evaluation.features import LoadedModel, check_finite, load_model
from training.evaluation.heads.avsbench import ANNOTATED, UNREADABLE, Decoded, Video, decode, fingerprint, read_videos
from training.evaluation.heads.fitting import Fit, HeadOptions, fit_head, make_head, standardise
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.seconds import per_second
from training.evaluation.heads.segmentation_metrics import FrameScores, frame_scores, summarise
from training.evaluation.intervals import FEW_RESAMPLES, Interval, draws, spread
from training.evaluation.keys import choose_names
from training.evaluation.options import publish
from training.evaluation.results import Result, Rows, run_folder
from training.evaluation.row_cache import PIECE, cached_rows
from training.methods.shared.patches import IMAGE_GRID, IMAGE_TOKENS
from training.stream.order import Numbers
from training.stream.shares import Share

# V videos, F annotated frames of each, B frames, D features, C channels, S pixels a side.
_PAPER: Rows = {
    "CrossMAE, fine-tuned": {"mIoU": 81.86},
    "AVS (TPAVI), as the paper cites it": {"mIoU": 78.70},
    "DiffusionAVS, as the paper cites it": {"mIoU": 81.38},
}


class MaskHead(nn.Module):
    """Image tokens and sound -> a mask: tokens times sound, channel by channel, then four times twice the size.

    The sound decides which channels of a token count; a convolution follows each bilinear step from 14 to 224 pixels.
    """

    def __init__(self, dim: int, channels: int = 128) -> None:
        super().__init__()
        self.image = nn.Linear(dim, channels)
        self.audio = nn.Linear(dim, channels)
        widths = [max(channels >> step, 8) for step in range(5)]
        self.steps = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.mask = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, tokens: Tensor, audio: Tensor) -> Tensor:
        """tokens [B, 196, D], audio [B, D] -> logits [B, S, S]."""
        fused = self.image(tokens) * (1 + self.audio(audio).unsqueeze(1))
        x = fused.transpose(1, 2).unflatten(2, IMAGE_GRID)
        for step in self.steps:
            x = F.gelu(step(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)))
        return self.mask(x).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The videos of a split that can be read, with their features and masks."""

    videos: list[Video]
    tokens: Tensor  # float16 [V, F, 196, D]
    audio: Tensor  # float32 [V, F, D], of the second of each frame
    masks: Tensor  # uint8 [V, F, S * S / 8], packed

    def frame_masks(self, rows: Tensor) -> Tensor:
        """Masks bool [..., S, S] of packed ones, uint8 [..., S * S / 8]."""
        bits = rows.unsqueeze(-1) >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1
        return bits.bool().reshape(*rows.shape[:-1], FRAME_SIZE, FRAME_SIZE)


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(HeadOptions):
    """Audio-visual segmentation on AVSBench S4: a decoder on frozen encoders, mIoU and F (supplement, Table 9)."""

    data: str
    """AVSBench's Single-source folder: s4_meta_data.csv, and s4_data/ with visual_frames, gt_masks, audio_wav."""
    batch_size: int = 16
    """Videos that a process reads and encodes at once; a test video has five frames."""
    head_batch_size: int = 16
    """Frames of a step of the head."""
    channels: int = 128
    """Of the decoder at 14 x 14; each step to twice the size halves them, down to 8."""
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
        listed = read_videos(folder, left_out)
        names, notes = choose_names([video.name for video in listed["test"]], self.keys)
        listed["test"] = [video for video in listed["test"] if video.name in names]
        loaded = load_model(self.checkpoint, accelerator.device, precision=self.precision)
        out = self.result_file(accelerator, loaded.checkpoint, _result_path(loaded, folder))
        splits = {split: self._encode(loaded, accelerator, split, listed[split], left_out) for split in ANNOTATED}
        fit, scores = self._fit(loaded, splits)
        baselines = trivial(splits["train"], splits["test"])
        if self.untrained:
            first = load_model(self.checkpoint, loaded.device, untrained=True, precision=self.precision)
            before = {split: self._encode(first, accelerator, split, listed[split], LeftOut()) for split in ANNOTATED}
            baselines["untrained"] = summarise(self._fit(first, before)[1])
        counts = ", ".join(f"{len(s.videos):,} {name}" for name, s in splits.items())
        result = Result(
            task="segmentation",
            data=self.data,
            dataset_fingerprint=fingerprint([video for videos in listed.values() for video in videos]),
            checkpoint=str(loaded.checkpoint),
            step=loaded.step,
            pool=len(splits["test"].videos),
            pool_rule="test videos, 5 frames each" + (f"; the names in {self.keys.name}" if self.keys else ""),
            protocol_name="AVSBench S4 (mIoU, F); DeepAVFusion (mIoU+bg, F per frame); frozen encoders",
            protocol=_protocol(self, fit, counts),
            metrics={"audio + image": summarise(scores)},
            baselines=baselines,
            paper=_PAPER,
            notes=("dataset_fingerprint is of file names and sizes", *left_out.notes(), *notes),
            intervals={"audio + image": _intervals(scores)},
        )
        publish(result, out, accelerator)
        self.save(accelerator, *map(_predictions, splits["test"].videos, scores))
        return result

    def _encode(
        self, loaded: LoadedModel, accelerator: Accelerator, split: str, videos: list[Video], left_out: LeftOut
    ) -> _Split:
        """Features and masks of a split, computed once and kept; videos that cannot be read are left out."""
        size = min(self.batch_size, PIECE)

        def compute(shares: Iterable[Share]) -> Iterator[tuple[Numbers, dict[str, Tensor]]]:
            with ThreadPoolExecutor(max(1, self.workers)) as pool:
                for share in shares:
                    found = list(pool.map(decode, [videos[number] for number in share.numbers.tolist()]))
                    rows = encode_videos(loaded, found, ANNOTATED[split])
                    check_finite(
                        loaded,
                        {"image": rows["tokens"], "audio": rows["audio"]},
                        [videos[number].name for number in share.numbers.tolist()],
                    )
                    yield share.numbers, rows

        if not videos:  # val alone may have none
            return _Split(videos=[], tokens=torch.empty(0), audio=torch.empty(0), masks=torch.empty(0))
        rows = cached_rows(
            torch.arange(len(videos)).numpy(),
            compute,
            folder=self._cache(loaded, split, videos),
            batch_size=size,
            accelerator=accelerator,
            title=f"encode {split}" if loaded.is_trained else f"encode {split}, untrained",
        )
        reasons = rows.pop("reason").tolist()
        for video, reason in zip(videos, reasons, strict=True):
            if reason:
                left_out.add(UNREADABLE[reason - 1], f"{video.place}/{video.name}")
        usable = torch.tensor([reason == 0 for reason in reasons])
        if split != "val" and not usable.any():
            raise UserError(f"{self.data}: no video of the {split} split can be read; {'; '.join(left_out.notes())}")
        kept = [video for video, reason in zip(videos, reasons, strict=True) if not reason]
        return _Split(videos=kept, **{name: values[usable] for name, values in rows.items()})

    def _cache(self, loaded: LoadedModel, split: str, videos: list[Video]) -> Path | None:
        folder = self.feature_folder(loaded.checkpoint)
        if folder is None:
            return None
        facts = f"segmentation, masks of any brightness, {split} {loaded.fingerprint} {fingerprint(videos)}"
        return folder / hashlib.sha256(facts.encode()).hexdigest()[:32]

    def _fit(self, loaded: LoadedModel, splits: dict[str, _Split]) -> tuple[Fit, list[FrameScores]]:
        """Trains a head on the training split; its scores on the test split, an item a video."""
        train, val, test = splits["train"], splits["val"], splits["test"]
        sounds = standardise(*(split.audio for split in (train, test, val) if split.videos))
        train_sound, test_sound, device = sounds[0].flatten(0, 1), sounds[1], loaded.device
        tokens, masks = train.tokens.flatten(0, 1), train.masks.flatten(0, 1)
        head = make_head(lambda: MaskHead(tokens.shape[-1], self.channels), self, device)

        def loss(rows: Tensor) -> Tensor:
            logits = head(tokens[rows].float().to(device), train_sound[rows].to(device))
            return F.binary_cross_entropy_with_logits(logits, train.frame_masks(masks[rows]).float().to(device))

        def score(split: _Split, sound: Tensor) -> list[FrameScores]:
            return [
                frame_scores(head(t.float().to(device), s.to(device)).sigmoid(), split.frame_masks(m).to(device))
                for t, s, m in zip(split.tokens, sound, split.masks, strict=True)
            ]

        def validate() -> float:
            return summarise(score(val, sounds[2]))["mIoU"] or 0.0

        fit = fit_head(head, loss, len(tokens), options=self, validate=validate if val.videos else None)
        with torch.no_grad():
            return fit, score(test, test_sound)


def _intervals(scores: list[FrameScores]) -> dict[str, Interval]:
    """Intervals of `summarise`; the frames of a video are drawn together."""
    videos = np.arange(len(scores))
    return spread(
        summarise(scores[i] for i in np.repeat(videos, drawn)) for drawn in draws(len(scores), resamples=FEW_RESAMPLES)
    )


def _predictions(video: Video, scores: FrameScores) -> dict[str, Any]:
    """The table of --save-predictions for a video, a row a frame: its scores, and whether anything is to be found."""
    count = len(scores.iou)
    return {
        "key": [video.name] * count,
        "frame": list(range(count)),
        "truth": ["empty" if empty else "foreground" for empty in scores.is_empty.tolist()],
        "IoU": scores.iou.numpy(),
        "background IoU": scores.background_iou.numpy(),
        "F@0.5": scores.f_half.numpy(),
        "best F": scores.f_best.numpy(),
    }


def encode_videos(loaded: LoadedModel, found: list[Decoded | str], frames: int) -> dict[str, Tensor]:
    """Rows for videos, on the CPU: tokens float16 [V, F, 196, D], audio float32 [V, F, D], masks uint8 [V, F, S*S/8].

    `reason` int64 [V] is 0, or 1 + the place in UNREADABLE of what is wrong with a video, whose other rows are zero.
    """
    reasons = torch.tensor([1 + UNREADABLE.index(video) if isinstance(video, str) else 0 for video in found])
    good = [video for video in found if isinstance(video, Decoded)]
    dim = loaded.model.dim
    rows = {
        "tokens": torch.zeros(len(found), frames, IMAGE_TOKENS, dim, dtype=torch.float16),
        "audio": torch.zeros(len(found), frames, dim),
        "masks": torch.zeros(len(found), frames, FRAME_SIZE * FRAME_SIZE // 8, dtype=torch.uint8),
        "reason": reasons,
    }
    if good:
        usable = reasons == 0
        audio = loaded.encode_audio(torch.stack([video.fbank for video in good]))
        rows["audio"][usable] = per_second(audio.tokens, frames).cpu()
        images = loaded.encode_image(torch.cat([video.frames for video in good])).tokens
        rows["tokens"][usable] = images.half().cpu().unflatten(0, (len(good), frames))
        rows["masks"][usable] = torch.stack([_packed(video.masks) for video in good])
    return rows


def _packed(masks: Tensor) -> Tensor:
    """Masks bool [F, S, S] as bits, uint8 [F, S * S / 8], the first pixel highest."""
    weights = 1 << torch.arange(7, -1, -1)
    return (masks.flatten(1).unflatten(1, (-1, 8)) * weights).sum(dim=2).to(torch.uint8)


def trivial(train: _Split, test: _Split) -> Rows:
    """What answers score that look at nothing: all pixels, the centre, and the mean of the training masks."""
    everything = torch.ones(FRAME_SIZE, FRAME_SIZE)
    centre = torch.zeros(FRAME_SIZE, FRAME_SIZE)
    quarter = FRAME_SIZE // 4
    centre[quarter:-quarter, quarter:-quarter] = 1
    mean = sum(train.frame_masks(video).double().sum(dim=0) for video in train.masks)
    assert isinstance(mean, Tensor)
    answers = {
        "all foreground": everything,
        "centre box, half the side": centre,
        "mean training mask": (mean / train.masks.shape[:2].numel()).float(),
    }
    return {
        name: summarise(
            frame_scores(answer.expand(test.masks.shape[1], -1, -1), test.frame_masks(masks)) for masks in test.masks
        )
        for name, answer in answers.items()
    }


def _protocol(options: SegmentationConfig, fit: Fit, counts: str) -> str:
    chosen = "of the last epoch" if fit.score is None else f"of epoch {fit.epoch}, val mIoU {fit.score:.2f}"
    return (
        f"AVSBench S4, frozen encoders ({counts} videos). Decoder: image tokens times (1 + sound of the frame's second)"
        f" in {options.channels} channels, four bilinear steps with a 3 x 3 convolution each, on the first frame of"
        f" each training video, binary cross-entropy, AdamW {options.learning_rate:g}, {options.epochs} epochs,"
        f" seed {options.seed}; weights {chosen}. mIoU, F: AVSBench's, of the foreground at 0.5 and at the best"
        " threshold a video; mIoU+bg, F per frame: DeepAVFusion's. The sound is the clip's 5 s, zeros after them."
    )


def _result_path(loaded: LoadedModel, folder: Path) -> Path:
    name = file_key(folder.resolve().name) or "dataset"
    return run_folder(loaded.checkpoint) / "evaluation" / f"segmentation-{name}.json"
