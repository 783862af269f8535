"""The labels of VGGSounder (Zverev et al., ICCV 2025): what can be heard and seen in the clips of VGGSound's test set.

    video_id,label,modality,background_music,static_image,voice_over
    --i-y1v8Hy8_000000,"child speech, kid speaking",AV,False,False,True

A row is one label of one clip: A is heard, V is seen, AV is both. A clip has as many rows as labels.
"""

import re
from pathlib import Path

from shards_spec.errors import UserError
from shards_spec.sample import audioset_key
from training.evaluation.heads.left_out import LeftOut
from training.evaluation.heads.named_columns import read_named

MODALITIES = ("A", "V", "AV")
_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(\d{1,6})")  # video id, and the second at which the clip starts


def read_vggsounder(path: Path, left_out: LeftOut) -> dict[str, dict[str, str]]:
    """For the key of each clip, the modality of each of its labels, in the order of the file.

    Args:
        left_out: is told of rows that cannot be used.

    Raises:
        UserError: the file cannot be read, has other columns, or no usable row.
    """
    clips: dict[str, dict[str, str]] = {}
    rows = read_named(
        path, ("video_id", "label", "modality"), given_by="--annotations takes VGGSounder's vggsounder.csv"
    )
    for line, (clip, label, modality) in rows:
        where, match = f"{path.name}:{line}", _CLIP.fullmatch(clip)
        if match is None:
            left_out.add("rows whose video_id is not as --i-y1v8Hy8_000000", where)
        elif not label:
            left_out.add("rows without a label", where)
        elif modality not in MODALITIES:
            left_out.add(f"rows whose modality is none of {', '.join(MODALITIES)}", where)
        else:
            clips.setdefault(audioset_key(match[1], int(match[2])), {})[label] = modality
    if not clips:
        raise UserError(f"{path} has no usable row{''.join(f'; {note}' for note in left_out.notes())}")
    return clips
