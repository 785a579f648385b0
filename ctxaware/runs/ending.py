"""How a command ends: a mistake, a place that can't be written to and an interruption are one line each."""

import contextlib
import errno
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from ctxaware.errors import InputError, print_error

MISTAKE = 2  # exit code
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP}
_REMEDIES = {
    **dict.fromkeys(_FULL, "make room"),
    **dict.fromkeys(_CLOSED, "make the place writable"),
    **dict.fromkeys(_IN_THE_WAY, "move it away"),
}
_OF_TORCH = ("PytorchStreamWriter failed", "inline_container.cc", "No space left on device", "os error 28")
_AGAIN = "then run the same command again"


@contextlib.contextmanager
def ends_in_one_line(spell: Callable[[str], str], who: Callable[[], str] = str) -> Iterator[None]:
    """Let what a user can mend end the process with one line on standard error; a bug keeps its traceback.

    Exit code 2 stands for an `InputError` or a place that can't be written to, 130 for Ctrl-C, 143 for SIGTERM, which
    both raise a KeyboardInterrupt: what was begun is cleared away, what is done stays.

    Args:
        spell: how the command line spells a setting.
        who: what stands before an error where several processes are at work; "" for the main one.

    Raises:
        SystemExit: in place of any of these.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # a second Ctrl-C ends the process at once; SIGTERM comes again from launchers, and clearing away is soon over
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        raise KeyboardInterrupt

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                earlier[number] = signal.signal(number, interrupt)
    try:
        try:
            yield
        except KeyboardInterrupt:
            received = received or [signal.SIGINT]
        except Exception as error:
            mistake = error if isinstance(error, InputError) else place_error(error)
            if not received and mistake is None:  # libraries make other errors of an interruption
                raise
            if not received and mistake is not None:
                print_error(InputError(who() + mistake.message, mistake.remedy), spell)
                sys.exit(MISTAKE)
        if received:  # also where a library has swallowed it
            if not who():
                print("interrupted: what is done is kept; run the same command again to go on", file=sys.stderr)
            sys.exit(128 + received[0])
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def place_error(error: BaseException) -> InputError | None:
    """What a user should know where a library failed for want of space or permission; None for another error.

    Libraries raise what they like then, with the system's own error among the causes at best.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _REMEDIES:
            what = f"{link.filename}: {link.strerror}" if link.filename else str(link.strerror)
            return InputError(what, f"{_REMEDIES[link.errno]} or choose another one, {_AGAIN}")
        if isinstance(link, sqlite3.OperationalError):
            return InputError(f"the cache of answers can't be used: {link}", f"make room, {_AGAIN}")
        if any(sign in str(link) for sign in _OF_TORCH):
            return InputError(f"a file can't be written: {str(link).splitlines()[0]}", f"make room, {_AGAIN}")
        link = link.__cause__ or link.__context__
    return None
