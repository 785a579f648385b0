"""A model's answers to MT-Bench's questions, in FastChat's format: `model_answer/NAME.jsonl`."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxaware.errors import InputError
from ctxaware.indicator.marking import ALWAYS, MODES, NEVER
from ctxaware.mt_bench.calls import CallFailed, Reply
from ctxaware.mt_bench.endpoint import EndpointSettings
from ctxaware.mt_bench.fastchat import QUESTIONS, load_bench, load_fastchat
from ctxaware.mt_bench.protocol import MAX_NEW_TOKENS, temperature_of
from ctxaware.mt_bench.rows import answer_key
from ctxaware.mt_bench.store import Layout, Outcome, append_row, claimed_rows, manifest_path
from ctxaware.runs.claim import CONFIGURATION, read_manifest
from ctxaware.runs.files import sha256_of_json
from ctxaware.runs.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class AnswerRun:
    """What `ctxaware mt-bench answer` was asked to do.

    Attributes:
        model: a folder or hub name, a model object, or with `endpoint` its name for the model.
        model_id: the name under which it is judged and shown; a file's name.
        data_dir: laid out as FastChat's `llm_judge/data`.
        out: gets `model_answer/{model_id}.jsonl` and its manifest.
        tokenizer: with a model object its tokenizer; with `endpoint` the served model's (or its folder), which
            `indicator` needs.
        peft: an adapter's folder or hub name.
        indicator: one of `marking.MODES`: `[IND]` on both user turns, none, or on those of which a local model says
            that they need it. The judge never sees it.
        endpoint: an OpenAI-compatible endpoint that answers; None for a local model.
        max_new_tokens: of one answer.
        batch_size: questions that a local model answers together.
        seed: of the sampled categories.
    """

    model: "str | PreTrainedModel"
    model_id: str
    data_dir: Path
    out: Path
    tokenizer: "str | PreTrainedTokenizerBase | None" = None
    peft: str | None = None
    indicator: str = NEVER
    endpoint: EndpointSettings | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.indicator not in MODES:
            raise InputError(f"indicator must be one of {', '.join(MODES)}, got {self.indicator!r}")


def answer(run: AnswerRun, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
    """Answer the questions that have no answer yet.

    Greedy categories are deterministic; a sampled answer depends on `seed`, its question and its turn, not on the batch
    that it was made in (up to the model's rounding, which can decide between two tokens that are almost even).

    Args:
        run: what to do.
        on_progress: called with rows done and expected.

    Raises:
        InputError: what was passed can't be used, or rows are there that were made otherwise.
    """
    from ctxaware.mt_bench.sources import make_source

    layout = Layout(run.out)
    path = layout.answers(run.model_id)
    fastchat = load_fastchat()
    bench = load_bench(fastchat, run.data_dir)
    categories = sorted({question["category"] for question in bench.questions})
    source = make_source(run, fastchat.temperature_config)
    configuration = {
        "data": bench.sha256,
        "model": source.describe(),
        "indicator": {NEVER: False, ALWAYS: True}.get(run.indicator, run.indicator),
        "max_new_tokens": run.max_new_tokens,
        "temperatures": {c: temperature_of({"category": c}, fastchat.temperature_config) for c in categories},
        "seed": run.seed,
    }
    n_new = n_failed = 0
    with claimed_rows(path, answer_key, configuration) as log:
        log.note_run(started=time.time(), versions=versions("fschat", "openai", "peft"))
        missing = [question for question in bench.questions if (question["question_id"],) not in log.rows]
        on_progress(len(log.rows), len(bench.questions))

        def done(question: dict[str, Any], replies: list[Reply] | None, failure: CallFailed | None) -> None:
            nonlocal n_new, n_failed
            if failure is None:
                log.append(_row(run.model_id, question, replies or []))
                n_new += 1
            else:
                n_failed += 1
                row = {"question_id": question["question_id"], "model_id": run.model_id, "tstamp": time.time()}
                append_row(
                    layout.failures(path), row | {"kind": failure.kind, "error": str(failure), "text": failure.text}
                )
            on_progress(len(log.rows), len(bench.questions))

        stopped = source.answer_all(missing, done)
    return Outcome(len(log.rows), len(bench.questions), n_new, n_failed, stopped, path, layout.failures(path))


def answers_sha256(rows: dict[Any, dict[str, Any]]) -> str:
    """What identifies the texts of a model's answers, by question id."""
    return sha256_of_json({str(question): row["choices"][0]["turns"] for question, row in rows.items()})


def configuration_of(path: Path, data: dict[str, str]) -> dict[str, Any]:
    """How answers were made, by their manifest; empty where they came from elsewhere, without one.

    Args:
        path: the answers.
        data: SHA-256 of each file of the data that they are judged with.

    Raises:
        InputError: they answer other questions than these, or the manifest is damaged.
    """
    manifest = read_manifest(manifest_path(path), path)
    if manifest is None:
        return {}
    configuration: dict[str, Any] = manifest[CONFIGURATION]
    answered = configuration.get("data")
    if not isinstance(answered, dict) or answered.get(QUESTIONS) != data.get(QUESTIONS):
        raise InputError(
            f"{path} answers other questions than those that it is judged by: {QUESTIONS} has changed; restore that "
            "file, or answer and judge its questions in another folder"
        )
    return configuration


def _row(model_id: str, question: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "turns": [reply.text for reply in replies],
        "finish_reasons": [reply.finish_reason for reply in replies],
        "n_tokens": [reply.n_tokens for reply in replies],
    }
    decisions = [reply.decision for reply in replies if reply.decision]
    if decisions:
        choice["indicator_probability"], choice["indicator"] = map(list, zip(*decisions, strict=True))
    return {
        "question_id": question["question_id"],
        "answer_id": uuid.uuid4().hex,
        "model_id": model_id,
        "choices": [choice],
        "tstamp": time.time(),
    }
