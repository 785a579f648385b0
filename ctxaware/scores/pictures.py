"""Pictures of scores: their distribution, the instructions selected, how layers agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctxaware.plots import INK, SEQUENTIAL, new_figure, save


def score_histogram(scores: np.ndarray, threshold: float | None, title: str, path: Path) -> Path:
    """How context-dependency scores are distributed; a line shows the threshold.

    Args:
        scores: 0–1, one a turn.
        threshold: of the selection; None for no line.
        title: first line of the title; the numbers follow.
        path: of the PNG.

    Returns:
        `path`.
    """
    figure, axes = new_figure(6, 3.6)
    axes.hist(scores, bins=np.linspace(0, 1, 41).tolist(), color="#3b5b92", edgecolor="white", linewidth=0.4)
    counts = f"{len(scores):,} instructions"
    if threshold is not None:
        axes.axvline(threshold, color="#b8860b", linestyle="--", linewidth=1.5)
        counts += f", {np.mean(scores > threshold):.1%} above {threshold:.2f}"
    axes.set(xlim=(0, 1), xlabel="context-dependency score", ylabel="instructions", title=f"{title}\n{counts}")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def instruction_lengths(lengths: np.ndarray, selected: np.ndarray, title: str, path: Path) -> Path:
    """Instruction lengths of all turns against the selected ones (figures 6 to 8).

    Args:
        lengths: tokens, one a turn.
        selected: bool, one a turn.
        title: first line of the title; the numbers follow.
        path: of the PNG.

    Returns:
        `path`.
    """
    figure, axes = new_figure(6, 3.6)
    lengths = np.maximum(lengths, 1)
    bins = np.geomspace(1, max(2, lengths.max()), 31).tolist()
    kinds = [(lengths, "all", "#9aa7bd", 0.9)]
    if selected.any():
        kinds.append((lengths[selected], "selected", "#b8860b", 0.6))
    for values, name, colour, alpha in kinds:  # shares, not counts: the two differ in size
        share = np.full(len(values), 1 / len(values))
        label = f"{name}: {len(values):,}, median {np.median(values):,.0f}"
        axes.hist(values, bins=bins, weights=share, label=label, color=colour, alpha=alpha)
    axes.set(xscale="log", xlabel="instruction length (tokens)", ylabel="share of instructions", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def layer_disagreement(layers: Sequence[int], matrix: np.ndarray, title: str, path: Path) -> Path:
    """The share of one layer's top turns that another layer does not select (figure 5).

    Args:
        layers: their indices.
        matrix: `[n_layers, n_layers]`, 0–1.
        title: what "top" means.
        path: of the PNG.

    Returns:
        `path`.
    """
    size = max(4, 0.3 * len(layers) + 1.8)
    figure, axes = new_figure(size + 0.8, size)
    image = axes.imshow(matrix, cmap=SEQUENTIAL, vmin=0, vmax=1)
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(range(len(layers)), [str(layer_idx) for layer_idx in layers], fontsize=8)
    axes.set(xlabel="layer", ylabel="layer", title=f"disagreement between layers, {title}")
    if len(layers) <= 12:
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if value < 0.5 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label="share of turns not selected by the other", shrink=0.8)
    return save(figure, path)
