import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxaware.harness.metrics import (
    contains,
    contains_all,
    contains_any,
    contains_substring,
    first_sentence,
    keyword_recall,
    normalize_answer,
)
from ctxaware.harness.needles import NEEDLES


def test_a_needle_recalls_all_its_own_keywords():
    for needle in NEEDLES.values():
        assert keyword_recall(needle.needle, needle.keywords) == 1.0


def test_keywords_are_whole_words_whatever_the_case_and_punctuation():
    assert keyword_recall("EAT, a sandwich.", ["eat", "sandwich"]) == 1.0
    assert keyword_recall("today is a parking lot", ["day", "park"]) == 0.0
    assert keyword_recall("espresso-soaked", ["espresso", "soaked"]) == 1.0
    assert keyword_recall("“sunny”—day…", ["sunny", "day"]) == 1.0
    assert keyword_recall("", ["day"]) == 0.0


def test_recall_of_no_keywords_is_an_error():
    with pytest.raises(ValueError, match="at least one keyword"):
        keyword_recall("text", [])


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("It was 15 of them", "5", False),
        ("It was 5 of them", "5", True),
        ("The Eiffel Tower!", "eiffel tower", True),
        ("an eiffel, tower", "The Eiffel Tower", True),
        ("the the a", "the", False),  # nothing is left of the gold
        ("anything", "", False),
        ("anything", "?!", False),
        ("well-known fact", "wellknown", True),  # SQuAD deletes punctuation inside words
        ("Zürich in März", "zürich", True),
        ("theatre", "the", False),
        ("catalogue", "cat", False),
        ("5,000 men", "5000", True),
    ],
)
def test_containment_is_of_whole_normalised_words(response, gold, expected):
    assert contains(response, gold) is expected


def test_substring_containment_is_the_looser_published_one():
    assert contains_substring("It was 15 of them", "5")
    assert not contains_substring("anything", "the")


def test_any_and_all_golds():
    assert contains_any("Paris", ["London", "Paris"])
    assert not contains_any("Paris", [])
    assert contains_all("Paris and London", ["London", "Paris"])
    assert not contains_all("Paris", ["London", "Paris"])
    assert not contains_all("Paris", [])


def test_the_first_sentence_ends_at_its_stop_string():
    assert first_sentence("In 1850. Then more. And") == "In 1850"
    assert first_sentence("In 1850.") == "In 1850."


def plain_normalize(text):
    """SQuAD's four steps, one character and one word at a time."""
    kept = [c for c in text.lower() if c not in string.punctuation]
    words, word = [], ""
    for c in [*kept, " "]:
        if c.isspace():
            words.append(word)
            word = ""
        else:
            word += c
    return [w for w in words if w and w not in ("a", "an", "the")]


def plain_contains(response, gold):
    haystack, wanted = plain_normalize(response), plain_normalize(gold)
    return bool(wanted) and any(haystack[i : i + len(wanted)] == wanted for i in range(len(haystack)))


def test_ten_thousand_random_pairs_agree_with_the_plain_oracle():
    rng = random.Random(0)
    words = [
        "the",
        "a",
        "an",
        "An",
        "5",
        "15",
        "5,000",
        "Zürich",
        "zürich",
        "well-known",
        "cat",
        "cat's",
        "?!",
        "É",
        "",
    ]
    agreed = 0
    for _ in range(10_000):
        response = rng.choice([" ", "  ", "\n"]).join(rng.choices(words, k=rng.randint(0, 8)))
        gold = " ".join(rng.choices(words, k=rng.randint(0, 3)))
        assert contains(response, gold) is plain_contains(response, gold), (response, gold)
        assert contains(response, gold) <= contains_substring(response, gold)
        agreed += contains(response, gold)
    assert 500 < agreed < 9_500  # both answers are well represented


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd", "Po", "Zs", "Sc"]), max_size=60))
def test_normalising_twice_changes_nothing_and_a_text_contains_itself(text):
    normal = normalize_answer(text)
    assert contains(text, text) is bool(normal)
    assert "  " not in normal
    assert normal == normal.strip()
