"""Needles: the sentence to hide, its question, its keywords (protocol section 1)."""

import json
import logging
from dataclasses import dataclass

from ctxaware.errors import InputError
from ctxaware.harness.metrics import keyword_recall
from ctxaware.runs.files import user_path
from ctxaware.runs.yamls import read_yaml

logger = logging.getLogger("lm_eval.ctxaware")
PREFIX_WORDS = 8  # of the needle, which start the answer in the prefix tasks


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question it answers, and the words that an answer should have."""

    needle: str
    question: str
    keywords: tuple[str, ...]
    prefix: str | None = None  # where the published start of the answer is not the first eight words

    @property
    def response_prefix(self) -> str:
        """The start of the answer that prefix tasks give to the model."""
        return self.prefix or " ".join(self.needle.split()[:PREFIX_WORDS])


NEEDLES = {
    "sf": Needle(
        "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
        "What is the best thing to do in San Francisco?",
        ("eat", "sandwich", "sit", "dolores", "park", "sunny", "day"),
        "The best thing to do in San Francisco is",
    ),
    "pizza": Needle(
        "The secret ingredients needed to build the perfect pizza are figs, prosciutto, smoked applewood bacon, lemon, "
        "goat cheese, truffle honey, pear slices, espresso-soaked dates, gorgonzola dolce, and candied walnuts.",
        "What are the secret ingredients needed to build the perfect pizza?",
        (
            *("figs", "prosciutto", "smoked", "applewood", "bacon", "lemon", "goat", "cheese", "truffle", "honey"),
            *("pear", "slices", "espresso", "soaked", "dates", "gorgonzola", "dolce", "candied", "walnuts"),
        ),
    ),
}


def load_needle(name: str) -> Needle:
    """A built-in needle by name, or one from a YAML or JSON file with `needle`, `question`, `keywords`.

    Raises:
        InputError: no such name or file, a key is missing, or a keyword does not occur in the needle.
    """
    if name in NEEDLES:
        return NEEDLES[name]
    path = user_path(name)
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        raise InputError(f"needle {name!r} is neither {' nor '.join(NEEDLES)} nor an existing .yaml or .json file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.suffix == ".json" else read_yaml(path)
        if unknown := sorted(set(map(str, content)) - {"needle", "question", "keywords"}):
            raise KeyError(f"unknown: {', '.join(unknown)}")
        words = [word if type(word) is not int else str(word) for word in content["keywords"]]
        texts = [content["needle"], content["question"], *words]
        if isinstance(content["keywords"], str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("one of them is no text")
        "".join(texts).encode()  # half a surrogate pair, which JSON can spell, is no text
        needle = Needle(texts[0].strip(), texts[1].strip(), tuple(words))
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InputError(f"needle file {path}: expected needle, question and keywords (a list) ({error!r})") from error
    if not needle.keywords or not needle.needle or not needle.question:
        raise InputError(f"needle file {path}: needle, question and keywords must not be empty")
    missing = [
        word for word in needle.keywords if not keyword_recall(needle.needle, [word]) or keyword_recall("", [word])
    ]
    if missing:
        raise InputError(f"needle file {path}: keywords {missing} do not occur as words in the needle")
    return needle
