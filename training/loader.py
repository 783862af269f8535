"""Sample numbers -> batches. Workers are stateless: the order alone decides what they read.

order.take ──> this rank's share of each step ──> worker: read, crc, JPEG, fbank ──> Batch ──> device: normalise
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import (
    FBANK_FRAMES,
    FBANK_MELS,
    FBANK_MEMBER,
    FRAME_MEMBER,
    FRAME_SIZE,
    decode_fbank,
)
from training.index import DatasetIndex
from training.order import Place, rank_slice, sample_seeds, take

# B samples, T fbank rows, M mel bins, S pixels a side.
IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as MAE and every timm ViT
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank takes in one micro-step, as stored: normalisation is the device's work."""

    numbers: Tensor  # int64 [B], sample numbers in the dataset
    keys: list[str]
    seeds: Tensor  # int64 [B], of every random choice for the sample
    image: Tensor  # uint8 [B, S, S, 3]
    fbank: Tensor  # float16 [B, T, M]

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory, so that its copy to a GPU overlaps with work there."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("numbers", "seeds", "image", "fbank")}
        return Batch(keys=self.keys, **pinned)


class Samples(Dataset[Batch]):
    """Reads and decodes samples by number. Holds no state beside the index."""

    def __init__(self, index: DatasetIndex, seed: int) -> None:
        self.index = index
        self.seed = seed

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        """The batch of `items`, (sample number, epoch) each.

        Raises:
            DamagedSampleError: a sample's bytes are not those that were written; names shard, key and offset.
        """
        numbers = np.array([number for number, _ in items], np.int64)
        epochs = np.array([epoch for _, epoch in items], np.int64)
        keys = [self.index.key(int(number)) for number in numbers]
        image = np.empty((len(items), FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        fbank = np.empty((len(items), FBANK_FRAMES, FBANK_MELS), np.float16)
        for row, number in enumerate(numbers.tolist()):
            try:
                image[row] = decode_frame(self.index.read(number, FRAME_MEMBER))
                fbank[row] = decode_fbank(self.index.read(number, FBANK_MEMBER))
            except (OSError, ValueError) as error:  # the bytes are as written, but no JPEG or npy of the right shape
                raise DamagedSampleError(f"{self.index.where(number)}: {error}") from error
        return Batch(
            numbers=torch.from_numpy(numbers),
            keys=keys,
            seeds=torch.from_numpy(sample_seeds(self.seed, epochs, keys)),
            image=torch.from_numpy(image),
            fbank=torch.from_numpy(fbank),
        )


def decode_frame(payload: bytes) -> npt.NDArray[np.uint8]:
    """A stored frame, uint8 [S, S, 3] RGB."""
    with Image.open(io.BytesIO(payload)) as jpeg:
        pixels = np.asarray(jpeg.convert("RGB"))
    if pixels.shape != (FRAME_SIZE, FRAME_SIZE, 3):
        raise ValueError(f"its frame is {pixels.shape[1]}x{pixels.shape[0]}, expected {FRAME_SIZE}x{FRAME_SIZE}")
    return pixels


class RankShares(Sampler[list[tuple[int, int]]]):
    """This rank's share of each step from `place` on, cut into micro-batches: lists of (sample number, epoch)."""

    def __init__(
        self, *, n: int, seed: int, place: Place, steps: int, batch_size: int, rank: int, world: int, micro_steps: int
    ) -> None:
        self.n, self.seed, self.place, self.steps = n, seed, place, steps
        self.batch_size, self.rank, self.world, self.micro_steps = batch_size, rank, world, micro_steps

    def __len__(self) -> int:
        return self.steps * self.micro_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        place = self.place
        for _ in range(self.steps):
            numbers, epochs = take(place, self.batch_size, seed=self.seed, n=self.n)
            mine = rank_slice(self.batch_size, self.rank, self.world)
            share = list(zip(numbers[mine].tolist(), epochs[mine].tolist(), strict=True))
            size = len(share) // self.micro_steps
            for start in range(0, len(share), size):
                yield share[start : start + size]
            place = place.advance(self.batch_size, self.n)


def _as_read(batch: Batch) -> Batch:
    """`Samples.__getitems__` has collated already."""
    return batch


def make_loader(
    samples: Samples, shares: Sampler[list[tuple[int, int]]], *, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Batches of `shares` in order, decoded by `workers` processes (0: in this one)."""
    return DataLoader(
        samples,
        batch_sampler=shares,
        num_workers=workers,
        collate_fn=_as_read,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


class Normalise(nn.Module):
    """Stored values -> model inputs, on the device they are on.

    Zero padding comes before normalisation, as in AST and CAV-MAE, so padded rows are not zero afterwards.
    """

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
