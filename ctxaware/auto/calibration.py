"""Log-odds → probabilities, fitted by scikit-learn, kept as a few numbers; and how good probabilities are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxaware.errors import InputError
from ctxaware.runs.shapes import NUMBER, check_shape

ISOTONIC, PLATT = "isotonic", "platt"
ISOTONIC_FROM = 1000  # turns; with fewer, isotonic regression follows chance (scikit-learn's advice)
N_BINS = 15
_KNOTS = {"log_odds": [NUMBER], "probability": [NUMBER]}
_DRAWS = 200


@dataclass(frozen=True)
class Calibration:
    """A monotone map from log-odds to probabilities.

    Attributes:
        kind: `isotonic` (knots, straight between them) or `platt` (a logistic curve).
        x: log-odds of the knots, ascending; for `platt` the slope alone.
        y: probability at each knot; for `platt` the intercept alone.
    """

    kind: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, log_odds: Sequence[float] | np.ndarray) -> np.ndarray:
        """float64 `[n]`, 0–1."""
        values = np.asarray(log_odds, dtype=np.float64)
        if self.kind == ISOTONIC:
            return np.interp(values, self.x, self.y)
        return sigmoid(self.x[0] * values + self.y[0])

    def to_json(self) -> dict[str, Any]:
        """As it stands in `auto_indicator.json`."""
        if self.kind == ISOTONIC:
            return {"kind": ISOTONIC, "log_odds": list(self.x), "probability": list(self.y)}
        return {"kind": PLATT, "slope": self.x[0], "intercept": self.y[0]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Calibration":
        """Of what `to_json` made.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        check_shape(value, {"slope": NUMBER, "intercept": NUMBER} if value["kind"] == PLATT else _KNOTS, "calibration")
        if value["kind"] == PLATT:
            return cls(PLATT, (float(value["slope"]),), (float(value["intercept"]),))
        x, y = tuple(map(float, value["log_odds"])), tuple(map(float, value["probability"]))
        if (
            value["kind"] != ISOTONIC
            or not x
            or len(x) != len(y)
            or list(x) != sorted(x)
            or not 0 <= min(y) <= max(y) <= 1
        ):
            raise ValueError(f"no calibration: {str(value)[:60]}")
        return cls(ISOTONIC, x, y)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), without overflow."""
    from scipy.special import expit

    return expit(values)


def fit_calibration(log_odds: np.ndarray, is_positive: np.ndarray) -> Calibration:
    """Isotonic regression where there are `ISOTONIC_FROM` turns or more, else Platt's logistic curve.

    Neither falls: where higher log-odds went with fewer positives, every prompt gets the share of positives.

    Args:
        log_odds: float `[n]`.
        is_positive: bool `[n]`, of both kinds.
    """
    if len(log_odds) >= ISOTONIC_FROM:
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(log_odds, is_positive)
        return Calibration(ISOTONIC, tuple(map(float, fitted.X_thresholds_)), tuple(map(float, fitted.y_thresholds_)))
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(log_odds[:, None], is_positive)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope < 0:
        share = float(is_positive.mean())
        slope, intercept = 0.0, math.log(share / (1 - share))
    return Calibration(PLATT, (slope,), (intercept,))


@dataclass(frozen=True)
class Reliability:
    """How often prompts of about the same probability are positive.

    Attributes:
        confidence: float `[N_BINS]`, the mean probability of a bin's prompts, NaN for an empty bin.
        observed: float `[N_BINS]`, the share of them that is positive.
        n: int `[N_BINS]`, how many they are.
    """

    confidence: np.ndarray
    observed: np.ndarray
    n: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over prompts of |confidence - observed| of their bin."""
        filled = self.n > 0
        return float(np.sum(self.n[filled] * np.abs(self.confidence - self.observed)[filled]) / self.n.sum())


def reliability(probabilities: np.ndarray, is_positive: np.ndarray) -> Reliability:
    """Over `N_BINS` bins of equal width."""
    bins = np.minimum((probabilities * N_BINS).astype(int), N_BINS - 1)
    n = np.bincount(bins, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, weights=probabilities, minlength=N_BINS) / n
        observed = np.bincount(bins, weights=is_positive.astype(float), minlength=N_BINS) / n
    return Reliability(confidence, observed, n)


def error_by_chance(probabilities: np.ndarray) -> float:
    """The mean `Reliability.error` if the probabilities were right: over draws of what is positive from them."""
    rng = np.random.default_rng(0)
    draws = rng.random((_DRAWS, len(probabilities))) < probabilities
    return float(np.mean([reliability(probabilities, is_positive).error for is_positive in draws]))


def auroc(scores: np.ndarray, is_positive: np.ndarray, parts: np.ndarray | None = None) -> float:
    """The chance that a positive has a higher score than a negative, ties counting half.

    Of cross-validation only pairs of one part are compared: each part's scores are of a fit of its own, whose base rate
    lacks that part, so that pairs across parts fall below chance where nothing was learnt (Parker et al., 2007).

    Args:
        scores: float `[n]`.
        is_positive: bool `[n]`.
        parts: int `[n]`, which fit a score is of; None where all are of one.

    Raises:
        InputError: there is no pair to compare.
    """
    from scipy.stats import rankdata

    above, n_pairs = 0.0, 0
    for part in [0] if parts is None else np.unique(parts):
        own = slice(None) if parts is None else parts == part
        positive = is_positive[own]
        n_positive = int(positive.sum())
        above += rankdata(scores[own])[positive].sum() - n_positive * (n_positive + 1) / 2  # Mann and Whitney's U
        n_pairs += n_positive * (len(positive) - n_positive)
    if not n_pairs:
        raise InputError(
            f"AUROC needs turns of both kinds, got {int(is_positive.sum())} of {len(is_positive)} positive"
        )
    return float(above / n_pairs)
