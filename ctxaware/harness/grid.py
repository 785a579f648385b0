"""The grid of documents with a needle: exact token counts at exact depths (protocol section 1)."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.chat import defuse, special_token_pattern
from ctxaware.errors import InputError
from ctxaware.harness.haystack import load_haystack
from ctxaware.harness.needles import Needle, load_needle, logger
from ctxaware.harness.prompts import PROMPT_TEMPLATES
from ctxaware.harness.settings import NeedleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CELLS = 100_000  # weeks of work for any model
MAX_TOKENS = 20_000_000  # of a document, where no window says less: some 80 MB of text


def grid_context_lengths(min_context_length: int, max_context_length: int, num: int, reserve: int) -> list[int]:
    """Lengths of haystack-with-needle in tokens: uniform from the minimum to the maximum less `reserve`.

    A single length is the longest.

    Raises:
        InputError: no lengths, or the maximum less `reserve` is below the minimum.
    """
    longest = max_context_length - reserve
    if num < 1:
        raise InputError(f"num_context_lengths must be at least 1, got {num}: a grid of zero cells tests nothing")
    if reserve < 0 or min_context_length < 1 or longest < min_context_length:
        raise InputError(
            f"max_context_length {max_context_length} less reserve {reserve} must be at least min_context_length "
            f"{min_context_length}, and that at least 1; raise max_context_length or lower the other two"
        )
    return [longest] if num == 1 else np.linspace(min_context_length, longest, num).round().astype(int).tolist()


def grid_depths(num: int) -> list[float]:
    """Depths in percent, uniform from 0 to 100; a single depth is the middle.

    Raises:
        InputError: no depths.
    """
    if num < 1:
        raise InputError(f"num_depths must be at least 1, got {num}: a grid of zero cells tests nothing")
    return [50.0] if num == 1 else np.linspace(0, 100, num).tolist()


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


class GridBuilder:
    """Documents of exact token counts with a needle at a depth, from a haystack tokenised once.

    A cell is put together from characters of the haystack, so no decoded text can differ from the
    original. Its token count is known without encoding it whole: far from a cut or an insertion the
    tokens are those of the haystack, so only some text around these places is encoded anew.

    Args:
        tokenizer: a fast tokenizer.
        haystack: the text; repeated, with a space between, where a cell is longer.
        needle: the needle.
        max_length: tokens of the longest cell.

    Raises:
        InputError: the tokenizer is not a fast one, or the haystack holds no text.
    """

    _WINDOW = 32  # at least so many tokens either side of a cut are encoded anew

    def __init__(self, tokenizer: PreTrainedTokenizerBase, haystack: str, needle: Needle, max_length: int):
        if not tokenizer.is_fast:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} is not a fast one; pass tokenizer=… with a fast one"
            )
        if not haystack.strip():
            raise InputError("the haystack holds no text; pass haystack=… with some")
        self.tokenizer, self.needle = tokenizer, needle
        self._tokenize(haystack.strip(), max_length)
        self.sentence_end_chars = [m.end() for m in re.finditer(r"\.(?=\s)", self.text)]
        self._needle_tokens = self._count(" " + needle.needle)

    def _tokenize(self, haystack: str, n_tokens: int) -> None:
        """Encode as much of the haystack as the longest cell needs."""
        size = 8 * n_tokens  # characters; English has about 4 a token
        while True:
            copies = -(-size // (len(haystack) + 1))
            self.text = " ".join([haystack] * copies)[:size] if copies > 1 else haystack[:size]
            offsets = np.array(self._encode(self.text, return_offsets_mapping=True)["offset_mapping"]).reshape(-1, 2)
            if len(offsets) >= n_tokens:
                break
            size *= 2
        if offsets[n_tokens - 1, 1] > len(haystack):
            _warn_once(f"the haystack has fewer than the {n_tokens} tokens of the longest cell; it is repeated")
        self.start_chars, self.end_chars = offsets[:, 0], offsets[:, 1]
        is_space = np.array([c.isspace() for c in self.text] + [True])
        clean = (
            is_space[self.start_chars[1:]]
            & ~is_space[self.end_chars[:-1] - 1]
            & (self.start_chars[1:] >= self.end_chars[:-1])
        )
        # tokens that start a word: a cut before one changes no other token
        self.word_tokens = np.flatnonzero(clean) + 1

    def _encode(self, text: str, **kwargs: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **kwargs)

    def _count(self, text: str) -> int:
        return len(self._encode(text)["input_ids"])

    def cell(self, context_length: int, depth_percent: float) -> dict:
        """One document.

        Args:
            context_length: tokens, needle included.
            depth_percent: 0-100; the needle goes in after the last full stop at or before it.

        Returns:
            `context`, `context_length` (the true count: the one asked for, or in a rare tokenizer the
            nearest below it), `depth_percent`.

        Raises:
            InputError: a depth outside 0-100, or a length that the needle alone exceeds.
        """
        if not 0 <= depth_percent <= 100:
            raise InputError(f"depth_percent must be in 0-100, got {depth_percent}")
        if context_length <= self._needle_tokens:
            raise InputError(f"a context of {context_length} tokens can't hold the needle's {self._needle_tokens}")
        n_hay, best = context_length - self._needle_tokens, (0, "")
        for _ in range(8):  # the first try is nearly always exact
            at_char = self._insertion_point(n_hay, depth_percent)
            count = self._true_count(n_hay, at_char)
            if best[0] < count <= context_length:
                best = (count, self._compose(0, at_char, self.end_chars[n_hay - 1]))
            if count == context_length:
                break
            n_hay = max(1, n_hay + context_length - count)
        return {"context": best[1], "context_length": best[0], "depth_percent": depth_percent}

    def _insertion_point(self, n_hay: int, depth_percent: float) -> int:
        """The character after the last full stop at or before the depth; 0 opens and the end closes the text."""
        if depth_percent == 100:
            return int(self.end_chars[n_hay - 1])
        n_before = int(n_hay * depth_percent / 100)
        limit = self.end_chars[n_before - 1] if n_before else 0
        k = bisect.bisect_right(self.sentence_end_chars, limit)
        return self.sentence_end_chars[k - 1] if k else 0

    def _compose(self, start: int, at_char: int, end: int) -> str:
        """Haystack characters `start` to `end` with the needle at `at_char`."""
        if at_char == 0:
            return f"{self.needle.needle} {self.text[:end]}"
        return f"{self.text[start:at_char]} {self.needle.needle}{self.text[at_char:end]}"

    def _true_count(self, n_hay: int, at_char: int) -> int:
        """Tokens of the cell with the first `n_hay` haystack tokens and the needle at character `at_char`."""
        needle_token = int(np.searchsorted(self.end_chars[:n_hay], at_char))
        first_token, last_token = self._word_before(needle_token), self._word_after(needle_token)
        if last_token >= n_hay:  # one fragment holds the insertion and the cut
            fragment = self._count(self._compose(self.start_chars[first_token], at_char, self.end_chars[n_hay - 1]))
            return first_token + fragment - self._start_excess(first_token)
        with_needle = self._count(self._compose(self.start_chars[first_token], at_char, self.end_chars[last_token - 1]))
        without = self._count(self.text[self.start_chars[first_token] : self.end_chars[last_token - 1]])
        return self._cut_count(n_hay) + with_needle - without

    def _cut_count(self, n_hay: int) -> int:
        """Tokens of the haystack cut after `n_hay` tokens: a word cut in two may be split otherwise."""
        first_token = self._word_before(n_hay)
        return (
            first_token
            + self._count(self.text[self.start_chars[first_token] : self.end_chars[n_hay - 1]])
            - self._start_excess(first_token)
        )

    def _start_excess(self, first_token: int) -> int:
        """By how much a fragment, encoded alone, exceeds its tokens for the way it starts (a prefix space, say)."""
        stop = self._word_after(first_token)
        return self._count(self.text[self.start_chars[first_token] : self.end_chars[stop - 1]]) - (stop - first_token)

    def _word_before(self, token: int) -> int:
        """A token well before `token` where a word starts; the first of all if there is none."""
        k = np.searchsorted(self.word_tokens, token - self._WINDOW, side="right")
        return int(self.word_tokens[k - 1]) if k else 0

    def _word_after(self, token: int) -> int:
        """A token well after `token` where a word starts; past the last if there is none."""
        k = np.searchsorted(self.word_tokens, token + self._WINDOW)
        return int(self.word_tokens[k]) if k < len(self.word_tokens) else len(self.end_chars)


def build_grid(
    tokenizer: PreTrainedTokenizerBase,
    haystack: str,
    needle: Needle,
    context_lengths: Sequence[int],
    depths: Sequence[float],
) -> Iterator[dict]:
    """The grid's documents, by length and then depth.

    Args:
        tokenizer: a fast tokenizer.
        haystack: text.
        needle: the needle.
        context_lengths: tokens, needle included.
        depths: percent, 0-100.

    Yields:
        What `GridBuilder.cell` returns, with `needle`, `question`, `keywords`.
    """
    builder = GridBuilder(tokenizer, haystack, needle, max(context_lengths))
    for context_length in context_lengths:
        for depth in depths:
            yield {
                **builder.cell(context_length, depth),
                "needle": needle.needle,
                "question": needle.question,
                "keywords": list(needle.keywords),
            }


def check_needle_settings(settings: NeedleSettings) -> tuple[list[int], list[float], Needle]:
    """The lengths, depths and needle of settings, without a haystack or a model.

    Raises:
        InputError: a setting is out of range, or the needle can't be read.
    """
    if settings.prompt_template not in PROMPT_TEMPLATES:
        raise InputError(f"prompt_template must be in 1-{len(PROMPT_TEMPLATES)}, got {settings.prompt_template}")
    if settings.num_context_lengths * settings.num_depths > MAX_CELLS:
        raise InputError(
            f"a grid has at most {MAX_CELLS:,} cells, got {settings.num_context_lengths} x {settings.num_depths}"
        )
    lengths = grid_context_lengths(
        settings.min_context_length, settings.max_context_length, settings.num_context_lengths, settings.reserve
    )
    return lengths, grid_depths(settings.num_depths), load_needle(settings.needle)


def needle_documents(
    settings: NeedleSettings, tokenizer: PreTrainedTokenizerBase, window: int | None = None
) -> list[dict]:
    """The documents of a needle task's settings, by length and then depth; what `build_grid` yields.

    Special tokens typed in the haystack stay text.

    Args:
        settings: of the task.
        tokenizer: a fast tokenizer.
        window: of the model, in tokens; None where it is not known.

    Raises:
        InputError: a setting is out of range or past the window, or the haystack can't be read.
    """
    if settings.max_context_length > (limit := window or MAX_TOKENS):
        raise InputError(
            f"max_context_length {settings.max_context_length} is past {'the window' if window else 'the limit'} of "
            f"{limit:,} tokens",
            "lower {max_context_length}",
        )
    lengths, depths, needle = check_needle_settings(settings)
    haystack = load_haystack(settings.haystack or settings.source, settings.data_revision)
    haystack = defuse(haystack, special_token_pattern(tokenizer))
    return list(build_grid(tokenizer, haystack, needle, lengths, depths))
