"""What a dataset holds: totals, failures, labels, statistics; and a contact sheet, one HTML file that needs no other.

    python -m tools.inspect_shards shards/as20k                 prints, and writes inspect.html
    python -m tools.inspect_shards shards/as20k --samples 200 --out /tmp/as20k.html

The samples shown are evenly spaced over the dataset; the first silent, near-silent and short ones are added, and the
page can be filtered by them. make-shards may still be at work on it.
"""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from shards_spec.sample import FBANK_MEMBER, FRAME_MEMBER, decode_fbank
from tools.inspection.facts import DatasetFacts, gather, payload, quiet_samples, samples, sound_kinds, undecoded
from tools.inspection.page import Card, page
from tools.pages.curves import number
from tools.pages.pictures import frame_picture, spectrogram_picture
from tools.verify.undecoded import UNDECODED

_LABELS = 10  # of the most frequent, and of the rarest
_KINDS = 4  # of the most frequent frame sizes and the like
_QUIET = 12  # silent samples, near-silent ones and short ones shown beside the evenly spaced, each
_CHOICES = (
    "audio_only", "boxes", "class_labels", "clip_seconds", "decoder", "frame_fit", "frame_times", "frames",
    "keep_audio", "min_seconds", "segments", "skip_silent",
)  # fmt: skip
_BRIGHT = 0.0  # log-mel level that is bright in all spectrograms: speech and music reach 3 to 5
_NAMED = 20  # samples named in one line
_STEP = 2  # fbank rows to a column of a spectrogram: 20 ms


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Prints what a dataset holds, and writes a contact sheet of some samples."""

    dataset: tyro.conf.Positional[Path]
    """Folder that make-shards wrote or is writing."""
    out: Path = Path("inspect.html")
    """Contact sheet to write."""
    samples: int = 64
    """Samples on it."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"--samples must be at least 1, got {self.samples}")


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 2 a user's mistake."""
    with one_line_errors("python -m tools.inspect_shards"):
        config: InspectConfig = parse(InspectConfig, arguments)
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(config.dataset)):  # a Path keeps one slash
            raise UserError(f"{config.dataset} is a URL: copy the dataset to a local folder, and give that")
        if not config.out.parent.is_dir():
            raise UserError(f"--out {config.out}: the folder {config.out.parent} does not exist")
        if config.out.is_dir():
            raise UserError(f"--out {config.out} is a folder: give a file")
        facts = gather(config.dataset)
        cards = make_cards(facts, config.samples)
        for line in summary(facts):
            print("".join(c if c.isprintable() else "?" for c in line))
        document = page(facts, cards, min(config.samples, facts.samples)).encode("utf-8", "replace")
        with atomic_path(config.out) as temporary:
            temporary.write_bytes(document)
        print(f"\n{len(cards):,} samples in {config.out}, {len(document) / 1e6:.1f} MB")


def make_cards(facts: DatasetFacts, count: int) -> list[Card]:
    """Pictures and facts of evenly spaced samples, and of some with next to no sound.

    Raises:
        UserError: a sample is damaged; names shard, key and offset.
    """
    cards = []
    shown: set[str] = set()
    for row, metadata in itertools.chain(samples(facts, count), quiet_samples(facts, _QUIET)):
        if row["key"] in shown:
            continue
        shown.add(row["key"])
        fbank = decode_fbank(payload(facts.folder, row, FBANK_MEMBER))[: row["valid_frames"]]
        boxes = metadata.get("boxes") or []
        cards.append(
            Card(
                key=row["key"],
                labels=[facts.name(label) for label in row["labels"] or ()],
                metadata=metadata,
                boxes=len(boxes),
                quiet=sound_kinds(facts.folder, row),
                frame=None if facts.is_sound_alone else frame_picture(payload(facts.folder, row, FRAME_MEMBER), boxes),
                sound=spectrogram_picture(fbank.astype(np.float32), step=_STEP, bright=_BRIGHT),
            )
        )
    return cards


def summary(facts: DatasetFacts) -> list[str]:
    """The lines printed."""
    asked = facts.samples + facts.failed
    state = "" if facts.is_finished else f" of {facts.planned:,} (unfinished)"
    recipe = [f"{name} {_short(facts.recipe[name])}" for name in _CHOICES if name in facts.recipe]
    lines = [
        f"{facts.folder}: {facts.samples:,} samples of {asked:,} clips, {facts.bytes / 1e6:,.1f} MB in "
        f"{len(facts.samples_by_shard):,} shards{state}",
        f"  recipe: {', '.join(recipe)}",
    ]
    if facts.failures:
        lines += ["", f"failed: {facts.failed:,} ({100 * facts.failed / asked:.1f}%)"]
    for reason, failure in facts.failures.items():
        lines.append(f"  {failure.count:>9,}  {reason:<14}as {failure.examples[0]}"[:160])
    if facts.next_to_no_sound:
        lines += ["", f"next to no sound: {facts.next_to_no_sound}"]
    lines += ["", *_labels(facts), "", f"over {len(facts.metadata):,} of {facts.samples:,} samples:"]
    for measure in facts.measures():
        low, middle, high = (number(float(v)) for v in np.percentile(measure.values, (0, 50, 100)))
        unknown = f", unknown for {measure.unknown:,}" if measure.unknown else ""
        name = f"{measure.name} ({measure.unit})" if measure.unit else measure.name
        lines.append(f"  {name:<24}least {low}, median {middle}, most {high}{unknown}")
    for name, kinds in facts.categories().items():
        most = ", ".join(f"{kind} {100 * n / kinds.total():.0f}%" for kind, n in kinds.most_common(_KINDS))
        others = f", {len(kinds) - _KINDS} others" if len(kinds) > _KINDS else ""
        lines.append(f"  {name:<24}{most}{others}")
    if keys := undecoded(facts):
        more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
        lines += ["", f"{len(keys):,} with a frame that {UNDECODED}:", f"  {', '.join(keys[:_NAMED])}{more}"]
    return lines


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _labels(facts: DatasetFacts) -> list[str]:
    """The most frequent labels and the rarest ones."""
    ranked = facts.labels.most_common()
    if not ranked:
        return ["labels: none"]
    notes = [f"{sum(facts.labels.values()) / facts.samples:.2f} a sample"]
    if facts.unlabelled:
        notes.append(f"{facts.unlabelled:,} samples without any")
    if facts.empty:
        notes.append(f"{facts.empty:,} of {facts.classes:,} classes without any sample")
    lines = [f"labels: {len(ranked):,}, {', '.join(notes)}"]
    shown = [*ranked[:_LABELS], *ranked[max(_LABELS, len(ranked) - _LABELS) :]]
    for place, (label, count) in enumerate(shown):
        if place == _LABELS and len(ranked) > 2 * _LABELS:
            lines.append(f"  {'...':>9}")
        lines.append(f"  {count:>9,}  {facts.name(label)}")
    return lines


if __name__ == "__main__":
    main()
