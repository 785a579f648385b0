"""Batched generation with a local transformers model whose answers don't depend on what else is in the batch."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.utils import resolve_max_length
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ctxaware.chat import special_token_pattern, template_errors
from ctxaware.errors import InputError
from ctxaware.models import check_rows
from ctxaware.mt_bench.calls import CallFailed, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP_K = 50  # transformers' own default, from which FastChat's `model.generate(do_sample=True, …)` samples


class SeededSampling(LogitsProcessor):
    """Sample each row with uniform numbers of its own, so that a row's tokens don't depend on its batch.

    Leaves one finite score a row, so it goes with greedy decoding. A token is the inverse of the cumulative
    distribution over the `TOP_K` likeliest at the row's number.

    Args:
        uniforms: float64 `[batch, max_new_tokens]` in [0, 1).
        temperature: over 0.
    """

    def __init__(self, uniforms: torch.Tensor, temperature: float):
        self.uniforms, self.temperature, self.step = uniforms, temperature, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        top, token_ids = scores.double().topk(min(TOP_K, scores.shape[-1]), dim=-1)  # [batch, k], likeliest first
        cumulative = torch.softmax(top / self.temperature, dim=-1).cumsum(dim=-1)
        u = self.uniforms[:, self.step : self.step + 1].to(scores.device) * cumulative[:, -1:]
        rank = torch.searchsorted(cumulative, u, right=True).clamp(max=top.shape[-1] - 1)  # [batch, 1]
        self.step += 1
        chosen = torch.full_like(scores, float("-inf"))
        return chosen.scatter_(-1, token_ids.gather(-1, rank), 0.0)


def parameters_sha256(model: "PreTrainedModel") -> str:
    """SHA-256 over up to 64 values of each parameter of a model object: any training changes it, in a second."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)][:64].cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.float().numpy().tobytes())
    return digest.hexdigest()


class LocalModel:
    """A transformers model that answers conversations in batches, with left padding.

    Args:
        model: a causal language model, also a peft one.
        tokenizer: its tokenizer, with a chat template.
        max_new_tokens: of one answer.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int):
        if not tokenizer.chat_template:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template; MT-Bench needs a chat model's"
            )
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.special = special_token_pattern(tokenizer)
        own = model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
        if not ends:
            raise InputError("neither the model nor its tokenizer names an end-of-text token; set generation_config's")
        self._ends = sorted(ends)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._ends[0]
        self.window = resolve_max_length(model.config, tokenizer)

    def describe(self) -> dict[str, Any]:
        """What a later run must find unchanged, beside the weights."""
        return {
            "chat_template_sha256": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
            "vocabulary": len(self.tokenizer),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "window_tokens": self.window,
            "top_k": TOP_K,
        }

    def answer(
        self, conversations: Sequence[list[dict]], temperature: float, seeds: Sequence[int]
    ) -> list[Reply | CallFailed]:
        """One answer to each conversation.

        Args:
            conversations: messages each, the last one the user's.
            temperature: 0 for greedy.
            seeds: of each conversation's own random numbers.

        Returns:
            A reply each; a `CallFailed` where the prompt leaves no room in the model's context window. One that leaves
            less than `max_new_tokens` gets what there is, and says `window` if it used that up.
        """
        prompts = [self._prompt(conversation) for conversation in conversations]
        room = [self.window - len(ids) for ids in prompts]
        rows = [i for i, left in enumerate(room) if left > 0]
        results: list[Reply | CallFailed] = [
            CallFailed(
                "window",
                f"the prompt has {len(ids)} tokens and the model's window {self.window}; a smaller "
                f"max_new_tokens shortens the first answer in it",
            )
            for ids in prompts
        ]
        for limit, group in groupby(
            sorted(rows, key=room.__getitem__), key=lambda i: min(self.max_new_tokens, room[i])
        ):
            same = list(group)  # Finished rows keep advancing, so a batch holds only rows with the same limit.
            new_ids = self._generate([prompts[i] for i in same], limit, temperature, [seeds[i] for i in same])
            for i, ids in zip(same, new_ids, strict=True):
                end = next((n for n, token in enumerate(ids) if token in self._ends), None)
                reason = "stop" if end is not None else "length" if limit == self.max_new_tokens else "window"
                text = self.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
                results[i] = Reply(text, reason, len(ids) if end is None else end)
        return results

    def _prompt(self, messages: list[dict]) -> list[int]:
        with template_errors():
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes its own
        check_rows(self.model.get_input_embeddings().weight.shape[0], max(ids, default=-1))
        return ids

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[int]]:
        longest = max(map(len, prompts))
        input_ids = torch.tensor([[self._pad] * (longest - len(ids)) + ids for ids in prompts])
        attention_mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        processors = LogitsProcessorList()
        if temperature > 0:
            uniforms = [
                torch.rand(self.max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
            processors.append(SeededSampling(torch.stack(uniforms), temperature))
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=self._ends, pad_token_id=self._pad
        )
        with own_generation_config(self.model, config):
            output = self.model.generate(
                input_ids=input_ids.to(self.model.device),
                attention_mask=attention_mask.to(self.model.device),
                generation_config=config,
                logits_processor=processors,
            )
        return output[:, longest:].tolist()


@contextlib.contextmanager
def own_generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in the place of the checkpoint's. `generate` fills what a config leaves open from there: a
    checkpoint's `repetition_penalty` would change the protocol."""
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    saved = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = config
    try:
        yield
    finally:
        for holder, old in zip(holders, saved, strict=True):
            holder.generation_config = old
