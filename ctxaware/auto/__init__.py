"""The automatic indicator (protocol section 6b): does this prompt need `[IND]`?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxaware.auto.indicator import AutoIndicator, Decision


def probability(
    model: Any, tokenizer: Any, messages: Sequence[dict], indicator: "AutoIndicator | None" = None
) -> float:
    """How likely the last user message needs its context: p in 0–1, read from the model's forward over the prompt.

    Args:
        model: a causal language model of transformers, with its adapter where it has one.
        tokenizer: its own.
        messages: dicts with `role` and `content`, the last one the user's.
        indicator: None for the `auto_indicator.json` in the folder that the tokenizer or the model was loaded from.

    Raises:
        InputError: the messages are no prompt, or there is no automatic indicator of this model.
    """
    return probabilities(model, tokenizer, [messages], indicator)[0]


def probabilities(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[dict]], indicator: "AutoIndicator | None" = None
) -> list[float]:
    """`probability` of each prompt; what prompts share is computed once."""
    return [each.probability for each in _of(model, tokenizer, indicator).decide(model, tokenizer, prompts)]


def with_indicator(
    model: Any, tokenizer: Any, messages: Sequence[dict], indicator: "AutoIndicator | None" = None
) -> "Decision":
    """The messages as they should be sent: with `[IND]` on the last one where the model says that it needs its context.

    Returns:
        `messages`, with the mark or as they are; `probability`, 0–1; and `is_marked`.

    Raises:
        InputError: as `probability`.
    """
    return _of(model, tokenizer, indicator).decide(model, tokenizer, [messages])[0]


def _of(model: Any, tokenizer: Any, indicator: "AutoIndicator | None") -> "AutoIndicator":
    from ctxaware.auto.indicator import beside

    return indicator or beside(model, tokenizer)
