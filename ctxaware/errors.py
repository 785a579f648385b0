"""The one exception a user's mistake raises, and how a command shows it."""

import contextlib
import sys


class InputError(ValueError):
    """What a user passed can't be used: the message says what came, what was expected and what to do."""


def print_error(error: BaseException) -> None:
    """Write `error` as one line on standard error."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def _one_line_excepthook(kind, error, traceback, previous=sys.excepthook):
    if not isinstance(error, InputError):
        return previous(kind, error, traceback)
    print_error(error)
    raise SystemExit(2)  # the interpreter takes the exit code from here


@contextlib.contextmanager
def one_line_in_lm_eval():
    """Let an `InputError` that ends the `lm_eval` command show as one line with exit code 2.

    Only the command is touched, and only when the error is on its way: a script that calls
    `simple_evaluate` sees the ordinary exception with its traceback.
    """
    try:
        yield
    except InputError:
        main = getattr(sys.modules.get("__main__"), "__spec__", None)
        if "lm_eval.__main__" in sys.modules or getattr(main, "name", None) == "lm_eval.__main__":
            sys.excepthook = _one_line_excepthook
        raise
