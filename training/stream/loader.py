"""Shares of the order -> batches.

shares ──> ring: read, check, decode ──> Batch ──> device: normalise
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards_spec.errors import DamagedSampleError
from training.stream.ahead import Ahead
from training.stream.index import DatasetIndex, SamplePlace
from training.stream.order import Numbers, Place, SampleStream, sample_seeds
from training.stream.ring import Damage, Ring
from training.stream.shares import Share
from training.stream.waiting import Stopping, never

# B samples, F frames of each, S pixels a side, T fbank rows, M mel bins, W samples of sound.
IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as MAE and every timm ViT
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank takes at once, as stored: normalisation is the device's work.

    `image`, `fbank` and `sound` are views of the loader's memory: copy them, or be done with them, before the next
    batch.
    """

    numbers: Tensor  # int64 [B], sample numbers in the index
    keys: list[str]
    seeds: Tensor  # int64 [B], of every random choice for the sample
    image: Tensor  # uint8 [B, F, S, S, 3], the frames that `index.reads` asks for
    fbank: Tensor  # float16 [B, T, M]
    sound: Tensor | None  # int16 [B, W]; None where none is read
    heard: Tensor | None  # int32 [B], samples of sound that are the clip's; zeros follow
    replaced: list[str]  # what was wrong with samples that others stand in for


def load(
    index: DatasetIndex,
    shares: Iterable[Share],
    *,
    seed: int,
    batch_size: int,
    workers: int,
    skip_bad_in: SampleStream | None = None,
    stopping: Stopping = never,
    pin: bool = False,
) -> Iterator[Batch]:
    """The batches of `shares`, decoded by `workers` processes (0: in this one): what `index.reads` asks for.

    Args:
        batch_size: the most samples of one share.
        skip_bad_in: the stream that `shares` come from: a damaged sample is replaced by the next good one of it,
            the same one on every topology. None: a damaged sample ends the run.
        stopping: looked at while a batch is waited for: StopRequest.interrupts.
        pin: whether batches lie in page-locked memory, from which a CUDA device copies while the host goes on. The
            copies must be on the current stream. Without CUDA it changes nothing.

    Raises:
        DamagedSampleError: a sample's bytes are not those that were written; names shard, key and offset.
        OSError: the system does not give a sample's bytes; it is not replaced.
        WorkerError: a worker died or hangs.
        FetchError: a remote shard cannot be had.
        UserError: the cache of remote shards is too small for one step.
        StopWaiting: `stopping` said so.
    """
    ahead = None if index.cache is None else Ahead(index, shares, stopping)

    def job(share: Share) -> tuple[_Loading, list[SamplePlace]]:
        keys = index.keys(share.numbers)
        seeds = sample_seeds(seed, share.epochs, keys)
        return _Loading(share, keys, seeds), index.places(share.numbers, seeds)

    def replace(loading: _Loading, damage: Damage) -> SamplePlace:
        assert skip_bad_in is not None
        number = loading.stand_in(damage, skip_bad_in)
        if ahead is not None:
            ahead.stand_in(number)
        key = index.key(number)
        loading.keys[damage.row] = key
        loading.seeds[damage.row] = sample_seeds(seed, loading.epochs[damage.row : damage.row + 1], [key])[0]
        return index.place(number, int(loading.seeds[damage.row]))

    jobs, ready = map(job, ahead or shares), None if ahead is None else ahead.ready
    ring = Ring(
        index.tars,
        batch_size=batch_size,
        workers=workers,
        keep_open=ahead is None,
        page_locked=pin,
        reads=index.reads,
    )
    with_sound = index.reads.waveform_seconds > 0
    with ring, ahead or nullcontext():  # in this order: the cache's threads must not be there when workers are forked
        for loading, slot in ring.batches(jobs, None if skip_bad_in is None else replace, ready, stopping):
            size = len(loading.numbers)
            yield Batch(
                numbers=torch.from_numpy(loading.numbers),
                keys=loading.keys,
                seeds=torch.from_numpy(loading.seeds),
                image=torch.from_numpy(slot.image[:size]),
                fbank=torch.from_numpy(slot.fbank[:size]),
                sound=torch.from_numpy(slot.sound[:size]) if with_sound else None,
                heard=torch.from_numpy(slot.heard[:size]) if with_sound else None,
                replaced=loading.damage,
            )
            if ahead is not None:
                ahead.done()


class _Loading:
    """A share on its way through the ring, with the samples that stand in for damaged ones."""

    def __init__(self, share: Share, keys: list[str], seeds: Numbers) -> None:
        self.numbers, self.epochs, self.first = share.numbers.copy(), share.epochs.copy(), share.first
        self.keys, self.seeds = keys, seeds
        self.damage: list[str] = []
        self._tries: Counter[int] = Counter()

    def stand_in(self, damage: Damage, stream: SampleStream) -> int:
        """The number of the sample that comes after a damaged one, or after the last one tried for it."""
        row = damage.row
        self.damage.append(damage.message)
        self._tries[row] += 1
        if self._tries[row] > stream.n:
            raise DamagedSampleError(f"no sample of the dataset can be read; the last: {damage.message}")
        following = Place().advance(self.first + row + self._tries[row], stream.n)
        (self.numbers[row],), (self.epochs[row],) = stream.take(following, 1)
        return int(self.numbers[row])


def count_valid_frames(fbank: Tensor) -> Tensor:
    """Rows before the padding, int64 [B], of fbanks as stored [B, T, M]: up to the last one that is not all zero.

    No row of sound is all zero: mel bin 3 has an empty filter, so it is log(eps) = -15.94 in every row, and digital
    silence is so in all bins. An fbank of zeros alone counts whole.
    """
    is_sound = fbank.any(dim=2)
    rows = torch.arange(1, fbank.shape[1] + 1, device=fbank.device)
    last = (is_sound * rows).amax(dim=1)
    return torch.where(last > 0, last, fbank.shape[1])


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
        """uint8 [..., S, S, 3] and float16 [B, T, M] -> float32 [..., 3, S, S] and float32 [B, T, M]."""
        pixels = (image.float() - self.image_mean) / self.image_std
        return pixels.movedim(-1, -3), (fbank.float() - self.fbank_mean) / self.fbank_std
