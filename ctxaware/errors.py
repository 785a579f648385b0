"""The one exception a user's mistake raises, and how a command shows it."""

import re
import sys
from collections.abc import Callable

_SETTING = re.compile(r"\{(\w+)\}")


class InputError(ValueError):
    """What a user passed can't be used: the message says what came, what was expected and what to do.

    A remedy names settings in braces: `InputError("out of memory", "lower {batch_tokens} or {max_length}")`. In
    Python it reads "out of memory; lower batch_tokens or max_length"; a command line puts its own spelling there, as
    `--batch-tokens`. So a library's message never names a flag, and values stand in the message alone, where braces
    mean nothing.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message, self.remedy = message, remedy

    def describe(self, spell: Callable[[str], str] = str) -> str:
        """The message and the remedy, whose settings are named as `spell` spells them."""
        remedy = _SETTING.sub(lambda match: spell(match[1]), self.remedy)
        return f"{self.message}; {remedy}" if remedy else self.message

    def __str__(self) -> str:
        return self.describe()


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def print_error(error: BaseException, spell: Callable[[str], str] = str) -> None:
    """Write `error` as one line on standard error, the settings of its remedy as `spell` spells them."""
    text = error.describe(spell) if isinstance(error, InputError) else str(error)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
