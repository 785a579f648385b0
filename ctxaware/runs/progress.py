"""A progress bar with an estimate of the time left: on a terminal a bar, in a log file a line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

LINE_EVERY = 30  # seconds, where standard error is no terminal
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{postfix} [{elapsed}, {remaining} left]"
_LINE = "{desc}: {n:.0f}/{total:.0f}{postfix}, {remaining} left"


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, steps: float, n_counted: int = 0) -> None:
        """By so many steps, and so many of the second thing counted."""


@contextlib.contextmanager
def progress_bar(description: str, total: float, count: str = "", shown: bool = True) -> Iterator[Advance]:
    """Progress on standard error; the yielded `advance(steps, n_counted)` moves it on.

    Args:
        description: what is being done.
        total: number of steps, the unit of the estimate.
        count: name of a second thing counted, shown per second; "" for none.
        shown: False shows nothing (all processes but one).
    """
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    started, counted = time.monotonic(), 0
    with tqdm(
        total=total,
        desc=description,
        disable=not shown,
        file=sys.stderr if is_terminal else _Lines(sys.stderr),
        bar_format=_BAR if is_terminal else _LINE,
        mininterval=0.1 if is_terminal else LINE_EVERY,
        delay=0 if is_terminal else LINE_EVERY,  # a short run needs no line
        miniters=1,  # else a slow step after many fast ones would be shown late
        smoothing=0,  # long batches come first: the mean of all, not of the last
        dynamic_ncols=is_terminal,
    ) as bar:

        def advance(steps: float, n_counted: int = 0) -> None:
            nonlocal counted
            counted += n_counted
            if count:
                rate = counted / max(time.monotonic() - started, 1e-9)
                bar.set_postfix_str(f"{rate:,.0f} {count}/s", refresh=False)
            bar.update(min(steps, total - bar.n))  # past its total a bar has none, and can't be written

        yield advance


class _Lines:
    """Writes a bar's states as lines: tqdm itself returns to the line's start, which a log file doesn't show."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._last = line
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()
