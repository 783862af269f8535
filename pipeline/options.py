"""The command line of make-shards."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.array_task import WHOLE, Share, slurm_share
from pipeline.encode_sample import SampleOptions
from pipeline.memory_limit import shown
from pipeline.segments import KeyOf
from shards_spec import storage
from shards_spec.errors import UserError
from shards_spec.sample import CLIP_SECONDS, FBANK_FRAMES, FBANK_SHIFT_MS
from shards_spec.storage import Place, Remote

_Place = Annotated[
    Place,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="DIR|URL",
        instance_from_str=lambda words: storage.place(words[0]),
        is_instance=lambda value: isinstance(value, Path | Remote),
        str_from_instance=lambda value: [str(value)],
    ),
]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(G|M)i?B?", re.IGNORECASE)
_MOST_SECONDS = FBANK_FRAMES * FBANK_SHIFT_MS / 1000
_LEAST_MEMORY = 500_000_000  # bytes: what a decoder process takes for usual clips, and room


def _bytes(text: str) -> int:
    """Bytes in a size such as 2GB, 1.5G, 800MB; GiB and MiB are taken too."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size such as 2GB or 800MB")
    base = 1024 if "i" in text.lower() else 1000
    return round(float(match[1]) * base ** (3 if match[2] in "Gg" else 2))


_Bytes = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SIZE",
        instance_from_str=lambda words: _bytes(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [shown(value)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class MakeShardsConfig:
    """Turns raw AudioSet or VGGSound downloads into a dataset of shards; run again, it goes on where it stopped."""

    raw: tyro.conf.Positional[
        Annotated[tuple[_Place, ...], tyro.conf.arg(metavar="RAW [RAW ...]", help_behavior_hint="")]
    ]
    """Folders with the downloads, flat or in subfolders, or URLs of such (s3://bucket/folder)."""
    out: _Place
    """Dataset folder to write, or its URL."""
    segments: Path | None = None
    """CSV of the clips wanted: AudioSet's segments, VGGSound's, ESC-50's, or your own with a first line such as
    path,start,end,label; one of CAV-MAE's JSON lists; or a folder with a folder for each class (Speech Commands).
    Default: every media file is a clip."""
    pairs: bool = False
    """Each clip is a picture and a sound file of the same name, as frames/ID.jpg and audio/ID.wav: Flickr-SoundNet."""
    audio_only: bool = False
    """Each clip is its sound alone, of sound files or of videos: ESC-50, Speech Commands. Samples have no frame, and
    methods that read frames refuse such a dataset."""
    split: str | None = None
    """Rows of --segments to take, by its column of splits: train, test, or several as train,test."""
    class_labels: Path | None = None
    """Class list (class_labels_indices.csv): labels get their index in it. Default: the labels of --segments, in
    alphabetical order; none where they are AudioSet's mids."""
    key: KeyOf = "stem"
    """What the key of a clip without a video id is made of. stem: its file's name; path: its path below RAW, for
    folders in which several files have the same name."""
    boxes: Path | None = None
    """Boxes of sound sources: VGG-SS's vggss.json, or Flickr-SoundNet's folder of ID.xml. Into each clip's JSON."""
    shard_size: int = 512
    """Clips a shard."""
    workers: int | None = None
    """Clips decoded at the same time. Default: one for each CPU core; with Ray, as the cluster has."""
    executor: Literal["local", "ray"] = "local"
    """local: processes on this machine; ray: tasks on a Ray cluster."""
    ray_address: str | None = None
    """Address of the Ray cluster. Default: the one that is found, else Ray on this machine alone."""
    task_index: int | None = None
    """Build only the shards of this task of a job array, 0 to COUNT - 1. Default: Slurm's, in a Slurm array."""
    task_count: int | None = None
    """Tasks of the job array."""
    finalize: bool = False
    """Only check that all shards are there, and complete the dataset: after a job array. RAW may be left out."""
    frame_fit: Literal["resize", "crop"] = "resize"
    """resize squashes a frame to 224x224; crop scales its short side to 224 and takes the centre."""
    frames: int = 1
    """Frames kept of each clip; above 1, evenly spaced ones beside the middle one."""
    frame_times: Literal["middles", "starts"] = "middles"
    """Where these lie: at the middles of N equal parts of the clip, or at their starts, as CAV-MAE's ten frames."""
    keep_audio: bool = False
    """Also keep the waveform, as FLAC."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """auto takes the faster one, and the other for files that the first cannot open."""
    clip_seconds: float = CLIP_SECONDS
    """Length of a clip where no CSV gives its end."""
    min_seconds: float = 0.0
    """Clips with less sound than this have failed, too_short. Default: every clip of 25 ms is a sample."""
    skip_silent: bool = False
    """Clips whose sound is silent, or near it (below about -60 dB), have failed, no_audio. Default: samples too."""
    limit: int | None = None
    """Take only the first N clips."""
    retry_failed: bool = False
    """Look again for missing files and try failed clips again."""
    max_failed: float = 0.5
    """Accept the dataset if at most this share fails, of the clips that have a file and of rows that are damaged or ask
    for a clip again."""
    clip_timeout: float = 60.0
    """Seconds that one clip may take."""
    worker_memory: _Bytes = 2_000_000_000
    """Memory that a decoder process may take; a clip that needs more has failed. Usual clips need 0.2GB in all."""

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        self._check_numbers()
        self._check_executor()
        if not self.raw and not self.finalize:
            raise UserError("no raw folder given: make-shards RAW [RAW ...] --out DIR")
        for named in (*self.raw, self.out):
            storage.check_place(named)
        for root in () if self.finalize else self.raw:
            if not storage.is_folder(root):
                raise UserError(f"raw folder {root} is no folder: give the folder that holds the downloads")
        if self.pairs and self.frames > 1:
            raise UserError(f"--pairs have one picture each, --frames {self.frames} wants more: leave --frames away")
        if self.frame_times != "middles" and self.frames == 1:
            raise UserError("--frame-times places the frames of --frames N: give --frames too, or leave it away")
        if self.pairs and self.decoder == "decord":
            raise UserError("--pairs are read with PyAV, decord reads videos: leave --decoder away")
        self._check_audio_only()
        if self.split is not None and self.segments is None:
            raise UserError("--split takes rows of a CSV: give --segments, or leave --split away")
        if self.boxes is not None and self.frame_fit == "crop":
            raise UserError("--boxes are places in the whole frame, which --frame-fit crop cuts: take resize")
        if storage.is_file(self.out):
            raise UserError(f"--out {self.out} is no folder")

    def _check_audio_only(self) -> None:
        for option, is_given in (
            ("--pairs", self.pairs),
            (f"--frames {self.frames}", self.frames > 1),
            ("--boxes", self.boxes is not None),
            ("--frame-fit crop", self.frame_fit == "crop"),
        ):
            if self.audio_only and is_given:
                raise UserError(f"--audio-only makes samples without a picture, {option} is about pictures: leave one")
        if self.audio_only and self.decoder == "decord":
            raise UserError("--audio-only is read with PyAV, decord reads videos: leave --decoder away")

    def _check_numbers(self) -> None:
        for name, least in (("shard_size", 1), ("workers", 1), ("frames", 1), ("limit", 1), ("task_count", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.frames > 100:
            raise UserError(f"--frames must be at most 100, got {self.frames}")
        for name in ("clip_seconds", "clip_timeout"):
            if not 0 < getattr(self, name) < 1e6:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.min_seconds <= _MOST_SECONDS:
            raise UserError(
                f"--min-seconds must be 0 to {_MOST_SECONDS:g}, what an fbank holds, got {self.min_seconds}"
            )
        if self.worker_memory < _LEAST_MEMORY:
            raise UserError(f"--worker-memory must be at least {shown(_LEAST_MEMORY)}, got {shown(self.worker_memory)}")
        if not 0 <= self.max_failed <= 1:
            raise UserError(f"--max-failed is a share, 0 to 1, got {self.max_failed}")

    def _check_executor(self) -> None:
        if self.ray_address is not None and self.executor != "ray":
            raise UserError("--ray-address is for --executor ray")
        if self.executor == "ray" and importlib.util.find_spec("ray") is None:
            raise UserError("--executor ray needs Ray, which is not installed: pip install ray, on every node")
        if self.finalize:
            if self.task_index is not None or self.retry_failed:
                raise UserError("--finalize builds nothing: leave out --task-index and --retry-failed")
            return
        if (self.task_index is None) != (self.task_count is None):
            raise UserError("--task-index and --task-count belong together: give both or none")
        if self.task_index is not None and not 0 <= self.task_index < self.share.count:
            raise UserError(f"--task-index must be 0 to {self.share.count - 1}, got {self.task_index}")
        if self.retry_failed and not self.share.is_whole:
            raise UserError("--retry-failed looks at the whole dataset: run it outside of a job array")

    def in_array(self, environment: Mapping[str, str]) -> "MakeShardsConfig":
        """This, with the share of the Slurm array task in which it runs where none is given."""
        if self.finalize or self.task_index is not None or self.task_count is not None:
            return self
        share = slurm_share(environment)
        return self if share is None else replace(self, task_index=share.index, task_count=share.count)

    @property
    def share(self) -> Share:
        """The shards that are this run's."""
        if self.task_index is None or self.task_count is None:
            return WHOLE
        return Share(self.task_index, self.task_count)

    @property
    def options(self) -> SampleOptions:
        """What concerns single samples."""
        return SampleOptions(
            decoder=self.decoder,
            frame_fit=self.frame_fit,
            frames=self.frames,
            frame_times=self.frame_times,
            keep_audio=self.keep_audio,
            min_seconds=self.min_seconds,
            skip_silent=self.skip_silent,
            audio_only=self.audio_only,
        )
