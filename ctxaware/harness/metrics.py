"""Keyword recall and containment, and the tasks' scores that are made of them: pure functions."""

import re
import statistics
import string
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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


def contains_any(response: str, golds: Iterable[str], match: Callable[[str, str], bool] = contains) -> bool:
    """Whether any of `golds` is contained."""
    return any(match(response, gold) for gold in golds)


def contains_all(response: str, golds: Sequence[str], match: Callable[[str, str], bool] = contains) -> bool:
    """Whether each of `golds` is contained (False for no golds)."""
    return bool(golds) and all(match(response, gold) for gold in golds)


def first_sentence(response: str, stop: str = ". ") -> str:
    """The response up to its first stop string: back ends stop late or not at all."""
    return response.split(stop)[0]


def score_needle(doc: dict, results: Sequence[str]) -> dict[str, Any]:
    """Recall of one cell, and the pairs that `mean_by_key` averages by length and by depth."""
    recall = keyword_recall(results[0], doc["keywords"])
    return {
        "score": recall,
        "recall": recall,
        "recall_error": 1 - recall,
        "recall_by_context_length": (doc["context_length"], recall),
        "recall_by_depth_percent": (round(doc["depth_percent"], 1), recall),
    }


def score_needle_prompts(doc: dict, results: Sequence[str]) -> dict[str, Any]:
    """As `score_needle`, and what the mean and standard deviation over prompt templates are made of."""
    scores = score_needle(doc, results)
    by_prompt = (doc["prompt_template"], scores["recall"])
    return {**scores, "recall_by_prompt_template": by_prompt, "recall_sd_over_prompts": by_prompt}


def score_reading(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """Containment of one answer's first sentence: any gold counts."""
    response, golds = first_sentence(results[0]), doc["answers"]
    contain = float(contains_any(response, golds))
    return {
        "score": contain,
        "contain": contain,
        "contain_substring": float(contains_any(response, golds, contains_substring)),
    }


def score_spans(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """As `score_reading`, and `contain_all`: every span of an answer with several."""
    every = contains_all(first_sentence(results[0]), doc["answers"])
    return {**score_reading(doc, results), "contain_all": float(every)}


def _means(pairs: Sequence[tuple[float, float]]) -> dict[float, float]:
    groups: dict[float, list[float]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: statistics.fmean(groups[key]) for key in sorted(groups)}


def mean_by_key(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Mean value for each key, keys in ascending order, to four decimals: it stands in the harness's table."""
    return {str(int(key) if float(key).is_integer() else key): round(mean, 4) for key, mean in _means(pairs).items()}


def sd_over_keys(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Standard deviation (n - 1) of the means by key: the ± of the paper's table 7; None for a single key."""
    means = list(_means(pairs).values())
    return statistics.stdev(means) if len(means) > 1 else None
