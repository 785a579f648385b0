"""A command ends with one line and a code where a user can do something about it, and with a traceback for a bug."""

import errno
import os
import signal
import sqlite3

import pytest

from ctxaware.errors import InputError
from ctxaware.runs.ending import ends_in_one_line, place_error

INTERRUPTED = "interrupted: what is done is kept; run the same command again to go on\n"


def ending(capsys, work, who=str):
    with pytest.raises(SystemExit) as end, ends_in_one_line("--{}".format, who):
        work()
    return end.value.code, capsys.readouterr().err


def raising(error):
    def work():
        raise error

    return work


def caused_by(error, cause):
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "a.bin")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("got 9", "pass another {layer}"), "error: got 9; pass another --layer\n"),
        (FULL, "error: a.bin: No space left on device; make room or choose another one, then run the same command a"),
        (
            OSError(errno.EROFS, "Read-only file system", "a"),
            "error: a: Read-only file system; make the place writable",
        ),
        (OSError(errno.ENOTDIR, "Not a directory", "a"), "error: a: Not a directory; move it away or choose another"),
        (caused_by(RuntimeError("writing failed"), FULL), "error: a.bin: No space left on device; make room"),
        (
            sqlite3.OperationalError("database or disk is full"),
            "error: the cache of answers can't be used: database or",
        ),
        (
            RuntimeError("PytorchStreamWriter failed writing file"),
            "error: a file can't be written: PytorchStreamWriter",
        ),
    ],
    ids=str,
)
def test_what_a_user_can_mend_is_one_line(capsys, error, line):
    code, printed = ending(capsys, raising(error))
    assert code == 2
    assert printed.startswith(line)
    assert printed.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    assert place_error(ValueError("x")) is None
    assert place_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    with pytest.raises(ZeroDivisionError), ends_in_one_line(str):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_one_line_also_where_a_library_swallows_it(capsys, number, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def swallow():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            return

    def distort():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            raise RuntimeError("generation failed") from error

    for work in (lambda: os.kill(os.getpid(), number), swallow, distort):
        assert ending(capsys, work) == (code, INTERRUPTED)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_of_many_processes_the_main_one_says_that_it_was_interrupted(capsys):
    assert ending(capsys, raising(KeyboardInterrupt()), lambda: "process 1: ") == (130, "")
    code, printed = ending(capsys, raising(InputError("got 9")), lambda: "process 1: ")
    assert (code, printed) == (2, "error: process 1: got 9\n")
