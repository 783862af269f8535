"""Boxes around sound sources, as two benchmarks publish them, for the clips that they annotate.

    vggss.json           VGG-SS: [{"file": "zpWuikVorYg_000032", "class": ..., "bbox": [[x0, y0, x1, y1], ...]}, ...]
    Annotations/ID.xml   Flickr-SoundNet: a <bbox> of <xmin> <ymin> <xmax> <ymax>, in 256ths, of each annotator

Boxes are normalised: x0, y0, x1, y1 as shares of the whole frame's width and height. Published files have damaged
boxes: these are left out, counted and named. Coordinates that are a little outside are moved to the edge.
"""

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from pipeline.raw_files import parse_name
from pipeline.segments import Segment
from shards_spec.errors import UserError
from shards_spec.sample import file_key, shared_keys

Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Annotated = Iterator[tuple[str, list[Any]]]  # name of a clip, its boxes as they are published, normalised

_FLICKR_SIZE = 256  # pixels a side of the frames that were annotated
_FAR = 0.5  # of a frame's side: a box further outside is no slip of the hand
_NAMED = 3  # clips named for each kind of damage
_MOST_XML_BYTES = 1_000_000

_NO_NUMBERS = "are not four numbers"
_FAR_OUTSIDE = "have coordinates far outside the frame"
_NO_AREA = "are inverted or empty"


class Boxes:
    """The usable boxes of a file or folder.

    Attributes:
        clips: boxes by the name under which a clip is annotated; clips without a usable box are not there.
        damaged: names of the clips with boxes left out, by what is wrong, once for each box; a box may be wrong twice.
        left_out: number of boxes left out.
        read: number of boxes read.
    """

    def __init__(self, annotated: Annotated) -> None:
        self.clips: dict[str, list[Box]] = {}
        self.damaged: dict[str, list[str]] = {}
        self.read = self.left_out = 0
        for name, published in annotated:
            for values in published:
                self._add(name, values)
        self._find: dict[Hashable, list[Box]] = {}
        shared = shared_keys((file_key(name), name) for name in self.clips)
        for name, boxes in self.clips.items():
            parsed = parse_name(name)
            self._find["name", name] = boxes
            if file_key(name) not in shared:
                self._find[file_key(name)] = boxes
            if parsed is not None and parsed.starts:
                self._find[parsed.ytid, round(parsed.starts[0] * 1000)] = boxes

    def _add(self, name: str, values: Any) -> None:
        self.read += 1
        box, wrong = _clean(values)
        for kind in wrong:
            self.damaged.setdefault(kind, []).append(name)
        if box is None:
            self.left_out += 1
        else:
            self.clips.setdefault(name, []).append(box)

    @property
    def sha256(self) -> str:
        """Names the usable boxes and their clips, in hex."""
        return hashlib.sha256(json.dumps(self.clips, sort_keys=True).encode()).hexdigest()

    def of(self, segment: Segment) -> list[Box] | None:
        """The boxes of a clip, None where it has none.

        A clip of an AudioSet or VGGSound id is found by id and start, to the millisecond; one that is known by its
        file, by the file's name. Names that state no start (Flickr's) are those of whole videos.
        """
        if segment.start is None:
            return None
        if segment.ytid is not None:
            return self._find.get((segment.ytid, round(segment.start * 1000))) or self._find.get(segment.ytid)
        name = segment.stem or segment.key
        parsed = parse_name(file_key(name))
        starts = () if parsed is None else parsed.starts
        places: list[Hashable] = [
            ("name", name),
            file_key(name),
            *((parsed.ytid, round(start * 1000)) for start in starts if parsed is not None),
        ]
        return next((self._find[place] for place in places if place in self._find), None)

    def warnings(self) -> list[str]:
        """A line for each kind of damage."""
        lines = []
        far = set(self.damaged.get(_FAR_OUTSIDE, ()))
        for kind in (_NO_NUMBERS, _FAR_OUTSIDE, _NO_AREA):
            names = self.damaged.get(kind, [])
            if names:
                also = sum(name in far for name in names) if kind == _NO_AREA else 0
                too = f" ({also:,} of them with coordinates far outside)" if also else ""
                more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
                count = f"{len(names):,} of {self.read:,} boxes"
                lines.append(f"{count} {kind}{too} and are left out: {', '.join(names[:_NAMED])}{more}")
        return lines


def _clean(values: Any) -> tuple[Box | None, list[str]]:
    """A published box inside the frame, None where it is unusable; and what is wrong with it."""
    if not (isinstance(values, list) and len(values) == 4 and all(_is_number(value) for value in values)):
        return None, [_NO_NUMBERS]
    x0, y0, x1, y1 = (float(min(max(value, 0), 1)) for value in values)  # not float() first: integers may be huge
    wrong = []
    if any(value < -_FAR or value > 1 + _FAR for value in values):
        wrong.append(_FAR_OUTSIDE)
    if not (x0 < x1 and y0 < y1):
        wrong.append(_NO_AREA)
    return (None if wrong else (x0, y0, x1, y1)), wrong


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN does not


def read_boxes(path: Path) -> Boxes:
    """Reads VGG-SS's JSON file, or Flickr-SoundNet's folder of XML files.

    Raises:
        UserError: there is no such file, it is of neither form, or no box in it is usable.
    """
    try:
        boxes = Boxes(_flickr(path) if path.is_dir() else _vggss(path))
    except OSError as error:
        raise UserError(f"cannot read the boxes {error.filename or path}: {error.strerror}") from error
    if not boxes.clips:
        found = f"; {boxes.warnings()[0]}" if boxes.left_out else ""
        raise UserError(f"{path} holds no usable box{found}: expected VGG-SS's JSON file or a folder of ID.xml")
    return boxes


def _vggss(path: Path) -> Annotated:
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): give VGG-SS's vggss.json, or a folder of ID.xml") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} holds no list: expected [{{'file': 'ID_000032', 'bbox': [[x0, y0, x1, y1]]}}, ...]")
    for number, entry in enumerate(entries):
        name = entry.get("file") if isinstance(entry, dict) else None
        published = entry.get("bbox") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(published, list):
            raise UserError(
                f"{path}: entry {number} is {str(entry)[:80]!r}: expected 'file': 'ID_000032' and "
                "'bbox': [[x0, y0, x1, y1], ...]"
            )
        yield name, published


def _flickr(folder: Path) -> Annotated:
    for path in sorted(folder.glob("*.xml")):
        yield path.stem, [_flickr_box(box) for box in _parse(path).iter("bbox")]


def _flickr_box(box: ET.Element) -> list[float] | None:
    """Normalised numbers of a <bbox>, None where they are no numbers."""
    texts = [box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
    if None in texts:
        texts = [child.text for child in box][1:5]  # the benchmark's own readers go by place: an id, then these four
    try:
        return [float(text or "") / _FLICKR_SIZE for text in texts]
    except ValueError:
        return None


class _PlainTree(ET.TreeBuilder):
    """Builds a tree of elements and text: a document type, which could define entities, is refused when it begins."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ET.ParseError("it has a DOCTYPE, which annotations need not have")


def _parse(path: Path) -> ET.Element:
    with path.open("rb") as file:
        content = file.read(_MOST_XML_BYTES + 1)
    if len(content) > _MOST_XML_BYTES:
        raise UserError(f"{path} has more than {_MOST_XML_BYTES:,} bytes: no annotation of one clip is so large")
    try:
        return ET.fromstring(content, parser=ET.XMLParser(target=_PlainTree()))
    except (ET.ParseError, LookupError, ValueError) as error:  # unknown encodings are LookupErrors
        raise UserError(f"{path} is no annotation in XML ({error}): mend it, or remove it from the folder") from error
