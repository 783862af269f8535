"""Which frames of a video stream are taken: for each wanted time the one on display, in one pass over its packets.

packets ──feed──> kept until one is due after the wanted time; a key frame makes those before it superfluous
      │ decode from there on, passing over what no other frame needs
      v
frames on display at the wanted times, each known to be clean or not

A container may call key frame what no decoder can start from, and a decoder may need what came with packets that were
passed over. So the decoder is shown their headers, and a frame counts as clean only where the decoder itself calls a
frame before it a key frame, and has found no damage since.
"""

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction

import av

from pipeline.clip_error import ClipError
from pipeline.media_file import carries, passing_over_damage, timestamp
from pipeline.timeline import FRAME_TOLERANCE, Segment

LEADS = (0.0, 10.0, math.inf)  # seconds that decoding begins before the wanted time at least, one try after the other

# Codecs whose packets may carry headers that later ones rely on: parameter sets, the encoder's version, matrices. Their
# decoders read these of a packet without decoding its picture.
_KEEP_HEADERS = ("h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video")
_PREDICTED = (av.video.frame.PictureType.P, av.video.frame.PictureType.B)


class FramePicker:
    """Takes, for each wanted time, the frame on display: the last one at or before it.

    Packets are kept, not decoded, until one is due later than the wanted time. A key frame at or before the wanted
    time makes the packets before it superfluous. So no more is decoded than from the last key frame on, without a
    seek, and the time of the wanted frame is known before any decoding.
    """

    def __init__(self, stream: av.VideoStream, start: float, targets: Sequence[float], *, lead: float) -> None:
        """
        Args:
            start: the timestamp, in seconds, that is 0 on the file's timeline.
            targets: wanted times, seconds on the file's timeline.
            lead: seconds that must lie between a key frame and the wanted time for packets before it to be passed
                over: 0 is fastest, infinity decodes from the first packet on.
        """
        self._codec = stream.codec_context
        self._time_base, self._start = stream.time_base or Fraction(1), start
        self._lead = lead / float(self._time_base)
        self._targets = [math.floor((time + start + FRAME_TOLERANCE) / self._time_base) for time in targets]
        self._wanted = sorted(set(self._targets))
        self._taken: dict[int, av.VideoFrame] = {}
        self._entries: dict[int, int | None] = {}  # for each, when the key frame is shown from which it was decoded
        self._entry: int | None = None  # the same, for the next one
        self._unclean: set[int] = set()  # of the wanted times
        self._pending: list[av.Packet] = []
        self._last: tuple[av.VideoFrame, bool] | None = None  # the last decoded one, and whether it is clean
        self._last_time, self._last_duration = -math.inf, 0  # of the packets so far
        self._announced: list[int] = []  # times of the frames in the packets so far, sorted
        self._shown: int | None = None  # of those, the time of the first wanted frame, once that is sure
        self._is_after_jump = self._has_fed = False
        self._key: int | None = None  # time of the last frame that the decoder calls a key frame, since the last jump
        self._spoilt = -math.inf  # time of the last damage since then
        self._errors = 0
        self.has_passed_over = False  # packets: decoding did not go on from the first one without a jump
        self._has_missed = False  # a frame taken is not the one that the packets announced, or not clean

    @property
    def is_done(self) -> bool:
        """Whether every wanted frame is found."""
        return not self._wanted

    @property
    def has_missed(self) -> bool:
        """Whether a frame is missing, not clean, or not the one that the packets announced."""
        return self._has_missed or not self.is_done

    @property
    def end(self) -> float:
        """Seconds on the file's timeline at which the last frame ends that a packet was read of."""
        return float((self._last_time + self._last_duration) * self._time_base) - self._start

    def time_of(self, frame: av.VideoFrame) -> float:
        """Seconds on the file's timeline."""
        return float((timestamp(frame) or 0) * self._time_base) - self._start

    def picked(self, segment: Segment) -> list[av.VideoFrame]:
        """The frame of each wanted time, in the order in which they were asked for.

        Raises:
            ClipError: `decode_error`, `too_short`.
        """
        frames = [self._taken.get(target) for target in self._targets]
        found = [frame for frame in frames if frame is not None and self.time_of(frame) <= segment.end]
        if len(found) < len(frames):
            if self._errors:
                raise ClipError("decode_error", f"no frame could be decoded, {self._errors} packets are damaged")
            raise ClipError("too_short", f"no frame between {segment.begin:.3f} and {segment.end:.3f} s of the file")
        if self._unclean:
            time = self.time_of(self._taken[min(self._unclean)])
            raise ClipError(
                "decode_error", f"the picture at {time:.3f} s is damaged, decoded from the file's start too"
            )
        return found

    def entries(self) -> list[int | None]:
        """For each wanted time, the timestamp of the key frame at which decoding began; None: with the first packet."""
        return [self._entries[target] for target in self._targets]

    def may_begin_later(self, first: av.Packet) -> bool:
        """Whether packets between the file's `first` one and a later key frame can be left unread.

        A palette comes once, for all packets that follow, and may be changed by any of them.
        """
        return not carries(first, "palette")

    def pass_over(self, first: av.Packet) -> None:
        """Tells that the packets after the file's `first` one are not read, up to one from which on they are."""
        self._pending.append(first)
        self._jump()

    def feed(self, packet: av.Packet) -> None:
        """Takes the next packet in file order."""
        pts = packet.pts
        time = pts if pts is not None else packet.dts
        if time is not None and time >= self._last_time:
            self._last_time, self._last_duration = time, packet.duration or 0
        if not self._wanted:
            return
        if pts is not None and not packet.is_discard:
            bisect.insort(self._announced, pts)
        if not self.may_begin_later(packet):
            self._lead = math.inf
        if packet.is_keyframe and self._has_fed and time is not None and time <= self._wanted[0] - self._lead:
            self._jump()
        self._has_fed = True
        self._pending.append(packet)
        due = packet.dts if packet.dts is not None else pts
        while self._wanted and self._pending and (due is None or due > self._wanted[0]):
            self._decode_pending()

    def finish(self) -> None:
        """No packet is to come: the last frame stays on display."""
        while self._wanted and self._pending:
            self._decode_pending()
        if self._wanted:
            self._decode(None)
        while self._wanted and self._last is not None:
            self._take(*self._last)

    def _jump(self) -> None:
        """Passes over the packets that are pending; the next one is a key frame."""
        if self._codec.name in _KEEP_HEADERS:
            self._codec.skip_frame = "ALL"
            for packet in self._pending:
                if packet.is_keyframe or carries(packet, "new_extradata"):
                    with passing_over_damage():
                        self._codec.decode(packet)
            self._codec.skip_frame = "DEFAULT"
        self._pending.clear()
        self._is_after_jump = self.has_passed_over = True

    def _decode_pending(self) -> None:
        """Decodes what is pending, until the first wanted frame is found."""
        if self._is_after_jump:
            self._codec.flush_buffers()
            self._last, self._key, self._spoilt, self._is_after_jump = None, None, -math.inf, False
            self._entry = timestamp(self._pending[0])
        # Every packet up to the wanted time is here, so the wanted frame's own time is known. In H.264, frames
        # before it that no other frame is predicted from (with B-frames: half of them) need no decoding.
        wanted = self._wanted[0]
        shown = self._shown = self._announced_for(wanted)
        may_skip = self._codec.name == "h264" and not math.isinf(self._lead) and shown is not None
        count = 0
        for packet in self._pending:
            if may_skip:
                is_earlier = shown is not None and packet.pts is not None and packet.pts < shown
                self._codec.skip_frame = "NONREF" if is_earlier else "DEFAULT"
            self._decode(packet)
            count += 1
            if self._wanted[:1] != [wanted]:
                break
        del self._pending[:count]

    def _decode(self, packet: av.Packet | None) -> None:
        try:
            frames = self._codec.decode(packet)
        except MemoryError:  # no damage: what a clip gives must not depend on the memory that there is
            raise
        except av.error.FFmpegError:
            self._errors += 1
            time = None if packet is None else timestamp(packet)
            self._spoilt = max(self._spoilt, self._last_time if time is None else time)
            return
        for frame in frames:
            time, is_clean = timestamp(frame), self._is_clean(frame)
            while self._wanted and time is not None and time > self._wanted[0]:
                self._take(*(self._last or (frame, is_clean)))
            if self._wanted and self._shown is not None and frame.pts == self._shown:
                self._take(frame, is_clean)
            self._last = frame, is_clean

    def _is_clean(self, frame: av.VideoFrame) -> bool:
        """Whether a frame, the next one in order of display, is what the encoder meant."""
        time = timestamp(frame) or 0
        if frame.key_frame or (self._key is None and self._is_start(frame)):
            self._key = time
        if frame.is_corrupt and self._key is not None:
            self._spoilt = max(self._spoilt, time)
        return self._key is not None and self._spoilt < self._key

    def _is_start(self, frame: av.VideoFrame) -> bool:
        """Whether a file may begin with a frame that is no key frame.

        Some decoders do not say what one is. That of H.264 calls frames corrupt until it has recovered from a start
        without one.
        """
        is_whole = not self.has_passed_over and not self._errors and not frame.is_corrupt
        return is_whole and (self._codec.name == "h264" or frame.pict_type not in _PREDICTED)

    def _take(self, frame: av.VideoFrame, is_clean: bool) -> None:
        # Between a key frame and the wanted frame, codecs may drop frames that refer to others before the key frame.
        wanted = self._wanted.pop(0)
        self._has_missed |= self._announced_for(wanted) not in (None, frame.pts) or not is_clean
        if not is_clean:
            self._unclean.add(wanted)
        self._taken[wanted], self._entries[wanted] = frame, self._entry
        self._shown = None

    def _announced_for(self, wanted: int) -> int | None:
        """The time of the frame on display at `wanted`, as far as packets say it that were read."""
        place = bisect.bisect_right(self._announced, wanted)
        return self._announced[place - 1] if place else None
