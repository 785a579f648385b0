"""Who answers: a local model in batches, or an endpoint."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ctxaware.auto.indicator import AutoIndicator, beside, load_auto_indicator
from ctxaware.chat import special_token_pattern
from ctxaware.errors import InputError
from ctxaware.indicator.marking import ALWAYS, AUTO, NEVER
from ctxaware.indicator.token import indicator_id
from ctxaware.mt_bench.calls import CallFailed, Reply, run_all
from ctxaware.mt_bench.endpoint import Endpoint, EndpointSettings, connect
from ctxaware.mt_bench.protocol import conversation, seed_of, temperature_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxaware.mt_bench.answers import AnswerRun
    from ctxaware.mt_bench.generate import LocalModel

Question = dict[str, Any]
Done = Callable[[Question, list[Reply] | None, CallFailed | None], None]


class Source(Protocol):
    """Who answers questions."""

    def describe(self) -> dict[str, Any]:
        """What a later run must find unchanged."""

    def answer_all(self, questions: list[Question], done: Done) -> str | None:
        """Answer each question and hand it to `done`; why it ended early, or None."""


def make_source(run: "AnswerRun", temperature_config: dict[str, float]) -> Source:
    """The local model or the endpoint of a run, checked to be able to do what the run asks for.

    Raises:
        InputError: it can't be loaded or reached that way, or lacks `[IND]`.
    """
    return _served(run, run.endpoint, temperature_config) if run.endpoint else _local(run, temperature_config)


def _local(run: "AnswerRun", temperature_config: dict[str, float]) -> "_Local":
    import torch

    from ctxaware import models
    from ctxaware.devices import choose_dtype
    from ctxaware.mt_bench.generate import LocalModel, parameters_sha256

    if isinstance(run.model, str):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = models.load_model(run.model, None, choose_dtype("auto", device), device)
        described: dict[str, Any] = {"name": _place(run.model), "weights": models.model_fingerprint(run.model)}
        described |= {"peft": None, "peft_weights": None}
        tokenizer_name = run.model
        if run.peft:
            model = models.load_adapter(model, run.peft)  # not merged: in bfloat16 that would round its weights
            described |= {"peft": _place(run.peft), "peft_weights": models.files_fingerprint(run.peft)}
            if models.has_tokenizer(run.peft):  # it knows the tokens that were added for training
                tokenizer_name = run.peft
        tokenizer: Any = models.load_tokenizer(tokenizer_name)
    elif run.tokenizer is None or run.peft:
        raise InputError("with a model object pass its tokenizer, and put the adapter on it yourself")
    else:
        model, tokenizer = run.model, run.tokenizer
        described = {"name": "object", "weights": parameters_sha256(model)}
    decides = None
    if run.indicator != NEVER:
        indicator_id(tokenizer)
    if run.indicator == AUTO:
        name = run.peft or run.model
        base = run.model if run.peft and isinstance(run.model, str) else None  # else the one that an adapter names
        decides = load_auto_indicator(name, None, base) if isinstance(name, str) else beside(model, tokenizer)
        decides.check_tokenizer(tokenizer)
        described["auto_indicator"] = decides.describe()
    return _Local(run, LocalModel(model, tokenizer, run.max_new_tokens), described, temperature_config, decides)


def _place(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _served(run: "AnswerRun", settings: EndpointSettings, temperature_config: dict[str, float]) -> "_Served":
    if run.peft:
        raise InputError("an adapter goes with a local model; the endpoint serves one under a name of its own")
    if not isinstance(run.model, str):
        raise InputError("with an endpoint pass the model's name there, got a model object")
    tokenizer = run.tokenizer
    if isinstance(tokenizer, str):
        from ctxaware.models import load_tokenizer

        tokenizer = load_tokenizer(tokenizer)
    if run.indicator == AUTO:
        raise InputError("indicator=auto looks into a local model, which no endpoint lets it; pass always or never")
    if run.indicator != NEVER and tokenizer is None:
        raise InputError(
            "the indicator through an endpoint needs the served model's tokenizer: nothing else says whether [IND] is "
            "a token there"
        )
    if run.indicator != NEVER:
        indicator_id(tokenizer)
    return _Served(run, run.model, connect(settings), settings.parallel, tokenizer, temperature_config)


@dataclass(frozen=True)
class _Local:
    run: "AnswerRun"
    model: "LocalModel"
    described: dict[str, Any]
    temperature_config: dict[str, float]
    decides: AutoIndicator | None = None

    def describe(self) -> dict[str, Any]:
        return self.described | self.model.describe()

    def answer_all(self, questions: list[Question], done: Done) -> None:
        def temperature(question: Question) -> float:
            return temperature_of(question, self.temperature_config)

        by_temperature = sorted(questions, key=temperature)  # stable: the file's order within each
        for degree, group in groupby(by_temperature, key=temperature):
            for batch in _batches(list(group), self.run.batch_size):
                for question, result in zip(batch, self._answer_batch(batch, degree), strict=True):
                    if isinstance(result, CallFailed):
                        done(question, None, result)
                    else:
                        done(question, result, None)

    def _answer_batch(self, batch: list[Question], temperature: float) -> list[list[Reply] | CallFailed]:
        results: list[list[Reply] | CallFailed] = [[] for _ in batch]
        for turn in range(max(len(question["turns"]) for question in batch)):
            rows, conversations, seeds = [], [], []
            for i, (question, replies) in enumerate(zip(batch, results, strict=True)):
                if isinstance(replies, CallFailed) or turn >= len(question["turns"]):
                    continue
                texts = [reply.text for reply in replies]
                earlier = [bool(reply.decision and reply.decision[1]) for reply in replies]
                is_marked = self.run.indicator == ALWAYS
                selected = [*(earlier if self.decides else [is_marked] * turn), is_marked]
                rows.append((i, replies))
                conversations.append(conversation(question["turns"], texts, selected, self.model.special))
                seeds.append(seed_of(self.run.seed, question["question_id"], turn))
            decisions: list[tuple[float, bool] | None] = [None] * len(rows)
            if self.decides and rows:
                decided = self.decides.decide(self.model.model, self.model.tokenizer, conversations)
                conversations = [each.messages for each in decided]
                decisions = [(each.probability, each.is_marked) for each in decided]
            answers = self.model.answer(conversations, temperature, seeds) if rows else []
            for (i, replies), reply, decision in zip(rows, answers, decisions, strict=True):
                if isinstance(reply, CallFailed):
                    results[i] = reply
                else:
                    results[i] = [*replies, replace(reply, decision=decision)]
        return results


@dataclass(frozen=True)
class _Served:
    run: "AnswerRun"
    name: str
    endpoint: Endpoint
    parallel: int
    tokenizer: "PreTrainedTokenizerBase | None"
    temperature_config: dict[str, float]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "endpoint": self.endpoint.url}

    def answer_all(self, questions: list[Question], done: Done) -> str | None:
        special = special_token_pattern(self.tokenizer) if self.tokenizer is not None else None
        run = self.run

        def work(question: Question) -> list[Reply]:
            replies: list[Reply] = []
            degree = temperature_of(question, self.temperature_config)
            for turn in range(len(question["turns"])):
                selected = [run.indicator == ALWAYS] * (turn + 1)
                messages = conversation(question["turns"], [r.text for r in replies], selected, special)
                own_seed = seed_of(run.seed, question["question_id"], turn) if degree > 0 else None
                replies.append(self.endpoint.chat(self.name, messages, degree, run.max_new_tokens, own_seed))
            return replies

        return run_all(questions, work, done, self.parallel)


def _batches(items: list[Question], size: int) -> Iterator[list[Question]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
