"""What `ctxaware select` and `ctxaware layers` do with a file of scores."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxaware import plots, selection
from ctxaware.conversations import n_instructions, output_file, read_conversations, write_conversations, write_json
from ctxaware.errors import InputError
from ctxaware.shards import read_metadata

HISTOGRAM, LENGTHS, STATISTICS = "scores.png", "instruction_lengths.png", "statistics.json"


@dataclass(frozen=True)
class Scores:
    """Scores of one layer, in the order of the file.

    Attributes:
        ids: conversation of each turn.
        values: float64 `[n_turns]`, NaN without a score.
        instruction_tokens: int64 `[n_turns]`: tokens of each instruction, within the length limit.
        is_scored: bool `[n_turns]`: the turn has a score.
        manifest: how they were made.
    """

    ids: list[str]
    values: np.ndarray
    instruction_tokens: np.ndarray
    manifest: dict

    @property
    def is_scored(self) -> np.ndarray:
        return ~np.isnan(self.values)


def read_scores(path: Path, layer: int | None = None) -> dict[int, Scores]:
    """Scores of a file by layer; of one layer only where `layer` is given.

    Raises:
        InputError: the file is none that `ctxaware score` wrote, or lacks the layer.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with ctxaware score")
    manifest = read_metadata(path)["manifest"]
    if layer is not None and layer not in manifest["layers"]:
        raise InputError(
            f"{path} has scores of layers {manifest['layers']}, not of {layer}; pass --layer with one of them"
        )
    table, by_layer = pq.read_table(path), {}
    for one in manifest["layers"] if layer is None else [layer]:
        rows = table.filter(pc.field("layer") == one) if "layer" in table.column_names else table
        turns, user_tokens = rows["turn"].to_numpy(), rows["user_tokens"].to_numpy().astype(np.int64)
        before = np.where(turns == 0, 0, np.roll(user_tokens, 1))  # user_tokens count all turns up to this one
        by_layer[one] = Scores(
            rows["conversation_id"].to_pylist(),
            rows["score"].to_numpy(zero_copy_only=False).astype(np.float64),
            user_tokens - before,
            manifest,
        )
    return by_layer


def read_one_layer(path: Path, layer: int | None = None) -> tuple[int, Scores]:
    """The layer and its scores, of a file that has one layer or of the one asked for.

    Raises:
        InputError: the file has several and none was asked for, or no score at all.
    """
    by_layer = read_scores(path, layer)
    if len(by_layer) > 1:
        raise InputError(f"{path} has scores of layers {list(by_layer)}; pass --layer with one of them")
    ((layer, scores),) = by_layer.items()
    if not scores.is_scored.any():
        raise InputError(f"{path} has no score that is not null; nothing can be selected")
    return layer, scores


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
        InputError: the scores are of other data or of several layers, or an option is wrong.
    """
    layer, scores = read_one_layer(scores_file, layer)
    chosen = selection.select_turns(scores.values, threshold=threshold, percent=percent)
    if percent is not None:
        threshold = float(scores.values[chosen].min()) if chosen.any() else None
    import pyarrow as pa

    columns = [("scores", pa.list_(pa.float32()))]
    written = write_conversations(out, _marked(data, scores, chosen), extra_columns=columns)
    shares = {f"{t:g}": float(selection.above_threshold(scores.values, t).mean()) for t in selection.TABLE_THRESHOLDS}
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


def aligned(data: Path, scores: Scores) -> Iterator[tuple[dict, slice]]:
    """Each conversation of `data`, and where its turns are among the scores.

    Raises:
        InputError: the scores are not of these very turns.
    """
    first: dict[str, int] = {}
    for position, name in enumerate(scores.ids):
        first.setdefault(name, position)
    n_used = 0
    for conversation in read_conversations(data):
        name, n_turns = conversation["id"], n_instructions(conversation["messages"])
        start = first.get(name, len(scores.ids))
        if scores.ids[start : start + n_turns] != [name] * n_turns or scores.ids[start + n_turns :][:1] == [name]:
            raise InputError(
                f"the scores have not the {n_turns} turns of conversation {name!r}; they are of other data, or of a "
                f"part of it (--limit): score all of {data}"
            )
        n_used += n_turns
        yield conversation, slice(start, start + n_turns)
    if n_used != len(scores.ids):
        raise InputError(
            f"the scores are of {len(scores.ids)} turns, {data} has {n_used}; pass the data that was scored"
        )


def _marked(data: Path, scores: Scores, chosen: np.ndarray) -> Iterator[dict]:
    for conversation, turns in aligned(data, scores):
        yield {
            "id": conversation["id"],
            "messages": selection.mark_messages(conversation["messages"], chosen[turns].tolist()),
            "scores": [None if np.isnan(score) else float(score) for score in scores.values[turns]],
        }


@dataclass(frozen=True)
class Layers:
    """How layers agree on the top turns.

    Attributes:
        layers: their indices.
        matrix: float `[n_layers, n_layers]`, as `selection.disagreement`.
        mean: float `[n_layers]`: mean disagreement with the other layers, 0–1.
        best: the layer whose selection agrees best with the others'.
        files: picture and table.
    """

    layers: list[int]
    matrix: np.ndarray
    mean: np.ndarray
    best: int
    files: list[Path]


def compare_layers(scores_file: Path, percent: float, out: Path | None = None) -> Layers:
    """Compare the layers of a score file; the picture and the table go into `out`, else beside the scores.

    Raises:
        InputError: the file has scores of one layer only, or an option is wrong.
    """
    by_layer = read_scores(scores_file)
    layers = list(by_layer)
    if len(layers) < 2:
        raise InputError(f"{scores_file} has scores of layer {layers[0]} only; score with --layer all (or 9,12,15)")
    matrix = selection.disagreement(np.stack([scores.values for scores in by_layer.values()]), percent)
    mean = matrix.sum(axis=1) / (len(layers) - 1)  # its own entry is 0
    folder = out or scores_file.parent
    table = folder / f"{scores_file.stem}_disagreement.csv"
    with output_file(table) as beside, open(beside, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", *layers, "mean"])
        for layer, row, average in zip(layers, matrix, mean, strict=True):
            writer.writerow([layer, *(f"{value:.4f}" for value in row), f"{average:.4f}"])
    picture = folder / f"{scores_file.stem}_disagreement.png"
    plots.layer_disagreement(layers, matrix, f"top {percent:g}% of turns", picture)
    return Layers(layers, matrix, mean, layers[int(mean.argmin())], [picture, table])
