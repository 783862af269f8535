"""Sample numbers -> batches, in the order's order.

order.take ──> this rank's share of each step ──> ring: read, check, decode ──> Batch ──> device: normalise
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.stream.index import DatasetIndex
from training.stream.order import Place, rank_slice, sample_seeds, take
from training.stream.ring import Ring

# B samples, T fbank rows, M mel bins, S pixels a side.
IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as MAE and every timm ViT
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which samples to load together: their numbers in the dataset and the epochs they belong to, int64 [B]."""

    numbers: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank takes at once, as stored: normalisation is the device's work.

    `image` and `fbank` are views of the loader's memory: copy them, or be done with them, before the next batch.
    """

    numbers: Tensor  # int64 [B], sample numbers in the dataset
    keys: list[str]
    seeds: Tensor  # int64 [B], of every random choice for the sample
    image: Tensor  # uint8 [B, S, S, 3]
    fbank: Tensor  # float16 [B, T, M]


def rank_shares(
    place: Place, *, n: int, seed: int, steps: int, batch_size: int, rank: int = 0, world: int = 1, micro_steps: int = 1
) -> Iterator[Share]:
    """A rank's share of each of `steps` steps from `place` on, in `micro_steps` equal pieces."""
    for _ in range(steps):
        numbers, epochs = take(place, batch_size, seed=seed, n=n)
        mine = rank_slice(batch_size, rank, world)
        pieces = (np.split(part[mine], micro_steps) for part in (numbers, epochs))
        for piece_numbers, piece_epochs in zip(*pieces, strict=True):
            yield Share(numbers=piece_numbers, epochs=piece_epochs)
        place = place.advance(batch_size, n)


def all_shares(n: int, batch_size: int) -> Iterator[Share]:
    """Every sample once, in the dataset's own order, for evaluation."""
    for start in range(0, n, batch_size):
        numbers = np.arange(start, min(start + batch_size, n))
        yield Share(numbers=numbers, epochs=np.zeros_like(numbers))


def load(index: DatasetIndex, shares: Iterable[Share], *, seed: int, batch_size: int, workers: int) -> Iterator[Batch]:
    """The batches of `shares`, decoded by `workers` processes (0: in this one).

    Args:
        batch_size: the most samples of one share.

    Raises:
        DamagedSampleError: a sample's bytes are not those that were written; names shard, key and offset.
        WorkerError: a worker died or hangs.
    """
    jobs = ((share, share.numbers.tolist()) for share in shares)
    with Ring(index, batch_size=batch_size, workers=workers) as ring:
        for share, slot in ring.batches(jobs):
            size = len(share.numbers)
            keys = [index.key(number) for number in share.numbers.tolist()]
            yield Batch(
                numbers=torch.from_numpy(share.numbers),
                keys=keys,
                seeds=torch.from_numpy(sample_seeds(seed, share.epochs, keys)),
                image=torch.from_numpy(slot.image[:size]),
                fbank=torch.from_numpy(slot.fbank[:size]),
            )


class Normalise(nn.Module):
    """Stored values -> model inputs, on the device they are on.

    Zero padding comes before normalisation, as in AST and CAV-MAE, so padded rows are not zero afterwards.
    """

    image_mean: Tensor
    image_std: Tensor
    fbank_mean: Tensor
    fbank_std: Tensor

    def __init__(self, fbank_mean: float, fbank_std: float) -> None:
        super().__init__()
        self.register_buffer("image_mean", 255 * torch.tensor(IMAGE_MEAN))
        self.register_buffer("image_std", 255 * torch.tensor(IMAGE_STD))
        self.register_buffer("fbank_mean", torch.tensor(fbank_mean))
        self.register_buffer("fbank_std", torch.tensor(fbank_std))

    def forward(self, image: Tensor, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3] and float16 [B, T, M] -> float32 [B, 3, S, S] and float32 [B, T, M]."""
        pixels = (image.float() - self.image_mean) / self.image_std
        return pixels.permute(0, 3, 1, 2), (fbank.float() - self.fbank_mean) / self.fbank_std
