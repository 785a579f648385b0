"""Messages → rendered text → which token belongs to which message. The only module that knows.

Content is found by position: the template is rendered a second time with a placeholder for each
content, which gives the template's own text between them; the real text must be that text with the
contents in place. So nothing that a message says can change where it is.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOBODY = -1  # owner of the template's own tokens
RENDERING_SECONDS = 20.0  # for one conversation, which takes milliseconds
_GROWTH, _TEMPLATE_SIZE = 10, 1_000_000  # characters that a template may write: a message's share, and its own


class Span(NamedTuple):
    """Characters `start` to `end` of the rendered text are the content of message `message_idx`."""

    message_idx: int
    role: str
    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as the chat template writes it, and where each message's content stands in it."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Tokenized:
    """Token ids of a rendered conversation.

    Attributes:
        input_ids: int64 `[n_tokens]`.
        owner: int64 `[n_tokens]`: index of the message whose content the token overlaps, or `NOBODY`.
        roles: role of each message, by index.
    """

    input_ids: np.ndarray
    owner: np.ndarray
    roles: tuple[str, ...]

    def mask(self, role: str) -> np.ndarray:
        """bool `[n_tokens]`: the token belongs to a message of `role`."""
        has_role = np.array([r == role for r in self.roles] + [False])  # the last entry is NOBODY's
        return has_role[self.owner]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict], **template_kwargs: Any) -> Rendered:
    """Render `messages` with the tokenizer's chat template and locate every content.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: dicts with `role` and `content` (a string).
        template_kwargs: passed to `apply_chat_template`, for example `add_generation_prompt`.

    Raises:
        InputError: there is no template, it rejects the messages, or it changes their content
            (more than by stripping white space at its ends), so that positions can't be known.
    """
    if not tokenizer.chat_template:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; use a chat model's tokenizer")
    apply = functools.partial(tokenizer.apply_chat_template, tokenize=False, **template_kwargs)
    size = sum(len(message["content"]) for message in messages)
    # the second rendering holds no content at all, so what contents say can't be taken for a placeholder
    placeholders = [f"\ue000{i}\ue001" for i in range(len(messages))]
    with template_errors():
        text = apply(list(messages))
        skeleton = apply([{**m, "content": p} for m, p in zip(messages, placeholders, strict=True)])
    if len(text) + len(skeleton) > _GROWTH * size + _TEMPLATE_SIZE:
        raise InputError(f"the chat template writes {len(text):,} characters for messages of {size:,}; mend it")
    return Rendered(text, _locate(text, skeleton, messages))


@contextlib.contextmanager
def template_errors(refusals: bool = True) -> Iterator[None]:
    """For a chat template at work: whatever is wrong with it is an `InputError`, and one that never ends is stopped.

    It is stopped in the main thread, where the system has such a timer.

    Args:
        refusals: False lets what a template itself raises (jinja2's `TemplateError`, of a system message most often)
            pass, for a caller who then tries without.
    """
    from jinja2.exceptions import TemplateError

    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    try:
        if timed:
            previous = signal.signal(signal.SIGALRM, _too_long)
            signal.setitimer(signal.ITIMER_REAL, RENDERING_SECONDS)
        try:
            yield
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, previous)
    except TimeoutError as error:
        raise InputError(
            f"the chat template is not done with a conversation after {RENDERING_SECONDS:g} seconds"
        ) from error
    except InputError:
        raise
    except (
        *(TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError),
        *(RecursionError, TypeError, ValueError),
    ) as error:
        if isinstance(error, TemplateError) and not refusals:
            raise
        raise InputError(f"the chat template rejects this conversation: {error}") from error


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


def _locate(text: str, skeleton: str, messages: Sequence[dict]) -> tuple[Span, ...]:
    pieces = re.split("\ue000(\\d+)\ue001", skeleton)  # literal, index, literal, index, …, literal
    literals, order = pieces[0::2], [int(i) for i in pieces[1::2]]
    if sorted(order) != list(range(len(messages))):
        shown = len(set(order))
        raise InputError(f"the chat template shows {shown} of {len(messages)} messages, or one twice: can't be scored")
    spans, position = [], len(literals[0])
    ok = text.startswith(literals[0])
    for idx, literal in zip(order, literals[1:], strict=True):
        content = messages[idx]["content"]
        length = next((n for n in _lengths(text, position, content) if text.startswith(literal, position + n)), None)
        if not ok or length is None:
            raise InputError(
                f"the chat template changes the content of message {idx} ({messages[idx]['role']}) "
                "or the text beside it"
            )
        spans.append(Span(idx, messages[idx]["role"], position, position + length))
        position += length + len(literal)
    if position != len(text):
        raise InputError("the chat template writes other text for these messages than for plain ones: can't be located")
    return tuple(spans)


def _lengths(text: str, position: int, content: str) -> Iterator[int]:
    """Lengths at which `text` has `content` at `position` with more and more white space taken from its ends."""
    core = content.strip()
    head = content[: content.index(core)]
    tail = content[len(head) + len(core) :]
    around = text[position : position + len(head)]
    kept = head[len(head) - (len(around) - len(around.lstrip())) :]  # the core starts where the white space ends
    if text.startswith(kept + core, position):
        start = position + len(kept) + len(core)
        pairs = zip(tail, text[start : start + len(tail)], strict=False)
        n_common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        yield from (len(kept) + len(core) + n for n in range(n_common, -1, -1))


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    rendered: Rendered,
    max_length: int | None = None,
    add_special_tokens: bool = False,
) -> Tokenized:
    """Tokenise a rendered conversation and say which message each token belongs to.

    A token belongs to a message when its character range overlaps the content's. Of a special token only
    its own text counts: one that takes white space beside it (`<|user|>` with `rstrip`) stays the
    template's, even where that white space is the message's.

    Args:
        tokenizer: a fast tokenizer (slow ones give no character ranges).
        rendered: from `render`.
        max_length: tokens to keep from the start; None for all.
        add_special_tokens: whether the tokenizer adds its own (BOS), which belong to nobody; a template writes them.

    Raises:
        InputError: the tokenizer is not a fast one, or its character ranges leave out a message.
    """
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} is not a fast one; character ranges need a fast one")
    encoding = tokenizer(
        rendered.text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
    )
    ids = np.array(encoding["input_ids"][:max_length], dtype=np.int64)
    offsets = np.array(encoding["offset_mapping"][:max_length], dtype=np.int64).reshape(-1, 2)
    _without_outer_space(rendered.text, ids, offsets, _special_ids(tokenizer))
    owner = np.full(len(ids), NOBODY, dtype=np.int64)
    for span in rendered.spans:
        overlaps = (offsets[:, 0] < span.end) & (offsets[:, 1] > span.start)
        owner[overlaps] = span.message_idx
        is_cut = len(ids) == max_length and (len(ids) == 0 or offsets[-1, 1] <= span.end)
        if not is_cut and not overlaps.any() and rendered.text[span.start : span.end].strip():
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} gives no character ranges for message {span.message_idx} "
                f"({span.role}); its tokens can't be told from the template's"
            )
    roles = {span.message_idx: span.role for span in rendered.spans}
    return Tokenized(ids, owner, tuple(roles[i] for i in range(len(roles))))


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return np.array([i for i, token in tokenizer.added_tokens_decoder.items() if token.special], dtype=np.int64)


def _without_outer_space(text: str, ids: np.ndarray, offsets: np.ndarray, special_ids: np.ndarray) -> None:
    """Take the white space at both ends out of the ranges of special tokens, in place."""
    for i in np.flatnonzero(np.isin(ids, special_ids)):
        start, end = offsets[i]
        piece = text[start:end]
        if piece.strip():
            offsets[i] = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """A pattern of the texts that the tokenizer turns into special tokens; None where it has none."""
    texts = {str(t) for t in tokenizer.all_special_tokens}
    texts |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = {t.strip() for t in texts}  # with a space of its own at an end, defusing would never end
    longest_first = sorted((t for t in texts if len(t) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def defuse(text: str, pattern: re.Pattern | None) -> str:
    """`text` with a space after the first character of each special token typed in it, so it stays text.

    `<|im_end|>` in a message becomes `< |im_end|>`: a person reads the same, no token is special.

    Args:
        text: a message's content.
        pattern: from `special_token_pattern`.
    """
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def n_instructions(messages: Sequence[dict]) -> int:
    """User messages of a conversation: its turns."""
    return sum(message["role"] == "user" for message in messages)
