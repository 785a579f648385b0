"""A picture of a judge's ratings: bars by category, a colour a model."""

from pathlib import Path

from ctxaware.errors import InputError
from ctxaware.mt_bench.summary import Results

# Okabe and Ito's colours that also differ in lightness, for any kind of colour blindness
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")


def draw(results: Results, path: Path) -> None:
    """Write a picture of average rating by category, each bar with its number.

    Args:
        results: ratings.
        path: a PNG, PDF or SVG.

    Raises:
        InputError: more models than colours, or a format that matplotlib can't write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(results.models) > len(COLOURS):
        raise InputError(f"a picture holds {len(COLOURS)} models, got {len(results.models)}; choose with --model-id")
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise InputError(f"--picture {path} should end in .png, .pdf or .svg")
    groups = [*((category, {"category": category}) for category in results.categories), ("all", {})]
    figure = Figure(
        figsize=(max(6.4, 1.1 * len(groups) * max(1, len(results.models) / 2.5)), 4.2), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(results.models)
    for i, model in enumerate(results.models):
        cells = [results.cell(model, **which) for _, which in groups]
        places = [g + (i - (len(results.models) - 1) / 2) * width for g in range(len(groups))]
        total = results.cell(model)
        label = f"{model} ({total.n_scored}/{total.n_expected} scored)"
        axes.bar(places, [c.mean or 0 for c in cells], width * 0.92, color=COLOURS[i], label=label)
        for place, cell in zip(places, cells, strict=True):
            text = "none" if cell.mean is None else f"{cell.mean:.1f}"
            axes.text(place, (cell.mean or 0) + 0.1, text, ha="center", va="bottom", fontsize=7.5)
    axes.axvline(len(results.categories) - 0.5, color="0.7", linewidth=0.8)
    axes.set(ylim=(0, 10.6), yticks=range(0, 11, 2), ylabel="average rating (1-10)")
    axes.set_xticks(range(len(groups)), [name for name, _ in groups])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.9")
    axes.set_title(f"MT-Bench, judged by {results.manifest['settings']['judge_model']}", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=min(3, len(results.models)), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
