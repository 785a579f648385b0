"""The table of `make demo-train`."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from ctxaware.errors import InputError

COMPARE = Path(__file__).parents[1] / "recipes" / "demo" / "compare.py"


def write(folder, scores, task="squad_contain", date="2026-01-02T03-04-05.678"):
    folder.mkdir(exist_ok=True)
    rows = [{"doc_id": n, "target": f"t{n}", "score": score} for n, score in enumerate(scores)]
    text = "".join(json.dumps(row) + "\n" for row in reversed(rows))  # by question, not by line
    (folder / f"samples_{task}_{date}.jsonl").write_text(text)
    return folder


def compare(monkeypatch, *runs):
    monkeypatch.setattr(sys, "argv", ["compare.py", *runs])
    runpy.run_path(str(COMPARE))["main"]()


def test_scores_of_the_newest_runs_and_their_paired_difference(tmp_path, monkeypatch, capsys):
    one = write(tmp_path / "one", [0, 1, 0, 1])
    two = write(tmp_path / "two", [1, 1, 1, 0], task="squad_contain_ind")
    write(two, [0, 0, 0, 0], date="2025-01-01T00-00-00.000")
    compare(monkeypatch, f"vanilla={one}", f"with=[IND]={two}")
    told = capsys.readouterr().out.splitlines()
    assert told[2] == "| vanilla | 0.500 [0.000, 1.000] |  | 4 |"
    assert told[3] == "| with=[IND] | 0.750 [0.250, 1.000] | +0.250 [-0.500, +1.000] | 4 |"


def test_runs_that_can_not_be_compared_are_refused(tmp_path, monkeypatch):
    one, two = write(tmp_path / "one", [0, 1]), write(tmp_path / "two", [0, 1, 1])
    with pytest.raises(InputError, match="two was asked other questions"):
        compare(monkeypatch, f"one={one}", f"two={two}")
    write(one, [0, 1], task="nih_ctx")
    with pytest.raises(InputError, match="has samples of nih_ctx, squad_contain; pass the file of one"):
        compare(monkeypatch, f"one={one}")
    compare(monkeypatch, f"one={next(one.glob('samples_nih*'))}")
    with pytest.raises(SystemExit):
        compare(monkeypatch, str(one))
