"""A small fixed set of needles and passages, rendered as the tasks render them, for a model that is being trained.

The prompts, the generation settings and the scores are those of `nih_ctx` and `squad_contain` with the chat template;
where the tokenizer has the token, also those of `nih_ctx_ind` and `squad_contain_ind`. All text ships with the package.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctxaware.chat import defuse, special_token_pattern, template_errors
from ctxaware.data.sources import BUILTIN
from ctxaware.errors import InputError
from ctxaware.harness.grid import build_grid, grid_context_lengths, grid_depths
from ctxaware.harness.haystack import load_haystack
from ctxaware.harness.metrics import score_needle, score_reading
from ctxaware.harness.needles import load_needle
from ctxaware.harness.prompts import PROMPT_TEMPLATES, user_prompt
from ctxaware.harness.reading import load_reading, prompt_template
from ctxaware.harness.window import NEUTRAL_GENERATION
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import INDICATOR, indicator_id

NUM_CONTEXT_LENGTHS, NUM_DEPTHS, NUM_PASSAGES = 4, 3, 24
MIN_CONTEXT_LENGTH, RESERVE = 200, 200
NEEDLE_TOKENS, READING_TOKENS = 50, 100  # of an answer, as in the tasks' YAML


@dataclass(frozen=True)
class ProbeQuestion:
    """One question of the probe.

    Attributes:
        task: the harness's name of the task that asks this.
        cluster: questions of one cluster depend on each other: a needle's cell, a passage.
        prompt: the rendered conversation, up to where the model answers.
        input_ids: its tokens.
        generation: keyword arguments of `generate`.
        score: the answer's score, 0–1.
    """

    task: str
    cluster: str
    prompt: str
    input_ids: tuple[int, ...]
    generation: Mapping[str, Any]
    score: Callable[[str], float]


def probe_questions(
    tokenizer: Any,
    max_context_length: int = 1000,
    needle: str = "pizza",
    haystack: str = BUILTIN,
    source: str = BUILTIN,
) -> list[ProbeQuestion]:
    """Twelve needles and 24 passages with a question each, and the same with `[IND]` where the tokenizer has it.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        max_context_length: the whole budget of the longest needle prompt, in tokens.
        needle: as in the tasks' settings.
        haystack: the text around the needles, as in the tasks' settings.
        source: of the passages, as in the tasks' settings: SQuAD.

    Raises:
        InputError: the tokenizer has no chat template, or a setting is one that the tasks would refuse.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template, with which the probe asks; set one"
        )
    special = special_token_pattern(tokenizer)
    asked = [
        *_needles(tokenizer, defuse(load_haystack(haystack), special), needle, max_context_length),
        *_passages(source),
    ]
    marks = [("", lambda text: text)]
    if INDICATOR in tokenizer.get_vocab():
        indicator_id(tokenizer)  # a single token, or an error
        marks.append(("_ind", append_indicator))

    def chat(messages: list[dict], **kwargs: Any) -> str:
        with template_errors(refusals=False):
            return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)

    questions = []
    for suffix, mark in marks:
        for task, cluster, text, generation, score in asked:
            prompt = str(user_prompt(mark(defuse(text, special)), chat))
            has_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
            ids = tokenizer(prompt, add_special_tokens=not has_bos, verbose=False)["input_ids"]
            questions.append(ProbeQuestion(task + suffix, cluster, prompt, tuple(ids), generation, score))
    return questions


def _needles(tokenizer: Any, haystack: str, name: str, max_context_length: int) -> Iterator[tuple]:
    lengths = grid_context_lengths(MIN_CONTEXT_LENGTH, max_context_length, NUM_CONTEXT_LENGTHS, RESERVE)
    docs = build_grid(tokenizer, haystack, load_needle(name), lengths, grid_depths(NUM_DEPTHS))
    generation = {**NEUTRAL_GENERATION, "do_sample": False, "max_new_tokens": NEEDLE_TOKENS}
    for doc in docs:
        text = PROMPT_TEMPLATES[1].format(context=doc["context"], question=doc["question"])
        cluster = f"{doc['context_length']} tokens, {doc['depth_percent']:g}%"
        yield "nih_ctx", cluster, text, generation, _scorer(score_needle, doc)


def _passages(source: str) -> Iterator[tuple]:
    template = prompt_template("squad", "default")
    generation = {
        **NEUTRAL_GENERATION,
        "do_sample": False,
        "max_new_tokens": READING_TOKENS,
        "stop_strings": [". "],
    }
    first: dict[str, dict] = {}  # question of each passage
    for doc in load_reading("squad", source):
        first.setdefault(doc["context"], doc)
    for doc in list(first.values())[:NUM_PASSAGES]:
        text = template.format(context=doc["context"], question=doc["question"])
        yield "squad_contain", doc["id"], text, generation, _scorer(score_reading, doc)


def _scorer(score: Callable[[dict, list[str]], dict], doc: dict) -> Callable[[str], float]:
    return lambda response: score(doc, [response])["score"]
