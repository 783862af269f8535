"""Single examples of what a model finds: partners among a pool of samples, and the place of a sound in its frame."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tools.pages.pictures import Picture, as_picture, box_outline, heat, thumbnail
from tools.pages.report_pictures import Hit, Localized, Retrieved
from tools.reporting.samples import Stored, read_samples
from training.evaluation.features import LoadedModel, embed_dataset
from training.evaluation.localization import ciou, ground_truth, heatmaps, predicted_region, usable_boxes
from training.evaluation.metadata import read_metadata
from training.evaluation.retrieval import exact, partner_ranks
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

_FRAME = 112  # pixels a side of a small frame
_SOUND = (220, 96)  # width, height of a small spectrogram
TOP = 5


class Thumbnails:
    """Small pictures of samples, made when they are first asked for."""

    def __init__(self, index: DatasetIndex) -> None:
        self._index = index
        self._made: dict[int, tuple[Picture, Picture, str]] = {}

    def fetch(self, numbers: Sequence[int]) -> None:
        """Makes those that are missing; raises as `read_samples` does."""
        missing = sorted(set(numbers) - self._made.keys())
        for stored in read_samples(self._index, np.array(missing, np.int64)):
            self._made[stored.number] = (
                as_picture(thumbnail(stored.frame, _FRAME, _FRAME)),
                as_picture(thumbnail(stored.spectrogram, *_SOUND)),
                stored.key,
            )

    def of(self, number: int, kind: str) -> Picture:
        """The picture of a fetched sample: `image` or `sound`."""
        image, sound, _ = self._made[number]
        return image if kind == "image" else sound

    def key(self, number: int) -> str:
        """Its key."""
        return self._made[number][2]


def retrieve(
    loaded: LoadedModel, index: DatasetIndex, numbers: Numbers, *, queries: int, run: int, thumbnails: Thumbnails
) -> list[Retrieved]:
    """The most similar candidates of the first `queries` samples of a pool, both ways.

    Args:
        numbers: the pool, sample numbers int64 [N].

    Raises:
        DamagedSampleError: a sample cannot be read; names shard, key and offset.
        UserError: the model's features are not finite.
    """
    embedded = embed_dataset(index, loaded, numbers=numbers, batch_size=16, workers=0)
    audio, image = exact(embedded.audio), exact(embedded.image)
    found = []
    for asks_for, given, theirs in (("image", audio, image), ("sound", image, audio)):
        ranks = partner_ranks(given, theirs)[:queries].tolist()
        similarity = given[:queries] @ theirs.T
        top = similarity.topk(min(TOP, len(numbers)), dim=1).indices
        thumbnails.fetch([*numbers[:queries].tolist(), *numbers[top.flatten().numpy()].tolist()])
        for query, rank in enumerate(ranks):
            own = int(numbers[query])
            hits = [
                Hit(
                    picture=thumbnails.of(int(numbers[candidate]), asks_for),
                    similarity=float(similarity[query, candidate]),
                    is_partner=candidate == query,
                )
                for candidate in top[query].tolist()
            ]
            kind = "sound" if asks_for == "image" else "image"
            found.append(
                Retrieved(
                    run=run,
                    asks_for=asks_for,
                    key=thumbnails.key(own),
                    query=thumbnails.of(own, kind),
                    hits=hits,
                    rank=rank,
                    pool=len(numbers),
                )
            )
    return found


def with_boxes(index: DatasetIndex, numbers: Numbers, count: int) -> list[tuple[Stored, list[list[float]]]]:
    """The first `count` samples that have usable boxes (normalised x0, y0, x1, y1), with these.

    Raises:
        DamagedSampleError: a sample cannot be read; names shard, key and offset.
    """
    boxes: dict[int, list[list[float]]] = {}
    for number, metadata in zip(numbers.tolist(), read_metadata(index, numbers), strict=True):
        usable = usable_boxes(metadata.get("boxes") or []).boxes
        if usable:
            boxes[number] = [list(box) for box in usable]
        if len(boxes) == count:
            break
    stored = read_samples(index, np.array(list(boxes), np.int64))
    return [(sample, boxes[sample.number]) for sample in stored]


def frame_with_boxes(stored: Stored, boxes: list[list[float]]) -> Localized:
    """The entry of a sample, before any run is shown."""
    return Localized(key=stored.key, frame=as_picture(stored.frame, box_outline(boxes)), maps=[])


@torch.no_grad()
def localize(loaded: LoadedModel, stored: Stored, boxes: list[list[float]]) -> tuple[Picture, float]:
    """The heatmap of a sample's own sound over its frame, boxes outlined; and its cIoU as VGG-SS counts it."""
    heatmap = own_heatmap(loaded, torch.from_numpy(stored.frame)[None], torch.from_numpy(stored.fbank)[None])
    truth = ground_truth([(b[0], b[1], b[2], b[3]) for b in boxes], "vggss")
    score = float(ciou(predicted_region(heatmap), truth[None])[0])
    return as_picture(heat(stored.frame, heatmap[0].numpy()), box_outline(boxes)), score


def own_heatmap(loaded: LoadedModel, frames: Tensor, fbanks: Tensor) -> Tensor:
    """Heatmaps [B, S, S] in 0 .. 1, on the CPU, of stored frames [B, S, S, 3] with their own sounds [B, T, M]."""
    tokens, audio = loaded.encode_image(frames).tokens, loaded.encode_audio(fbanks).pooled
    return heatmaps(tokens.float(), audio.float()).cpu()
