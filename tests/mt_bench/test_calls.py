import time

import pytest

from ctxaware.errors import InputError
from ctxaware.mt_bench.calls import MAX_FAILED_IN_A_ROW, CallFailed, run_all, within


def test_a_call_within_its_time_gives_its_result_or_its_error():
    assert within(5, lambda: 7) == 7
    with pytest.raises(CallFailed, match="refused"):
        within(5, lambda: refuse("connection"))


def refuse(kind):
    raise CallFailed(kind, "refused")


def test_a_call_over_its_time_is_left_behind():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.1 seconds"):
        within(0.1, lambda: time.sleep(30))
    assert time.monotonic() - started < 20


def test_run_all_hands_over_what_came_before_ctrl_c():
    handed = []

    def done(task, result, failure):
        handed.append((task, result))
        if len(handed) == 1:
            time.sleep(1)  # the others come meanwhile
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(range(50), lambda task: 10 * task, done, parallel=4)
    assert sorted(handed) == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_run_all_hands_each_result_over_in_this_thread_and_runs_in_parallel():
    import threading

    here, seen = threading.get_ident(), []
    barrier = threading.Barrier(4, timeout=5)  # breaks unless four run at once

    def done(task, result, failure):
        assert threading.get_ident() == here
        seen.append((task, result, failure))

    def work(task):
        barrier.wait()
        return task * 10

    assert run_all(range(8), work, done, parallel=4) is None
    assert sorted(seen) == [(i, i * 10, None) for i in range(8)]


def test_run_all_stops_where_nobody_is_there_and_says_why():
    done = []

    def work(task):
        raise CallFailed("connection", "refused", is_endpoint=True)

    stopped = run_all(range(100), work, lambda *result: done.append(result))
    assert "refused" in stopped
    assert len(done) == MAX_FAILED_IN_A_ROW


def test_run_all_goes_on_where_only_the_judgments_are_bad():
    done = []

    def work(task):
        raise CallFailed("no_rating", "none")

    assert run_all(range(30), work, lambda *result: done.append(result)) is None
    assert len(done) == 30


def test_run_all_keeps_what_was_on_its_way_when_a_call_ends_the_run():
    done = []

    def work(task):
        if task == 0:
            raise InputError("wrong key")
        time.sleep(0.2)
        return task

    with pytest.raises(InputError, match="wrong key"):
        run_all(range(50), work, lambda task, result, failure: done.append(result), parallel=3)
    assert sorted(done) == [1, 2]
