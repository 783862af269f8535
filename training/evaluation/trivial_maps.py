"""What localization is compared with: answers that need no model, and another clip's sound."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shards_spec.sample import FRAME_SIZE
from training.methods.shared.patches import IMAGE_GRID, IMAGE_TOKENS
from training.stream.order import sample_seeds

# N samples, S pixels a side.
_LOOK_AHEAD = 256  # samples among which one with other labels is sought
_SEED = 0  # of the random maps


def other_sounds(labels: Sequence[Sequence[str]]) -> list[int] | None:
    """For each of N samples the place of another one, whose sound stands in for its own; None where N is 1.

    It is the next one (the first follows the last) that shares no label; where there is none among the next
    _LOOK_AHEAD, or no labels are known, the next one. So every sample's sound serves, nearly, once.
    """
    n = len(labels)
    if n < 2:
        return None
    known = [set(names) for names in labels]

    def other(i: int) -> int:
        following = ((i + step) % n for step in range(1, min(n, _LOOK_AHEAD + 1)))
        return next((j for j in following if not known[i] & known[j]), (i + 1) % n)

    return [other(i) for i in range(n)]


def random_maps(keys: Sequence[str]) -> Tensor:
    """A map of noise for each sample, float [N, 14, 14], from its key alone."""
    seeds = sample_seeds(_SEED, np.zeros(len(keys), np.int64), keys)
    generator = torch.Generator()
    maps = [torch.rand(IMAGE_TOKENS, generator=generator.manual_seed(int(seed))) for seed in seeds]
    return torch.stack(maps).unflatten(1, IMAGE_GRID)


def trivial_regions() -> dict[str, Tensor]:
    """Answers that need no model, bool [S, S] each. Half the area is what every map is cut to."""
    return {
        "whole image": torch.ones(FRAME_SIZE, FRAME_SIZE, dtype=torch.bool),
        "centre box, half the side": _centre(0.5),
        "centre box, half the area": _centre(0.5**0.5),
    }


def _centre(side: float) -> Tensor:
    margin = round((1 - side) / 2 * FRAME_SIZE)
    region = torch.zeros(FRAME_SIZE, FRAME_SIZE, dtype=torch.bool)
    region[margin : FRAME_SIZE - margin, margin : FRAME_SIZE - margin] = True
    return region
