"""Waiting for data that can be broken off: looks again and again whether it should."""

from collections.abc import Callable

POLL_SECONDS = 0.1

Stopping = Callable[[], bool]  # whether to wait no longer


class StopWaiting(Exception):
    """A wait for data was broken off because `stopping` said so. What was given until then is whole."""


def never() -> bool:
    """Goes on for as long as it takes."""
    return False
