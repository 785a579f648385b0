"""What a row of each file must hold. A key function returns a row's key, or says in words why it is no row."""

from typing import Any, TypeGuard

from ctxaware.runs.files import is_text

MIN_RATING, MAX_RATING = 1, 10  # what FastChat's judge prompts ask for

AnswerKey = tuple[int | str]  # question id
JudgmentKey = tuple[str, int | str, str, int]  # model, question id, judge prompt, turn
FailureKey = tuple[str, int | str, int]  # model, question id, turn


def answer_key(row: dict[str, Any]) -> AnswerKey:
    """The key of an answer row in FastChat's format.

    Raises:
        ValueError: a field is missing or of another type.
    """
    choices = row.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict) or not is_texts(first.get("turns")):
        raise ValueError(f"its choices are {_short(choices)}, expected one with the answers' texts as turns")
    reasons = first.get("finish_reasons", first["turns"])
    if not isinstance(reasons, list) or len(reasons) != len(first["turns"]):
        raise ValueError(f"its finish_reasons are {_short(reasons)}, expected one for each turn")
    return (question_id_of(row),)


def judgment_key(row: dict[str, Any]) -> JudgmentKey:
    """The key of a judgment row in FastChat's format.

    Raises:
        ValueError: a field is missing or of another type, or the score is no rating.
    """
    judge, turn, flags = row.get("judge"), row.get("turn"), row.get("flags", [])
    if not isinstance(judge, (list, tuple)) or len(judge) != 2 or not is_texts(judge):
        raise ValueError(f"its judge is {_short(judge)}, expected the judge's and the prompt's name")
    if not isinstance(turn, int) or turn not in (1, 2):
        raise ValueError(f"its turn is {_short(turn)}, expected 1 or 2")
    if not is_rating(score := row.get("score")):
        raise ValueError(f"its score is {_short(score)}, expected a number from {MIN_RATING} to {MAX_RATING}")
    if not is_texts(flags):
        raise ValueError(f"its flags are {_short(flags)}, expected a list of texts")
    for name in ("user_prompt", "judgment"):
        _text(row, name)
    return _text(row, "model"), question_id_of(row), judge[1], turn


def failure_key(row: dict[str, Any]) -> FailureKey:
    """The key of a failed judgment.

    Raises:
        ValueError: a field is missing or of another type.
    """
    _text(row, "kind")
    if not isinstance(turn := row.get("turn"), int):
        raise ValueError(f"its turn is {_short(turn)}, expected a number")
    return _text(row, "model"), question_id_of(row), turn


def is_rating(score: Any) -> bool:
    """Whether `score` is a number within the judge's scale."""
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    return is_number and MIN_RATING <= score <= MAX_RATING  # NaN is not


def is_texts(value: Any) -> bool:
    """Whether `value` is a list of strings that UTF-8 can hold."""
    return isinstance(value, (list, tuple)) and all(_is_text(part) for part in value)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and is_text(value)


def _text(row: dict[str, Any], name: str) -> str:
    if not _is_text(value := row.get(name)):
        raise ValueError(f"its {name} is {_short(value)}, expected a text")
    return value


def question_id_of(row: dict[str, Any]) -> int | str:
    """The question of a row.

    Raises:
        ValueError: it has none, or one that is neither number nor text.
    """
    value = row.get("question_id")
    if _is_text(value) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"its question_id is {_short(value)}, expected a number or a text")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
