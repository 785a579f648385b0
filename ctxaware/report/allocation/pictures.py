"""The pictures of `ctxaware attention`: figures 3 and 4 of the paper, layers x heads, lengths and depths."""

from pathlib import Path
from typing import Any

import numpy as np

from ctxaware import plots
from ctxaware.attention.heads import choose_retrieval_heads
from ctxaware.attention.roles import SHARES, renormalised, user_mass
from ctxaware.intervals import Interval
from ctxaware.report.allocation.prompts import PLAIN, TEMPLATE
from ctxaware.report.allocation.summary import TITLES, in_words
from ctxaware.report.allocation.table import ModelShares

COLOURS = dict(zip(SHARES, ("#0072B2", "#CC79A7", "#E69F00", "#9a9a9a"), strict=True))
SHORT = {"user": "user", "indicator": "[IND]", "assistant": "assistant", "bos": "BOS"}
LINES = {"plain": ("#0072B2", "o"), "template": ("#E69F00", "s"), "indicator": ("#009E73", "^")}


def draw(models: list[ModelShares], summary: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    """All pictures into `out`; returns their paths."""
    paths = [allocation_bars(summary, out / "allocation.png")]
    if any(of["changes"] for of in summary.values()):
        paths.append(change_bars(summary, out / "change.png"))
    for model in models:
        if summary[model.label]["changes"]:
            name = model.label.replace("/", "_")
            paths.append(length_depth_lines(model.label, summary[model.label], out / f"lengths-depths-{name}.png"))
            if len(model.layers) > 1:
                paths.append(change_map(model, out / f"layers-heads-{name}.png"))
    return paths


def change_bars(summary: dict[str, dict[str, Any]], path: Path) -> Path:
    """What the template changes, a group of bars for each model and pair of conditions (figure 3)."""
    bars = [(label, pair, of) for label, model in summary.items() for pair, of in model["changes"].items()]
    shown = [share for share in SHARES if any(of[share].mean for *_, of in bars)]
    figure, axes = plots.new_figure(2 + 2.2 * len(bars), 4)
    width = 0.8 / len(shown)
    for i, share in enumerate(shown):
        at = np.arange(len(bars)) + (i - (len(shown) - 1) / 2) * width
        intervals = [of[share] for *_, of in bars]
        axes.bar(at, [v.mean for v in intervals], width * 0.9, color=COLOURS[share], label=SHORT[share])
        axes.errorbar(at, [v.mean for v in intervals], _errors(intervals), fmt="none", ecolor="0.2", capsize=3)
    axes.axhline(0, color="0.3", linewidth=0.8)
    titles = [f"{label}\n{in_words(pair).replace(', ', ',' + chr(10))}" for label, pair, _ in bars]
    axes.set_xticks(range(len(bars)), titles, fontsize=9)
    axes.set_ylabel("change of the share of attention")
    axes.set_title(f"retrieval head, {_layers(summary)}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(shown), frameon=False)
    return plots.save(figure, path)


def allocation_bars(summary: dict[str, dict[str, Any]], path: Path) -> Path:
    """The whole allocation, a bar for each model and condition, each part with its number (figure 4)."""
    bars = [(label, name, of) for label, model in summary.items() for name, of in model["allocation"].items()]
    shown = [share for share in SHARES if any(of[share].mean for *_, of in bars)]
    figure, axes = plots.new_figure(8, 1.4 + 0.5 * len(bars))
    left = np.zeros(len(bars))
    for share in shown:
        means = np.array([of[share].mean for *_, of in bars])
        axes.barh(range(len(bars)), means, 0.75, left=left, color=COLOURS[share], label=SHORT[share])
        for row, (start, mean) in enumerate(zip(left, means, strict=True)):
            if mean > 0.04:
                colour = "white" if share == "user" else "black"
                axes.text(start + mean / 2, row, f"{mean:.2f}", ha="center", va="center", fontsize=8, color=colour)
        left += means
    axes.set_yticks(range(len(bars)), [f"{label}\n{TITLES[name]}" for label, name, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of attention, the template's own tokens left out")
    axes.set_title(f"retrieval head, {_layers(summary)}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(shown), frameon=False)
    return plots.save(figure, path)


def change_map(model: ModelShares, path: Path) -> Path:
    """The change of the user's share with the template, for every head of every layer; a dot on retrieval heads."""
    change = renormalised(model.shares[TEMPLATE.name]) - renormalised(model.shares[PLAIN.name])
    chosen = choose_retrieval_heads(user_mass(model.shares[PLAIN.name]), model.layers)
    return plots.layer_head_map(
        change.mean(axis=0)[..., SHARES.index("user")],
        model.layers,
        [head.head_idx for head in chosen],
        f"{model.label}: user's share of attention,\nwith template less without",
        "change, mean over the prompts",
        path,
        signed=True,
    )


def length_depth_lines(label: str, summary: dict[str, Any], path: Path) -> Path:
    """The user's share against context length and needle depth, a line a condition, with 95% intervals."""
    figure, panels = plots.new_panels(8.5, 3.8, columns=2)
    for axes, key in zip(panels, ("by_context_length", "by_depth_percent"), strict=True):
        for name, points in summary[key].items():
            colour, marker = LINES[name]
            x, intervals = list(points), list(points.values())
            axes.plot(x, [v.mean for v in intervals], marker=marker, markersize=4, color=colour, label=TITLES[name])
            axes.fill_between(x, [v.low for v in intervals], [v.high for v in intervals], color=colour, alpha=0.2)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(xlabel="context length (tokens)", ylabel="attention on user tokens")
    panels[1].set(xlabel="needle depth (%)")
    panels[0].set_title(f"{label}, layer {summary['layer']}", loc="left", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return plots.save(figure, path)


def _errors(intervals: list[Interval]) -> list[list[float]]:
    return [[v.mean - v.low for v in intervals], [v.high - v.mean for v in intervals]]


def _layers(summary: dict[str, dict[str, Any]]) -> str:
    return f"layer {', '.join(map(str, sorted({model['layer'] for model in summary.values()})))}"
