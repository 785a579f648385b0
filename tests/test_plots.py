import json

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from ctxaware.errors import InputError
from ctxaware.plots import SEQUENTIAL, recall_heatmap
from ctxaware.report.samples import find_samples


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


def test_sample_files_are_found_by_task_and_read(tmp_path):
    row = {"doc": {}, "recall": 1.0}
    for task in ("nih_ctx", "nih_ctx_ind", "squad_contain"):
        path = tmp_path / "model" / f"samples_{task}_2026-01-02T03-04-05.678.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(row) + "\n")
    assert [f.task for f in find_samples(tmp_path, "nih_ctx")] == ["nih_ctx", "nih_ctx_ind"]
    (file,) = find_samples(path, "squad")
    assert file.rows() == [row]
    assert file.results() == {}
    path.write_text(json.dumps({"doc": {"context": "One\u2028two"}}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert file.rows()[0]["doc"]["context"] == "One\u2028two"
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        file.rows()
    path.write_text('{"doc": {}')
    with pytest.raises(InputError, match="line 1: not whole JSON"):
        file.rows()


def test_no_sample_file_names_the_options_that_write_it(tmp_path):
    with pytest.raises(InputError, match="--log_samples --output_path"):
        find_samples(tmp_path, "nih_ctx")
