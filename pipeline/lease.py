"""Small files that say who is at work, where the kernel cannot: several machines, network file systems, object stores.

The holder's file changes with every beat of its heart. A file that has stopped changing is a dead holder's, and free.
If two find that at the same moment both may take it: use it only where that costs double work, not wrong results.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from shards_spec import storage
from shards_spec.storage import Place

BEAT = 5.0  # seconds
PATIENCE = 30.0  # without a beat, then the holder is dead


@contextlib.contextmanager
def lease(place: Place) -> Iterator[bool]:
    """Yields whether the lease is ours for the block; it is not while another holder is alive."""
    holder = _holder()
    taken = storage.create(place, _beat(holder, 0))
    if not taken and not living([place]):
        storage.remove(place)
        taken = storage.create(place, _beat(holder, 0))
    if not taken:
        yield False
        return
    ended = threading.Event()
    heart = threading.Thread(target=_keep_beating, args=(place, holder, ended), name="lease", daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        storage.remove(place)


def living(places: Sequence[Place]) -> list[Place]:
    """The leases among these whose holder is alive. Takes up to PATIENCE seconds where one is not."""
    first = {place: content for place in places if (content := _content(place)) is not None}
    alive, unknown = [], []
    for place, content in first.items():
        known = _is_running(content)
        if known is None:
            unknown.append(place)
        elif known:
            alive.append(place)
    deadline = time.monotonic() + PATIENCE
    while unknown and not alive and time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT / 2))
        now = {place: _content(place) for place in unknown}
        alive += [place for place in unknown if now[place] not in (None, first[place])]
        unknown = [place for place in unknown if now[place] == first[place]]
    return alive


def _keep_beating(place: Place, holder: str, ended: threading.Event) -> None:
    beats = 0
    while not ended.wait(BEAT):
        beats += 1
        with contextlib.suppress(OSError):  # the next beat may succeed
            storage.write_bytes(place, _beat(holder, beats))


def _content(place: Place) -> bytes | None:
    try:
        return storage.read_bytes(place)
    except FileNotFoundError:
        return None


def _beat(holder: str, beats: int) -> bytes:
    return f"{holder}\nbeat {beats}\n".encode()


def _holder() -> str:
    """This process: a name for its machine (a container counts as one), its number, and when it began."""
    return f"{_machine()}\n{os.getpid()}\n{psutil.Process().create_time()}"


def _machine() -> str:
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.stat().st_ino if namespace.exists() else 0}"


def _is_running(content: bytes) -> bool | None:
    """Whether a holder on this machine runs; None for holders elsewhere."""
    machine, _, rest = content.decode(errors="replace").partition("\n")
    words = rest.split("\n")
    if machine != _machine() or not words[0].isdigit():
        return None
    try:
        return str(psutil.Process(int(words[0])).create_time()) == words[1]
    except psutil.NoSuchProcess:
        return False
