"""Keyword recall and containment: pure functions over strings."""

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> set[str]:
    spaced = "".join(
        " " if c in string.punctuation or unicodedata.category(c).startswith("P") else c for c in text.lower()
    )
    return set(spaced.split())


def keyword_recall(response: str, keywords: Sequence[str]) -> float:
    """Share of `keywords` that occur as whole words in `response` (the paper's section 2.1).

    Both sides are lower-cased and every punctuation mark becomes a space.

    Args:
        response: the generated text.
        keywords: single words; at least one.

    Returns:
        Recall, 0-1.

    Raises:
        ValueError: `keywords` is empty.
    """
    if not keywords:
        raise ValueError("keyword_recall needs at least one keyword, got none")
    words = _words(response)
    return sum(_words(keyword) <= words for keyword in keywords) / len(keywords)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: SQuAD's official evaluation."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def contains(response: str, gold: str) -> bool:
    """Whether the normalised gold's words occur in a row in the normalised response.

    Whole words: "5" is not contained in "15". A gold with nothing left after normalisation never matches.
    """
    gold = normalize_answer(gold)
    return bool(gold) and f" {gold} " in f" {normalize_answer(response)} "


def contains_substring(response: str, gold: str) -> bool:
    """Whether the normalised gold is a substring of the normalised response, as the released code has it."""
    gold = normalize_answer(gold)
    return bool(gold) and gold in normalize_answer(response)


def contains_any(response: str, golds: Iterable[str], match=contains) -> bool:
    """Whether any of `golds` is contained."""
    return any(match(response, gold) for gold in golds)


def contains_all(response: str, golds: Sequence[str], match=contains) -> bool:
    """Whether each of `golds` is contained (False for no golds)."""
    return bool(golds) and all(match(response, gold) for gold in golds)


def first_sentence(response: str, stop: str = ". ") -> str:
    """The response up to its first stop string: back ends stop late or not at all."""
    return response.split(stop)[0]
