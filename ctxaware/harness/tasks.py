"""The lm-evaluation-harness side of the tasks: the classes and functions that `tasks/` names.

A class is needed for what YAML can't say: an empty system message that is really sent, a response
prefix on templates that refuse a closing assistant message, the check of every prompt against the
model's window before anything is generated, and the indicator.
"""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.task import ConfigurableTask

from ctxaware import chat
from ctxaware.data.sources import resolved_revisions
from ctxaware.errors import InputError
from ctxaware.harness import reading
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.internals import asked_examples, is_chat_endpoint, one_line_in_lm_eval, running_model
from ctxaware.harness.needles import load_needle
from ctxaware.harness.prompts import PROMPT_TEMPLATES, user_prompt
from ctxaware.harness.settings import NeedleSettings, ReadingSettings, resolve
from ctxaware.harness.window import (
    NEUTRAL_GENERATION,
    NOT_UNDONE,
    count_tokens,
    is_endpoint,
    leaking_generation_settings,
    load_tokenizer,
    model_window,
)
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import indicator_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("lm_eval.ctxaware")

# of a YAML file, what the classes here have no use for: they make documents and prompts themselves
_UNUSED = (
    *("num_fewshot", "description", "doc_to_text", "gen_prefix", "use_prompt"),
    *("dataset_path", "dataset_name", "custom_dataset", "doc_to_image", "doc_to_audio"),
)
_VARIANTS = {"indicator", "response_prefix", "all_prompt_templates", "dataset"}


class ContextTask(ConfigurableTask):
    """A generation task over documents of ours. Sub-classes say how documents and user messages are made.

    `dataset_kwargs` of the YAML: `indicator` (the message carries `[IND]`), `response_prefix` (the answer
    is begun), `all_prompt_templates` (the grid once for each), `dataset` (which reading data set).
    """

    settings_class: type
    needs_tokenizer = False
    _n_requests = _n_answers = _n_empty = 0

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict | None = None,
    ) -> None:
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        with one_line_in_lm_eval():
            super().__init__(data_dir, cache_dir, download_mode, config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Make the documents; called by the harness's constructor."""
        import datasets

        self.variant = dataset_kwargs or {}
        self.model_args = self.config.metadata or {}
        self.settings = resolve(self.settings_class, self.model_args, self.config.task)
        indicator = bool(self.variant.get("indicator"))
        required = self.config.task if self.needs_tokenizer or indicator else None
        self.tokenizer = load_tokenizer(self.model_args, required)
        self._special = chat.special_token_pattern(self.tokenizer) if self.tokenizer else None
        if indicator:
            indicator_id(self.tokenizer)
        self.dataset = {self.config.test_split: datasets.Dataset.from_list(self.make_docs())}
        if used := resolved_revisions(self.settings.source, getattr(self.settings, "haystack", None)):
            self.config.metadata["resolved_revisions"] = used  # stands in the results file

    def _keep_greedy(self, generation_kwargs: dict[str, Any]) -> None:
        """Override what the checkpoint's own generation settings would add to greedy decoding."""
        self._leaks = leaking_generation_settings()
        if not self._leaks:
            return
        if lasting := [key for key in self._leaks if key in NOT_UNDONE]:
            raise InputError(
                f"{self.config.task}: the model's generation_config.json sets {', '.join(lasting)}, which changes "
                f"greedy decoding and can't be undone here; remove it from that file"
            )
        logger.warning("the model's generation_config.json sets %s; that is undone for this task", self._leaks)
        neutral = {key: NEUTRAL_GENERATION[key] for key in self._leaks if key in NEUTRAL_GENERATION}
        generation_kwargs.update(neutral)
        if self._leaks.get("max_new_tokens", math.inf) < generation_kwargs["max_gen_toks"]:
            raise InputError(
                f"{self.config.task}: the model's generation_config.json stops after {self._leaks['max_new_tokens']} "
                f"tokens and {generation_kwargs['max_gen_toks']} are needed; remove max_new_tokens from that file"
            )

    @abc.abstractmethod
    def make_docs(self) -> list[dict]:
        """The documents."""

    @abc.abstractmethod
    def user_text(self, doc: dict) -> str:
        """The user's message, before the indicator."""

    def doc_to_text(self, doc: dict, doc_to_text: Any = None) -> str:
        """The user's message as it is sent; special tokens typed in the data stay text."""
        text = chat.defuse(self.user_text(doc), self._special)
        return append_indicator(text) if self.variant.get("indicator") else text

    def fewshot_context(
        self,
        doc: dict,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable | None = None,
        gen_prefix: str | None = None,
    ) -> str | list:
        """The prompt; `chat_template` is the harness's model's own method."""
        return user_prompt(
            self.doc_to_text(doc),
            chat_template if apply_chat_template else None,
            system_instruction or "",
            doc.get("response_prefix") or "",
        )

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the prompts; refuse them all if one could not be sent whole and as it is."""
        with one_line_in_lm_eval():
            if kwargs.get("cache_requests"):
                raise InputError(
                    f"{self.config.task}: the harness's request cache ignores settings and would send another run's "
                    "prompts; leave out cache_requests (use_cache is fine)"
                )
            if n_examples := asked_examples():
                raise InputError(
                    f"{self.config.task}: the prompts of this task have no examples, and num_fewshot asks for "
                    f"{n_examples}; leave it out, or run tasks with examples by themselves"
                )
            self._check_config()
            self._check_steering()
            self._keep_greedy(self.config.generation_kwargs)
            self._n_answers = self._n_empty = 0
            super().build_all_requests(**kwargs)
            self._n_requests = len(self.instances)
            self._check_form()
            self._check_window()

    def _check_config(self) -> None:
        """The results file records a YAML file's settings as used, also those that are not."""
        unused = [key for key in _UNUSED if getattr(self.config, key)]
        unused += [f"dataset_kwargs: {key}" for key in sorted(self.variant.keys() - _VARIANTS)]
        if unused:
            raise InputError(
                f"{self.config.task}: this task makes its documents and prompts itself and would not use "
                f"{', '.join(unused)}; take it out of the YAML file that includes or groups the task"
            )

    def _check_steering(self) -> None:
        """Most back ends pass over arguments that they don't know, and would answer unsteered."""
        lm = running_model()
        asked = sorted({"steer_alpha", "steer_heads"} & set(self.model_args))
        if asked and lm is not None and not hasattr(lm, "set_steering"):
            raise InputError(
                f"{self.config.task}: {' and '.join(asked)} steer attention, and {type(lm).__name__} can't; only "
                "the model ctxaware can, which runs transformers models: no vLLM, no endpoint"
            )

    def _check_form(self) -> None:
        """Text for back ends that take text, messages for chat endpoints."""
        lm = running_model()
        are_text = all(isinstance(instance.args[0], str) for instance in self.instances)
        if is_chat_endpoint(lm) and are_text:
            raise InputError(f"{self.config.task}: a chat endpoint takes messages; set apply_chat_template")
        if lm is not None and not is_chat_endpoint(lm) and not are_text:
            raise InputError(
                f"{self.config.task}: this back end would send messages where text belongs; add "
                "tokenized_requests=True,tokenizer_backend=huggingface to model_args"
            )

    def _check_window(self) -> None:
        window = model_window(self.model_args, self.tokenizer)
        if window is None:
            raise InputError(
                f"{self.config.task}: the window of the model is not known, so a cut prompt would pass unseen; "
                "add max_length=TOKENS to model_args (or to metadata, where tasks are loaded by hand)"
            )
        prompts = [instance.args[0] for instance in self.instances]
        answer = self.config.generation_kwargs["max_gen_toks"]
        if self.tokenizer is None:  # no token is shorter than a byte
            counts = [len(_as_text(prompt, None).encode()) for prompt in prompts]
            unit = "bytes (pass tokenizer=… to count tokens)"
        else:
            counts = count_tokens([_as_text(prompt, self.tokenizer) for prompt in prompts], self.tokenizer)
            unit = "tokens"
        longest = max(counts)
        if longest + answer > window:
            n_over = sum(count + answer > window for count in counts)
            raise InputError(
                f"{self.config.task}: {n_over} of {len(counts)} prompts do not fit the model's window of {window} "
                f"tokens: the longest has {longest} {unit}, and {answer} are kept for the answer; "
                f"{self.shorter_hint()}{self._server_hint()}"
            )

    def _server_hint(self) -> str:
        return ", or pass the server's max_length in model_args" if is_endpoint(self.model_args) else ""

    def shorter_hint(self) -> str:
        """What a user can do about a prompt that is too long."""
        return "evaluate a model with a longer window"

    def process_results(self, doc: dict, results: Sequence[str]) -> dict[str, Any]:
        """Score one answer, cut to the answer's length where the model's own settings made it longer."""
        response = results[0]
        self._count_empty(response)
        if "max_new_tokens" in getattr(self, "_leaks", {}) and self.tokenizer is not None:
            ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
            response = self.tokenizer.decode(ids[: self.config.generation_kwargs["max_gen_toks"]])
        return super().process_results(doc, [response])

    def _count_empty(self, response: str) -> None:
        """Warn after the last answer where most are empty: such a run measures nothing."""
        self._n_answers, self._n_empty = self._n_answers + 1, self._n_empty + (not response.strip())
        if self._n_answers == self._n_requests and 2 * self._n_empty > self._n_answers:
            logger.warning(
                "%s: %s of %s answers are empty, so the score says little about the context; a chat model needs "
                "apply_chat_template, or a _prefix task, which begins the answer",
                self.config.task,
                self._n_empty,
                self._n_answers,
            )


def _as_text(prompt: Any, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """A prompt, or the messages for a chat endpoint, as the text whose tokens count."""
    if isinstance(prompt, str):
        return prompt
    import json

    messages = json.loads(prompt.prompt) if hasattr(prompt, "prompt") else prompt
    if tokenizer is not None and tokenizer.chat_template:
        text = "\n".join(message["content"] for message in messages)
        apply = tokenizer.apply_chat_template
        return str(user_prompt(text, lambda m, **kwargs: apply(m, tokenize=False, **kwargs)))
    return "\n".join(f"{message['role']}\n{message['content']}\n" for message in messages)


class NeedleTask(ContextTask):
    """Needle in a haystack over a grid of context lengths and depths."""

    settings_class = NeedleSettings
    needs_tokenizer = True

    def make_docs(self) -> list[dict]:
        """The grid's documents."""
        s = self.settings
        window = model_window(self.model_args, self.tokenizer)
        if window is not None and s.max_context_length > window + is_endpoint(self.model_args):
            raise InputError(
                f"max_context_length {s.max_context_length} is past the model's window of {window} tokens; "
                f"lower max_context_length{self._server_hint()}"
            )
        docs = needle_documents(s, self.tokenizer)
        prefix = load_needle(s.needle).response_prefix if self.variant.get("response_prefix") else ""
        numbers = PROMPT_TEMPLATES if self.variant.get("all_prompt_templates") else [s.prompt_template]
        return [{**doc, "response_prefix": prefix, "prompt_template": n} for n in numbers for doc in docs]

    def user_text(self, doc: dict) -> str:
        """The prompt template with its document and question."""
        template = PROMPT_TEMPLATES[doc["prompt_template"]]
        return template.format(context=doc["context"], question=doc["question"])

    def shorter_hint(self) -> str:
        """The two settings that shorten a prompt."""
        s = self.settings
        return f"lower max_context_length (now {s.max_context_length}) or raise reserve (now {s.reserve})"


class ReadingTask(ContextTask):
    """Questions on a passage, scored by containment."""

    settings_class = ReadingSettings

    def make_docs(self) -> list[dict]:
        """The data set's questions."""
        name = self.variant["dataset"]
        self._template = reading.prompt_template(name, self.settings.prompt)
        return reading.load_reading(name, self.settings.source, self.settings.data_revision)

    def user_text(self, doc: dict) -> str:
        """The prompt template with its passage and question."""
        return self._template.format(context=doc["context"], question=doc["question"])
