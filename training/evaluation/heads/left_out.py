"""What of a benchmark's files could not be used: counted by kind, with the first few named, never silently dropped."""

_NAMED = 3


class LeftOut:
    """Collects what is left out, kind by kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Notes one thing: its kind in words, and where it stands, as `trainSet.txt:12`, or its name."""
        self._found.setdefault(kind, []).append(where)

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def notes(self) -> tuple[str, ...]:
        """A line a kind: how many, and the first few places, each once."""
        return tuple(_line(kind, places) for kind, places in self._found.items())


def _line(kind: str, places: list[str]) -> str:
    named = list(dict.fromkeys(places))
    more = ", ..." if len(named) > _NAMED else ""
    return f"left out, {kind}: {len(places):,} ({', '.join(named[:_NAMED])}{more})"
