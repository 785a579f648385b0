import numpy as np
from matplotlib import colormaps
from matplotlib.image import imread

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
