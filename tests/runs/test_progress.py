import io
import sys

import pytest

from ctxaware.runs import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, for the bar and for tqdm."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_file_gets_a_whole_line_now_and_then(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("scoring", 100, "tokens") as advance:
        for _ in range(90):
            clock[0] += 1
            advance(1, 50)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert lines == [
        "scoring: 30/100, 50 tokens/s, 01:10 left",
        "scoring: 60/100, 50 tokens/s, 00:40 left",
        "scoring: 90/100, 50 tokens/s, 00:10 left",
    ]


def test_after_many_fast_steps_a_slow_one_is_still_shown(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("scoring", 2000) as advance:
        for _ in range(1000):
            clock[0] += 0.1
            advance(1)
        clock[0] += 40
        advance(1)
        assert log.getvalue().splitlines()[-1].startswith("scoring: 1001/2000")


def test_a_short_run_leaves_a_log_file_alone(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("scoring", 3) as advance:
        clock[0] += 29
        advance(3)
    assert log.getvalue() == ""


def test_a_share_of_a_file_is_shown_rounded(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("preparing", 100) as advance:
        clock[0] += 31
        advance(33.333)
    assert log.getvalue().splitlines()[-1] == "preparing: 33/100, 01:02 left"


def test_a_terminal_gets_a_bar_and_other_processes_nothing(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress_bar("scoring", 4, "tokens") as advance:
        clock[0] += 1
        advance(2, 10)
    assert " 50%|" in terminal.getvalue()
    assert "2/4, 10 tokens/s [00:01, 00:01 left]" in terminal.getvalue()
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent)
    with progress.progress_bar("scoring", 4, shown=False) as advance:
        advance(4)
    assert silent.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_bar_that_is_moved_past_its_end_stays_there(clock, monkeypatch, stream):
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress.progress_bar("reading", 4) as advance:
        for _ in range(3):
            clock[0] += 31
            advance(2)
    assert "4/4" in shown.getvalue().splitlines()[-1]
