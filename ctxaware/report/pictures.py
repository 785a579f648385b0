"""Pictures of a report: the package's own, as SVG that takes the reader's light or dark theme, each with its text."""

import base64
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctxaware import plots
from ctxaware.intervals import mean_interval
from ctxaware.mt_bench.summary import Results
from ctxaware.report.allocation.pictures import allocation_bars, change_bars
from ctxaware.report.allocation.summary import TITLES, in_words
from ctxaware.report.collect import Training
from ctxaware.report.samples import TaskRun, needle_cells
from ctxaware.report.stored import interval_of
from ctxaware.scores import pictures as of_scores
from ctxaware.scores.layers import disagreement
from ctxaware.scores.table import Scores
from ctxaware.scores.threshold import above_threshold

_SETTINGS: Any = {"svg.hashsalt": "ctxaware", "svg.fonttype": "none"}  # the same bytes each time; text stays text
_THEME = (
    "<style>:root{color:#111}@media (prefers-color-scheme:dark){:root{color:#e8e8e8}}"
    "text{fill:currentColor;font-family:system-ui,sans-serif}</style>"
)
TOP_PERCENT = 10  # of turns, whose agreement between layers is shown (figure 5)


@dataclass(frozen=True)
class Picture:
    """An SVG, its caption, and what it shows in words, for readers who do not see it."""

    caption: str
    alt: str
    svg: str

    @property
    def is_wide(self) -> bool:
        """Whether its text would be too small in a third of the page."""
        match = re.match(r'<svg[^>]* width="([\d.]+)pt"', self.svg)
        return match is not None and float(match[1]) > 540

    @property
    def data_uri(self) -> str:
        """The picture as the address of an `<img>`."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


def as_svg(draw: Callable[[Path], object]) -> str:
    """What a function of `plots` draws, with lines and text in the theme's colour.

    Args:
        draw: takes the path to write.
    """
    import matplotlib

    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(_SETTINGS):
        draw(path := Path(folder) / "picture.svg")
        svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace("stroke: #000000", "stroke: currentColor")
    return svg.replace("<defs>", f"{_THEME}<defs>", 1)


def _means(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    groups: dict[float, list[float]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return [(key, statistics.fmean(groups[key])) for key in sorted(groups)]


def heatmap(name: str, run: TaskRun) -> Picture:
    """Recall by context length and depth of one evaluation; all are on one scale, 0 to 1."""
    scores = run.scores()
    lengths, depths = needle_cells(run.of_metric(), run.file.path)
    recalls = [scores[row["doc_id"]] for row in run.of_metric()]
    cells = list(zip(lengths, depths, recalls, strict=True))
    by_length = _means((length, recall) for length, _, recall in cells)
    by_depth = _means((depth, recall) for _, depth, recall in cells)
    alt = (
        f"Heatmap of recall, {name}, {run.task}: mean {statistics.fmean(recalls):.3f} over {len(cells)} tests. "
        f"By context length: {', '.join(f'{length:,} tokens {mean:.2f}' for length, mean in by_length)}. "
        f"By depth: {', '.join(f'{depth:.0f}% {mean:.2f}' for depth, mean in by_depth)}."
    )
    title = run.task
    svg = as_svg(lambda path: plots.recall_heatmap(lengths, depths, recalls, title, path))
    return Picture(f"{name}: {run.task}", alt, svg)


def score_histogram(name: str, layer: int, scores: Scores, threshold: float) -> Picture:
    """How the context-dependency scores of a file are distributed."""
    values = scores.values[scores.is_scored]
    quartiles = ", ".join(f"{q:.2f}" for q in np.quantile(values, (0.25, 0.5, 0.75)))
    alt = (
        f"Histogram of {len(values):,} context-dependency scores: quartiles {quartiles}; "
        f"{above_threshold(values.tolist(), threshold).mean():.1%} are above {threshold:g}."
    )
    svg = as_svg(lambda path: of_scores.score_histogram(values, threshold, f"layer {layer}", path))
    return Picture(f"{name}: scores", alt, svg)


def instruction_lengths(name: str, layer: int, scores: Scores, threshold: float) -> Picture:
    """How long instructions are, all and the selected ones."""
    lengths = scores.instruction_tokens[scores.is_scored]
    chosen = above_threshold(scores.values[scores.is_scored].tolist(), threshold)
    kinds = [("all", lengths)] + ([("selected", lengths[chosen])] if chosen.any() else [])
    medians = "; ".join(f"{kind} {len(of):,}, median {np.median(of):,.0f} tokens" for kind, of in kinds)
    svg = as_svg(lambda path: of_scores.instruction_lengths(lengths, chosen, f"layer {layer}", path))
    return Picture(f"{name}: instruction lengths", f"Histogram of instruction lengths: {medians}.", svg)


def layer_agreement(name: str, by_layer: Mapping[int, Scores]) -> Picture:
    """How far layers disagree on the top turns (figure 5)."""
    layers = list(by_layer)
    matrix = disagreement(np.stack([scores.values for scores in by_layer.values()]), TOP_PERCENT)
    means = matrix.sum(axis=1) / (len(layers) - 1)
    best = int(means.argmin())
    alt = (
        f"Disagreement between {len(layers)} layers on the top {TOP_PERCENT}% of turns: layer {layers[best]} agrees "
        f"best with the others (mean {means[best]:.2f}), layer {layers[int(means.argmax())]} worst "
        f"(mean {means.max():.2f})."
    )
    title = f"top {TOP_PERCENT}% of turns"
    return Picture(name, alt, as_svg(lambda path: of_scores.layer_disagreement(layers, matrix, title, path)))


def ratings(name: str, results: Results) -> Picture:
    """MT-Bench by category."""
    means = "; ".join(
        f"{model} {'no rating' if (mean := results.cell(model).mean) is None else format(mean, '.2f')}"
        for model in results.models
    )
    alt = f"Bars of the average MT-Bench rating by category; the table has the figures. Over all: {means}."
    return Picture(name, alt, as_svg(results.draw))


def probe_curves(training: Training, tasks: Sequence[str], probes: Mapping[str, list[list[float]]]) -> Picture:
    """What the probe scored while training."""
    watch = training.watch or {}
    steps = [probe["step"] for probe in watch["probes"]]
    clusters = {task: [q["cluster"] for q in watch["questions"] if q["task"] == task] for task in tasks}
    curves = {
        task: [
            (interval.mean, interval.low, interval.high)
            for scores in probes[task]
            for interval in [mean_interval(scores, clusters[task])]
        ]
        for task in tasks
    }
    ends = "; ".join(f"{task} {curve[0][0]:.2f} at first, {curve[-1][0]:.2f} at last" for task, curve in curves.items())
    alt = f"Scores of the probe while training, steps {steps[0]} to {steps[-1]}: {ends}."
    title = "the probe while training"
    return Picture(training.name, alt, as_svg(lambda path: plots.score_curves(steps, curves, title, path)))


def attention(name: str, summaries: Mapping[str, Any]) -> list[Picture]:
    """What the retrieval head looks at, and what the template changes (figures 4 and 3)."""
    shares = "; ".join(
        f"{label}, {TITLES[condition]}: " + ", ".join(f"{share} {interval.mean:.2f}" for share, interval in of.items())
        for label, model in summaries.items()
        for condition, of in model["allocation"].items()
    )
    alt = f"Bars of the retrieval head's attention. {shares}."
    shown = [Picture(f"{name}: allocation", alt, as_svg(lambda path: allocation_bars(dict(summaries), path)))]
    changes = "; ".join(
        f"{label}, {in_words(pair)}: " + ", ".join(f"{share} {interval.mean:+.2f}" for share, interval in of.items())
        for label, model in summaries.items()
        for pair, of in model["changes"].items()
    )
    if changes:
        alt = f"Bars of how the retrieval head's attention changes. {changes}."
        shown.append(Picture(f"{name}: change", alt, as_svg(lambda path: change_bars(dict(summaries), path))))
    return shown


def steering(name: str, of: Mapping[str, Any]) -> Picture:
    """Recall by α on the half of the grid on which it was chosen, and what was reported of the other."""
    curve = {float(alpha): interval_of(interval) for alpha, interval in of["curve"].items()}
    (needle,) = [task for task in of["differences"] if task.startswith("nih_ctx")]
    reported = {title: interval_of(by_task[needle]) for title, by_task in of["scores"].items() if needle in by_task}
    means = ", ".join(f"{alpha:g} {interval.mean:.3f}" for alpha, interval in curve.items())
    alt = f"Recall by α on the cells on which it was chosen: {means}. Chosen: {of['alpha']:g}."
    title = f"{Path(of['plan']['model']).name}, {needle}"
    svg = as_svg(lambda path: plots.recall_by_alpha(curve, of["alpha"], reported, title, path))
    return Picture(f"{name}: recall by α", alt, svg)
