"""Writes real media files with chosen properties, for tests, the demo and benchmarks. Encoding needs PyAV alone.

The container follows from the suffix of the path: .mp4 .mov .mkv .webm .avi .mpg and what else FFmpeg can write.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

# Fast: 10 s of 640x360 take about two seconds on one core. One thread each: encoders that use several may give
# other bytes on other machines. x264's macroblock tree gives other bytes from run to run even with one thread.
_ENCODER_OPTIONS = {
    "libx264": {"preset": "superfast", "crf": "23", "threads": "1", "sc_threshold": "0", "mbtree": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:scenecut=0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0", "threads": "1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "1M", "threads": "1"},
    "libsvtav1": {"preset": "11", "crf": "40", "svtav1-params": "lp=1"},
}
_ENCODER_NAMES = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "vp8": "libvpx", "av1": "libsvtav1"}
_AUDIO_ENCODER_NAMES = {"opus": "libopus", "mp3": "libmp3lame"}
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_LAYOUTS = {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 8: "7.1"}
_VARIABLE_TIME_BASE = Fraction(1, 90_000)
_AUDIO_CHUNK = 4096  # samples handed to the encoder at a time


def encode_clip(
    path: Path,
    frames: Iterable[npt.NDArray[np.uint8]] | None,
    waveform: npt.NDArray[np.float32] | None,
    *,
    fps: float | Fraction = 30,
    sample_rate: int = 44_100,
    video_codec: str = "h264",
    audio_codec: str = "aac",
    keyframe_seconds: float = 5.0,
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    timestamps: Sequence[float] | None = None,
    audio_delay: float = 0.0,
    duration_header: bool = True,
    video_options: dict[str, str] | None = None,
    container_format: str | None = None,
) -> Path:
    """Encodes one file; equal arguments give equal bytes on the same machine.

    Args:
        path: file to write; its folder exists. Its suffix names the container.
        frames: uint8 [H, W, 3] RGB each, all of one size; None for no video stream. 4:2:0 needs even sizes
            (`pixel_format="yuv444p"` does not).
        waveform: float32 [channels, samples] in [-1, 1], 1, 2, 4, 6 or 8 channels; None for no audio stream.
        fps: frames a second; with `timestamps` only what the header says.
        sample_rate: of `waveform`, Hz. Opus stores other rates than its own five as 48 kHz.
        video_codec: h264, hevc, vp8, vp9, av1 or an FFmpeg encoder name (mpeg4, mpeg1video, ffv1, ...).
        audio_codec: aac, opus, mp3 or an FFmpeg encoder name (flac, pcm_s16le, ...).
        keyframe_seconds: distance of keyframes.
        rotation: degrees counter-clockwise that a player turns the picture by (a multiple of 90; mp4, mov and mkv).
        timestamps: seconds at which each frame appears, increasing: variable frame rate.
        audio_delay: seconds by which the audio stream begins later than the video stream.
        duration_header: False leaves the duration out of the header and the index out of the file (mkv, webm).
        video_options: options of the video encoder, over the defaults here.
        container_format: FFmpeg's name of the container, where the suffix of `path` does not say it.

    Returns:
        `path`.

    Raises:
        ValueError: arguments that no file can have.
        av.error.FFmpegError: FFmpeg refuses the combination.
    """
    if frames is None and waveform is None:
        raise ValueError("encode_clip needs frames or a waveform, got neither")
    if waveform is not None and (waveform.ndim != 2 or waveform.shape[0] not in _LAYOUTS):
        raise ValueError(f"waveform must be [channels, samples], {sorted(_LAYOUTS)} channels, got {waveform.shape}")
    options = {"fflags": "+bitexact"} if duration_header else {"fflags": "+bitexact", "live": "1"}
    with av.open(str(path), "w", format=container_format, options=options) as container:
        video = audio = None
        if frames is not None:
            frames = iter(frames)
            first = next(frames, None)
            if first is None:
                raise ValueError("frames is empty: pass None for a file without video")
            video = _VideoWriter(
                container,
                size=(first.shape[1], first.shape[0]),
                fps=Fraction(fps).limit_denominator(1001),
                codec=_ENCODER_NAMES.get(video_codec, video_codec),
                keyframe_seconds=keyframe_seconds,
                pixel_format=pixel_format,
                rotation=rotation,
                timestamps=timestamps,
                options=video_options or {},
            )
            frames = _chain(first, frames)
        if waveform is not None:
            encoder = _AUDIO_ENCODER_NAMES.get(audio_codec, audio_codec)
            audio = _AudioWriter(container, waveform, sample_rate=sample_rate, codec=encoder, delay=audio_delay)
        container.start_encoding()
        for frame in frames or ():
            assert video is not None
            if audio is not None:
                audio.write_until(video.next_time)
            video.write(frame)
        if audio is not None:
            audio.finish()
        if video is not None:
            video.finish()
    return path


def _chain(first: npt.NDArray[np.uint8], rest: Iterator[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
    yield first
    yield from rest


class _VideoWriter:
    """The video stream of a file being written."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        *,
        size: tuple[int, int],
        fps: Fraction,
        codec: str,
        keyframe_seconds: float,
        pixel_format: str,
        rotation: int,
        timestamps: Sequence[float] | None,
        options: dict[str, str],
    ) -> None:
        gop = max(1, round(float(fps) * keyframe_seconds))
        defaults = dict(_ENCODER_OPTIONS.get(codec, {}))
        if codec == "libx264":
            defaults["keyint_min"] = str(gop)
        stream = container.add_stream(codec, rate=fps, options=defaults | options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        self._time_base = 1 / fps if timestamps is None else _VARIABLE_TIME_BASE
        stream.codec_context.time_base = self._time_base
        if rotation:
            stream.set_display_rotation(rotation)
        self._container, self._stream, self._size = container, stream, size
        self._timestamps = timestamps
        self._count = 0

    def _pts(self, index: int) -> int:
        if self._timestamps is None:
            return index
        if index >= len(self._timestamps):
            raise ValueError(f"more frames than timestamps ({len(self._timestamps)})")
        return round(self._timestamps[index] / self._time_base)

    @property
    def next_time(self) -> float:
        """Seconds at which the next frame appears."""
        return float(self._pts(self._count) * self._time_base)

    def write(self, array: npt.NDArray[np.uint8]) -> None:
        """Encodes uint8 [H, W, 3]."""
        if array.shape != (self._size[1], self._size[0], 3):
            raise ValueError(f"frame {self._count} is {array.shape}, the first was {(*self._size[::-1], 3)}")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
        frame.pts, frame.time_base = self._pts(self._count), self._time_base
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        self._container.mux(self._stream.encode(None))


class _AudioWriter:
    """The audio stream of a file being written; `write_until` keeps it interleaved with the video."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        waveform: npt.NDArray[np.float32],
        *,
        sample_rate: int,
        codec: str,
        delay: float,
    ) -> None:
        rate = sample_rate if codec != "libopus" or sample_rate in _OPUS_RATES else 48_000
        self._layout = _LAYOUTS[waveform.shape[0]]
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = self._layout
        self._container, self._stream = container, stream
        self._waveform, self._rate = np.clip(waveform, -1, 1).astype(np.float32), sample_rate
        self._resampler: av.AudioResampler | None = None
        if rate != sample_rate:
            self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=rate)
        self._delay = round(delay * sample_rate)
        self._written = 0

    def write_until(self, seconds: float) -> None:
        """Encodes all audio that begins before `seconds` of the file."""
        while self._written < self._waveform.shape[1] and self._written + self._delay < seconds * self._rate:
            self._write_chunk()

    def _write_chunk(self) -> None:
        chunk = self._waveform[:, self._written : self._written + _AUDIO_CHUNK]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), format="fltp", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts, frame.time_base = self._written + self._delay, Fraction(1, self._rate)
        self._written += chunk.shape[1]
        self._encode(frame)

    def _encode(self, frame: av.AudioFrame | None) -> None:
        for resampled in self._resampler.resample(frame) if self._resampler else [frame]:
            self._container.mux(self._stream.encode(resampled))

    def finish(self) -> None:
        """Encodes the rest and writes what the encoder still holds."""
        self.write_until(float("inf"))
        if self._resampler:
            self._encode(None)
        with contextlib.suppress(av.error.EOFError):  # the resampler's own flush may have ended the encoder
            self._container.mux(self._stream.encode(None))
