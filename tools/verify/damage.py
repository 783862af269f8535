"""What is wrong with a dataset: a list that says where, bounded however much there is."""

from dataclasses import dataclass, field

from shards_spec.errors import reason

MOST_LISTED = 100  # of each file, and in all


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One finding.

    Attributes:
        file: name in the dataset folder.
        key: of the sample that it concerns, None where it concerns the file.
        offset: byte in the file at which the damaged part begins, None where it has no place.
        is_unread: whether the system does not give the file, so that nobody knows what it holds.
    """

    file: str
    what: str
    key: str | None = None
    offset: int | None = None
    is_unread: bool = False

    def __str__(self) -> str:
        """One line, without control characters: keys and details come from files."""
        place = [self.file]
        place += [] if self.key is None else [f"sample {self.key}"]
        place += [] if self.offset is None else [f"byte {self.offset}"]
        line = f"{', '.join(place)}: {self.what}"
        return "".join(c if c.isprintable() else "?" for c in line)


@dataclass(kw_only=True)
class Findings:
    """Damage found so far: the first MOST_LISTED of it, how much there is, and how much of that is merely unread; and
    the same of what is doubtful.
    """

    listed: list[Damage] = field(default_factory=list)
    count: int = 0
    unread: int = 0
    doubtful: list[Damage] = field(default_factory=list)
    doubts: int = 0

    def add(self, file: str, what: str, *, key: str | None = None, offset: int | None = None) -> None:
        """Adds one finding."""
        self._add(Damage(file=file, what=what, key=key, offset=offset))

    def refused(self, file: str, error: OSError, *, key: str | None = None, offset: int | None = None) -> None:
        """Adds a file, or the rest of one, that the system does not give."""
        what = f"cannot be read ({reason(error)})"
        self._add(Damage(file=file, what=what, key=key, offset=offset, is_unread=True))

    def _add(self, damage: Damage) -> None:
        self.count += 1
        self.unread += damage.is_unread
        if len(self.listed) < MOST_LISTED:
            self.listed.append(damage)

    def doubt(self, file: str, what: str, *, key: str, offset: int) -> None:
        """Adds what is as it was written, and yet may not be right."""
        self.doubts += 1
        if len(self.doubtful) < MOST_LISTED:
            self.doubtful.append(Damage(file=file, what=what, key=key, offset=offset))

    def extend(self, others: "Findings") -> None:
        """Adds all findings of another list."""
        self.count += others.count
        self.unread += others.unread
        self.listed = (self.listed + others.listed)[:MOST_LISTED]
        self.doubts += others.doubts
        self.doubtful = (self.doubtful + others.doubtful)[:MOST_LISTED]
