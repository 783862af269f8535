"""Pictures of localization: the frame with its boxes, and under the heatmap with the predicted region's outline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from shards_spec.atomic import atomic_path

# S pixels a side of a frame.
_GAP, _CAPTION, _COLUMNS = 4, 34, 4  # pixels; pictures in a row of the contact sheet
_QUALITY = 90
_BOX, _OUTLINE = (0, 255, 0), (255, 255, 255)
# Dark to bright in even steps of lightness, as matplotlib's inferno; between these, straight lines.
_COLOURS = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What one picture shows."""

    key: str
    frame: Pixels  # uint8 [S, S, 3]
    heatmap: npt.NDArray[np.float32]  # [S, S] in 0 ... 1
    region: npt.NDArray[np.bool_]  # [S, S], what is predicted
    boxes: Sequence[tuple[float, float, float, float]]  # normalised
    ciou: float
    labels: str


def draw(overlay: Overlay) -> Image.Image:
    """Frame and boxes on the left, heatmap and outline on the right, key, labels and cIoU below."""
    size = overlay.frame.shape[0]
    picture = Image.new("RGB", (2 * size + _GAP, size + _CAPTION), (255, 255, 255))
    picture.paste(_with_boxes(overlay.frame, overlay), (0, 0))
    picture.paste(_with_boxes(_heated(overlay), overlay), (size + _GAP, 0))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    verdict = "hit" if overlay.ciou >= 0.5 else "miss"
    lines = (f"{overlay.key}   cIoU {overlay.ciou:.2f} ({verdict})", overlay.labels)
    for row, line in enumerate(lines):
        pen.text((3, size + 1 + 16 * row), _fitting(line, pen, font, picture.width - 6), fill=(0, 0, 0), font=font)
    return picture


def _fitting(
    line: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> str:
    if pen.textlength(line, font=font) <= width:
        return line
    while line and pen.textlength(line + "...", font=font) > width:
        line = line[:-1]
    return line + "..."


def _heated(overlay: Overlay) -> Pixels:
    places = np.clip(overlay.heatmap, 0, 1) * (len(_COLOURS) - 1)
    colours = np.stack([np.interp(places, np.arange(len(_COLOURS)), _COLOURS[:, c]) for c in range(3)], axis=-1)
    grey = overlay.frame.mean(axis=-1, keepdims=True)  # the frame's own colours would be taken for heat
    mixed = 0.45 * grey + 0.55 * colours
    mixed[_edge(overlay.region)] = _OUTLINE
    return mixed.astype(np.uint8)


def _edge(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels of a region with a neighbour outside of it; the frame's own border is none."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _with_boxes(pixels: Pixels, overlay: Overlay) -> Image.Image:
    picture = Image.fromarray(pixels)
    pen, last = ImageDraw.Draw(picture), pixels.shape[0] - 1
    for x0, y0, x1, y1 in overlay.boxes:
        corners = [min(int(v * pixels.shape[0]), last) for v in (x0, y0, x1, y1)]
        left, top, right, bottom = corners
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=4)  # seen on green, too
        pen.rectangle((left, top, right, bottom), outline=_BOX, width=2)
    return picture


def write_overlays(folder: Path, overlays: Sequence[Overlay], names: Sequence[str]) -> list[Path]:
    """A JPEG for each overlay under its name, and contact.jpg with all of them. Returns the files, the sheet last."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [draw(overlay) for overlay in overlays]
    paths = []
    for name, picture in zip(names, pictures, strict=True):
        paths.append(_save(picture, folder / f"{name}.jpg"))
    return [*paths, _save(contact_sheet(pictures), folder / "contact.jpg")]


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures, four a row; they must be of one size."""
    width, height = pictures[0].size
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    step = (width + 3 * _GAP, height + 2 * _GAP)
    sheet = Image.new("RGB", (columns * step[0] + 3 * _GAP, rows * step[1] + 2 * _GAP), (255, 255, 255))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (3 * _GAP + i % columns * step[0], 2 * _GAP + i // columns * step[1]))
    return sheet


def _save(picture: Image.Image, path: Path) -> Path:
    with atomic_path(path) as temporary:
        picture.save(temporary, "JPEG", quality=_QUALITY)
    return path
