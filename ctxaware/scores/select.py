"""One run of `ctxaware select`: marked data, statistics and pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctxaware.data.conversations import FORMATS, STEM, find_file, write_conversations
from ctxaware.indicator.marking import mark_messages
from ctxaware.runs.claim import STATISTICS, data_folder
from ctxaware.runs.files import refuse_own_input, write_json
from ctxaware.scores.pictures import instruction_lengths, score_histogram
from ctxaware.scores.table import Scores, aligned, read_one_layer
from ctxaware.scores.threshold import TABLE_THRESHOLDS, above_threshold, describe_extreme, select_turns

_OWN_KEYS = ("selected", "selected_share", "share_above", "without_score")  # of its statistics
HISTOGRAM, LENGTHS = "scores.png", "instruction_lengths.png"


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
        threshold = _threshold_of(scores.values, chosen)
    import pyarrow as pa

    with data_folder(out, outputs, _OWN_KEYS):
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


def _threshold_of(values: np.ndarray, chosen: np.ndarray) -> float | None:
    """The highest score that was not chosen: above it is what was chosen. None where an equal score was chosen."""
    others = values[~chosen & ~np.isnan(values)]
    highest = float(others.max(initial=0.0))
    return highest if chosen.any() and highest < values[chosen].min() else None


def _marked(data: Path, scores: Scores, chosen: np.ndarray) -> Iterator[dict]:
    for conversation, turns in aligned(data, scores):
        yield {
            "id": conversation["id"],
            "messages": mark_messages(conversation["messages"], chosen[turns].tolist()),
            "scores": [None if np.isnan(score) else float(score) for score in scores.values[turns]],
        }
