"""Which turns are context-dependent, and `ctxaware select`: marked data, statistics and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctxaware.data.conversations import FORMATS, STEM, find_file, write_conversations
from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages
from ctxaware.runs.files import refuse_own_input, write_json
from ctxaware.scores.pictures import instruction_lengths, score_histogram
from ctxaware.scores.table import Scores, aligned, read_one_layer

HISTOGRAM, LENGTHS, STATISTICS = "scores.png", "instruction_lengths.png", "statistics.json"


@dataclass(frozen=True)
class Selected:
    """What was selected.

    Attributes:
        statistics: as in `statistics.json`.
        files: what was written.
        warning: in words, that nothing or everything was selected; "" otherwise.
    """

    statistics: dict[str, Any]
    files: list[Path]
    warning: str


def select(
    data: Path, scores_file: Path, out: Path, threshold: float | None, percent: float | None, layer: int | None = None
) -> Selected:
    """Mark the context-dependent instructions of `data`, and write them with statistics and pictures into `out`.

    Raises:
        InputError: the scores are of other data or of several layers, an option is wrong, or `out` would overwrite
            what is read.
    """
    outputs = [out / name for name in (*(f"{STEM}.{kind}" for kind in FORMATS), STATISTICS, HISTOGRAM, LENGTHS)]
    refuse_own_input(out, [out, *outputs], [data, find_file(data), scores_file])
    layer, scores = read_one_layer(scores_file, layer)
    chosen = select_turns(scores.values, threshold=threshold, percent=percent)
    if percent is not None:
        threshold = float(scores.values[chosen].min()) if chosen.any() else None
    import pyarrow as pa

    columns = [("scores", pa.list_(pa.float32()))]
    written = write_conversations(out, _marked(data, scores, chosen), extra_columns=columns)
    shares = {f"{t:g}": float(above_threshold(scores.values, t).mean()) for t in TABLE_THRESHOLDS}
    statistics = {
        "instructions": len(chosen),
        "without_score": int((~scores.is_scored).sum()),
        "selected": int(chosen.sum()),
        "selected_share": float(chosen.mean()),
        "threshold": threshold,
        "top_percent": percent,
        "layer": layer,
        "share_above": shares,
        "scores": scores.manifest,
    }
    write_json(out / STATISTICS, statistics)
    title = f"{scores.manifest['data']}, layer {layer}"
    lengths = scores.instruction_tokens[scores.is_scored]
    pictures = [
        score_histogram(scores.values[scores.is_scored], threshold, title, out / HISTOGRAM),
        instruction_lengths(lengths, chosen[scores.is_scored], title, out / LENGTHS),
    ]
    return Selected(statistics, [written, out / STATISTICS, *pictures], describe_extreme(scores.values, chosen))


def _marked(data: Path, scores: Scores, chosen: np.ndarray) -> Iterator[dict]:
    for conversation, turns in aligned(data, scores):
        yield {
            "id": conversation["id"],
            "messages": mark_messages(conversation["messages"], chosen[turns].tolist()),
            "scores": [None if np.isnan(score) else float(score) for score in scores.values[turns]],
        }


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
    return _with_nan(scores) > threshold


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
