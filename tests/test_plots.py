import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import imread

from ctxaware import plots
from ctxaware.intervals import Interval
from ctxaware.plots import SEQUENTIAL, recall_heatmap


def test_a_heatmap_shows_each_cell_in_its_place(tmp_path):
    lengths, depths = [200, 200, 400, 400], [0.0, 100.0, 0.0, 100.0]
    low = imread(recall_heatmap(lengths, depths, [0, 0, 0, 0], "t", tmp_path / "low.png"))
    one = imread(recall_heatmap(lengths, depths, [0, 0, 0, 1], "t", tmp_path / "one.png"))
    height, width = low.shape[:2]
    rows, columns = np.nonzero(np.abs(low - one).max(axis=2)[:, : int(width * 0.8)] > 0.5)  # without the colour bar
    assert rows.mean() > height * 0.45  # 100% is below, 400 to the right
    assert columns.mean() > width * 0.4


def test_the_colours_also_read_in_grey():
    lightness = [np.dot(colormaps[SEQUENTIAL](x)[:3], (0.299, 0.587, 0.114)) for x in np.linspace(0, 1, 20)]
    assert all(np.diff(lightness) > 0)


def test_scores_stand_above_and_differences_beside_zero_below(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, xerr, **_: drawn.append((x, y, xerr)))
    scores = {"plain": Interval(0.8, 0.7, 0.9, 9), "template": Interval(0.5, 0.4, 0.75, 9)}
    plots.scores_and_effects(scores, {"template effect": Interval(-0.3, -0.4, -0.1, 9)}, "m", tmp_path / "gap.png")
    assert [(x, y) for x, y, _ in drawn] == [(0.8, 0), (0.5, 1), (-0.3, 0)]
    assert [[round(float(e[0]), 9) for e in xerr] for _, _, xerr in drawn] == [[0.1, 0.1], [0.1, 0.25], [0.1, 0.2]]
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
