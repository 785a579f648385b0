"""Pictures. Colours are chosen to read in grey and with any colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctxaware.runs.claim import refuse_foreign_file
from ctxaware.runs.files import output_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ctxaware.intervals import Interval

SEQUENTIAL = "cividis"  # even in lightness, made for colour-vision deficiency
CATEGORICAL = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")  # Okabe and Ito's
INK = "#111111"  # on colours; plain black is a theme's text colour in a report
PNG_MARK = "Matplotlib"  # what draws a PNG stands in it


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure and its axes, without a display and without pyplot's global state."""
    figure, axes = new_panels(width, height, 1)
    return figure, axes[0]


def new_panels(width: float, height: float, columns: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure and its axes side by side with one y-axis, as `new_figure`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG or an SVG, as the name ends, and return its path.

    Raises:
        InputError: the place can't be written to, or holds a PNG that was not drawn like this.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names of models and data are no formulas, whatever they hold
        text.set_parse_math(False)
        text.set_usetex(False)
    if path.suffix != ".svg":
        refuse_foreign_file(path, PNG_MARK)
    with output_file(path) as unfinished:
        if path.suffix == ".svg":  # nothing behind the picture, and no date in it
            figure.savefig(unfinished, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(unfinished, dpi=150, format="png")
    return path


def recall_heatmap(
    context_lengths: Sequence[int], depths: Sequence[float], recalls: Sequence[float], title: str, path: Path
) -> Path:
    """Recall by context length and depth, as the needle-in-a-haystack test is usually shown.

    Tests of the same cell (several prompt templates) are averaged.

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
    total, count = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    for length, depth, recall in zip(context_lengths, depths, recalls, strict=True):
        total[rows.index(depth), columns.index(length)] += recall
        count[rows.index(depth), columns.index(length)] += 1
    grid = np.where(count, total / np.maximum(count, 1), np.nan)  # a cell that was not tested stays empty
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
            colour = "white" if value < 0.5 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(f"{title}\nmean recall {np.mean(list(recalls)):.3f} over {len(recalls)} tests", fontsize=10)
    figure.colorbar(image, label="recall")
    return save(figure, path)


def rating_bars(
    groups: Sequence[str], ratings: Mapping[str, Sequence[float | None]], title: str, path: Path, top: float = 10
) -> Path:
    """Average ratings by group, a bar for each model, each with its number.

    Args:
        groups: names; the last is set apart, for the average over all.
        ratings: by model, one for each group; None where nothing is rated. At most as many as `CATEGORICAL`.
        title: of the picture.
        path: of the PNG.
        top: the best rating there is.

    Returns:
        `path`.
    """
    figure, axes = new_figure(max(6.4, 0.55 + len(groups) * (0.55 + 0.28 * len(ratings))), 4.2)
    width = 0.8 / len(ratings)
    for i, (model, means) in enumerate(ratings.items()):
        places = np.arange(len(groups)) + (i - (len(ratings) - 1) / 2) * width
        axes.bar(places, [mean or 0 for mean in means], width * 0.92, color=CATEGORICAL[i], label=model)
        for place, mean in zip(places, means, strict=True):
            text = "none" if mean is None else f"{mean:.1f}"
            axes.text(place, (mean or 0) + top / 100, text, ha="center", va="bottom", fontsize=7.5)
    axes.axvline(len(groups) - 1.5, color="0.7", linewidth=0.8)
    axes.set(ylim=(0, top * 1.06), ylabel="average rating")
    axes.set_xticks(range(len(groups)), groups)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.9")
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=min(3, len(ratings)), frameon=False)
    return save(figure, path)


def layer_head_map(
    values: np.ndarray,
    layers: Sequence[int],
    retrieval_heads: Sequence[int],
    title: str,
    label: str,
    path: Path,
    signed: bool = False,
) -> Path:
    """A value for every head of every layer, with a dot on each layer's retrieval head.

    Args:
        values: `[n_layers, n_heads]`.
        layers: `[n_layers]`, 0-based.
        retrieval_heads: `[n_layers]`, 0-based.
        title: of the picture.
        label: what the colours mean.
        path: of the PNG.
        signed: whether the colours stand around zero.

    Returns:
        `path`.
    """
    figure, axes = new_figure(max(5.2, 0.24 * values.shape[1] + 2.6), max(3.5, 0.2 * len(layers) + 1.4))
    top = float(np.abs(values).max())
    colours = "PuOr" if signed else SEQUENTIAL
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=-top if signed else 0, vmax=top)
    colour = "black" if signed else "white"
    rows = range(len(layers))
    axes.plot(retrieval_heads, rows, "o", label="retrieval head", color=colour, markeredgecolor="0.3", markersize=4)
    axes.set_yticks(rows, map(str, layers), fontsize=7)
    heads = range(0, values.shape[1], max(1, values.shape[1] // 16))
    axes.set_xticks(heads, map(str, heads), fontsize=8)
    axes.set(xlabel="head", ylabel="layer")
    axes.set_title(title, loc="left", fontsize=9)
    figure.colorbar(image, label=label)
    figure.legend(loc="outside lower center", frameon=False)
    return save(figure, path)


def score_curves(
    steps: Sequence[int], intervals: Mapping[str, Sequence[tuple[float, float, float]]], title: str, path: Path
) -> Path:
    """Scores over the steps of a training run, a line with its intervals for each task.

    Args:
        steps: optimizer steps.
        intervals: by task, mean, low and high at each step, 0–1. At most as many as `CATEGORICAL`.
        title: of the picture.
        path: of the picture.

    Returns:
        `path`.
    """
    figure, axes = new_figure(6.4, 3.6)
    for (task, values), colour, marker in zip(intervals.items(), CATEGORICAL, "osD^v<>", strict=False):
        mean, low, high = np.array(values).T
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, mean, color=colour, marker=marker, markersize=4, label=task)
    axes.set(ylim=(0, 1), xlabel="step", ylabel="score", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(4, len(intervals)), frameon=False)
    return save(figure, path)


def recall_by_alpha(
    curve: Mapping[float, Interval], chosen: float, reported: Mapping[str, Interval], title: str, path: Path
) -> Path:
    """Recall against α on the cells that choose it, and beside it what the other cells say.

    Args:
        curve: recall with its interval, by α; 1 is no steering.
        chosen: the α that is reported.
        reported: recall on the other cells, by condition.
        title: of the picture.
        path: of the PNG.

    Returns:
        `path`.
    """
    figure, (left, right) = new_panels(9.5, 4, columns=2)
    alphas, places = list(curve), range(len(curve))  # evenly apart: on a scale of their own the last ones overlap
    mean, low, high = ([getattr(curve[alpha], end) for alpha in alphas] for end in ("mean", "low", "high"))
    left.fill_between(places, low, high, color=CATEGORICAL[0], alpha=0.15, linewidth=0)
    left.plot(places, mean, color=CATEGORICAL[0], marker="o")
    best = alphas.index(chosen), curve[chosen].mean
    left.plot(*best, "o", markersize=11, markerfacecolor="none", color=CATEGORICAL[3])
    left.annotate("chosen", best, (0, 9), textcoords="offset points", ha="center", fontsize=9)
    left.set(xlabel="α (1: no steering)", ylabel="recall", title=f"cells that choose α, n = {curve[1].n}")
    left.set_xticks(places, [f"{alpha:g}" for alpha in alphas])
    for place, interval in enumerate(reported.values()):
        error = [[interval.mean - interval.low], [interval.high - interval.mean]]
        right.errorbar(place, interval.mean, error, fmt="o", color=CATEGORICAL[place], capsize=4)
        right.annotate(f"{interval.mean:.3f}", (place, interval.mean), (9, -3), textcoords="offset points", fontsize=9)
    right.set_xticks(range(len(reported)), [name.replace(" (", "\n(") for name in reported], fontsize=9)
    right.set(xlim=(-0.5, len(reported) - 0.4), title=f"the other cells, n = {next(iter(reported.values())).n}")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(f"{title} · 95% intervals", fontsize=11)
    return save(figure, path)


def scores_and_effects(scores: Mapping[str, Interval], effects: Mapping[str, Interval], title: str, path: Path) -> Path:
    """Scores with their intervals, and below them paired differences beside zero.

    Args:
        scores: 0–1, by name, from top to bottom.
        effects: differences of scores, by name.
        title: of the picture.
        path: of the PNG.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 + 0.42 * (len(scores) + len(effects))), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [len(scores) + 1, len(effects) + 1]
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    for axes, intervals, colour in ((upper, scores, CATEGORICAL[0]), (lower, effects, CATEGORICAL[3])):
        for row, interval in enumerate(intervals.values()):
            error = [[interval.mean - interval.low], [interval.high - interval.mean]]
            axes.errorbar(interval.mean, row, xerr=error, fmt="o", color=colour, capsize=4)
            text = f"{interval.mean:.3f}" if axes is upper else f"{interval.mean:+.3f}"
            axes.annotate(text, (interval.mean, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.set_yticks(range(len(intervals)), list(intervals))
        axes.set_ylim(len(intervals) - 0.4, -0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    upper.set(xlim=(-0.02, 1.02), xlabel="score")
    lower.axvline(0, color="0.4", linewidth=1)
    reach = max([0.1, *(max(abs(each.low), abs(each.high)) for each in effects.values())]) * 1.1
    lower.set(xlim=(-reach, reach), xlabel="difference of scores, paired by question")
    figure.suptitle(f"{title} · 95% intervals", fontsize=11)
    return save(figure, path)
