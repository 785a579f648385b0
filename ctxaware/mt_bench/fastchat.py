"""Everything of FastChat that we rely on, checked to be there, and its judge made to call an endpoint of ours."""

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ctxaware.errors import InputError
from ctxaware.mt_bench.rows import answer_key, is_texts, question_id_of
from ctxaware.mt_bench.store import read_keyed
from ctxaware.runs.files import sha256_of_file

SEAMS = {
    "fastchat.conversation": ("get_conv_template",),
    "fastchat.llm_judge.common": (
        "NEED_REF_CATS",
        "OPENAI_MODEL_LIST",
        "chat_completion_openai",
        "check_data",
        "get_conversation_template",
        "load_judge_prompts",
        "load_questions",
        "one_score_pattern",
        "one_score_pattern_backup",
        "play_a_match_single",
        "temperature_config",
    ),
    "fastchat.llm_judge.gen_judgment": ("make_judge_single", "make_match_single"),
    "fastchat.llm_judge.show_result": ("display_result_single",),
}

RELEASED_SHA256 = {  # FastChat's data as released
    "mt_bench/question.jsonl": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "judge_prompts.jsonl": "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
    "mt_bench/reference_answer/gpt-4.jsonl": "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
}
QUESTIONS, PROMPTS, REFERENCES = RELEASED_SHA256


def load_fastchat() -> SimpleNamespace:
    """FastChat's names of `SEAMS`, in one namespace.

    Raises:
        InputError: FastChat or something that it needs is not installed, or a name is gone.
    """
    names_of_fastchat: dict[str, Any] = {}
    for module_name, names in SEAMS.items():
        try:
            with warnings.catch_warnings():  # its regular expressions have invalid escapes
                warnings.simplefilter("ignore", SyntaxWarning)
                module = importlib.import_module(module_name)
        except ImportError as error:
            raise InputError(f"MT-Bench needs FastChat ({error}): pip install 'ctxaware[mt-bench]'") from error
        missing = [name for name in names if not hasattr(module, name)]
        if missing:
            raise InputError(f"this release of fschat has no {module_name}.{missing[0]}; pip install 'fschat==0.2.36'")
        names_of_fastchat |= {name: getattr(module, name) for name in names}
    return SimpleNamespace(**names_of_fastchat)


@contextlib.contextmanager
def judging_through(chat: Callable, judge_model: str) -> Iterator[None]:
    """For the length of a run FastChat's judge calls `chat(model, conv, temperature, max_tokens)` for any judge's name.

    Replaces three globals of `fastchat.llm_judge.common`, and its `print`, which would write a line a judgment.
    """
    common = importlib.import_module("fastchat.llm_judge.common")
    template = load_fastchat().get_conv_template
    replaced = {
        "OPENAI_MODEL_LIST": (judge_model,),
        "chat_completion_openai": chat,
        "get_conversation_template": lambda _: template("chatgpt"),
        "print": lambda *_, **__: None,
    }
    saved = {name: vars(common)[name] for name in replaced if name in vars(common)}
    vars(common).update(replaced)
    try:
        yield
    finally:
        for name in replaced.keys() - saved.keys():
            del vars(common)[name]
        vars(common).update(saved)


@dataclass(frozen=True)
class Bench:
    """What FastChat's `llm_judge/data` holds.

    Attributes:
        questions: `question_id`, `category`, `turns` each.
        sha256: of each file that was read, by its path in the folder.
        prompts: the judge's, by name; empty where not asked for.
        references: reference answers by question id; empty where not asked for.
    """

    questions: list[dict[str, Any]]
    sha256: dict[str, str]
    prompts: dict[str, dict[str, Any]]
    references: dict[int | str, dict[str, Any]]


def load_bench(fastchat: SimpleNamespace, data_dir: Path, for_judge: bool = False) -> Bench:
    """Read the questions, and for the judge its prompts and reference answers, with FastChat's own functions.

    Raises:
        InputError: a file is missing, or isn't what FastChat reads.
    """
    names = tuple(RELEASED_SHA256) if for_judge else (QUESTIONS,)
    for name in names:
        if not (data_dir / name).is_file():
            raise InputError(
                f"{data_dir} has no {name}; pass a folder laid out as fastchat/llm_judge/data in FastChat's "
                f"repository (https://github.com/lm-sys/FastChat)"
            )
    prompts: dict[str, dict[str, Any]] = {}
    references: dict[int | str, dict[str, Any]] = {}
    with _reading(data_dir / QUESTIONS):
        questions = fastchat.load_questions(str(data_dir / QUESTIONS), None, None)
    for question in questions:
        _check_question(question, data_dir / QUESTIONS)
    ids = [question["question_id"] for question in questions]
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"{data_dir / QUESTIONS} has no questions, or a question_id twice")
    if for_judge:
        with _reading(data_dir / PROMPTS):
            prompts = fastchat.load_judge_prompts(str(data_dir / PROMPTS))
        for name in _USED_PROMPTS & prompts.keys():
            _check_prompt(name, prompts[name], data_dir / PROMPTS)
        references = read_answers(data_dir / REFERENCES)
    return Bench(questions, {name: sha256_of_file(data_dir / name) for name in names}, prompts, references)


_USED_PROMPTS = {f"single-{kind}v1{turns}" for kind in ("", "math-") for turns in ("", "-multi-turn")}


def _check_prompt(name: str, prompt: Any, path: Path) -> None:
    """FastChat finds out after the judge has been asked, and paid."""
    texts = [prompt.get(key) for key in ("prompt_template", "system_prompt", "type")]
    if not is_texts(texts) or prompt.get("output_format") != "[[rating]]":
        raise InputError(
            f"{path}, prompt {name}: expected prompt_template, system_prompt and type as text, and output_format "
            "[[rating]]; restore the file"
        )


def _check_question(question: Any, path: Path) -> None:
    try:
        question_id = question_id_of(question)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} has a line that is no question ({error}); restore the file") from error
    turns, degree = question.get("turns"), question.get("required_temperature", 0)
    problem = None
    if not turns or not is_texts(turns) or not all(turns):
        problem = f"its turns are {turns!r}, expected a list of texts"
    elif not is_texts([question.get("category")]):
        problem = f"its category is {question.get('category')!r}, expected a text"
    elif not isinstance(degree, (int, float)) or not 0 <= degree <= 2:
        problem = f"its required_temperature is {degree!r}, expected a number from 0 to 2"
    if problem:
        raise InputError(f"{path}, question {question_id}: {problem}; restore the file")


def read_answers(path: Path) -> dict[int | str, dict[str, Any]]:
    """Answers, or reference answers, by question id, as FastChat's `load_model_answers` gives them.

    Raises:
        InputError: a line is damaged.
    """
    return {question_id: row for (question_id,), row in read_keyed(path, answer_key).items()}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """FastChat's readers raise whatever a bad line makes them raise."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"FastChat can't read {path} ({type(error).__name__}: {error}); restore it") from error
