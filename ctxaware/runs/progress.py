"""A progress bar with an estimate of the time left: on a terminal a bar, in a log file a line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

LINE_EVERY = 30  # seconds, where standard error is no terminal


@contextlib.contextmanager
def progress_bar(
    description: str, total: float, count: str = "", shown: bool = True
) -> Iterator[Callable[[float, int], None]]:
    """Progress on standard error; the yielded `advance(steps, n_counted)` moves it on.

    Args:
        description: what is being done.
        total: number of steps, the unit of the estimate.
        count: name of a second thing counted, shown per second; "" for none.
        shown: False shows nothing (all processes but one).
    """
    if not shown:
        yield lambda steps, n_counted=0: None
        return
    if not sys.stderr.isatty():
        yield _line_writer(description, total, count)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), speed_estimate_period=600
    ) as bar:
        task, started, counted = bar.add_task(description, total=total, rate=""), time.monotonic(), 0

        def advance(steps: float, n_counted: int = 0) -> None:
            nonlocal counted
            counted += n_counted
            rate = f"{counted / (time.monotonic() - started):,.0f} {count}/s" if count else ""
            bar.update(task, advance=steps, rate=rate)

        yield advance


def _line_writer(description: str, total: float, count: str) -> Callable[[float, int], None]:
    started = last = time.monotonic()
    done, counted = 0.0, 0

    def advance(steps: float, n_counted: int = 0) -> None:
        nonlocal last, done, counted
        done, counted, now = done + steps, counted + n_counted, time.monotonic()
        if now - last < LINE_EVERY or not done:
            return
        last = now
        left = int((now - started) * (total - done) / done)
        rate = f", {counted / (now - started):,.0f} {count}/s" if count else ""
        print(
            f"{description}: {done:.0f}/{total:.0f}{rate}, {left // 60}:{left % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )

    return advance
