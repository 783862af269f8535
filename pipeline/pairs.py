"""Raw folders of pictures and sounds -> pairs of them: Flickr-SoundNet, and VGG-SS as EZ-VSL and ACL-SSL lay it out.

    DIR/frames/10000130166.jpg      DIR/audio/10000130166.wav

A sound and a picture of the same name belong together where their paths differ in one folder's name at most. A sound
without a picture is a clip without video, a name that only pictures have one without audio: both are accounted for.
"""

from collections.abc import Callable, Iterator, Sequence

from pipeline.raw_files import AUDIO_SUFFIXES, RawFile, listed_folders, walk
from shards_spec.errors import UserError
from shards_spec.storage import Place

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
LACKING = {
    "no_video": "no picture of this name in a folder beside the sound's",
    "no_audio": "no sound of this name",
}


def media_files(roots: Sequence[Place], *, pairs: bool, warn: Callable[[str], None]) -> Iterator[tuple[str, RawFile]]:
    """The stem and place of every media file (`walk`), or of every pair."""
    if pairs:
        yield from walk_pairs(roots, warn=warn)
    else:
        for root, path, stem in walk(roots, warn=warn):
            yield stem, RawFile(root, path, ())


def walk_pairs(roots: Sequence[Place], *, warn: Callable[[str], None]) -> Iterator[tuple[str, RawFile]]:
    """The stem and place of every pair below the roots, root by root, in the order of their paths.

    Raises:
        UserError: a sound has several pictures; a root cannot be listed.
        OSError: a remote root cannot be listed.
    """
    sounds: list[dict[str, list[str]]] = [{} for _ in roots]
    pictures: list[dict[str, list[str]]] = [{} for _ in roots]
    for index, prefix, names in listed_folders(roots, warn=warn):
        for name in names:
            stem, dot, suffix = name.rpartition(".")
            if name[0] == "." or not stem:
                continue
            suffix = dot + suffix.lower()
            if suffix in AUDIO_SUFFIXES:
                sounds[index].setdefault(stem, []).append(prefix + name)
            elif suffix in PICTURE_SUFFIXES:
                pictures[index].setdefault(stem, []).append(prefix + name)
    for index in range(len(roots)):
        yield from sorted(_pairs(index, sounds[index], pictures[index]), key=lambda pair: pair[1].path)


def _pairs(root: int, sounds: dict[str, list[str]], pictures: dict[str, list[str]]) -> Iterator[tuple[str, RawFile]]:
    for stem, paths in sounds.items():
        for sound in paths:
            picture = _picture_of(sound, pictures.get(stem, []))
            yield stem, RawFile(root, sound, (), picture, None if picture else "no_video")
    for stem in pictures.keys() - sounds.keys():
        yield stem, RawFile(root, pictures[stem][0], (), None, "no_audio")


def _picture_of(sound: str, pictures: Sequence[str]) -> str | None:
    """The picture of a sound; one of the same folder before one of a folder beside it."""
    near: dict[int, list[str]] = {0: [], 1: []}
    for picture in pictures:
        folders, others = sound.split("/")[:-1], picture.split("/")[:-1]
        if len(folders) == len(others):
            differ = sum(a != b for a, b in zip(folders, others, strict=True))
            near.setdefault(differ, []).append(picture)
    found = near[0] or near[1]
    if len(found) > 1:
        raise UserError(
            f"the sound {sound!r} may belong to the picture {found[0]!r} or {found[1]!r}: "
            "give a folder that holds one of them"
        )
    return found[0] if found else None
