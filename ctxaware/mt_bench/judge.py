"""FastChat's judge through any OpenAI-compatible endpoint: `model_judgment/JUDGE_single.jsonl`."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from ctxaware.errors import InputError
from ctxaware.mt_bench.answers import Outcome
from ctxaware.mt_bench.endpoint import CallFailed, Endpoint, Reply, connect, run_all
from ctxaware.mt_bench.fastchat import judging_through, load_bench, load_fastchat
from ctxaware.mt_bench.plan import MAX_TOKENS, TEMPERATURE, Key, Plan, make_plan, row_key
from ctxaware.mt_bench.store import Layout, RowLog, append_failure, manifest_path, match_manifest, versions, write_json

MIN_RATING, MAX_RATING = 1, 10  # what its prompts ask for


def check_rating(fastchat: SimpleNamespace, judgment: str, score: float) -> list[str]:
    """Whether the score that FastChat's rule read out of a judgment is the rating that the judge gave.

    FastChat takes the first `[[n]]`, else the first `[n]`, whatever it is.

    Returns:
        Flags: `repeated_rating` (the same one several times), `single_brackets`, `fractional`.

    Raises:
        CallFailed: there is none, several that differ, one outside 1-10, or `[n]` is an index as in `arr[0]`.
    """
    flags = []
    found = re.findall(fastchat.one_score_pattern, judgment)
    if not found:
        found = re.findall(rf"(?<![\w\])]){fastchat.one_score_pattern_backup.pattern}", judgment)
        every = re.findall(fastchat.one_score_pattern_backup, judgment)
        flags.append("single_brackets")
        if not found or len(found) < len(every):
            raise CallFailed("no_rating", "no [[rating]] in the judgment", judgment)
    values = sorted({float(value) for value in found})
    if len(values) > 1:
        raise CallFailed("several_ratings", f"the judgment has several ratings: {values}", judgment)
    if score != values[0] or not MIN_RATING <= score <= MAX_RATING:
        raise CallFailed("out_of_range", f"the rating is {score}, expected {MIN_RATING}-{MAX_RATING}", judgment)
    if len(found) > 1:
        flags.append("repeated_rating")
    if score != int(score):
        flags.append("fractional")
    return flags


def answer_flags(answer: dict, turn: int) -> list[str]:
    """What a reader of a score should know of the answer: `answer_empty`, `answer_cut`, `answer_cut_by_window`."""
    choice = answer["choices"][0]
    flags = [] if choice["turns"][turn - 1].strip() else ["answer_empty"]
    reason = (choice.get("finish_reasons") or [None] * turn)[turn - 1]
    return flags + {"length": ["answer_cut"], "window": ["answer_cut_by_window"]}.get(reason, [])


def judge(
    out: str | Path,
    data_dir: str | Path,
    judge_model: str,
    *,
    model_ids: list[str] | None = None,
    base_url: str | None = None,
    api_key_env: str | None = None,
    parallel: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **connect_kwargs,
) -> Outcome:
    """Get the judgments that are missing; each row is on the disk before the next is waited for.

    A call that failed, and a judgment without a usable rating, go to `OUT/failures` and are tried again next time.

    Args:
        out: the folder that `answer` wrote to.
        data_dir: laid out as FastChat's `llm_judge/data`.
        judge_model: the judge's name at the endpoint.
        model_ids: models to judge; None for all that have answers.
        base_url: an OpenAI-compatible endpoint; None for OpenAI's.
        api_key_env: the environment variable that holds its key.
        parallel: calls at a time.
        on_progress: called with judgments done and expected.
        connect_kwargs: to `endpoint.connect`.

    Raises:
        InputError: data is missing, the endpoint refuses the key, or judgments are there that were made otherwise.
    """
    layout = Layout(Path(out))
    endpoint = connect(base_url, api_key_env, **connect_kwargs)
    fastchat = load_fastchat()
    bench = load_bench(fastchat, Path(data_dir), for_judge=True)
    plan = make_plan(fastchat, bench, layout, judge_model, model_ids)
    path = layout.judgments(judge_model)
    settings = {
        "judge_model": judge_model,
        "endpoint": endpoint.base_url,
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "data": bench.sha256,
        "answers": plan.answers_sha256,
    }
    with RowLog(path, row_key) as log:
        manifest = match_manifest(path, settings, bool(log.rows))
        _check_rows(log, plan, path)
        manifest["questions"] = [[q["question_id"], q["category"], min(len(q["turns"]), 2)] for q in bench.questions]
        manifest["runs"].append({"started": time.time(), "versions": versions()})
        write_json(manifest_path(path), manifest)
        try:
            return _run(fastchat, endpoint, judge_model, plan, log, layout.failures(path), parallel, on_progress)
        finally:
            names = Counter(str(row.get("judge_returned_model")) for row in log.rows.values())
            write_json(manifest_path(path), manifest | {"judge_returned_models": names})


def _check_rows(log: RowLog, plan: Plan, path: Path) -> None:
    for key, row in log.rows.items():
        if key in plan.messages and row["user_prompt"] != plan.messages[key][-1]["content"]:
            raise InputError(
                f"{path} holds a judgment of another answer or prompt than today's (model {key[0]}, question {key[1]}, "
                f"turn {key[3]}); answer under another --model-id or --out, or move the file and its manifest away"
            )


def _run(
    fastchat, endpoint: Endpoint, judge_model, plan: Plan, log: RowLog, failures, parallel, on_progress
) -> Outcome:
    last = threading.local()  # each thread's reply: FastChat hands on its text only
    n_done = sum(key in log.rows for key in plan.matches)
    n_new = n_failed = 0

    def chat(model, conv, temperature, max_tokens) -> str:
        if (temperature, max_tokens) != (TEMPERATURE, MAX_TOKENS):
            raise InputError(f"fschat judges with {temperature=}, {max_tokens=} now; pip install 'fschat==0.2.36'")
        last.reply = endpoint.chat(model, conv.to_openai_api_messages(), temperature, max_tokens)
        return last.reply.text

    def work(key: Key) -> dict:
        try:
            row = fastchat.play_a_match_single(plan.matches[key], output_file=None)
        except (SyntaxError, ValueError) as error:  # its literal_eval, on [[05]]
            if isinstance(error, InputError):
                raise
            raise CallFailed(
                "unreadable_rating", f"FastChat can't read the rating: {error}", last.reply.text
            ) from error
        reply: Reply = last.reply
        flags = check_rating(fastchat, row["judgment"], row["score"])
        flags += ["judgment_cut"] if reply.finish_reason == "length" else []
        flags += answer_flags(plan.matches[key].answer, key[3])
        return row | {"flags": flags, "judge_returned_model": reply.model, "finish_reason": reply.finish_reason}

    def done(key: Key, row: dict | None, failure: CallFailed | None) -> None:
        nonlocal n_new, n_failed
        if failure is None:
            log.append(row)
            n_new += 1
        else:
            n_failed += 1
            lost = dict(zip(("model", "question_id", "prompt", "turn"), key, strict=True))
            lost |= {"kind": failure.kind, "error": str(failure), "judgment": failure.text, "tstamp": time.time()}
            append_failure(failures, lost)
        on_progress(n_done + n_new, len(plan.matches))

    on_progress(n_done, len(plan.matches))
    missing = [key for key in plan.matches if key not in log.rows]
    with judging_through(chat, judge_model):
        stopped = run_all(missing, work, done, parallel)
    return Outcome(n_done + n_new, len(plan.matches), n_new, n_failed, stopped, log.path, failures)
