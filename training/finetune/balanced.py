"""Class-balanced sampling: rare classes come about as often as frequent ones.

An endless run of samples drawn with replacement, each with a probability proportional to its weight. What stands at
position p is a function of (seed, weights, p) alone, so a run resumes anywhere, as with the plain order.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shards_spec.errors import UserError
from training.finetune.labels import Labels
from training.stream.order import Numbers, Place, SampleStream, splitmix64

_EPSILON = 0.01
_SCALE = 1000.0
_JITTER = 0xBA1A << 32  # purpose of a hash, beside the order's own


def sample_weights(labels: Labels) -> npt.NDArray[np.float64]:
    """The sum of 1000 / (count + 0.01) over a sample's classes, float64 [N]; `count` is of the samples with the class.

    As AST, CAV-MAE and MAViL (appendix B.3) weight AudioSet and VGGSound. A sample without label weighs 0.
    """
    of_class = _SCALE / (labels.per_class + _EPSILON)
    sums = np.concatenate([[0.0], np.cumsum(of_class[labels.ids])])
    return sums[labels.starts[1:]] - sums[labels.starts[:-1]]


class BalancedStream(SampleStream):
    """A run of samples by weight, with the interface of the plain one.

    Draws are stratified: n consecutive positions (an epoch) take one number from each of n equal parts of the
    distribution, in hashed order, so within an epoch a sample comes less than twice more or less often than n
    times its probability says. Peers draw independently; the expectation is the same.
    """

    def __init__(self, weights: npt.NDArray[np.float64] | Sequence[float], *, seed: int) -> None:
        """
        Args:
            weights: of each sample of the index, >= 0.

        Raises:
            UserError: no weight is above 0.
        """
        weights = np.asarray(weights, np.float64)
        super().__init__([[len(weights)]], seed=seed)
        self._edges = np.cumsum(weights)
        if not self._edges[-1] > 0:
            raise UserError("--balanced: no sample has a label, so none has a weight")

    def take(self, place: Place, count: int) -> tuple[Numbers, Numbers]:
        """The next `count` samples from `place` on: numbers, and their positions in the run, int64 [count] each.

        The positions stand where the plain order gives epochs: the random choices for a sample come from (seed, that,
        key), so two draws of the same sample never make the same ones.
        """
        strata, _ = super().take(place, count)
        positions = np.arange(count, dtype=np.int64) + place.samples_done(self.n)
        hashes = splitmix64(splitmix64(positions.view(np.uint64)) ^ np.uint64((self.seed ^ _JITTER) % 2**64))
        jitter = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 0 <= jitter < 1
        total = self._edges[-1]
        points = np.minimum((strata + jitter) / self.n * total, np.nextafter(total, 0.0))
        return np.searchsorted(self._edges, points, side="right").astype(np.int64), positions
