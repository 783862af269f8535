"""How fast samples come, beside what the machine could do and what others do: all in one run, on made samples.

    python -m tools.bench_loader                  ours, the floor, a plain DataLoader
    python -m tools.bench_loader --peers          and webdataset, MosaicML streaming, litdata, Megatron-Energon
    python -m tools.bench_loader --shape window   8 of 20 frames in a row (MAViL), beside webdataset too
    python -m tools.bench_loader --shape sound    one of 10 frames, and 3 s out of the FLAC (DeepAVFusion)
    python -m tools.bench_loader --instant        order, index and first batch at 2 million samples

Every loader gives float16 fbanks [64, 1024, 128] and uint8 frames [64, F, 224, 224, 3], and where asked int16 sound,
out of a warm page cache; nothing is done with them. Rounds go through all loaders in turn, so that a noisy machine
disturbs all alike; ratios are taken within a round. The floor is one process that reads, decodes and collates without
any check, queue or other process.
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil
import simplejpeg
import soundfile
import tyro
from isal import isal_zlib

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from shards_spec.sample import FBANK_HEADER
from tools.benchmarks.loader_data import SHARD_SAMPLES, write_long, write_samples
from tools.benchmarks.loader_peers import Loader, map_style, peers, webdataset_of
from tools.benchmarks.loader_start import LONG_SHARDS, instant
from training.methods.interface import Reads
from training.stream.index import DatasetIndex, SamplePlace, open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream, sample_seeds
from training.stream.ring import Slot, make_slots
from training.stream.shares import rank_shares

_WARM_BATCHES = 8  # not timed: processes start, and pages of slots and buffers come into being
FLOOR = "floor, one core"


@dataclass(frozen=True)
class Shape:
    """What is read of a sample, and what a dataset must store for it."""

    reads: Reads
    frames: int = 1
    keep_audio: bool = False


SHAPES = {
    "frame": Shape(Reads()),
    "window": Shape(Reads(frames=8, choose="window"), frames=20),
    "sound": Shape(Reads(choose="random", waveform_seconds=3.0), frames=10, keep_audio=True),
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measures the loader beside a floor and, if asked, beside other loaders."""

    samples: int = 2000
    """Samples of the made dataset, 278 KB each."""

    batch_size: int = 64

    workers: tuple[int, ...] = (1, 2)
    """Ours is measured without workers too; the others with the last of these."""

    repeats: int = 5
    """Rounds."""

    shape: Literal["frame", "window", "sound"] = "frame"
    """What is read of a sample: the middle frame; 8 of 20 frames in a row; one of 10 frames and 3 s of sound."""

    peers: bool = False
    """Measure other loaders too, those that read the middle frame alone with --shape frame only."""

    instant: bool = False
    """Only the figures that should not grow with the dataset."""

    folder: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: the system's)")] = None
    """Where a temporary folder for the data is made."""


@dataclass(frozen=True)
class Rate:
    """What one loader did in one round."""

    samples_per_second: float
    cpu_us: float  # processor time of all its processes, a sample


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.bench_loader"):
        config = parse(BenchConfig, arguments)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=config.folder) as folder:
            _run(config, Path(folder))


def _run(config: BenchConfig, folder: Path) -> None:
    least = max(SHARD_SAMPLES, 2 * _WARM_BATCHES * config.batch_size)
    if config.samples < least:
        raise UserError(f"--samples {config.samples} is too few to time, give {least} or more")
    shape = SHAPES[config.shape]
    write_samples(folder / "samples", config.samples, frames=shape.frames, keep_audio=shape.keep_audio)
    index = open_index(folder / "samples", reads=shape.reads)
    if config.instant:
        write_long(folder / "long", folder / "samples", LONG_SHARDS)
        print("\n".join(instant(folder / "samples", folder / "long", config.batch_size, config.workers[-1])))
        return
    loaders = [Loader(FLOOR, 0, lambda: _floor(index, config.batch_size))]
    loaders += [_ours(index, config.batch_size, workers) for workers in (0, *config.workers)]
    loaders.append(map_style(index, config.batch_size, config.workers[-1]))
    if config.shape != "frame":
        loaders.append(webdataset_of(folder / "samples", shape.reads, config.batch_size, config.workers[-1]))
    elif config.peers:
        loaders += peers(folder / "samples", folder / "peers", config.batch_size, config.workers[-1])
    batches = config.samples // config.batch_size - _WARM_BATCHES
    rounds = [{_name(loader): _measure(loader, batches) for loader in loaders} for _ in range(config.repeats)]
    print(f"{table(rounds)}\n\n{summary(rounds)}")
    if config.shape == "frame":
        crc32, whole = _crc32_share(index)
        print(f"\ncrc32: {1e6 * crc32:.1f} µs a sample, {crc32 / whole:.1%} of what the floor takes with it")


def table(rounds: list[dict[str, Rate]]) -> str:
    """The loaders as Markdown: medians over the rounds, and the best round, which others disturbed least."""
    lines = ["| loader | samples/s, median | best | CPU µs a sample, median | best |", "|---|---:|---:|---:|---:|"]
    for name in rounds[0]:
        rates, cpu = [r[name].samples_per_second for r in rounds], [r[name].cpu_us for r in rounds]
        lines.append(
            f"| {name} | {statistics.median(rates):,.0f} | {max(rates):,.0f}"
            f" | {statistics.median(cpu):.0f} | {min(cpu):.0f} |"
        )
    return "\n".join(lines)


def summary(rounds: list[dict[str, Rate]]) -> str:
    """Ours beside the floor, fewer workers and the others, as Markdown.

    Medians of the ratios within a round, and ratios of the best rounds; of rates and of processor time.
    """
    ours = [name for name in rounds[0] if name.startswith("ours")]
    others = [name for name in rounds[0] if name not in (*ours, FLOOR)]
    pairs = [(name, FLOOR) for name in ours] + [(ours[-1], name) for name in [*ours[1:-1], *others]]
    lines = ["| ratio | rate, median | best | CPU, median | best |", "|---|---:|---:|---:|---:|"]
    for over, under in pairs:
        rates = [(r[over].samples_per_second, r[under].samples_per_second) for r in rounds]
        cpu = [(r[under].cpu_us, r[over].cpu_us) for r in rounds]
        figures = [
            statistics.median(a / b for a, b in rates),
            max(a for a, _ in rates) / max(b for _, b in rates),
            statistics.median(a / b for a, b in cpu),
            min(a for a, _ in cpu) / min(b for _, b in cpu),
        ]
        lines.append(f"| {over} : {under} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return "\n".join(lines)


def _name(loader: Loader) -> str:
    return loader.name if loader.name == FLOOR else f"{loader.name}, {loader.workers} workers"


def _measure(loader: Loader, batches: int) -> Rate:
    iterator = loader.start()
    samples = sum(_size(batch) for batch in islice(iterator, _WARM_BATCHES))
    begin, cpu = time.perf_counter(), _cpu_seconds()
    samples = sum(_size(batch) for batch in islice(iterator, batches))
    seconds, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu
    tick = 1 / os.sysconf("SC_CLK_TCK")  # what the kernel counts in: less than one shows as none
    return Rate(samples / seconds, 1e6 * max(cpu, tick) / samples)


def _size(batch: Any) -> int:
    """Samples of a batch, whoever made it."""
    return len(batch[1])


def _cpu_seconds() -> float:
    """Processor time of this process and its children so far."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def _ours(index: DatasetIndex, batch_size: int, workers: int) -> Loader:
    def start() -> Iterator[Any]:
        stream = SampleStream(index.counts, seed=0)
        shares = rank_shares(stream, Place(), steps=1 << 30, batch_size=batch_size)
        for batch in load(index, shares, seed=0, batch_size=batch_size, workers=workers):
            yield batch.image, batch.fbank, batch.sound

    return Loader("ours", workers, start)


def _floor(index: DatasetIndex, batch_size: int) -> Iterator[Any]:
    """Batches in two slots in turn: read and decoded, nothing else."""
    places = _places_in_order(index)
    files = [os.open(tar, os.O_RDONLY) for tar in index.tars]
    slots = make_slots(2, batch_size, index.reads)[1]
    buffer = memoryview(bytearray(1 << 21))
    for number, first in enumerate(range(0, len(places) - batch_size + 1, batch_size)):
        slot = slots[number % 2]
        for row, place in enumerate(places[first : first + batch_size]):
            _read_bare(files[place.shard], place, buffer, slot, row)
        yield slot.image, slot.fbank, slot.sound
    for file in files:
        os.close(file)


def _read_bare(file: int, place: SamplePlace, buffer: memoryview, slot: Slot, row: int) -> None:
    """Reads and decodes a sample with as few calls as its members' places allow, without any check."""
    fbank, frames = place.fbank, place.frames
    begin, end = frames[0].offset, frames[-1].offset + frames[-1].length
    if end <= fbank.offset:  # the middle frame lies before the fbank
        values = fbank.offset + len(FBANK_HEADER)
        os.preadv(file, [buffer[: values - begin], slot.fbank[row].view(np.uint8).data], begin)
    else:
        os.preadv(file, [slot.fbank[row].view(np.uint8).data], fbank.offset + len(FBANK_HEADER))
        os.preadv(file, [buffer[: end - begin]], begin)
    for frame, image in zip(frames, slot.image[row], strict=True):
        at = frame.offset - begin
        simplejpeg.decode_jpeg(buffer[at : at + frame.length], "RGB", buffer=image)
    if place.sound is not None:
        flac = buffer[: place.sound.length]
        os.preadv(file, [flac], place.sound.offset)
        with soundfile.SoundFile(io.BytesIO(flac)) as sound:
            sound.seek(round(place.sound_at * (sound.frames - slot.sound.shape[1])))
            sound.read(dtype="int16", out=slot.sound[row])


def _places_in_order(index: DatasetIndex) -> list[SamplePlace]:
    numbers, epochs = SampleStream(index.counts, seed=0).take(Place(), len(index))
    return index.places(numbers, sample_seeds(0, epochs, index.keys(numbers)))


def _crc32_share(index: DatasetIndex) -> tuple[float, float]:
    """Seconds for the crc32 of a sample that was just read, and for all of it (reading, crc32, decoding)."""
    crc32 = 0.0
    slot = make_slots(1, 64)[1][0]
    buffer = memoryview(bytearray(1 << 16))
    places = _places_in_order(index)
    files = [os.open(tar, os.O_RDONLY) for tar in index.tars]
    begin = time.perf_counter()
    for number, place in enumerate(places):
        row, (frame,) = number % 64, place.frames
        head, fbank = buffer[: place.fbank.offset + len(FBANK_HEADER) - frame.offset], slot.fbank[row]
        os.preadv(files[place.shard], [head, fbank.view(np.uint8).data], frame.offset)
        before = time.perf_counter()
        isal_zlib.crc32(head[: frame.length])
        isal_zlib.crc32(fbank.view(np.uint8).data.cast("B"), isal_zlib.crc32(head[-len(FBANK_HEADER) :]))
        crc32 += time.perf_counter() - before
        simplejpeg.decode_jpeg(head[: frame.length], "RGB", buffer=slot.image[row, 0])
    whole = time.perf_counter() - begin
    for file in files:
        os.close(file)
    return crc32 / len(places), whole / len(places)


if __name__ == "__main__":
    main()
