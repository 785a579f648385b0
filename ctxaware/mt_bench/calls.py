"""Calls of a model: what came of one, one within a time limit, and many at a time."""

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ctxaware.errors import InputError

MAX_FAILED_IN_A_ROW = 8  # at least: calls that the endpoint failed, each after its retries; then nobody is there

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """One answer of a model, local or behind an endpoint.

    Attributes:
        text: what it said.
        finish_reason: `stop`, `length` (the limit on new tokens), `window` (the end of the context window).
        n_tokens: generated tokens; None where the endpoint doesn't say.
        model: the name that the endpoint gave for itself.
        decision: of `indicator=auto`, the probability that the turn needs its context, and whether it got `[IND]`.
    """

    text: str
    finish_reason: str | None = None
    n_tokens: int | None = None
    model: str | None = None
    decision: tuple[float, bool] | None = None


class CallFailed(Exception):
    """No usable text came of a call.

    Attributes:
        kind: one word for tables, as `timeout` or `http_429`.
        text: what came instead of a usable text, if anything.
        is_endpoint: the endpoint failed, not this one prompt.
    """

    def __init__(self, kind: str, message: str, text: str | None = None, is_endpoint: bool = False):
        super().__init__(message)
        self.kind, self.text, self.is_endpoint = kind, text, is_endpoint


def _in_background(work: Callable[[], Result], results: "queue.SimpleQueue[tuple]", *tag: Any) -> None:
    """Put `(*tag, result, None)` or `(*tag, None, error)` into `results`. Nobody waits for the thread at exit."""

    def run() -> None:
        try:
            results.put((*tag, work(), None))
        except BaseException as error:
            results.put((*tag, None, error))

    threading.Thread(target=run, daemon=True).start()


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """The result of `work`, which is left behind after so many seconds: a client's limits are for one read alone.

    Raises:
        TimeoutError: it took longer.
    """
    results: queue.SimpleQueue = queue.SimpleQueue()
    _in_background(work, results)
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"the call was not over after {seconds:g} seconds") from None
    if error is not None:
        raise error
    return result


def run_all(
    tasks: Iterable[Task],
    work: Callable[[Task], Result],
    done: Callable[[Task, Result | None, CallFailed | None], None],
    parallel: int = 1,
) -> str | None:
    """Run `work(task)` in `parallel` threads; `done(task, result, failure)` runs here, as each one ends.

    Args:
        tasks: what to do.
        work: returns a result or raises `CallFailed`.
        done: takes the task, its result or None, and its failure or None.
        parallel: calls at a time.

    Returns:
        Why it stopped before the end: so many calls in a row failed that nobody seems to be there. Else None.

    Raises:
        InputError: as `work` raised it; whatever else was on its way has been waited for and handed to `done`.
        KeyboardInterrupt: at once; what had come by then has been handed to `done`.
    """
    results: queue.SimpleQueue = queue.SimpleQueue()
    remaining, n_running, n_failed, limit = iter(tasks), 0, 0, max(MAX_FAILED_IN_A_ROW, 2 * parallel)
    fatal: InputError | None = None
    stop: str | None = None
    try:
        while True:
            while not (fatal or stop) and n_running < parallel:
                try:
                    task = next(remaining)
                except StopIteration:
                    break
                _in_background(functools.partial(work, task), results, task)
                n_running += 1
            if not n_running:
                break
            task, result, error = results.get()
            n_running -= 1
            if isinstance(error, InputError):
                fatal = error
                continue
            if error is not None and not isinstance(error, CallFailed):
                raise error
            done(task, result, error)
            n_failed = n_failed + 1 if error is not None and error.is_endpoint else 0
            if n_failed >= limit:
                stop = f"{n_failed} calls in a row failed, the last with: {error}"
    except KeyboardInterrupt:
        with contextlib.suppress(queue.Empty):
            while True:
                task, result, error = results.get_nowait()
                if error is None:
                    done(task, result, None)
        raise
    if fatal is not None:
        raise fatal
    return stop
