"""The one exception a user's mistake raises, and how a command shows it."""

import sys


class InputError(ValueError):
    """What a user passed can't be used: the message says what came, what was expected and what to do."""


def print_error(error: BaseException) -> None:
    """Write `error` as one line on standard error."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
