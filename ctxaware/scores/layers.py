"""How layers agree on the most context-dependent turns (figure 5), to choose one for a model."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxaware.errors import InputError
from ctxaware.runs.claim import refuse_foreign_file
from ctxaware.runs.files import output_file
from ctxaware.scores.pictures import layer_disagreement
from ctxaware.scores.table import read_scores
from ctxaware.scores.threshold import top_percent


@dataclass(frozen=True)
class Layers:
    """How layers agree on the top turns.

    Attributes:
        layers: their indices.
        matrix: float `[n_layers, n_layers]`, as `disagreement`.
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
        raise InputError(f"{scores_file} has scores of layer {layers[0]} only", "score with {layer} all (or 9,12,15)")
    matrix = disagreement(np.stack([scores.values for scores in by_layer.values()]), percent)
    mean = matrix.sum(axis=1) / (len(layers) - 1)  # its own entry is 0
    folder = out or scores_file.parent
    table = folder / f"{scores_file.stem}_disagreement.csv"
    refuse_foreign_file(table, "layer,")
    with output_file(table) as beside, open(beside, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", *layers, "mean"])
        for layer, row, average in zip(layers, matrix, mean, strict=True):
            writer.writerow([layer, *(f"{value:.4f}" for value in row), f"{average:.4f}"])
    picture = folder / f"{scores_file.stem}_disagreement.png"
    layer_disagreement(layers, matrix, f"top {percent:g}% of turns", picture)
    return Layers(layers, matrix, mean, layers[int(mean.argmin())], [picture, table])


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
