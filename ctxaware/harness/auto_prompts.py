"""Prompts of five kinds on which an automatic indicator shows what it does: with a context that is needed, and without.

Needles and reading are those of `nih_ctx` and `squad_contain`; the same questions without their passage and with the
passage of another question; and first turns of MT-Bench.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxaware.chat import defuse, special_token_pattern
from ctxaware.errors import InputError
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.metrics import score_needle, score_reading
from ctxaware.harness.prompts import PROMPT_TEMPLATES, user_prompt
from ctxaware.harness.reading import load_reading, prompt_template
from ctxaware.harness.settings import NeedleSettings
from ctxaware.runs.shapes import check_shape

NEEDLES, READING, ALONE, IRRELEVANT, MT_BENCH = KINDS = (
    *("needles", "reading", "without the passage"),
    *("with an irrelevant passage", "MT-Bench, first turns"),
)
EXTRACTION = "extraction"  # MT-Bench's category whose turns bring their context with them
NEEDLE_TOKENS, READING_TOKENS = 50, 100  # of an answer, as in the tasks' YAML


@dataclass(frozen=True)
class AutoPrompt:
    """One prompt.

    Attributes:
        kind: one of `KINDS`.
        cluster: prompts of one cluster depend on each other: a needle's cell, a passage.
        text: the user's message.
        max_tokens: of the answer.
        until: where the answer ends.
        score: the answer's score, 0–1; None where there is nothing to score by.
        category: of an MT-Bench question; "" for others.
    """

    kind: str
    cluster: str
    text: str
    max_tokens: int
    until: tuple[str, ...] = ()
    score: Callable[[str], float] | None = None
    category: str = ""

    def render(self, chat_template: Callable) -> str:
        """The prompt, as the tasks send it."""
        return str(user_prompt(self.text, chat_template))


def auto_prompts(
    tokenizer: Any, needles: NeedleSettings, source: str, questions: Path | None, limit: int, max_new_tokens: int
) -> list[AutoPrompt]:
    """The prompts, by kind.

    Args:
        tokenizer: counts tokens; special tokens typed in texts stay text.
        needles: settings of the needle prompts.
        source: of the reading questions: hub, builtin or a path.
        questions: MT-Bench's `question.jsonl`; None leaves that kind out.
        limit: so many reading questions, of as many passages as there are, and of each kind made of them.
        max_new_tokens: of an answer to MT-Bench.

    Raises:
        InputError: a source can't be read, or all its questions are of one passage.
    """
    special = special_token_pattern(tokenizer)
    prompts = [
        AutoPrompt(
            NEEDLES,
            f"{doc['context_length']} tokens, {doc['depth_percent']:g}%",
            PROMPT_TEMPLATES[needles.prompt_template].format(context=doc["context"], question=doc["question"]),
            NEEDLE_TOKENS,
            score=_scorer(score_needle, doc),
        )
        for doc in needle_documents(needles, tokenizer)
    ]
    docs = _spread(load_reading("squad", source))[:limit]
    passages = list(dict.fromkeys(doc["context"] for doc in docs))
    if len(passages) < 2:
        raise InputError(f"the reading questions of {source} are of one passage; an irrelevant one needs another")
    other = dict(zip(passages, [*passages[1:], passages[0]], strict=True))
    template = prompt_template("squad", "default")
    of_kind = {
        READING: lambda doc: template.format(context=doc["context"], question=doc["question"]),
        ALONE: lambda doc: doc["question"],
        IRRELEVANT: lambda doc: template.format(context=other[doc["context"]], question=doc["question"]),
    }
    prompts += [
        AutoPrompt(kind, doc["context"], text(doc), READING_TOKENS, (". ",), _scorer(score_reading, doc))
        for kind, text in of_kind.items()
        for doc in docs
    ]
    for question in _mt_bench(questions) if questions else []:
        name, category = str(question["question_id"]), str(question["category"])
        prompts.append(AutoPrompt(MT_BENCH, name, str(question["turns"][0]), max_new_tokens, category=category))
    return [AutoPrompt(**{**vars(each), "text": defuse(each.text, special)}) for each in prompts]


def _spread(docs: list[dict]) -> list[dict]:
    """The first question of each passage, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    ranks = []
    for doc in docs:
        ranks.append(seen[doc["context"]])
        seen[doc["context"]] += 1
    return [docs[i] for i in sorted(range(len(docs)), key=ranks.__getitem__)]


def _mt_bench(path: Path) -> list[dict]:
    try:
        questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        check_shape(questions, [{"category": str, "turns": [str]}], "questions")
        if not all(question["turns"] and question.get("question_id") is not None for question in questions):
            raise ValueError("a line lacks question_id or turns")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not MT-Bench's question.jsonl ({error}); get it from FastChat") from error
    return questions


def _scorer(score: Callable[[dict, list[str]], dict], doc: dict) -> Callable[[str], float]:
    return lambda response: float(score(doc, [response])["score"])
