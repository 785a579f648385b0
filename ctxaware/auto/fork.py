"""One prompt in two renderings, without and with `[IND]` on its last user message: where they part and meet again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctxaware.chat import defuse, n_instructions, template_errors
from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages, without_indicator
from ctxaware.indicator.token import INDICATOR, indicator_id
from ctxaware.prefix_cache import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Fork:
    """A prompt's tokens without and with the indicator.

    Attributes:
        plain: the prompt as it is.
        marked: the prompt with `[IND]` on its last user message.
        n_common: tokens that both begin with.
        n_plain: tokens of `plain` up to and with the one that closes the message.
        n_marked: tokens of `marked` up to and with `[IND]`.
    """

    plain: tuple[int, ...]
    marked: tuple[int, ...]
    n_common: int
    n_plain: int
    n_marked: int


def make_fork(plain: Sequence[int], marked: Sequence[int], indicator: int) -> Fork:
    """Find where two renderings of a prompt part.

    After the mark the marked rendering ends as the plain one does. Where the plain one has all of that end, the message
    is closed by its first token; where the tokenizer joins the message's end to what follows, by what stands before the
    end that both share.

    Args:
        plain, marked: token ids.
        indicator: the id of `[IND]`.

    Raises:
        InputError: no mark stands behind what both begin with: the chat template drops the last user message.
    """
    plain, marked = tuple(plain), tuple(marked)
    n_common = common_prefix(plain, marked)
    if indicator not in marked[n_common:] or not n_common:
        raise InputError("the chat template does not show the end of the last user message, so it can't be marked")
    n_marked = len(marked) - marked[::-1].index(indicator)
    n_end = len(marked) - n_marked  # what follows the mark
    n_shared = min(common_prefix(plain[::-1], marked[: n_marked - 1 : -1]), len(plain) - n_common)
    n_plain = len(plain) - n_shared + (1 if n_shared == n_end and n_end else 0)
    return Fork(plain, marked, n_common, n_plain, n_marked)


def check_prompt(messages: Sequence[dict]) -> None:
    """Check that messages are a prompt whose last user message can be decided.

    Raises:
        InputError: they end in another message than the user's, or have more than one system message.
    """
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] != "user":
        raise InputError(
            f"the automatic indicator decides the last user message before it is answered; got messages that end in "
            f"{roles[-1] if roles else 'nothing'}; leave out what follows the user's message"
        )
    if (n := roles.count("system")) > 1:
        raise InputError(f"expected at most one system message, got {n}; join them into one")


def earlier_marks(messages: Sequence[dict]) -> tuple[list[dict], list[bool]]:
    """Messages without the marks at the ends of the user messages before the last, and which of these had one.

    Raises:
        InputError: they are no prompt.
    """
    check_prompt(messages)
    plain = [{**m, "content": without_indicator(m["content"])} if m["role"] == "user" else m for m in messages[:-1]]
    pairs = zip(messages, plain, strict=False)
    selected = [old["content"] != new["content"] for old, new in pairs if new["role"] == "user"]
    return [*plain, messages[-1]], selected


def fork_messages(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[dict],
    selected: Sequence[bool] | None = None,
    special: re.Pattern | None = None,
    needs_mark: bool = True,
    **template_kwargs: Any,
) -> Fork:
    """The two renderings of a prompt by the tokenizer's chat template, with its generation prompt.

    Args:
        tokenizer: has a chat template and `[IND]`.
        messages: dicts with `role` and `content`, the last one the user's.
        selected: which user messages before the last carry the mark; None for none.
        special: from `special_token_pattern`: what is typed in messages stays text. `[IND]` always does.
        needs_mark: whether a tokenizer without `[IND]` is an error; else the marked rendering is empty for such a one.
        template_kwargs: for `apply_chat_template`.

    Raises:
        InputError: they are no prompt, or the template can't show them.
    """
    check_prompt(messages)
    before = list(selected) if selected is not None else [False] * (n_instructions(messages) - 1)
    sent = [{**message, "content": defuse(message["content"], special)} for message in messages]
    plain = _encode(tokenizer, mark_messages(sent, [*before, False]), template_kwargs)
    if not needs_mark and INDICATOR not in tokenizer.get_vocab():
        return Fork(tuple(plain), (), len(plain), len(plain), 0)
    token_id = indicator_id(tokenizer)
    return make_fork(plain, _encode(tokenizer, mark_messages(sent, [*before, True]), template_kwargs), token_id)


def _encode(tokenizer: "PreTrainedTokenizerBase", messages: list[dict], template_kwargs: dict) -> list[int]:
    if not tokenizer.chat_template:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; use a chat model's tokenizer")
    with template_errors():
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_kwargs)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # the template writes its own
