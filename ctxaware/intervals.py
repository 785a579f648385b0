"""Confidence intervals and tests for the mean of bounded values, such as 0–1 scores and paired differences of them.

Evaluations make three demands that the usual intervals fail. Questions of one passage depend on each other. Scores
often all agree, and nine needles without a difference are not proof that there is none, although a bootstrap or a t
interval then has no width. And flips are rare and go mostly one way, so the spread under a hypothesis differs from the
spread that was seen. The score test answers the last two: its variance is that of the distribution nearest to the data
(in likelihood) among those with the hypothesised mean between the two bounds. For 0/1 scores this is Wilson's interval,
for paired 0/1 scores Tango's (Statistics in Medicine 17, 1998), and against zero it is McNemar's test. Clusters enlarge
the variance by their design effect (Rao and Scott, Biometrics 48, 1992), estimated by leaving out one cluster at a
time, and the quantiles are those of Student's t for the number of clusters.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

UNIT = (0.0, 1.0)  # bounds of a score
DIFFERENCE = (-1.0, 1.0)  # bounds of a difference of two scores
_EDGE = 1e-9  # relative distance that root finding keeps from a bound


@dataclass(frozen=True)
class Interval:
    """A mean, its confidence interval, and the number of values."""

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


class Difference(Interval):
    """An interval of a difference: written with signs."""

    def __str__(self) -> str:
        return self.signed


class BoundedMean:
    """The mean of bounded values, with score tests and confidence bounds.

    Args:
        values: `[n]`, one for each test; for a paired comparison, the differences.
        clusters: `[n]`, what each value belongs to (its passage, its conversation): values of a cluster depend on each
            other. None where each stands alone.
        bounds: the lowest and the highest value there can be.

    Attributes:
        mean: of the values.
        n: number of values.
        n_clusters: number of clusters.
        df: degrees of freedom: the effective number of clusters, n² / Σ size², less one.
        design_effect: variance of the mean with clusters, as a multiple of its variance without; at least 1.

    Raises:
        ValueError: no values, a value that is not finite or outside the bounds, or another number of clusters.
    """

    def __init__(
        self,
        values: Sequence[float] | np.ndarray,
        clusters: Collection[Hashable] | None = None,
        bounds: tuple[float, float] = UNIT,
    ) -> None:
        data = np.asarray(values, dtype=float)
        if data.size == 0:
            raise ValueError("a mean needs at least one value, got none")
        if not (np.isfinite(data).all() and data.min() >= bounds[0] and data.max() <= bounds[1]):
            raise ValueError(f"values must be within {bounds[0]:g} to {bounds[1]:g}, got {data.min()} to {data.max()}")
        if clusters is not None and len(clusters) != data.size:
            raise ValueError(f"each of {data.size} values needs a cluster, got {len(clusters)}")
        self.bounds = bounds
        self.n = int(data.size)
        self.mean = float(data.mean())
        self._support, counts = np.unique(data, return_counts=True)
        self._share = counts / self.n
        labels = list(range(self.n)) if clusters is None else list(clusters)
        index = {label: position for position, label in enumerate(dict.fromkeys(labels))}
        group = np.fromiter((index[label] for label in labels), dtype=int, count=self.n)
        size = np.bincount(group)
        self.residuals = dict(zip(index, np.bincount(group, weights=data - self.mean), strict=True))  # sums by cluster
        self.n_clusters = len(size)
        self.df = self.n**2 / float(np.sum(size**2)) - 1
        self.design_effect = self._design_effect(size, float(np.sum((data - self.mean) ** 2)))

    def _design_effect(self, size: np.ndarray, squares: float) -> float:
        worst = float(np.sum(size**2)) / self.n  # all values of a cluster equal
        if self.n_clusters == 1 or squares < 1e-12 * self.n:
            return worst
        residuals = np.fromiter(self.residuals.values(), dtype=float)
        left_out = residuals / (self.n - size)  # by how much the mean moves without that cluster
        clustered = (self.n_clusters - 1) / self.n_clusters * float(np.sum(left_out**2))
        return max(1.0, clustered / (squares / (self.n - 1) / self.n))

    def variance(self, mean: float) -> float:
        """Variance of one value in the distribution nearest to the data among those with this mean.

        "Nearest" is the largest likelihood, over distributions on the observed values and the two bounds (Owen's
        empirical likelihood; for 0/1 scores the constrained maximum of Wilson's and Tango's tests).

        Args:
            mean: within the bounds.
        """
        low, high = self.bounds
        if not low < mean < high:
            return 0.0
        distance = self._support - mean

        def balance(tilt: float) -> float:
            return float(np.sum(self._share * distance / (1 + tilt * distance)))

        left, right = (1 - _EDGE) / (mean - high), (1 - _EDGE) / (mean - low)
        at_left, at_right = balance(left), balance(right)
        # the balance falls as the tilt grows; where no tilt suffices, weight goes to a bound that was not observed
        if at_right > 0:
            tilt, extra, bound = right, right * at_right, low
        elif at_left < 0:
            tilt, extra, bound = left, left * at_left, high
        else:
            tilt, extra, bound = _root(balance, left, right), 0.0, low
        weights = self._share / (1 + tilt * distance)
        return float(np.sum(weights * distance**2) + extra * (bound - mean) ** 2)

    def standard_error(self, mean: float) -> float:
        """Standard error of the mean where the true mean is `mean`, with the clusters' design effect."""
        return float(np.sqrt(self.design_effect * self.variance(mean) / self.n))

    def p_below(self, mean: float) -> float:
        """One-sided p-value for "the true mean is at least `mean`": small where the data are below."""
        return self._p(self.mean - mean, mean)

    def p_above(self, mean: float) -> float:
        """One-sided p-value for "the true mean is at most `mean`": small where the data are above."""
        return self._p(mean - self.mean, mean)

    def _p(self, difference: float, mean: float) -> float:
        from scipy.special import stdtr

        error = self.standard_error(mean)
        if self.df < _EDGE or difference >= 0 or error == 0:
            return 1.0 if difference >= 0 or self.df < _EDGE else 0.0
        return float(stdtr(self.df, difference / error))

    def lower(self, confidence: float) -> float:
        """The mean that the true one exceeds with this one-sided confidence (0.5–1)."""
        return self._bound(self.bounds[0], confidence)

    def upper(self, confidence: float) -> float:
        """The mean that the true one stays below with this one-sided confidence (0.5–1)."""
        return self._bound(self.bounds[1], confidence)

    def _bound(self, end: float, confidence: float) -> float:
        from scipy.special import stdtrit

        if self.df < _EDGE:
            return end
        quantile = float(stdtrit(self.df, confidence))
        far, near = end + (self.mean - end) * _EDGE, self.mean + (end - self.mean) * _EDGE

        def excess(mean: float) -> float:
            return abs(self.mean - mean) - quantile * self.standard_error(mean)

        if self.mean == end or excess(far) <= 0:
            return end
        return self.mean if excess(near) >= 0 else _root(excess, far, near)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean with an interval that leaves (1 − confidence) / 2 on each side; a `Difference` below bounds of 0."""
        each = (1 + confidence) / 2
        kind = Difference if self.bounds[0] < 0 else Interval
        return kind(self.mean, self.lower(each), self.upper(each), self.n)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Collection[Hashable] | None = None,
    bounds: tuple[float, float] = UNIT,
    confidence: float = 0.95,
) -> Interval:
    """The mean of bounded values with a confidence interval; arguments as those of `BoundedMean`."""
    return BoundedMean(values, clusters, bounds).interval(confidence)


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of measurements with Student's t interval, without bounds where there is a single one.

    For measurements on a continuous scale, whose spread the sample shows: shares of attention, or differences of such.
    Scores need `mean_interval`, which allows for answers that were not seen.

    Args:
        values: independent of each other; for a paired comparison, the differences.
        confidence: 0–1.

    Raises:
        ValueError: no values.
    """
    from scipy.special import stdtrit

    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("a mean needs at least one value, got none")
    mean, n = float(data.mean()), int(data.size)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * data.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class MeanOfTasks:
    """The mean of one or more tasks' means, each task counted alike.

    Bounds are made of the tasks' own (the method of variance estimates recovery: Zou and Donner, Statistics in Medicine
    27, 2008), with the correlation of tasks that share clusters, as the same needle cells with and without a prefix.
    For one task they are that task's.

    Attributes:
        parts: `[n_tasks]` means.
        correlation: `[n_tasks, n_tasks]`, of the tasks' estimates.
    """

    parts: Sequence[BoundedMean]
    correlation: np.ndarray = field(repr=False)

    @property
    def mean(self) -> float:
        """Of the tasks' means."""
        return float(np.mean([part.mean for part in self.parts]))

    def combined(self, errors: Sequence[float]) -> float:
        """Of errors of the tasks' means, the error of the mean over tasks."""
        each = np.asarray(errors)
        return float(np.sqrt(max(0.0, each @ self.correlation @ each))) / len(each)

    def lower(self, confidence: float) -> float:
        """One-sided confidence bound from below."""
        return max(
            self.parts[0].bounds[0],
            self.mean - self.combined([part.mean - part.lower(confidence) for part in self.parts]),
        )

    def upper(self, confidence: float) -> float:
        """One-sided confidence bound from above."""
        return min(
            self.parts[0].bounds[1],
            self.mean + self.combined([part.upper(confidence) - part.mean for part in self.parts]),
        )

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean with an interval that leaves (1 − confidence) / 2 on each side."""
        each, n = (1 + confidence) / 2, sum(part.n for part in self.parts)
        kind = Difference if self.parts[0].bounds[0] < 0 else Interval
        return kind(self.mean, self.lower(each), self.upper(each), n)

    def p_below(self, mean: float) -> float:
        """One-sided p-value for "the true mean is at least `mean`"; 1 where the data are not below."""
        if len(self.parts) == 1 or self.mean >= mean:
            return self.parts[0].p_below(mean) if len(self.parts) == 1 else 1.0
        return _smallest(lambda confidence: self.upper(confidence) < mean)

    def p_above(self, mean: float) -> float:
        """One-sided p-value for "the true mean is at most `mean`"; 1 where the data are not above."""
        if len(self.parts) == 1 or self.mean <= mean:
            return self.parts[0].p_above(mean) if len(self.parts) == 1 else 1.0
        return _smallest(lambda confidence: self.lower(confidence) > mean)


def mean_of_tasks(parts: Sequence[BoundedMean]) -> MeanOfTasks:
    """The mean of several tasks' means; clusters of one name in several tasks count as one."""
    correlation = np.eye(len(parts))
    for i, first in enumerate(parts):
        for j, second in enumerate(parts[:i]):
            shared = first.residuals.keys() & second.residuals.keys()
            if not shared:
                continue
            scale = np.sqrt(_squares(first) * _squares(second))
            product = sum(first.residuals[name] * second.residuals[name] for name in shared)
            # tasks without any spread say nothing of their correlation: assume the worst
            correlation[i, j] = correlation[j, i] = max(0.0, product / scale) if scale > 0 else 1.0
    return MeanOfTasks(parts, correlation)


def _squares(part: BoundedMean) -> float:
    return sum(residual**2 for residual in part.residuals.values())


def _smallest(holds_at: Callable[[float], bool], steps: int = 40) -> float:
    """The smallest p-value at whose confidence a bound still holds (bisection on the logarithm)."""
    low, high = np.log(1e-12), np.log(0.499)
    if not holds_at(1 - np.exp(high)):
        return 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if holds_at(1 - np.exp(middle)) else (middle, high)
    return float(np.exp(high))


def _root(function: Callable[[float], float], left: float, right: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, left, right, xtol=1e-10))
