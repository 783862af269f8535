"""The annotations of MUSIC-AVQA (Li et al., CVPR 2022): questions about videos, and their one-word answers.

avqa-train.json, avqa-val.json and avqa-test.json are lists of

    {"video_id": "00000272", "type": "[\\"Audio-Visual\\", \\"Temporal\\"]", "templ_values": "[\\"first\\"]",
     "question_content": "Where is the <FL> sounding instrument?", "anser": "left", ...}          (sic)

`type` and `templ_values` are JSON inside strings; the values stand in for the <...> of the question, in order.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards_spec.errors import UserError
from training.evaluation.heads.left_out import LeftOut

_EDGES = re.compile(r"^\W+|\W+$")  # of a word, in any script: 430 test questions end in a full-width question mark
FILES = {"train": "avqa-train.json", "val": "avqa-val.json", "test": "avqa-test.json"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `kind` is what it is about and of which sort: ("Audio-Visual", "Counting")."""

    video_id: str
    words: tuple[str, ...]
    answer: str
    kind: tuple[str, str]


def read_questions(folder: Path, left_out: LeftOut) -> dict[str, list[Question]]:
    """The questions of each split, in the order of the files; [] where there is no avqa-val.json.

    Args:
        left_out: is told of damaged entries.

    Raises:
        UserError: avqa-train.json or avqa-test.json is not there, no JSON list, or has no usable entry.
    """
    questions: dict[str, list[Question]] = {}
    for split, name in FILES.items():
        path = folder / name
        if split == "val" and not path.is_file():
            questions[split] = []
            continue
        questions[split] = _read_file(path, left_out)
        if not questions[split]:
            raise UserError(f"{path} has no usable question: expected entries as {_EXPECTED}")
    return questions


_EXPECTED = '{"video_id", "type", "question_content", "templ_values", "anser"}'


def _read_file(path: Path, left_out: LeftOut) -> list[Question]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): --annotations takes the folder of MUSIC-AVQA's avqa-*.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} is no JSON list, expected entries as {_EXPECTED}")
    questions = []
    for number, entry in enumerate(entries):
        question = _parse(entry)
        if isinstance(question, Question):
            questions.append(question)
        else:
            left_out.add(question, f"{path.name}, entry {number}")
    return questions


def _parse(entry: Any) -> Question | str:
    """The question, or what is wrong with its entry."""
    if not isinstance(entry, dict):
        return "entries that are no JSON objects"
    for field in ("video_id", "question_content", "anser"):
        value = entry.get(field)
        if not isinstance(value, str) or not value.strip():
            return f"entries without {field}"
    kind, values = _strings(entry.get("type")), _strings(entry.get("templ_values", "[]"))
    if kind is None or len(kind) != 2:
        return 'entries whose type is not as ["Audio", "Counting"]'
    if values is None:
        return "entries whose templ_values is no list of strings"
    words = []
    for word in entry["question_content"].split():
        if "<" in word:
            if not values:
                return "questions with more <...> than templ_values"
            word = values.pop(0)
        words.append(_EDGES.sub("", word).lower())
    words = [word for word in words if word]
    if not words:
        return "questions without a word"
    return Question(
        video_id=entry["video_id"].strip(), words=tuple(words), answer=entry["anser"].strip(), kind=(kind[0], kind[1])
    )


def _strings(text: Any) -> list[str] | None:
    """The list of strings that a string holds as JSON; None where it does not."""
    if not isinstance(text, str):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return None
    return values
