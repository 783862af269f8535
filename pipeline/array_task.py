"""A job array (Slurm's or any other): task I of N builds the shards whose number leaves I when divided by N."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shards_spec.errors import UserError

_SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Share:
    """Which shards are one run's."""

    index: int
    count: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of them."""
        return self.count == 1

    def has(self, shard: int) -> bool:
        """Whether a shard belongs to it."""
        return shard % self.count == self.index

    def __str__(self) -> str:
        return f"task {self.index} of {self.count}"


WHOLE = Share(0, 1)


def slurm_share(environment: Mapping[str, str]) -> Share | None:
    """The share of the Slurm array task that this is, None where it is none.

    Raises:
        UserError: the array's numbers are not consecutive, so that a task cannot know its place.
    """
    if not {_SLURM + "ID", _SLURM + "COUNT"} <= environment.keys():
        return None
    number, count = int(environment[_SLURM + "ID"]), int(environment[_SLURM + "COUNT"])
    first, step = int(environment.get(_SLURM + "MIN", 0)), int(environment.get(_SLURM + "STEP", 1))
    last = int(environment.get(_SLURM + "MAX", first + step * (count - 1)))
    if last != first + step * (count - 1) or (number - first) % step:
        raise UserError(
            f"this is number {number} of a Slurm array of {count} from {first} to {last}, with gaps: "
            f"give --task-index {number} and the whole array's --task-count"
        )
    return Share((number - first) // step, count)


def tasks_of(shards: Iterable[int], count: int) -> list[int]:
    """Indices of the array tasks, of `count`, that build these shards."""
    return sorted({shard % count for shard in shards})


def ranges(numbers: Iterable[int], most: int = 20) -> str:
    """`0-3,7,9-11`: the form in which sbatch takes them; with `...` after `most` ranges."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in found[:most]]
    return ",".join(shown) + (",..." if len(found) > most else "")
