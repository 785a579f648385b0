"""Which turns are context-dependent: those whose score is above a threshold, 0.6 by default, or in the top share."""

from collections.abc import Sequence

import numpy as np

from ctxaware.errors import InputError

DEFAULT_THRESHOLD = 0.6  # the paper's beta
TABLE_THRESHOLDS = (0.5, 0.6, 0.7, 0.8)  # of its table 3


def check_threshold(threshold: float) -> None:
    """Check a threshold of scores.

    Raises:
        InputError: it is outside 0–1 or no number, so that it would select everything or nothing.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold must be in 0–1, as scores are, got {threshold:g}")


def above_threshold(scores: Sequence[float | None] | np.ndarray, threshold: float) -> np.ndarray:
    """bool `[n_turns]`: the turn is context-dependent, that is score > threshold; never without a score.

    Raises:
        InputError: the threshold is outside 0–1.
    """
    check_threshold(threshold)
    return _with_nan(scores).astype(np.float32) > np.float32(threshold)  # as they are stored: 0.6 is not above 0.6


def top_percent(scores: Sequence[float | None] | np.ndarray, percent: float) -> np.ndarray:
    """bool `[n_turns]`: the turn is among the `percent` % of scored turns with the highest scores.

    Of equal scores the earlier turn goes first, so the number selected is exact: the share, rounded to the nearest.

    Args:
        scores: one a turn, None without a score.
        percent: 0–100.

    Raises:
        InputError: `percent` is outside its range.
    """
    if not 0 < percent <= 100:
        raise InputError(f"top percent must be above 0 and at most 100, got {percent:g}")
    values = _with_nan(scores)
    n_selected = round(np.count_nonzero(~np.isnan(values)) * percent / 100)
    order = np.argsort(-values, kind="stable")  # NaN last
    selected = np.zeros(len(values), dtype=bool)
    selected[order[:n_selected]] = True
    return selected


def _with_nan(scores: Sequence[float | None] | np.ndarray) -> np.ndarray:
    return np.array([np.nan if score is None else score for score in scores], dtype=np.float64)


def select_turns(
    scores: Sequence[float | None] | np.ndarray, *, threshold: float | None = None, percent: float | None = None
) -> np.ndarray:
    """bool `[n_turns]` by exactly one of `threshold` and `percent`."""
    if threshold is not None and percent is None:
        return above_threshold(scores, threshold)
    if percent is not None and threshold is None:
        return top_percent(scores, percent)
    raise InputError("pass either a threshold or a top percent, not both and not neither")


def describe_extreme(scores: np.ndarray, selected: np.ndarray) -> str:
    """In words, that a selection takes no scored turn or all of them; "" for any other.

    Args:
        scores: float `[n_turns]`, NaN without a score.
        selected: bool `[n_turns]`.
    """
    known = scores[~np.isnan(scores)]
    if not len(known):
        return f"none of {len(scores):,} instructions has a score, so none is selected"
    span = f"scores reach from {known.min():.3f} to {known.max():.3f}, their median is {np.median(known):.3f}"
    if not selected.any():
        return f"no instruction is selected of {len(known):,} that have a score; {span}"
    if selected.sum() == len(known):
        return f"every instruction that has a score is selected ({len(known):,}); {span}"
    return ""
