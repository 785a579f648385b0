"""A model's answers to MT-Bench's questions, in FastChat's format: `model_answer/NAME.jsonl`."""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ctxaware.chat import defuse, special_token_pattern
from ctxaware.errors import InputError
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import indicator_id
from ctxaware.mt_bench.endpoint import CallFailed, Endpoint, Reply, connect, run_all
from ctxaware.mt_bench.fastchat import Bench, load_bench, load_fastchat
from ctxaware.mt_bench.store import Layout, RowLog, append_failure, manifest_path, match_manifest, versions, write_json

MAX_NEW_TOKENS = 1024  # FastChat's
_OTHER_CATEGORY_TEMPERATURE = 0.7  # FastChat's, for a category that its table lacks


@dataclass(frozen=True)
class Outcome:
    """What a run has done.

    Attributes:
        n_done: rows there are now.
        n_expected: rows there should be.
        n_new: rows of this run.
        n_failed: calls of this run without a result.
        stopped: why it ended early, or None.
        path: the rows.
        failures: what failed.
    """

    n_done: int
    n_expected: int
    n_new: int
    n_failed: int
    stopped: str | None
    path: Path
    failures: Path

    @property
    def complete(self) -> bool:
        return self.n_done == self.n_expected


def temperature_of(question: dict, temperature_config: dict[str, float]) -> float:
    """FastChat's rule: the question's own `required_temperature`, else its category's, else 0.7."""
    if "required_temperature" in question:
        return question["required_temperature"]
    return temperature_config.get(question["category"], _OTHER_CATEGORY_TEMPERATURE)


def seed_of(seed: int, question_id: int | str, turn: int, choice: int = 0) -> int:
    """A seed for one answer alone, 0 to 2**31 - 1 (what endpoints take)."""
    digest = hashlib.sha256(f"{seed} {question_id} {turn} {choice}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def conversation(turns: list[str], answers: list[str], indicator: bool, special) -> list[dict]:
    """The messages up to the turn that is to be answered; special tokens typed in a text stay text.

    Args:
        turns: the question's user messages.
        answers: the model's so far; one fewer than the messages shown.
        indicator: append `[IND]` to each user message.
        special: from `special_token_pattern`, or None.
    """
    messages = []
    for i, turn in enumerate(turns[: len(answers) + 1]):
        text = defuse(turn, special)
        messages.append({"role": "user", "content": append_indicator(text) if indicator else text})
        if i < len(answers):
            messages.append({"role": "assistant", "content": defuse(answers[i], special)})
    return messages


def answer(
    model,
    model_id: str,
    data_dir: str | Path,
    out: str | Path,
    *,
    tokenizer=None,
    peft: str | None = None,
    indicator: bool = False,
    base_url: str | None = None,
    api_key_env: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 8,
    parallel: int = 1,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **connect_kwargs,
) -> Outcome:
    """Answer the questions that have no answer yet.

    Greedy categories are deterministic; a sampled answer depends on `seed`, its question and its turn, not on the batch
    that it was made in (up to the model's rounding, which can decide between two tokens that are almost even).

    Args:
        model: a folder or hub name, a model object, or with `base_url` the endpoint's name for it.
        model_id: the name under which it is judged and shown; a file's name.
        data_dir: laid out as FastChat's `llm_judge/data`.
        out: gets `model_answer/{model_id}.jsonl` and its manifest.
        tokenizer: with a model object its tokenizer; with `base_url` the served model's tokenizer (or its folder),
            which `indicator` needs.
        peft: an adapter's folder or hub name.
        indicator: append `[IND]` to both user turns. The judge never sees it.
        base_url: an OpenAI-compatible endpoint that answers.
        api_key_env: the environment variable that holds its key.
        max_new_tokens: of one answer.
        batch_size: questions generated together.
        parallel: calls to the endpoint at a time.
        seed: of the sampled categories.
        on_progress: called with rows done and expected.
        connect_kwargs: to `endpoint.connect`.

    Raises:
        InputError: what was passed can't be used, or rows are there that were made otherwise.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"--max-new-tokens and --batch-size must be 1 or more, got {max_new_tokens} and {batch_size}")
    path = Layout(Path(out)).answers(model_id)
    fastchat = load_fastchat()
    bench = load_bench(fastchat, Path(data_dir))
    source = _source(model, tokenizer, peft, base_url, api_key_env, max_new_tokens, indicator, connect_kwargs)
    settings = {
        "data": bench.sha256,
        "model": source.describe(),
        "indicator": indicator,
        "max_new_tokens": max_new_tokens,
        "temperatures": {c: temperature_of({"category": c}, fastchat.temperature_config) for c in _categories(bench)},
        "seed": seed,
    }
    n_new = n_failed = 0
    with RowLog(path, key=lambda row: (row["question_id"],)) as log:
        manifest = match_manifest(path, settings, bool(log.rows))
        manifest["runs"].append({"started": time.time(), "versions": versions()})
        write_json(manifest_path(path), manifest)
        missing = [question for question in bench.questions if (question["question_id"],) not in log.rows]
        on_progress(len(log.rows), len(bench.questions))

        def done(question: dict, replies: list[Reply] | None, failure: CallFailed | None) -> None:
            nonlocal n_new, n_failed
            if failure is None:
                log.append(_row(model_id, question, replies))
                n_new += 1
            else:
                n_failed += 1
                row = {"question_id": question["question_id"], "model_id": model_id, "tstamp": time.time()}
                row |= {"kind": failure.kind, "error": str(failure), "text": failure.text}
                append_failure(Layout(Path(out)).failures(path), row)
            on_progress(len(log.rows), len(bench.questions))

        def temperature(question: dict) -> float:
            return temperature_of(question, fastchat.temperature_config)

        stopped = source.answer_all(missing, temperature, seed, done, batch_size, parallel)
        n_done = len(log.rows)
    failures = Layout(Path(out)).failures(path)
    return Outcome(n_done, len(bench.questions), n_new, n_failed, stopped, path, failures)


def _categories(bench: Bench) -> list[str]:
    return sorted({question["category"] for question in bench.questions})


def _row(model_id: str, question: dict, replies: list[Reply]) -> dict:
    choice = {"index": 0, "turns": [reply.text for reply in replies]}
    choice["finish_reasons"] = [reply.finish_reason for reply in replies]
    choice["n_tokens"] = [reply.n_tokens for reply in replies]
    return {
        "question_id": question["question_id"],
        "answer_id": uuid.uuid4().hex,
        "model_id": model_id,
        "choices": [choice],
        "tstamp": time.time(),
    }


def _source(model, tokenizer, peft, base_url, api_key_env, max_new_tokens, indicator, connect_kwargs):
    if base_url:
        return _served(
            model, tokenizer, peft, connect(base_url, api_key_env, **connect_kwargs), max_new_tokens, indicator
        )
    from ctxaware.mt_bench.generate import LocalModel, load_model

    name = _place(model) if isinstance(model, str) else "object"
    if isinstance(model, str):
        model, tokenizer = load_model(model, peft)
    elif tokenizer is None or peft:
        raise InputError("with a model object pass its tokenizer, and put the adapter on it yourself")
    if indicator:
        indicator_id(tokenizer)
    return _Local(LocalModel(model, tokenizer, max_new_tokens), name, peft and _place(peft), indicator)


def _place(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _served(model, tokenizer, peft, endpoint, max_new_tokens, indicator):
    if peft:
        raise InputError("--peft goes with a local model; the endpoint serves an adapter under a name of its own")
    if isinstance(tokenizer, str):
        from ctxaware.models import load_tokenizer

        tokenizer = load_tokenizer(tokenizer)
    if indicator and tokenizer is None:
        raise InputError(
            "--indicator through --base-url needs --tokenizer, the folder of the served model's tokenizer: "
            "nothing else tells whether [IND] is a token there"
        )
    if indicator:
        indicator_id(tokenizer)
    return _Served(endpoint, model, tokenizer, max_new_tokens, indicator)


@dataclass(frozen=True)
class _Local:
    model: object  # a `LocalModel`
    name: str
    peft: str | None
    indicator: bool

    def describe(self) -> dict:
        return {"name": self.name, "peft": self.peft, **self.model.describe()}

    def answer_all(self, questions, temperature, seed, done, batch_size, _parallel) -> None:
        by_temperature = sorted(questions, key=temperature)  # stable: the file's order within each
        for degree, group in groupby(by_temperature, key=temperature):
            for batch in _batches(list(group), batch_size):
                for question, result in zip(batch, self._answer_batch(batch, degree, seed), strict=True):
                    failed = isinstance(result, CallFailed)
                    done(question, None if failed else result, result if failed else None)

    def _answer_batch(self, batch: list[dict], temperature: float, seed: int) -> list[list[Reply] | CallFailed]:
        results: list[list[Reply] | CallFailed] = [[] for _ in batch]
        for turn in range(max(len(question["turns"]) for question in batch)):
            rows = [i for i, r in enumerate(results) if isinstance(r, list) and turn < len(batch[i]["turns"])]
            if not rows:
                break
            conversations, seeds = [], []
            for i in rows:
                texts = [reply.text for reply in results[i]]
                conversations.append(conversation(batch[i]["turns"], texts, self.indicator, self.model.special))
                seeds.append(seed_of(seed, batch[i]["question_id"], turn))
            for i, reply in zip(rows, self.model.answer(conversations, temperature, seeds), strict=True):
                results[i] = reply if isinstance(reply, CallFailed) else [*results[i], reply]
        return results


@dataclass(frozen=True)
class _Served:
    endpoint: Endpoint
    name: str
    tokenizer: object
    max_new_tokens: int
    indicator: bool

    def describe(self) -> dict:
        return {"name": self.name, "endpoint": self.endpoint.base_url}

    def answer_all(self, questions, temperature, seed, done, _batch_size, parallel) -> str | None:
        special = special_token_pattern(self.tokenizer) if self.tokenizer is not None else None

        def work(question: dict) -> list[Reply]:
            replies: list[Reply] = []
            degree = temperature(question)
            for turn in range(len(question["turns"])):
                messages = conversation(question["turns"], [r.text for r in replies], self.indicator, special)
                own_seed = seed_of(seed, question["question_id"], turn) if degree > 0 else None
                replies.append(self.endpoint.chat(self.name, messages, degree, self.max_new_tokens, own_seed))
            return replies

        return run_all(questions, work, done, parallel)


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
