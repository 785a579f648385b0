"""Which turns are context-dependent, and marking them: the step between scores and training."""

import re
from collections.abc import Sequence

import numpy as np

from ctxaware.chat import defuse
from ctxaware.conversations import n_instructions
from ctxaware.errors import InputError
from ctxaware.indicator import INDICATOR, append_indicator

DEFAULT_THRESHOLD = 0.6  # the paper's beta
TABLE_THRESHOLDS = (0.5, 0.6, 0.7, 0.8)  # of its table 3
_TYPED = re.compile(re.escape(INDICATOR))


def above_threshold(scores: Sequence[float | None], threshold: float) -> np.ndarray:
    """bool `[n_turns]`: the turn is context-dependent, that is score > threshold; never without a score."""
    return _with_nan(scores) > threshold


def top_percent(scores: Sequence[float | None], percent: float) -> np.ndarray:
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


def _with_nan(scores: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if score is None else score for score in scores], dtype=np.float64)


def mark_messages(messages: Sequence[dict], selected: Sequence[bool]) -> list[dict]:
    """Messages with the indicator on the selected instructions.

    `[IND]` typed in a message is made ordinary text first, so that every `[IND]` in the result is a mark.

    Args:
        messages: dicts with `role` and `content`.
        selected: one entry per user message, in order.

    Raises:
        InputError: the number of entries is not the number of user messages.
    """
    n_turns = n_instructions(messages)
    if len(selected) != n_turns:
        raise InputError(f"expected {n_turns} selections, one per user message, got {len(selected)}")
    choices, marked = iter(selected), []
    for message in messages:
        content = defuse(message["content"], _TYPED)
        if message["role"] == "user" and next(choices):
            content = append_indicator(content)
        marked.append({**message, "content": content})
    return marked


def select_turns(
    scores: Sequence[float | None], *, threshold: float | None = None, percent: float | None = None
) -> np.ndarray:
    """bool `[n_turns]` by exactly one of `threshold` and `percent`."""
    if (threshold is None) == (percent is None):
        raise InputError("pass either a threshold or a top percent, not both and not neither")
    return above_threshold(scores, threshold) if percent is None else top_percent(scores, percent)


def disagreement(scores_by_layer: np.ndarray, percent: float) -> np.ndarray:
    """Figure 5: the share of one layer's top turns that is not among another's, for each pair of layers.

    Args:
        scores_by_layer: float `[n_layers, n_turns]`, NaN without a score.
        percent: 0–100, of the scored turns.

    Returns:
        float `[n_layers, n_layers]`, 0–1: symmetric, 0 on the diagonal.

    Raises:
        InputError: `percent` is out of range or selects no turn.
    """
    tops = np.stack([top_percent(list(scores), percent) for scores in scores_by_layer])
    n_selected = tops.sum(axis=1)
    if not n_selected.all():
        raise InputError(f"the top {percent:g}% of {scores_by_layer.shape[1]} turns is none; score more conversations")
    return 1 - (tops[:, None] & tops[None]).sum(axis=-1) / n_selected[:, None]
