"""The one way in which preparing a clip fails."""

from shards_spec.tables import REASONS, Reason


class ClipError(Exception):
    """A clip that gives no sample. `reason` goes to the shard's table, `detail` says more to a person.

    Attributes:
        reason: one of `shards_spec.tables.Reason`.
        detail: one line: what was expected, what was found.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        assert reason in REASONS, reason
        self.reason: Reason = reason
        self.detail = " ".join(detail.split())
        super().__init__(reason, self.detail)  # both in args: the error survives pickling between processes

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
