"""How well probabilities tell context-dependent turns from others: AUROC, calibration error, what a threshold marks."""

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ctxaware.auto.calibration import Reliability, auroc, error_by_chance, reliability
from ctxaware.errors import InputError

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_RESAMPLES = 1000


class At(NamedTuple):
    """What a threshold of the probability does to turns that were held out.

    Attributes:
        threshold: 0–1.
        marked: share of all turns that get `[IND]`.
        recall: share of the context-dependent ones that get it.
        false_alarms: share of the others that get it.
    """

    threshold: float
    marked: float
    recall: float
    false_alarms: float


@dataclass(frozen=True)
class Quality:
    """How well probabilities tell context-dependent turns.

    Attributes:
        n, n_positive: turns, and those with a score above beta.
        auroc, auroc_low, auroc_high: with its 95% interval (bootstrap over conversations).
        reliability: by bins; its `error` is the expected calibration error.
        error_by_chance: that error's mean if the probabilities were right; of few turns it is not 0.
        at: by threshold.
    """

    n: int
    n_positive: int
    auroc: float
    auroc_low: float
    auroc_high: float
    reliability: Reliability
    error_by_chance: float
    at: list[At]

    def to_json(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "n": self.n,
            "n_positive": self.n_positive,
            "auroc": self.auroc,
            "auroc_interval": [self.auroc_low, self.auroc_high],
            "calibration_error": self.reliability.error,
            "calibration_error_by_chance": self.error_by_chance,
            "at": [each._asdict() for each in self.at],
        }


def quality(
    log_odds: np.ndarray,
    probabilities: np.ndarray,
    is_positive: np.ndarray,
    conversations: np.ndarray,
    parts: np.ndarray | None = None,
) -> Quality:
    """Of turns by their log-odds, which AUROC is of, and what a calibration makes of these.

    Args:
        log_odds: float `[n]`.
        probabilities: float `[n]`, 0–1.
        is_positive: bool `[n]`.
        conversations: int `[n]`: turns of one conversation depend on each other.
        parts: int `[n]`: which fit a turn's log-odds are of (`auroc`); None where all are of one.

    Raises:
        InputError: all turns are of one kind.
    """
    low, high = _auroc_interval(log_odds, is_positive, conversations, parts)
    return Quality(
        len(probabilities),
        int(is_positive.sum()),
        auroc(log_odds, is_positive, parts),
        low,
        high,
        reliability(probabilities, is_positive),
        error_by_chance(probabilities),
        [at_threshold(probabilities, is_positive, threshold) for threshold in THRESHOLDS],
    )


def at_threshold(probabilities: np.ndarray, is_positive: np.ndarray, threshold: float) -> At:
    """What a threshold does."""
    marked = probabilities > threshold
    return At(threshold, float(marked.mean()), float(marked[is_positive].mean()), float(marked[~is_positive].mean()))


def _auroc_interval(
    scores: np.ndarray, is_positive: np.ndarray, conversations: np.ndarray, parts: np.ndarray | None
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    names, where = np.unique(conversations, return_inverse=True)
    rows = [np.flatnonzero(where == i) for i in range(len(names))]
    values = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        with contextlib.suppress(InputError):  # none of one kind was drawn
            values.append(auroc(scores[drawn], is_positive[drawn], None if parts is None else parts[drawn]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
