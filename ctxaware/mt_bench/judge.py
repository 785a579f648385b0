"""FastChat's judge through any OpenAI-compatible endpoint: `model_judgment/JUDGE_single.jsonl`."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ctxaware.errors import InputError
from ctxaware.mt_bench.calls import CallFailed, Reply, run_all
from ctxaware.mt_bench.endpoint import Endpoint, EndpointSettings, connect
from ctxaware.mt_bench.fastchat import judging_through, load_bench, load_fastchat
from ctxaware.mt_bench.plan import MAX_TOKENS, TEMPERATURE, Plan, make_plan
from ctxaware.mt_bench.rows import MAX_RATING, MIN_RATING, JudgmentKey, is_rating, judgment_key
from ctxaware.mt_bench.store import Layout, Outcome, RowLog, append_row, claimed_rows
from ctxaware.runs.versions import versions

_ENDLESS_NUMBER = re.compile(r"\d{100}")  # FastChat's patterns take quadratic time on digits without end


def check_rating(fastchat: SimpleNamespace, judgment: str, score: float) -> list[str]:
    """Whether the score that FastChat's rule read out of a judgment is the rating that the judge gave.

    FastChat takes the first `[[n]]`, else the first `[n]`, whatever it is.

    Returns:
        Flags: `repeated_rating` (the same one several times), `single_brackets`, `fractional`.

    Raises:
        CallFailed: there is none, several that differ, one outside 1-10, or `[n]` is an index as in `arr[0]`.
    """
    flags = []
    ratings = re.findall(fastchat.one_score_pattern, judgment)
    if not ratings:
        ratings = re.findall(rf"(?<![\w\])]){fastchat.one_score_pattern_backup.pattern}", judgment)
        every = re.findall(fastchat.one_score_pattern_backup, judgment)
        flags.append("single_brackets")
        if not ratings or len(ratings) < len(every):
            raise CallFailed("no_rating", "no [[rating]] in the judgment", judgment)
    values = sorted({float(value) for value in ratings})
    if len(values) > 1:
        raise CallFailed("several_ratings", f"the judgment has several ratings: {values}", judgment)
    if score != values[0] or not is_rating(score):
        raise CallFailed("out_of_range", f"the rating is {score}, expected {MIN_RATING}-{MAX_RATING}", judgment)
    if len(ratings) > 1:
        flags.append("repeated_rating")
    if score != int(score):
        flags.append("fractional")
    return flags


def answer_flags(answer: dict[str, Any], turn: int) -> list[str]:
    """What a reader of a score should know of the answer: `answer_empty`, `answer_cut`, `answer_cut_by_window`."""
    choice = answer["choices"][0]
    flags = [] if choice["turns"][turn - 1].strip() else ["answer_empty"]
    reason = (choice.get("finish_reasons") or [None] * turn)[turn - 1]
    cuts = {"length": ["answer_cut"], "window": ["answer_cut_by_window"]}
    return flags + (cuts.get(reason, []) if isinstance(reason, str) else [])


@dataclass(frozen=True)
class JudgeRun:
    """What `ctxaware mt-bench judge` was asked to do.

    Attributes:
        out: the folder that `answer` wrote to.
        data_dir: laid out as FastChat's `llm_judge/data`.
        judge_model: the judge's name at the endpoint.
        model_ids: models to judge; None for all that have answers.
        endpoint: who judges; OpenAI's, if not given.
    """

    out: Path
    data_dir: Path
    judge_model: str
    model_ids: list[str] | None = None
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)


def judge(run: JudgeRun, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
    """Get the judgments that are missing; each row is on the disk before the next is waited for.

    A call that failed, and a judgment without a usable rating, go to `OUT/failures` and are tried again next time.

    Args:
        run: what to do.
        on_progress: called with judgments done and expected.

    Raises:
        InputError: data is missing, the endpoint refuses the key, or judgments are there that were made otherwise.
    """
    layout = Layout(run.out)
    endpoint = connect(run.endpoint)
    fastchat = load_fastchat()
    bench = load_bench(fastchat, run.data_dir, for_judge=True)
    plan = make_plan(fastchat, bench, layout, run.judge_model, run.model_ids)
    path = layout.judgments(run.judge_model)
    configuration = {
        "judge_model": run.judge_model,
        "endpoint": endpoint.url,
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "data": bench.sha256,
        "answers": plan.answers_sha256,
    }
    with claimed_rows(path, judgment_key, configuration, grows=("answers",)) as log:
        _check_prompts(log, plan)
        questions = [[q["question_id"], q["category"], min(len(q["turns"]), 2)] for q in bench.questions]
        log.note(questions=questions)
        log.note_run(started=time.time(), versions=versions("fschat", "openai", "peft"))
        try:
            return _Judging(fastchat, endpoint, run, plan, log, layout.failures(path), on_progress).run_missing()
        finally:
            names = Counter(str(row.get("judge_returned_model")) for row in log.rows.values())
            log.note(judge_returned_models=names)


def _check_prompts(log: RowLog, plan: Plan) -> None:
    for key, row in log.rows.items():
        if key in plan.messages and row["user_prompt"] != plan.messages[key][-1]["content"]:
            model, question_id, _, turn = key
            raise InputError(
                f"{log.path} holds a judgment of another answer or prompt than today's (model {model}, question "
                f"{question_id}, turn {turn}); answer under another model_id or folder, or move the file and its "
                "manifest away"
            )


@dataclass
class _Judging:
    """The judgments of one run that are missing, under way."""

    fastchat: SimpleNamespace
    endpoint: Endpoint
    run: JudgeRun
    plan: Plan
    log: RowLog
    failures: Path
    on_progress: Callable[[int, int], None]
    n_before: int = 0
    n_new: int = 0
    n_failed: int = 0
    last: threading.local = field(default_factory=threading.local)  # each thread's reply: FastChat hands on its text

    def run_missing(self) -> Outcome:
        matches = self.plan.matches
        missing = [key for key in matches if key not in self.log.rows]
        self.n_before = len(matches) - len(missing)
        self.on_progress(self.n_before, len(matches))
        with judging_through(self._chat, self.run.judge_model):
            stopped = run_all(missing, self._judge, self._done, self.run.endpoint.parallel)
        n_done = self.n_before + self.n_new
        return Outcome(n_done, len(matches), self.n_new, self.n_failed, stopped, self.log.path, self.failures)

    def _chat(self, model: str, conv: Any, temperature: float, max_tokens: int) -> str:
        if (temperature, max_tokens) != (TEMPERATURE, MAX_TOKENS):
            raise InputError(f"fschat judges with {temperature=}, {max_tokens=} now; pip install 'fschat==0.2.36'")
        reply = self.endpoint.chat(model, conv.to_openai_api_messages(), temperature, max_tokens)
        if _ENDLESS_NUMBER.search(reply.text):
            raise CallFailed("no_rating", "the judgment has a number of 100 digits or more", reply.text[:1000])
        self.last.reply = reply
        return reply.text

    def _judge(self, key: JudgmentKey) -> dict[str, Any]:
        match = self.plan.matches[key]
        try:
            row = self.fastchat.play_a_match_single(match, output_file=None)
        except (SyntaxError, ValueError) as error:  # its literal_eval, on [[05]]
            if isinstance(error, InputError):
                raise
            message = f"FastChat can't read the rating: {error}"
            raise CallFailed("unreadable_rating", message, self.last.reply.text) from error
        reply: Reply = self.last.reply
        flags = check_rating(self.fastchat, row["judgment"], row["score"])
        flags += ["judgment_cut"] if reply.finish_reason == "length" else []
        flags += answer_flags(match.answer, key[3])
        return row | {"flags": flags, "judge_returned_model": reply.model, "finish_reason": reply.finish_reason}

    def _done(self, key: JudgmentKey, row: dict[str, Any] | None, failure: CallFailed | None) -> None:
        if row is not None:
            self.log.append(row)
            self.n_new += 1
        elif failure is not None:
            self.n_failed += 1
            lost: dict[str, Any] = dict(zip(("model", "question_id", "prompt", "turn"), key, strict=True))
            lost |= {"kind": failure.kind, "error": str(failure), "judgment": failure.text, "tstamp": time.time()}
            append_row(self.failures, lost)
        self.on_progress(self.n_before + self.n_new, len(self.plan.matches))
