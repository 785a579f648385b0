"""Bootstrap intervals of a mean, for scores and for paired differences of scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean, its 95% percentile-bootstrap interval, and the number of values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """As text with a sign, for differences."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap_mean(values: Sequence[float], groups: Sequence | None = None) -> Interval:
    """The mean of `values` with a 95% interval over resampled values (percentile method, fixed seed).

    Args:
        values: one number for each test; for a paired comparison, the differences.
        groups: of each value, what it belongs to. Values that depend on each other, as the turns of one conversation,
            are then drawn together: drawn apart, the interval comes out too narrow. None where each stands alone.

    Raises:
        ValueError: no values.
    """
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("bootstrap_mean needs at least one value, got none")
    mean = float(data.mean())
    if data.size == 1:  # nothing to resample: the interval is the value
        return Interval(mean, mean, mean, 1)
    rng = np.random.default_rng(SEED)
    if groups is not None:
        names, group = np.unique(np.asarray(groups), return_inverse=True)
        sums, counts = np.bincount(group, weights=data), np.bincount(group)  # [n_groups]
        drawn = rng.integers(len(names), size=(N_RESAMPLES, len(names)))
        low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
        return Interval(mean, float(low), float(high), int(data.size))
    interval = bootstrap(
        (data,), np.mean, n_resamples=N_RESAMPLES, batch=1000, method="percentile", rng=rng
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high), int(data.size))
