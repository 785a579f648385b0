"""FastChat's protocol for an answer: temperature, limit, and what the model is shown."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from ctxaware.chat import defuse
from ctxaware.indicator.marking import append_indicator

MAX_NEW_TOKENS = 1024  # FastChat's
_OTHER_CATEGORY_TEMPERATURE = 0.7  # FastChat's, for a category that its table lacks


def temperature_of(question: dict[str, Any], temperature_config: dict[str, float]) -> float:
    """FastChat's rule: the question's own `required_temperature`, else its category's, else 0.7."""
    if "required_temperature" in question:
        return question["required_temperature"]
    return temperature_config.get(question["category"], _OTHER_CATEGORY_TEMPERATURE)


def seed_of(seed: int, question_id: int | str, turn: int, choice: int = 0) -> int:
    """A seed for one answer alone, 0 to 2**31 - 1 (what endpoints take)."""
    digest = hashlib.sha256(f"{seed} {question_id} {turn} {choice}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def conversation(
    turns: list[str], answers: list[str], selected: Sequence[bool], special: re.Pattern | None
) -> list[dict[str, str]]:
    """The messages up to the turn that is to be answered; special tokens typed in a text stay text.

    Args:
        turns: the question's user messages.
        answers: the model's so far; one fewer than the messages shown.
        selected: which of the user messages shown get `[IND]`.
        special: from `special_token_pattern`, or None.
    """
    messages = []
    for i, turn in enumerate(turns[: len(answers) + 1]):
        text = defuse(turn, special)
        messages.append({"role": "user", "content": append_indicator(text) if selected[i] else text})
        if i < len(answers):
            messages.append({"role": "assistant", "content": defuse(answers[i], special)})
    return messages
