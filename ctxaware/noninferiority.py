"""Is there a drop over a limit? The rule behind *pass*, *fail* and *inconclusive*, of the gate and of the probe.

Pure statistics of paired differences: what was compared, and how it was paired, is the caller's.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ctxaware.intervals import DIFFERENCE, BoundedMean, mean_of_tasks

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
_N_DRAWS, _BATCH = 10_000, 500  # of sign flips
_EXACT_UP_TO = 13  # clusters that differ: all 2^13 sign flips are gone through


def verdict_of(p_fail: float, p_pass: float, alpha: float) -> str:
    """`FAIL` where a drop over the limit is shown, `PASS` where one is excluded, else `INCONCLUSIVE`."""
    return FAIL if p_fail < alpha else PASS if p_pass < alpha else INCONCLUSIVE


def p_values(
    differences: Sequence[Sequence[float] | np.ndarray], clusters: Sequence[Sequence[Hashable]], max_drop: float
) -> tuple[list[float], list[float]]:
    """One-sided p-values for *fail* and for *pass*: of each task, and last of their mean where there are several.

    Those of *fail* are the score test's, and never smaller than the exact test's of no drop at all: three flips of 400
    questions, all to the worse, are no proof. They are adjusted for their number.

    Args:
        differences: by task, `[n]` paired differences, after less before, −1 to 1.
        clusters: by task, `[n]`, what each difference depends on.
        max_drop: the limit, 0–1.
    """
    parts = [
        BoundedMean(np.asarray(values).tolist(), names, DIFFERENCE)
        for values, names in zip(differences, clusters, strict=True)
    ]
    subjects = [[i] for i in range(len(parts))] + ([list(range(len(parts)))] if len(parts) > 1 else [])
    p_fail, p_pass = [], []
    for of in subjects:
        mean = mean_of_tasks([parts[i] for i in of])
        weighted = np.concatenate([np.asarray(differences[i], dtype=float) / len(differences[i]) for i in of])
        exact = sign_flip(weighted, [name for i in of for name in clusters[i]])
        p_fail.append(max(mean.p_below(-max_drop), exact))
        p_pass.append(mean.p_above(-max_drop))
    return holm(p_fail), p_pass


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def sign_flip(differences: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> float:
    """One-sided p-value for "no loss", from flipping the signs of whole clusters.

    Without a change the two runs could be swapped for each cluster, so each sign of a cluster's sum is as likely as the
    other: the test is exact however few the clusters are. For 0/1 scores without clusters it is McNemar's exact test.
    Signs are gone through where they are few, and drawn with a fixed seed where they are many.
    """
    sums: dict[Hashable, float] = defaultdict(float)
    for difference, name in zip(differences, clusters, strict=True):
        sums[name] += float(difference)
    size = np.abs([total for total in sums.values() if abs(total) > 1e-12])
    observed = sum(sums.values())
    if observed >= 0 or not size.size:
        return 1.0
    if np.allclose(size, size[0]):
        from scipy.stats import binom

        n_losses = round((len(size) - observed / size[0]) / 2)
        return float(binom.sf(n_losses - 1, len(size), 0.5))
    if len(size) <= _EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(size))[:, None] >> np.arange(len(size))) & 1)
        return float(np.mean(signs @ size <= observed + 1e-9))
    rng, n_as_low = np.random.default_rng(0), 0
    for _ in range(_N_DRAWS // _BATCH):
        signs = 1.0 - 2.0 * rng.integers(2, size=(_BATCH, len(size)))
        n_as_low += int(np.sum(signs @ size <= observed + 1e-9))
    return (1 + n_as_low) / (1 + _N_DRAWS)
