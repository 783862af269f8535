"""What is known of a clip: its objects and their boxes, in the forms in which they are written."""

from typing import Any

from tools.world.rhythm import Voice
from tools.world.scene import Actor, Owners, Scene

Box = list[float]  # x0, y0, x1, y1 as shares of the picture


def objects_of(scene: Scene, owners: Owners) -> list[dict[str, Any]]:
    """All objects of which anything is seen, from the back to the front.

    Args:
        owners: which object each pixel of the middle frame shows.
    """
    found = []
    for number, actor in enumerate(scene.actors):
        box = owners.box(number)
        if box is not None:
            seen = owners.seen(number) / owners.whole[number]
            found.append(_object(actor, [round(value, 6) for value in box], round(seen, 4)))
    return found


def _object(actor: Actor, box: Box, seen: float) -> dict[str, Any]:
    voice: Voice = actor.voice
    shares = {name: round(getattr(voice, name), 4) for name in ("pitch", "tempo", "loudness")}
    return {
        "class": voice.kind.name,
        "label_id": voice.kind.index,
        "box": box,
        "is_sounding": actor.is_sounding,
        "is_large": actor.is_large,
        "seen": seen,  # share of its pixels inside the picture that nothing hides
        "start": round(voice.start, 4),  # seconds in the clip at which it begins to move, and to sound if it does
        "end": round(min(voice.end, 10.0), 4),
        **shares,  # within the range of its class
    }


def sounding_boxes(objects: list[dict[str, Any]]) -> list[Box]:
    """The boxes of those that are heard."""
    return [item["box"] for item in objects if item["is_sounding"]]
