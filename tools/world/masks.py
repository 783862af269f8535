"""Masks of the sounding objects, as PNG files: MASKS/SPLIT/KEY/KEY_1.png, ... as AVSBench has them, 0 or 255."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards_spec.sample import FRAME_SIZE
from tools.world.scene import MIDDLE, SECONDS, Scene, owners

MaskTimes = Literal["none", "middle", "seconds", "all"]


def mask_times(which: MaskTimes, fps: float) -> list[float]:
    """The times in seconds of the masks of a clip, in the order of their numbers."""
    if which == "middle":
        return [MIDDLE]
    if which == "seconds":
        return [second + 0.5 for second in range(round(SECONDS))]
    return [frame / fps for frame in range(round(SECONDS * fps))] if which == "all" else []


def mask_of(scene: Scene, time: float, size: int = FRAME_SIZE) -> npt.NDArray[np.bool_]:
    """Where the sounding objects are seen, bool [size, size], whether or not they sound at that moment."""
    numbers = [number for number, actor in enumerate(scene.actors) if actor.is_sounding]
    return np.isin(owners(scene.actors, time, size, size).number, numbers)


def write_masks(folder: Path, scene: Scene, which: MaskTimes, fps: float = 10.0) -> None:
    """Writes the masks of a clip below `folder`."""
    key = scene.name.key
    own = folder / key
    own.mkdir(parents=True, exist_ok=True)
    for number, time in enumerate(mask_times(which, fps), 1):
        image = Image.fromarray(mask_of(scene, time).astype(np.uint8) * 255)
        image.save(own / f"{key}_{number}.png", optimize=False, compress_level=6)
