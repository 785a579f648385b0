"""The picture of `ctxaware auto fit`: how often prompts of about the same probability are context-dependent."""

from pathlib import Path

from ctxaware import plots
from ctxaware.auto.quality import Quality


def reliability_diagram(quality: Quality, threshold: float, title: str, path: Path) -> Path:
    """Observed share against probability, by bins, the area of a dot as its bin's turns; and the threshold.

    Args:
        quality: on turns that were held out.
        threshold: 0–1, drawn as a line.
        title: first line of the title; AUROC and calibration error follow.
        path: of the PNG.

    Returns:
        `path`.
    """
    bins = quality.reliability
    figure, axes = plots.new_figure(5.2, 4.8)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=1)
    axes.axvline(threshold, color=plots.CATEGORICAL[3], linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    filled = bins.n > 0
    sizes = 20 + 480 * bins.n[filled] / bins.n.max()
    axes.scatter(bins.confidence[filled], bins.observed[filled], s=sizes, color=plots.CATEGORICAL[0], alpha=0.75)
    for x, y, n in zip(bins.confidence[filled], bins.observed[filled], bins.n[filled], strict=True):
        axes.annotate(f"{n:,}", (x, y), textcoords="offset points", xytext=(9, -11), fontsize=8)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xlabel="probability", ylabel="share with a score above beta")
    axes.set_title(
        f"{title}\nAUROC {quality.auroc:.3f}, calibration error {bins.error:.3f}, {quality.n:,} turns", fontsize=10
    )
    axes.legend(loc="upper left", frameon=False)
    return plots.save(figure, path)
