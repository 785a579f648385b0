"""Which turns are context-dependent, and `ctxaware select`: marked data, statistics and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxaware import plots
from ctxaware.data.conversations import FORMATS, STEM, find_file, write_conversations
from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages
from ctxaware.runs.files import refuse_own_input, write_json
from ctxaware.scores.table import Scores, aligned, read_one_layer

HISTOGRAM, LENGTHS, STATISTICS = "scores.png", "instruction_lengths.png", "statistics.json"


@dataclass(frozen=True)
class Selected:
    """What was selected.

    Attributes:
        statistics: as in `statistics.json`.
        files: what was written.
    """

    statistics: dict
    files: list[Path]


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
        plots.score_histogram(scores.values[scores.is_scored], threshold, title, out / HISTOGRAM),
        plots.instruction_lengths(lengths, chosen[scores.is_scored], title, out / LENGTHS),
    ]
    return Selected(statistics, [written, out / STATISTICS, *pictures])


def _marked(data: Path, scores: Scores, chosen: np.ndarray) -> Iterator[dict]:
    for conversation, turns in aligned(data, scores):
        yield {
            "id": conversation["id"],
            "messages": mark_messages(conversation["messages"], chosen[turns].tolist()),
            "scores": [None if np.isnan(score) else float(score) for score in scores.values[turns]],
        }


DEFAULT_THRESHOLD = 0.6  # the paper's beta
TABLE_THRESHOLDS = (0.5, 0.6, 0.7, 0.8)  # of its table 3


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


def select_turns(
    scores: Sequence[float | None], *, threshold: float | None = None, percent: float | None = None
) -> np.ndarray:
    """bool `[n_turns]` by exactly one of `threshold` and `percent`."""
    if (threshold is None) == (percent is None):
        raise InputError("pass either a threshold or a top percent, not both and not neither")
    return above_threshold(scores, threshold) if percent is None else top_percent(scores, percent)
