"""What FastChat's judge has to judge, each prompt as FastChat writes it, and what that would cost."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ctxaware.errors import InputError
from ctxaware.mt_bench.answers import answers_sha256, configuration_of
from ctxaware.mt_bench.fastchat import Bench, judging_through, load_bench, load_fastchat, read_answers
from ctxaware.mt_bench.rows import JudgmentKey, judgment_key
from ctxaware.mt_bench.store import Layout, read_keyed

TEMPERATURE, MAX_TOKENS = 0, 2048  # what FastChat's judge passes; recorded, and checked at each call


@dataclass(frozen=True)
class Plan:
    """All judgments that a table of these models needs.

    Attributes:
        matches: FastChat's `MatchSingle` by key, in FastChat's order.
        messages: what the judge is sent, by key, as FastChat writes it.
        answers_sha256: of each model's answers.
    """

    matches: dict[JudgmentKey, Any]
    messages: dict[JudgmentKey, list[dict]]
    answers_sha256: dict[str, str]


class _Captured(Exception):
    def __init__(self, messages: list[dict]):
        self.messages = messages


def make_plan(
    fastchat: SimpleNamespace, bench: Bench, layout: Layout, judge_model: str, model_ids: list[str] | None
) -> Plan:
    """FastChat's own matches: its four judges, with reference answers for the categories that need them.

    Args:
        fastchat: from `load_fastchat`.
        bench: loaded for the judge.
        layout: where the answers are.
        judge_model: the judge's name.
        model_ids: models to judge; None for all that have answers.

    Raises:
        InputError: an answer, a model or a reference answer is missing, or answers are to other questions.
    """
    files = {path.stem: path for path in sorted(layout.answer_dir.glob("*.jsonl"))}
    models = list(dict.fromkeys(model_ids or files))
    if not models:
        raise InputError(f"{layout.answer_dir} has no answers; run ctxaware mt-bench answer first")
    for model in files.keys() & models:
        configuration_of(files[model], bench.sha256)
    answers = {model: read_answers(files[model]) for model in models if model in files}
    references = {judge_model: bench.references}  # FastChat looks them up under the judge's name
    try:
        judges = fastchat.make_judge_single(judge_model, bench.prompts)
    except KeyError as error:
        raise InputError(f"judge_prompts.jsonl has no prompt {error}; restore FastChat's own") from error
    try:
        fastchat.check_data(bench.questions, answers, references, models, judges)
    except AssertionError as error:
        raise InputError(f"{error}; finish ctxaware mt-bench answer, or name other models to judge") from error
    matches = []
    for suffix, multi_turn in (("", False), ("-mt", True)):
        for kind, refs in (("default", None), ("math", references)):
            asked = [q for q in bench.questions if (q["category"] in fastchat.NEED_REF_CATS) == (kind == "math")]
            judge = judges[kind + suffix]
            matches += fastchat.make_match_single(
                asked, models, answers, judge, ref_answers=refs, multi_turn=multi_turn
            )
    by_key = {_match_key(match): match for match in matches}
    hashes = {model: answers_sha256(answers[model]) for model in models}
    return Plan(by_key, _written_by_fastchat(fastchat, by_key, judge_model), hashes)


def _match_key(match: Any) -> JudgmentKey:
    return match.model, match.question["question_id"], match.judge.prompt_template["name"], 2 if match.multi_turn else 1


def _written_by_fastchat(
    fastchat: SimpleNamespace, matches: dict[JudgmentKey, Any], judge_model: str
) -> dict[JudgmentKey, list[dict]]:
    def capture(model: str, conv: Any, temperature: float, max_tokens: int) -> str:
        raise _Captured(conv.to_openai_api_messages())

    messages: dict[JudgmentKey, list[dict]] = {}
    with judging_through(capture, judge_model):
        for key, match in matches.items():
            try:
                fastchat.play_a_match_single(match, output_file=None)
            except _Captured as captured:
                messages[key] = captured.messages
            except (LookupError, TypeError, ValueError, AttributeError, MemoryError, OverflowError) as error:
                raise InputError(
                    f"the prompt {key[2]} can't be written for question {key[1]}, model {key[0]} "
                    f"({type(error).__name__}: {error}); restore judge_prompts.jsonl or that answer"
                ) from error
    return messages


@dataclass(frozen=True)
class DryRun:
    """What judging would cost.

    Attributes:
        n_calls: judgments that are missing.
        n_done: judgments that are there.
        n_prompt_tokens: of the missing ones, estimated at four characters a token.
        n_output_tokens: estimated from the judgments that are there; None without any.
        max_output_tokens: `MAX_TOKENS` a call.
        examples: one call's messages of each kind of prompt.
    """

    n_calls: int
    n_done: int
    n_prompt_tokens: int
    n_output_tokens: int | None
    max_output_tokens: int
    examples: dict[str, list[dict]]


def dry_run(out: str | Path, data_dir: str | Path, judge_model: str, *, model_ids: list[str] | None = None) -> DryRun:
    """What `judge` would do, without a call, a key or a file written.

    Raises:
        InputError: as in `judge`.
    """
    layout = Layout(Path(out))
    fastchat = load_fastchat()
    bench = load_bench(fastchat, Path(data_dir), for_judge=True)
    plan = make_plan(fastchat, bench, layout, judge_model, model_ids)
    rows = read_keyed(layout.judgments(judge_model), judgment_key)
    missing = [key for key in plan.matches if key not in rows]
    characters = sum(len(message["content"]) for key in missing for message in plan.messages[key])
    mean_output = sum(len(row["judgment"]) for row in rows.values()) / len(rows) / 4 if rows else None
    examples: dict[str, list[dict]] = {}
    for key, messages in plan.messages.items():
        examples.setdefault(key[2], messages)
    return DryRun(
        len(missing),
        len(plan.matches) - len(missing),
        characters // 4,
        None if mean_output is None else round(mean_output * len(missing)),
        MAX_TOKENS * len(missing),
        examples,
    )
