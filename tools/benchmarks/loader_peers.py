"""Other loaders on the samples of tools/bench_loader.py, each in its own format, with our decoders and our output.

webdataset and Megatron-Energon read the tars as they are (Energon wants a folder `.nv-meta` beside them, made in a
folder of links); MosaicML streaming and litdata read copies in their formats. Nobody shuffles, which is the fastest
that each can do. Install them with `pip install '.[peers]'`.
"""

import contextlib
import importlib
import io
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from shards_spec.errors import UserError
from shards_spec.sample import (
    AUDIO_MEMBER,
    FBANK_HEADER,
    FBANK_MEMBER,
    FBANK_SHAPE,
    FRAME_MEMBER,
    FRAME_SIZE,
    SAMPLE_RATE,
)
from training.methods.interface import Reads
from training.stream.index import DatasetIndex
from training.stream.order import epoch_order, sample_seeds
from training.stream.reader import SampleReader

Pair = tuple[Tensor, Tensor]  # frame uint8 [S, S, 3], fbank float16 [T, M]; or batches of them
_CHUNK_BYTES = 1 << 26  # of the formats that choose their own file size: their authors' default

warnings.filterwarnings("ignore", "The given buffer is not writable")
warnings.filterwarnings("ignore", "'pin_memory' argument is set as true")  # Energon asks for it everywhere


@dataclass(frozen=True)
class Loader:
    """A loader to be measured: `start` begins a pass and yields batches."""

    name: str
    workers: int
    start: Callable[[], Iterator[Any]]


def decode(jpeg: bytes, npy: bytes) -> Pair:
    """The payloads of a sample -> its tensors, with no copy of the fbank."""
    frame = torch.from_numpy(simplejpeg.decode_jpeg(jpeg, "RGB"))
    return frame, torch.frombuffer(npy, dtype=torch.float16, offset=len(FBANK_HEADER)).view(FBANK_SHAPE)


class MapStyle(Dataset[tuple[Tensor, ...]]):
    """The plain way with our index and reader: a sample by its number, its frames as its seed of epoch 0 has them."""

    def __init__(self, index: DatasetIndex) -> None:
        numbers = np.arange(len(index))
        self._places = index.places(numbers, sample_seeds(0, np.zeros_like(numbers), index.keys(numbers)))
        self._reader = SampleReader(index.tars)
        self._reads = index.reads

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        frames = np.empty((self._reads.frames, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        fbank = np.empty(FBANK_SHAPE, np.float16)
        sound = np.empty(round(self._reads.waveform_seconds * SAMPLE_RATE), np.int16)
        self._reader.read_into(self._places[number], frames, fbank, sound)
        arrays = (frames, fbank, sound) if len(sound) else (frames, fbank)
        return tuple(torch.from_numpy(array) for array in arrays)


def map_style(index: DatasetIndex, batch_size: int, workers: int) -> Loader:
    """A DataLoader over `MapStyle`, in the order of an epoch."""

    def start() -> Iterator[Any]:
        order = epoch_order(0, 0, len(index)).tolist()
        return iter(DataLoader(MapStyle(index), batch_size=batch_size, sampler=order, num_workers=workers))

    return Loader("map-style Dataset + DataLoader", workers, start)


def peers(dataset: Path, folder: Path, batch_size: int, workers: int) -> list[Loader]:
    """The other loaders, their copies of `dataset` written below `folder`.

    Raises:
        UserError: one of them is not installed.
    """
    makers = {
        "webdataset": ("webdataset", _webdataset),
        "mosaicml-streaming": ("streaming", _mosaicml),
        "litdata": ("litdata", _litdata),
        "megatron-energon": ("megatron.energon", _energon),
    }
    loaders = []
    for package, (module, make) in makers.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"{package} is not installed ({error}): pip install '.[peers]'") from None
        target = folder / package
        target.mkdir(parents=True)
        loaders.append(Loader(f"{package} {version(package)}", workers, make(dataset, target, batch_size, workers)))
    return loaders


def _payloads(dataset: Path) -> Iterator[dict[str, bytes]]:
    """Frame and fbank of every sample, as stored."""
    import webdataset

    for sample in webdataset.WebDataset(_tars(dataset), shardshuffle=False):
        yield {"jpg": sample[FRAME_MEMBER], "npy": sample[FBANK_MEMBER]}


def _tars(dataset: Path) -> list[str]:
    return sorted(map(str, dataset.glob("*.tar")))


def _webdataset(dataset: Path, _: Path, batch_size: int, workers: int) -> Callable[[], Iterator[Any]]:
    import webdataset

    def start() -> Iterator[Any]:
        samples = webdataset.WebDataset(_tars(dataset), shardshuffle=False)
        samples = samples.map(lambda sample: decode(sample[FRAME_MEMBER], sample[FBANK_MEMBER]))
        batches = samples.batched(batch_size, collation_fn=default_collate)
        return iter(webdataset.WebLoader(batches, batch_size=None, num_workers=workers))

    return start


def webdataset_of(dataset: Path, reads: Reads, batch_size: int, workers: int) -> Loader:
    """webdataset with a decoder for several frames, and for sound: it reads whole samples, and takes what is wanted."""
    import webdataset

    generator = random.Random(0)

    def take(sample: dict[str, Any]) -> tuple[Tensor, ...]:
        stored = sorted(name for name in sample if name.startswith("frame"))
        first = generator.randrange(len(stored) - reads.frames + 1)
        chosen = stored[first : first + reads.frames]
        frames = torch.stack([torch.from_numpy(simplejpeg.decode_jpeg(sample[name], "RGB")) for name in chosen])
        fbank = torch.frombuffer(sample[FBANK_MEMBER], dtype=torch.float16, offset=len(FBANK_HEADER)).view(FBANK_SHAPE)
        if not reads.waveform_seconds:
            return frames, fbank
        with soundfile.SoundFile(io.BytesIO(sample[AUDIO_MEMBER])) as file:
            wanted = round(reads.waveform_seconds * SAMPLE_RATE)
            file.seek(generator.randrange(file.frames - wanted + 1))
            return frames, fbank, torch.from_numpy(file.read(wanted, dtype="int16"))

    def start() -> Iterator[Any]:
        samples = webdataset.WebDataset(_tars(dataset), shardshuffle=False).map(take)
        batches = samples.batched(batch_size, collation_fn=default_collate)
        return iter(webdataset.WebLoader(batches, batch_size=None, num_workers=workers))

    return Loader(f"webdataset {version('webdataset')}", workers, start)


def _mosaicml(dataset: Path, folder: Path, batch_size: int, workers: int) -> Callable[[], Iterator[Any]]:
    import streaming

    columns = {"jpg": "bytes", "npy": "bytes"}
    with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=_CHUNK_BYTES) as writer:
        for sample in _payloads(dataset):
            writer.write(sample)

    class Samples(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> Pair:
            sample = super().__getitem__(at)
            return decode(sample["jpg"], sample["npy"])

    def start() -> Iterator[Any]:
        streaming.base.util.clean_stale_shared_memory()
        samples = Samples(local=str(folder / "mds"), shuffle=False, batch_size=batch_size)
        return iter(DataLoader(samples, batch_size=batch_size, num_workers=workers))

    return start


def _litdata(dataset: Path, folder: Path, batch_size: int, workers: int) -> Callable[[], Iterator[Any]]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=_CHUNK_BYTES)
    for i, sample in enumerate(_payloads(dataset)):
        writer[i] = sample
    writer.done()
    writer.merge()

    class Samples(litdata.StreamingDataset):
        def __getitem__(self, at: Any) -> Pair:
            sample = super().__getitem__(at)
            return decode(sample["jpg"], sample["npy"])

    def start() -> Iterator[Any]:
        return iter(litdata.StreamingDataLoader(Samples(str(folder)), batch_size=batch_size, num_workers=workers))

    return start


def _energon(dataset: Path, folder: Path, batch_size: int, workers: int) -> Callable[[], Iterator[Any]]:
    from megatron import energon

    for tar in _tars(dataset):
        (folder / Path(tar).name).symlink_to(tar)
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--no-progress"]
    command = [str(Path(sys.executable).with_name("energon")), "prepare", *options, "--num-workers", "1", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @dataclass
    class Clip(energon.Sample):
        frame: Tensor
        fbank: Tensor

    @energon.stateless
    def cook(crude: dict[str, Any]) -> Clip:
        frame, fbank = decode(crude[FRAME_MEMBER], crude[FBANK_MEMBER])
        return Clip(**energon.basic_sample_keys(crude), frame=frame, fbank=fbank)

    class Encoder(energon.DefaultTaskEncoder):
        decoder = None
        cookers = (energon.Cooker(cook),)

        @energon.stateless
        def batch(self, samples: list[Clip]) -> Any:
            return default_collate([(sample.frame, sample.fbank) for sample in samples])

    def start() -> Iterator[Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            samples = energon.get_train_dataset(
                str(folder),
                batch_size=batch_size,
                shuffle_buffer_size=None,
                max_samples_per_sequence=None,
                worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=workers),
                task_encoder=Encoder(),
            )
            return iter(energon.get_loader(samples))

    return start
