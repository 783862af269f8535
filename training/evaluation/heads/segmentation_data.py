"""The videos of a split of AVSBench, as a head on frozen encoders takes them: features and masks, frame by frame."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from shards_spec.sample import FRAME_SIZE
from training.evaluation.features import LoadedModel, check_finite
from training.evaluation.heads.avsbench import UNREADABLE, Decoded, decode, fingerprint
from training.evaluation.heads.avsbench_layouts import Video
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.seconds import per_second
from training.evaluation.row_cache import PIECE, Rows, cached_rows
from training.methods.shared.patches import IMAGE_TOKENS
from training.stream.order import Numbers
from training.stream.shares import Share

# V videos, F annotated frames of each, N annotated frames of all, D features, S pixels a side.


@dataclass(frozen=True, kw_only=True)
class Split:
    """The videos of a split that can be read, with the features and masks of their annotated frames."""

    videos: list[Video]
    tokens: Tensor  # float16 [N, 196, D]
    audio: Tensor  # float32 [N, D], of the second of each frame
    masks: Tensor  # uint8: packed [N, S * S / 8], or classes [N, S, S]

    @property
    def counts(self) -> list[int]:
        """How many of the frames are each video's."""
        return [len(video.frames) for video in self.videos]

    @property
    def has_classes(self) -> bool:
        """Whether masks are classes."""
        return self.masks.dim() == 3

    def frame_masks(self, rows: Tensor) -> Tensor:
        """Masks of rows of `masks`: bool [..., S, S] of packed ones, classes as int64 [..., S, S]."""
        if self.has_classes:
            return rows.long()
        bits = rows.unsqueeze(-1) >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1
        return bits.bool().reshape(*rows.shape[:-1], FRAME_SIZE, FRAME_SIZE)


@dataclass(frozen=True, kw_only=True)
class SplitEncoder:
    """Encodes splits, once: what is computed is kept in `cache`."""

    loaded: LoadedModel
    accelerator: Accelerator
    cache: Path | None
    batch_size: int  # videos
    threads: int
    classes: bool  # masks are classes

    def encode(self, split: str, videos: list[Video], left_out: LeftOut) -> Split:
        """Features and masks of a split; videos that cannot be read are left out."""
        groups: dict[int, list[Video]] = {}  # videos of as many frames, so that their rows are of one shape
        for video in videos:
            groups.setdefault(len(video.frames), []).append(video)
        parts = [self._encode_group(split, group, left_out) for group in groups.values()]
        if len(parts) == 1:
            return parts[0]
        if not parts:  # val alone may have none
            return Split(videos=[], tokens=torch.empty(0), audio=torch.empty(0), masks=torch.empty(0))
        return Split(
            videos=[video for part in parts for video in part.videos],
            tokens=torch.cat([part.tokens for part in parts]),
            audio=torch.cat([part.audio for part in parts]),
            masks=torch.cat([part.masks for part in parts]),
        )

    def _encode_group(self, split: str, videos: list[Video], left_out: LeftOut) -> Split:
        def compute(shares: Iterable[Share]) -> Iterator[tuple[Numbers, Rows]]:
            with ThreadPoolExecutor(max(1, self.threads)) as pool:
                for share in shares:
                    asked = [videos[number] for number in share.numbers.tolist()]
                    found = list(pool.map(lambda video: decode(video, classes=self.classes), asked))
                    rows = encode_videos(self.loaded, found, len(asked[0].frames), classes=self.classes)
                    check_finite(
                        self.loaded,
                        {"image": rows["tokens"], "audio": rows["audio"]},
                        [video.name for video in asked],
                    )
                    yield share.numbers, rows

        rows = cached_rows(
            torch.arange(len(videos)).numpy(),
            compute,
            folder=self._folder(split, videos),
            batch_size=min(self.batch_size, PIECE),
            accelerator=self.accelerator,
            title=f"encode {split}" if self.loaded.is_trained else f"encode {split}, untrained",
        )
        reasons = rows.pop("reason").tolist()
        for video, reason in zip(videos, reasons, strict=True):
            if reason:
                left_out.add(UNREADABLE[reason - 1], f"{video.place}/{video.name}")
        usable = torch.tensor([reason == 0 for reason in reasons])
        kept = [video for video, reason in zip(videos, reasons, strict=True) if not reason]
        return Split(videos=kept, **{name: values[usable].flatten(0, 1) for name, values in rows.items()})

    def _folder(self, split: str, videos: list[Video]) -> Path | None:
        if self.cache is None:
            return None
        kind = "segmentation, classes," if self.classes else "segmentation, masks of any brightness,"
        facts = f"{kind} {split} {self.loaded.fingerprint} {fingerprint(videos)}"
        return self.cache / hashlib.sha256(facts.encode()).hexdigest()[:32]


def encode_videos(
    loaded: LoadedModel, found: list[Decoded | str], frames: int, *, classes: bool = False
) -> dict[str, Tensor]:
    """Rows for videos of F frames, on the CPU: tokens float16 [V, F, 196, D], audio float32 [V, F, D], and masks.

    Masks are uint8, packed [V, F, S * S / 8], or classes [V, F, S, S]. `reason` int64 [V] is 0, or 1 + the place in
    UNREADABLE of what is wrong with a video, whose other rows are zero.
    """
    reasons = torch.tensor([1 + UNREADABLE.index(video) if isinstance(video, str) else 0 for video in found])
    good = [video for video in found if isinstance(video, Decoded)]
    dim = loaded.model.dim
    pixels = (FRAME_SIZE, FRAME_SIZE) if classes else (FRAME_SIZE * FRAME_SIZE // 8,)
    rows = {
        "tokens": torch.zeros(len(found), frames, IMAGE_TOKENS, dim, dtype=torch.float16),
        "audio": torch.zeros(len(found), frames, dim),
        "masks": torch.zeros(len(found), frames, *pixels, dtype=torch.uint8),
        "reason": reasons,
    }
    if good:
        usable = reasons == 0
        audio = loaded.encode_audio(torch.stack([video.fbank for video in good]))
        rows["audio"][usable] = per_second(audio.tokens, frames).cpu()
        images = loaded.encode_image(torch.cat([video.frames for video in good])).tokens
        rows["tokens"][usable] = images.half().cpu().unflatten(0, (len(good), frames))
        rows["masks"][usable] = torch.stack([video.masks if classes else _packed(video.masks) for video in good])
    return rows


def _packed(masks: Tensor) -> Tensor:
    """Masks bool [F, S, S] as bits, uint8 [F, S * S / 8], the first pixel highest."""
    weights = 1 << torch.arange(7, -1, -1)
    return (masks.flatten(1).unflatten(1, (-1, 8)) * weights).sum(dim=2).to(torch.uint8)
