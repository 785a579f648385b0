"""Pictures. Colours are chosen to read in grey and with any colour vision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

SEQUENTIAL = "cividis"  # even in lightness, made for colour-vision deficiency


def new_figure(width: float, height: float):
    """A figure and its axes, without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def save(figure, path: Path) -> Path:
    """Write a PNG beside its place and rename it, so no half picture is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    figure.savefig(unfinished, dpi=150, format="png")
    unfinished.replace(path)
    return path


def recall_heatmap(
    context_lengths: Sequence[int], depths: Sequence[float], recalls: Sequence[float], title: str, path: Path
) -> Path:
    """Recall by context length and depth, as the needle-in-a-haystack test is usually shown.

    Args:
        context_lengths: tokens, one for each test.
        depths: percent, 0-100, one for each test.
        recalls: 0-1, one for each test.
        title: first line of the title; the mean follows.
        path: of the PNG.

    Returns:
        `path`.
    """
    columns, rows = sorted(set(context_lengths)), sorted(set(depths))
    grid = np.full((len(rows), len(columns)), np.nan)  # a cell that was not tested stays empty
    for length, depth, recall in zip(context_lengths, depths, recalls, strict=True):
        grid[rows.index(depth), columns.index(length)] = recall
    figure, axes = new_figure(max(5.5, 0.42 * len(columns) + 2.5), max(3.2, 0.3 * len(rows) + 1.6))
    axes.set_facecolor("white")
    image = axes.imshow(grid, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [f"{c:,}" for c in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [f"{r:.0f}%" for r in rows])
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("needle depth")
    if grid.size <= 150:
        for row, column in np.argwhere(~np.isnan(grid)):
            value = grid[row, column]
            colour = "white" if value < 0.5 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(f"{title}\nmean recall {np.mean(list(recalls)):.3f} over {len(recalls)} tests", fontsize=10)
    figure.colorbar(image, label="recall")
    return save(figure, path)
