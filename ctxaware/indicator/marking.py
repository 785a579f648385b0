"""`[IND]` on messages: training, evaluation and MT-Bench all mark through these functions."""

import re
from collections.abc import Sequence

from ctxaware.chat import defuse, n_instructions
from ctxaware.errors import InputError
from ctxaware.indicator.token import INDICATOR

NEVER, ALWAYS, AUTO = MODES = ("never", "always", "auto")  # which user messages are marked; auto: the model decides


def append_indicator(message: str) -> str:
    """`message` with the indicator after a space; one that ends in a letter or digit first gets a full stop."""
    stop = "." if message and message[-1].isalnum() else ""
    return f"{message}{stop} {INDICATOR}"


def without_indicator(message: str) -> str:
    """`message` without the indicator that `append_indicator` put at its end; without one, `message`.

    The full stop stays, so that `append_indicator` gives the same marked message again.
    """
    return message.removesuffix(f" {INDICATOR}")


_TYPED = re.compile(re.escape(INDICATOR))


def mark_messages(messages: Sequence[dict], selected: Sequence[bool]) -> list[dict]:
    """Messages with the indicator on the selected instructions.

    `[IND]` typed in a message is made ordinary text first, so that every `[IND]` in the result is a mark.

    Args:
        messages: dicts with `role` and `content`.
        selected: one entry per user message, in order.

    Raises:
        InputError: the number of entries is not the number of user messages.
    """
    n_turns = n_instructions(messages)
    if len(selected) != n_turns:
        raise InputError(f"expected {n_turns} selections, one per user message, got {len(selected)}")
    choices, marked = iter(selected), []
    for message in messages:
        content = defuse(message["content"], _TYPED)
        if message["role"] == "user" and next(choices):
            content = append_indicator(content)
        marked.append({**message, "content": content})
    return marked
