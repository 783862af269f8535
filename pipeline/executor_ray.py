"""Shards on a Ray cluster: a task for each shard, some more in flight than there are CPUs.

What a task returns is for the progress bar: the output folder says what is built. A task that is lost with its worker
or its node is run again by Ray; if the first one is not dead after all, both write the same bytes.
"""

import contextlib
import logging
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.account import library_versions
from pipeline.progress import Progress
from pipeline.shard_job import ShardJob, do
from shards_spec.errors import UserError

_TRIES = 5  # times that a shard may be lost with its worker or node
_IN_FLIGHT = 2  # tasks for each CPU: one at work, one about to start
_POLL = 1.0  # seconds
_REACH_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ShardLostError(OSError):
    """A shard took its Ray worker or node with it, again and again."""


def run_ray(
    job: Callable[[int], ShardJob],
    numbers: Sequence[int],
    progress: Progress,
    *,
    address: str | None,
    in_flight: int | None,
) -> None:
    """Builds the shards of these numbers; `job` says what each of them takes.

    Args:
        address: of the cluster; None takes the one that is found, or starts Ray on this machine.
        in_flight: tasks at the same time; None follows the size of the cluster.

    Raises: as `shard_job.do`, and
        UserError: Ray is not reached; a node has other libraries.
        ShardLostError: a shard was lost too often.
    """
    waiting, running, versions = deque(numbers), dict[Any, int](), library_versions()
    with _connected(address) as ray, _later() as raise_signals:
        task = ray.remote(num_cpus=1, max_retries=_TRIES)(_build)
        try:
            while waiting or running:
                most = in_flight or max(1, round(_IN_FLIGHT * ray.cluster_resources().get("CPU", 0)))
                while waiting and len(running) < most:
                    number = waiting.popleft()
                    running[task.remote(job(number), versions)] = number
                for done in ray.wait(list(running), timeout=_POLL)[0]:
                    progress.clips(*_result(ray, done, running.pop(done)))
                raise_signals()
        except BaseException:
            for unfinished in running:
                ray.cancel(unfinished, force=True)
            raise


def _build(job: ShardJob, versions: dict[str, str]) -> tuple[int, int]:
    """The task. Returns how many clips gave a sample, and how many did not."""
    ours = library_versions()
    if differing := [f"{name} {ours[name]} for {versions[name]}" for name in versions if ours[name] != versions[name]]:
        raise UserError(
            f"node {platform.node()} has {', '.join(differing)}: bytes would differ, install the same on every node"
        )
    counts = {True: 0, False: 0}

    def count(ok: bool) -> None:
        counts[ok] += 1

    do(job, stop=threading.Event(), on_clip=count)
    return counts[True], counts[False]


def _result(ray: Any, done: Any, number: int) -> tuple[int, int]:
    try:
        result: tuple[int, int] = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what the task raised
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ShardLostError(f"shard {number} was lost with its Ray worker: {type(error).__name__}: {first}") from error
    return result


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected. Ray's own handling of SIGTERM is put aside: the command has one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    _check_reachable(address)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot reach Ray{f' at {address}' if address else ''}: {reason[:300]}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Ray itself tries for many minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at --ray-address {address}: {error.strerror or error}") from None


@contextlib.contextmanager
def _later() -> Iterator[Callable[[], None]]:
    """Holds signals back until the function that it yields is called: an exception inside of Ray's code confuses Ray.
    A second signal ends the program at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[int] = []

    def note(number: int, _: object) -> None:
        arrived.append(number)
        for each in heard:
            signal.signal(each, signal.SIG_DFL)

    def raise_them() -> None:
        for number in arrived:
            handler = handlers[signal.Signals(number)]
            if callable(handler):
                handler(number, None)

    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as SIGHUP under nohup
    handlers = {number: signal.signal(number, note) for number in heard}
    try:
        yield raise_them
    finally:
        for number, handler in handlers.items() if not arrived else ():
            signal.signal(number, handler)
