"""Raw folders -> which file holds which clip.

Names seen in downloads, parsed from the right because ids may begin with `-` and contain `_`:

    ID.mp4   ID_40.000.mp4   ID_000361.mp4 (seconds)   ID_30000.mp4 (milliseconds)   ID_30_40.mp4
    ID_000030_000040.mp4   ID_30.0-40.0.mkv   any of them with a Y before the id
"""

import errno
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shards_spec import storage
from shards_spec.errors import UserError
from shards_spec.storage import Place, Remote

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".f4v", ".wmv", ".asf", ".mpg", ".mpeg", ".m2v", ".vob",
    ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".ogv", ".mxf", ".rm", ".rmvb", ".divx",
})
AUDIO_SUFFIXES = frozenset({".wav", ".mp3", ".m4a", ".aac", ".ac3", ".eac3", ".flac", ".ogg", ".opus", ".wma", ".mka"})
# fmt: on

_NUMBER = r"(\d{1,9}(?:\.\d{1,6})?)"
_STATES_NO_START = 2  # rank of such files: after both readings of a stated start
# What concerns one folder or link: no permission, a loop of links, removed meanwhile. Nothing of a failing disk.
_CLOSED = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NAME = re.compile(rf"Y??([A-Za-z0-9_-]{{11}})(?:_{_NUMBER}(?:[_-]{_NUMBER})?)?")


class ParsedName(NamedTuple):
    """What a file name says. `starts`: the start seconds it may mean, the likeliest first; empty for none."""

    ytid: str
    starts: tuple[float, ...]


class RawFile(NamedTuple):
    """A media file: below which raw root (its index), at which relative path, and what its name says.

    With --pairs it is a sound, `picture` lies below the same root, and `lacks` is the reason of what is no pair.
    """

    root: int
    path: str
    starts: tuple[float, ...]
    picture: str | None = None
    lacks: str | None = None

    @property
    def is_audio(self) -> bool:
        """Whether the suffix is one of files without video."""
        return os.path.splitext(self.path)[1].lower() in AUDIO_SUFFIXES  # noqa: PTH122 (a Path costs ten times as much)


def parse_name(stem: str) -> ParsedName | None:
    """The id and start that a file name without suffix states; None where it is not of the known forms."""
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    ytid, start = match.group(1, 2)
    return ParsedName(ytid, () if start is None else _starts(start))


@functools.lru_cache(maxsize=100_000)  # two million names share their starts: less memory, and faster
def _starts(number: str) -> tuple[float, ...]:
    """The seconds that a number in a file name may mean, the likeliest first."""
    seconds = float(number)
    if "." in number or number[0] == "0" or seconds < 1000:
        return (seconds,)  # VGGSound pads seconds with zeros to six digits
    milliseconds = seconds / 1000
    # AudioSet's segments begin at whole seconds, so a multiple of 1000 is its segment_id, in milliseconds.
    return (milliseconds, seconds) if seconds % 1000 == 0 else (seconds, milliseconds)


def named_parts(path: str) -> tuple[str, ...]:
    """The parts of a path that a CSV gives, without those that lead elsewhere: a name finds only what is listed."""
    if "/" not in path:
        path = path.replace("\\", "/")  # Windows's
    return tuple(part for part in path.split("/") if part not in ("", ".", ".."))


def shown_path(path: str) -> str:
    """The path as text that every table can hold: bytes that are no UTF-8 as `\\xNN`."""
    return path if path.isascii() else path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def walk(roots: Sequence[Place], *, warn: Callable[[str], None]) -> Iterator[tuple[int, str, str]]:
    """(root index, relative path, stem) of every media file, folder by folder in sorted order.

    Links to files and folders are followed, each folder once. Hidden files, `.part`, `.ytdl` and `.temp.mp4`
    (downloads under way) are no media files. An audio file beside a video of the same stem belongs to it.

    Args:
        warn: is told, in one line a root, of folders that may not be listed and are left out.

    Raises:
        UserError: a root cannot be listed, or the disk fails.
        OSError: a remote root cannot be listed.
    """
    for index, prefix, names in listed_folders(roots, warn=warn):
        for name, stem in _media(names):
            yield index, prefix + name, stem


def listed_folders(roots: Sequence[Place], *, warn: Callable[[str], None]) -> Iterator[tuple[int, str, list[str]]]:
    """(root index, prefix of relative paths, names of files) of every folder, in the order of `walk`; raises as it."""
    for index, root in enumerate(roots):
        closed: list[OSError] = []
        for prefix, names in _local_folders(root, closed) if isinstance(root, Path) else _remote_folders(root):
            yield index, prefix, names
        if closed:
            first, more = closed[0], f" and {len(closed) - 1:,} more" if len(closed) > 1 else ""
            warn(f"left out below {root}: {shown_path(first.filename)}{more}, which cannot be listed: {first.strerror}")


def _local_folders(root: Path, closed: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below a root, as a prefix of relative paths, and its files, sorted. Others' folders, and links that
    lead nowhere, go to `closed`: lost+found must not end the listing of all else. A failing disk ends it."""
    seen: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        directory = os.path.join(root, folder)  # noqa: PTH118 (two million paths: strings, not Path objects)
        try:
            facts = os.stat(directory)  # noqa: PTH116
            if (facts.st_dev, facts.st_ino) in seen:
                continue  # a link that leads back
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(directory) as entries:
                names = sorted((entry.name, _is_folder(entry, closed)) for entry in entries)
        except OSError as error:
            if folder and error.errno in _CLOSED:
                closed.append(error)
                continue
            raise UserError(f"cannot list the raw folder {directory}: {error.strerror}") from error
        prefix = folder + "/" if folder else ""
        folders += [prefix + name for name, is_folder in reversed(names) if is_folder and name[0] != "."]
        yield prefix, [name for name, is_folder in names if not is_folder]


def _is_folder(entry: os.DirEntry[str], closed: list[OSError]) -> bool:
    """Whether an entry is a folder, or a link to one; where a link leads nowhere it counts as a file."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        if not _media([entry.name]) and entry.name[0] != ".":  # a media file says so itself when it is opened
            closed.append(error)
        return False


def _remote_folders(root: Remote) -> Iterator[tuple[str, list[str]]]:
    """The same of a remote root: one listing of everything below it."""
    folders: dict[tuple[str, ...], list[str]] = {}
    for path in storage.files_below(root):
        *parents, name = path.split("/")
        if name and not any(parent.startswith(".") for parent in parents):
            folders.setdefault(tuple(parents), []).append(name)
    for parts in sorted(folders):
        yield "".join(part + "/" for part in parts), sorted(folders[parts])


def _media(names: list[str]) -> list[tuple[str, str]]:
    media = []
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        is_video = (suffix := dot + suffix.lower()) in VIDEO_SUFFIXES
        if (is_video or suffix in AUDIO_SUFFIXES) and name[0] != "." and not stem.endswith(".temp"):
            media.append((name, stem, is_video))
    videos = {stem for _, stem, is_video in media if is_video}
    if len(videos) == len(media):
        return [(name, stem) for name, stem, _ in media]
    return [(name, stem) for name, stem, is_video in media if is_video or stem not in videos]


class RawIndex:
    """Finds the file of a clip among those below the raw roots."""

    def __init__(
        self,
        roots: Sequence[Place],
        files: Iterable[tuple[str, RawFile]],
        *,
        ytids: Iterable[str],
        stems: Iterable[str],
    ) -> None:
        """Of `files`, stem and file each, only those of the wanted ids and stems are remembered."""
        self.files = 0
        self._roots = roots
        # Tables of all that is wanted: their keys are the strings that are there already, not one more of each.
        self._by_ytid: dict[str, tuple[RawFile, ...]] = dict.fromkeys(ytids, ())
        self._by_stem: dict[str, tuple[RawFile, ...]] = dict.fromkeys(stems, ())
        for stem, file in files:
            self.files += 1
            parsed = parse_name(stem)
            if parsed is not None:
                known = self._by_ytid.get(parsed.ytid)
                if known is not None:
                    self._by_ytid[parsed.ytid] = (*known, file._replace(starts=parsed.starts))
            known = self._by_stem.get(stem)
            if known is not None:
                self._by_stem[stem] = (*known, file)

    def find(self, *, ytid: str, start: float) -> tuple[RawFile | None, float | None, str]:
        """The file for a clip of a video, the start that its name states, and, where there is none, what was found.

        Of several files, in this order: a video before audio alone; one that is not empty; one whose name states
        exactly this start (to the millisecond) before one that states none; then the earlier raw root, then the
        first by path. A file whose name states another start holds another clip.
        """
        candidates = self._by_ytid.get(ytid, ())
        if len(candidates) == 1 and start in candidates[0].starts:
            return candidates[0], start, ""  # nearly all of them
        wanted = round(start * 1000)
        ranked = []
        for file in candidates:
            stated = [round(second * 1000) for second in file.starts]
            if wanted in stated:
                ranked.append((stated.index(wanted), file))
            elif not stated:
                ranked.append((_STATES_NO_START, file))
        if not ranked:
            others = ", ".join(repr(file.path) for file in candidates[:3])
            return None, None, f"only files of other segments: {others}" if others else ""
        if len(ranked) > 1:
            ranked.sort(
                key=lambda pair: (
                    pair[1].lacks is not None,
                    pair[1].is_audio,
                    self._is_empty(pair[1]),
                    pair[0],
                    *pair[1][:2],
                )
            )
        _, chosen = ranked[0]
        return chosen, start if chosen.starts else None, ""

    def find_named(self, path: str, stem: str) -> tuple[list[RawFile], str]:
        """The files that a path in a CSV may mean, and, where there is none, what was found instead.

        The folders that the path names must be those in which the file lies. Where it is an absolute one, of another
        place, those below the raw root must be, and one above. Of several files the one with the very name of the
        path, then as `find`: there is more than one in the answer only where they lie in different folders.
        """
        parts = named_parts(path)
        is_absolute = path.startswith("/") or path[1:3] in (":\\", ":/")
        ranked = []
        for file in self._by_stem.get(stem, ()):
            below = file.path.split("/")
            folders = [*named_parts(str(self._roots[file.root].absolute())), *below[:-1]]
            agree = 0
            while agree < min(len(parts) - 1, len(folders)) and parts[-2 - agree] == folders[-1 - agree]:
                agree += 1
            if agree == len(parts) - 1 or (is_absolute and agree >= len(below)):
                rank = (-agree, below[-1] != parts[-1], *self._flaws(file))
                ranked.append((rank, file))
        if not ranked:
            others = ", ".join(repr(file.path) for file in self._by_stem.get(stem, ())[:3])
            return [], f"only files of other folders: {others}" if others else ""
        best = min(rank for rank, _ in ranked)
        files = sorted(file for rank, file in ranked if rank == best)
        places = {os.path.dirname(file.path) for file in files}  # noqa: PTH120
        return files if len(places) > 1 else files[:1], ""

    def _flaws(self, file: RawFile) -> tuple[bool, ...]:
        """What another file for the same clip is taken for: no pair, sound without video, nothing in it."""
        return file.lacks is not None, file.is_audio, self._is_empty(file)

    def _is_empty(self, file: RawFile) -> bool:
        try:
            return not storage.size(self._roots[file.root] / file.path)  # None: gone since the listing
        except OSError:
            return True
