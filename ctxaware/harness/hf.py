"""The harness's HF model with shared prefixes computed once; `prefix_cache.py` holds the keys and values.

The harness's own methods still make every answer. They are called batch by batch, in an order in which prompts
share most, and where they would prefill from nothing they get keys and values (`_model_generate`) or the logits
that they need (`_model_call`).
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm
from transformers.generation import GenerationMode

from ctxaware.cache_trial import why_not_exact
from ctxaware.errors import InputError
from ctxaware.harness.calls import no_cache_of_its_own, one_line_out_of_memory
from ctxaware.harness.internals import detect_batch_size, fixed_batch_size, one_line_in_lm_eval
from ctxaware.prefix_cache import ModelCall, PrefixCache, Prompt

logger = logging.getLogger("lm_eval.ctxaware")


class PrefixReuseLM(HFLM):
    """`HFLM` that computes what prompts share once, with the same answers.

    Args:
        prefix_cache: whether to.
        prefix_cache_tokens: prompts of more tokens are computed whole; None for no limit. The cache holds one
            prompt at a time, beside the copies that a batch needs anyway.
        args, kwargs: as `HFLM`.

    Raises:
        InputError: a value of the wrong kind.
    """

    def __init__(self, *args: Any, prefix_cache: bool = True, prefix_cache_tokens: int | None = None, **kwargs: Any):
        with one_line_in_lm_eval():
            if not isinstance(prefix_cache, bool):
                raise InputError(f"prefix_cache must be true or false, got {prefix_cache!r}")
            if prefix_cache_tokens is not None and (type(prefix_cache_tokens) is not int or prefix_cache_tokens < 1):
                raise InputError(f"prefix_cache_tokens must be a whole number over 0, got {prefix_cache_tokens!r}")
        super().__init__(*args, **kwargs)
        self.prefix_cache_tokens = prefix_cache_tokens
        self.n_prompt_tokens = {"asked": 0, "computed": 0}
        self._why_off = None if prefix_cache else "prefix_cache=false"
        self._was_tried = not prefix_cache
        self._said_too_long = False
        self._prompts: dict[tuple[int, ...], Prompt] = {}  # of the requests under way, by token ids
        self._cache: PrefixCache | None = None  # while a batch reuses prefixes
        self._logits: torch.Tensor | None = None  # [n_scored, vocab], while the harness scores one input

    def around_call(self, call: ModelCall) -> contextlib.AbstractContextManager:
        """Opened around every call of the transformers model, `generate` included; for sub-classes that change it."""
        return contextlib.nullcontext()

    def cache_key(self, input_ids: tuple[int, ...], text: str) -> tuple:
        """One entry a token: prompts share keys and values as far as their entries are equal."""
        return input_ids

    def planned(self, prompt: Prompt) -> Prompt:
        """What of a prompt is known before `settled` is asked: prompts are visited in the order of these."""
        return prompt

    def settled(self, texts: list[str]) -> list[str]:
        """The prompts of a batch as they are sent, for sub-classes that have to see the model on them first."""
        return texts

    # whether prefixes are reused

    def why_no_reuse(self) -> str | None:
        """Why prompts are computed whole; None where prefixes are reused. The first call tries it out."""
        if not self._was_tried:
            self._was_tried = True
            self._turn_off(self._why_not_here() or why_not_exact(self.model))
        return self._why_off

    def _why_not_here(self) -> str | None:
        if self.backend != "causal":
            return f"the back end is {self.backend}"
        kind = self.accelerator.distributed_type.value if hasattr(self, "accelerator") else "NO"
        return None if kind in ("NO", "MULTI_GPU", "MULTI_CPU") else f"{kind} wants equally many calls in each process"

    def _turn_off(self, reason: str | None) -> None:
        if reason:
            logger.warning("prefix_cache: prompts are computed whole, because %s", reason)
            self._why_off, self._cache = reason, None

    def _reuses(self, prompt: Prompt) -> bool:
        if self.why_no_reuse():
            return False
        n_tokens, limit = len(prompt.input_ids), self.prefix_cache_tokens
        if limit is None or n_tokens <= limit:
            return True
        if not self._said_too_long:
            self._said_too_long = True
            text = "prefix_cache_tokens=%d: longer prompts, such as one of %d tokens, are computed whole"
            logger.warning(text, limit, n_tokens)
        return False

    def _is_greedy(self, gen_kwargs: dict) -> bool:
        """Whether the answer is one greedy continuation; sampling in another order would draw other numbers."""
        settings = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        settings = {key: value for key, value in settings.items() if key not in ("until", "max_gen_toks")}
        config = deepcopy(self.model.generation_config)
        config.update(**settings)
        return config.get_generation_mode() == GenerationMode.GREEDY_SEARCH and "cache_implementation" not in settings

    # generation

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """As `HFLM`: the answers, in the order of `requests`."""
        with one_line_in_lm_eval(), self._under_way():
            prompts = [self._to_generate(*request.args) for request in requests]
            settings = {repr(request.args[1]): request.args[1] for request in requests}
            groups: dict[str, list[int]] = {key: [] for key, each in settings.items() if self._is_greedy(each)}
            whole: list[int] = []  # indices of requests, as in `groups`
            for i, request in enumerate(requests):
                (groups.get(repr(request.args[1]), whole) if self._reuses(prompts[i]) else whole).append(i)
            answers: dict[int, str] = {}
            with self._progress("generate_until", len(requests) - len(whole), disable_tqdm) as bar:
                n_batch = detect_batch_size(self) if len(whole) < len(requests) else 1
                for members in groups.values():
                    for chosen in self._batches([self.planned(prompts[i]) for i in members], n_batch):
                        batch = [members[i] for i in chosen]
                        answers |= self._answered(requests, batch, disable_tqdm=True)
                        bar.update(len(batch))
            if whole:
                answers |= self._answered(requests, whole, disable_tqdm)
            return [answers[i] for i in range(len(requests))]

    def _answered(self, requests: list, batch: list[int], disable_tqdm: bool) -> dict[int, str]:
        """The harness's answers to some requests, by index, with their prompts settled."""
        sent = [requests[i] for i in batch]
        for k, text in enumerate(self.settled([request.args[0] for request in sent])):
            if text != sent[k].args[0]:
                self._to_generate(text, sent[k].args[1])
                sent[k] = replace(sent[k], arguments=(text, *sent[k].args[1:]))
        answers = dict(zip(batch, super().generate_until(sent, disable_tqdm=disable_tqdm), strict=True))
        for i, request in zip(batch, sent, strict=True):
            if request is not requests[i]:  # kept under what was asked, where the harness keeps answers
                self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
        return answers

    def _to_generate(self, text: str, gen_kwargs: dict) -> Prompt:
        """A prompt as `HFLM.generate_until` encodes it: cut on the left, so that the answer has room."""
        room = self.max_length - normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)["max_gen_toks"]
        input_ids, _ = self.tok_batch_encode([text], truncation=self.truncation)
        input_ids = input_ids[0].tolist()
        return self._remember(input_ids[-max(1, room) :] if self.backend == "causal" else input_ids, text)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        mask = kwargs["attention_mask"]
        rows = [tuple(ids[kept].tolist()) for ids, kept in zip(context, mask.bool(), strict=True)]
        prompts = tuple(self._prompt(row) for row in rows)
        n_tokens = sum(map(len, rows))
        self.n_prompt_tokens["asked"] += n_tokens
        generate, call = super()._model_generate, ModelCall(context, mask, prompts)
        if self._cache is not None:
            with self._going_on_without_cache():
                cache, _ = self._cache.fill(prompts)
                with self.around_call(call), no_cache_of_its_own(self.model):
                    return generate(context, max_length, stop, past_key_values=cache, **kwargs)
        self.n_prompt_tokens["computed"] += n_tokens
        with one_line_out_of_memory(context), self.around_call(call):
            return generate(context, max_length, stop, **kwargs)

    # log-likelihoods

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, override_bs: int | None = None) -> list:
        """As `HFLM`, which feeds equal inputs once; `override_bs` comes with windows of a text, which share nothing."""
        with one_line_in_lm_eval(), self._under_way():
            fed: dict[Any, list[int]] = {}  # indices of requests, by what the model is fed
            for i, (_, context, continuation) in enumerate(requests):
                input_ids = tuple(context + continuation)[:-1]
                fed.setdefault(input_ids if self.logits_cache else (i, input_ids), []).append(i)
            members = list(fed.values())
            prompts = [self._to_score([requests[i] for i in each]) for each in members]
            reused = [i for i, prompt in enumerate(prompts) if override_bs is None and self._reuses(prompt)]
            answers: dict[int, tuple[float, bool]] = {}
            with self._progress("loglikelihood", sum(len(members[i]) for i in reused), disable_tqdm) as bar:
                n_batch = detect_batch_size(self, [requests[members[i][0]] for i in reused]) if reused else 1
                for chosen in self._batches([self.planned(prompts[i]) for i in reused], n_batch):
                    batch = [reused[i] for i in chosen]
                    sent = self._settled_pairs([[requests[j] for j in members[i]] for i in batch])
                    to_score = [each or prompts[i] for i, (each, _) in zip(batch, sent, strict=True)]
                    for i, (_, of_input), logits in zip(batch, sent, self._scored(to_score), strict=False):
                        self._logits = logits
                        scored = super()._loglikelihood_tokens(of_input, disable_tqdm=True)
                        self._logits = None
                        answers.update(zip(members[i], scored, strict=True))
                        bar.update(len(scored))
            whole = [i for i in range(len(requests)) if i not in answers]
            if whole:
                pairs = [[requests[i]] for i in whole]
                sent = [(None, each) for each in pairs] if override_bs else self._settled_pairs(pairs)
                scored = super()._loglikelihood_tokens([each for _, (each,) in sent], disable_tqdm, override_bs)
                answers.update(zip(whole, scored, strict=True))
            return [answers[i] for i in range(len(requests))]

    def _to_score(self, requests: list) -> Prompt:
        """Requests of one input as `HFLM._loglikelihood_tokens` feeds it: cut on the left, without the last token."""
        texts, context, continuation = requests[0]
        input_ids = (context + continuation)[:-1][-self.max_length :]
        n_scored = max(len(each) for _, _, each in requests)
        return self._remember(input_ids, texts[0] if texts else "", min(n_scored, len(input_ids)))

    def _settled_pairs(self, inputs: list[list]) -> list[tuple[Prompt | None, list]]:
        """Requests of each input with their context settled, and its prompt where that changed it."""
        settled: list[tuple[Prompt | None, list]] = []
        for requests, text in zip(inputs, self.settled([texts[0] for ((texts, *_), *_) in inputs]), strict=True):
            if text == requests[0][0][0]:
                settled.append((None, requests))
                continue
            pairs = [self._encode_pair(text, texts[1]) for texts, *_ in requests]
            prompt = self._to_score(
                [((text, texts[1]), *pair) for (texts, *_), pair in zip(requests, pairs, strict=True)]
            )
            settled.append((prompt, [(texts, *pair) for (texts, *_), pair in zip(requests, pairs, strict=True)]))
        return settled

    def _scored(self, prompts: list[Prompt]) -> list[torch.Tensor]:
        """Logits for each prompt; none at all where memory ran out, now or before."""
        if self._cache is not None:
            with self._going_on_without_cache(), self._autocast():
                logits = self._cache.score(prompts)
                self.n_prompt_tokens["asked"] += sum(len(prompt.input_ids) for prompt in prompts)
                return logits
        return []

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        if self._logits is not None:
            return self._logits.unsqueeze(0)  # [1, n_scored, vocab]: the harness counts positions from the end
        call = super()._model_call
        prompts = [p for row in inps.tolist() if (p := self._padded_prompt(row)) is not None]
        if self.backend != "causal" or len(prompts) < len(inps):  # or the harness tries out batch sizes
            return call(inps, attn_mask, labels)
        n_tokens = [len(prompt.input_ids) for prompt in prompts]
        for key in self.n_prompt_tokens:
            self.n_prompt_tokens[key] += sum(n_tokens)
        columns = torch.arange(inps.shape[1], device=inps.device)
        mask = (columns < torch.tensor(n_tokens, device=inps.device)[:, None]).long()
        with one_line_out_of_memory(inps), self.around_call(ModelCall(inps, mask, tuple(prompts))):
            return call(inps)

    def _remember(self, input_ids: Sequence[int], text: str, n_scored: int = 1) -> Prompt:
        input_ids = tuple(input_ids)
        self._prompts[input_ids] = Prompt(input_ids, text, n_scored, self.cache_key(input_ids, text))
        return self._prompts[input_ids]

    def _prompt(self, input_ids: tuple[int, ...]) -> Prompt:
        """The prompt of a row; one without text where the harness encoded it otherwise in a batch than alone."""
        return self._prompts.get(input_ids) or Prompt(input_ids)

    def _padded_prompt(self, row: list[int]) -> Prompt | None:
        """The prompt of a row that ends in zeros, as the harness pads inputs to score."""
        while tuple(row) not in self._prompts and row and row[-1] == 0:
            row = row[:-1]
        return self._prompts.get(tuple(row))

    def _batches(self, prompts: list[Prompt], n_batch: int) -> Iterator[list[int]]:
        """Indices of prompts, batch by batch; while one is out, the harness's methods reuse prefixes."""
        cache = PrefixCache(self.model, self.around_call)
        order = cache.plan(prompts)
        self._cache = cache
        try:
            with fixed_batch_size(self, n_batch):
                for start in range(0, len(order), n_batch):
                    yield order[start : start + n_batch]
        finally:
            self._cache = None
            self.n_prompt_tokens["computed"] += cache.n_computed

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        before = dict(self.n_prompt_tokens)
        try:
            yield
        finally:
            self._prompts, self._logits = {}, None
        asked, computed = (self.n_prompt_tokens[key] - before[key] for key in ("asked", "computed"))
        if asked > computed:
            logger.info("prefix_cache: %d prompt tokens asked, %d computed (%.2f)", asked, computed, computed / asked)

    def _progress(self, what: str, total: int, disabled: bool) -> tqdm:
        return tqdm(total=total, disable=disabled or not total or self.rank != 0, desc=f"Running {what} requests")

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextlib.contextmanager
    def _going_on_without_cache(self) -> Iterator[None]:
        """Where memory runs out, drop the cache and go on after the block."""
        try:
            yield
        except torch.OutOfMemoryError:
            self._turn_off("the device's memory ran out")
            torch.cuda.empty_cache()

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model; token counts are this process's, and of all its evaluations."""
        reuse = "not used" if not self._was_tried else f"off: {self._why_off}" if self._why_off else "on"
        return {**super().get_model_info(), "prefix_cache": reuse, "prompt_tokens": dict(self.n_prompt_tokens)}
