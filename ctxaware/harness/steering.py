"""`steer_alpha=…,steer_heads=…` for the harness's HF model: attention steering (eq. 1) on any task."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctxaware import chat
from ctxaware.attention.head_selection import heads_by_layer
from ctxaware.attention.heads import choose_retrieval_heads
from ctxaware.attention.mass import attention_mass, n_layers
from ctxaware.attention.roles import stack_layers
from ctxaware.attention.steering import check_alpha, steer
from ctxaware.data.sources import BUILTIN
from ctxaware.errors import InputError
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.internals import one_line_in_lm_eval
from ctxaware.harness.needles import load_needle
from ctxaware.harness.prompts import PROMPT_TEMPLATES, render_prompt, tokenize_prompt
from ctxaware.harness.settings import NeedleSettings
from ctxaware.models import window_of
from ctxaware.runs.files import sha256_of_json

if TYPE_CHECKING:
    from ctxaware.harness.hf import PrefixReuseLM as _Base
    from ctxaware.prefix_cache import ModelCall
else:
    _Base = object

RETRIEVAL = "retrieval"
SAMPLED_PROMPT = 2000  # tokens of the needle prompt on which retrieval heads are found, where the window has them


class SteeringMixin(_Base):
    """Steers every call of the model towards the user's tokens. Stands before `PrefixReuseLM`, below `ContextLM`.

    Args:
        steer_alpha: what attention to tokens outside the user's is multiplied by, in (0, 1]; 1 is no steering.
        steer_heads: `retrieval` (one a layer, found on one needle prompt), `all`, or a file of `ctxaware heads`.

    Raises:
        InputError: a value out of range, a heads file of another model, or a model that can't be steered.
    """

    def __init__(
        self, *args: Any, steer_alpha: float | None = None, steer_heads: str | None = None, **kwargs: Any
    ) -> None:
        with one_line_in_lm_eval():
            if steer_alpha is None and steer_heads is not None:
                raise InputError("steer_heads says where to steer and steer_alpha how much; add steer_alpha=0.3")
            check_alpha(1 if steer_alpha is None else steer_alpha)
            super().__init__(*args, **kwargs)
            self._name = kwargs.get("peft")  # None: the model says itself under which name it was loaded
            self.steer_alpha: float = 1.0
            self.steer_heads: str | None = None
            self._retrieval: list[tuple[int, int]] | None = None
            if steer_alpha is not None:
                self.set_steering(steer_alpha, steer_heads or RETRIEVAL)

    def set_steering(self, alpha: float, heads: str | Path) -> None:
        """Steer from now on as the arguments of the same names say; at α = 1 the model is not touched."""
        check_alpha(alpha)
        if str(heads) == RETRIEVAL:
            self._retrieval = self._retrieval or retrieval_heads(self.model, self.tokenizer)
        chosen = self._retrieval if self._retrieval and str(heads) == RETRIEVAL else heads
        by_layer = heads_by_layer(self.model, chosen, self._name)
        self._heads = [(i, int(j)) for i, steered in by_layer.items() for j in steered.nonzero()]
        with steer(self.model, self.tokenizer, self._heads, alpha):  # refused now, if ever
            pass
        self.steer_alpha, self.steer_heads, self.keeps_messages = alpha, str(heads), alpha < 1

    def steered_as(self) -> str | None:
        """What tells apart answers that were steered in another way; None without steering."""
        if self.steer_alpha == 1:
            return None
        return f"steering alpha={self.steer_alpha:.12g} heads={sha256_of_json(sorted(self._heads))[:16]}"

    def cache_key(self, input_ids: tuple[int, ...], text: str) -> tuple:
        """Token and whether it is the user's: keys and values above the first layer depend on both."""
        if self.steer_alpha == 1:
            return super().cache_key(input_ids, text)
        with one_line_in_lm_eval():
            key = tuple((2 * np.array(input_ids) + self._is_user(input_ids, text)).tolist())
            known = self._prompts.get(input_ids)
            if known is not None and known.cache_key != key:
                raise InputError("two prompts have equal tokens, but other ones are the user's; evaluate them apart")
            return key

    def around_call(self, call: "ModelCall") -> contextlib.AbstractContextManager:
        """The call steered towards the user's tokens of its rows."""
        return super().around_call(call) if self.steer_alpha == 1 else self._steered(call)

    @contextlib.contextmanager
    def _steered(self, call: "ModelCall") -> Iterator[None]:
        user_tokens = torch.zeros(call.attention_mask.shape, dtype=torch.bool)
        for row, (prompt, present) in enumerate(zip(call.prompts, call.attention_mask.bool().cpu(), strict=True)):
            if prompt is None:  # the harness's trial of a batch size
                user_tokens[row] = True
                continue
            if not prompt.cache_key:
                raise InputError("the tokenizer encodes a prompt otherwise in a batch than alone; pass batch_size=1")
            is_user = torch.tensor(prompt.cache_key) % 2 == 1
            user_tokens[row, present] = is_user[: int(present.sum())]  # the row may be the prompt's beginning only
        with steer(self.model, self.tokenizer, self._heads, self.steer_alpha) as steering, steering.at(user_tokens):
            yield

    def _is_user(self, input_ids: Sequence[int], text: str) -> np.ndarray:
        """bool `[n_tokens]`: the user's tokens of a prompt that may be cut on the left, or end in a continuation."""
        messages = self.messages_of(text)
        if messages is None:
            raise InputError(
                "steering needs the user's messages, and this prompt did not go through the chat template; set "
                f"apply_chat_template, or leave steer_alpha out: {text[:60]!r}"
            )
        if not any(message["role"] == "user" for message in messages):
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(f"steering needs a user message, and the messages of this prompt are: {roles}")
        rendered = chat.Rendered(text, self._locate(messages, text))
        for adds_bos in (False, True):
            tokens = chat.tokenize(self.tokenizer, rendered, add_special_tokens=adds_bos)
            if len(aligned := _aligned(tokens, np.array(input_ids))):
                return aligned
        raise InputError(
            "the user's tokens can't be located: the harness encoded a prompt in another way than its text is, or "
            f"cut the user's message away; {text[:60]!r}"
        )

    def _locate(self, messages: Sequence[dict], text: str) -> tuple[chat.Span, ...]:
        """Where the contents stand in a prompt that is the rendering of messages, or starts with it."""
        reasons = []
        for sent in (messages, [m for m in messages if m["role"] != "system"]):  # what the harness falls back to
            for ends in (False, True):
                how = {"add_generation_prompt": not ends, "continue_final_message": ends}
                try:
                    rendered = chat.render(self.tokenizer, sent, **how, **self.chat_template_args)
                except (InputError, ValueError) as error:
                    reasons.append(str(error))
                    continue
                if text.startswith(rendered.text):
                    return rendered.spans
        raise InputError(f"steering can't locate the user's text: {(reasons or ['the template writes it anew'])[0]}")

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model."""
        steering = {"alpha": self.steer_alpha, "heads": self.steer_heads, "layer_head": getattr(self, "_heads", None)}
        return {**super().get_model_info(), "steering": steering if self.steer_alpha < 1 else None}


def _aligned(tokens: chat.Tokenized, input_ids: np.ndarray) -> np.ndarray:
    """The user's tokens among `input_ids`; empty where the two do not belong together."""
    is_user, n = tokens.mask("user"), len(input_ids)
    cut = is_user[len(is_user) - n :] if n <= len(is_user) else is_user[:0]
    if len(cut) and cut.any() and np.array_equal(tokens.input_ids[-n:], input_ids):
        return cut
    n_common = min(n, len(is_user))
    differing = np.flatnonzero(tokens.input_ids[:n_common] != input_ids[:n_common])
    n_common = int(differing[0]) if len(differing) else n_common
    if not is_user.any() or is_user[n_common:].any():
        return is_user[:0]
    return np.pad(is_user[:n_common], (0, n - n_common))  # what follows is a continuation


def retrieval_heads(model: Any, tokenizer: Any) -> list[tuple[int, int]]:
    """The retrieval head of each layer (eq. 3) on one needle prompt with the chat template and the response prefix.

    The prompt has the needle `sf` in the middle of the built-in haystack: the same for every task and source.

    Raises:
        InputError: there is no chat template, or a layer has no softmax attention.
    """
    window = window_of(model.config) or SAMPLED_PROMPT
    settings = NeedleSettings(
        max_context_length=min(SAMPLED_PROMPT, window), num_context_lengths=1, num_depths=1, source=BUILTIN
    )
    (doc,) = needle_documents(settings, tokenizer)
    text = PROMPT_TEMPLATES[settings.prompt_template].format(context=doc["context"], question=doc["question"])
    prefix = load_needle(settings.needle).response_prefix
    tokens = tokenize_prompt(tokenizer, render_prompt(tokenizer, text, True, prefix))
    input_ids = torch.from_numpy(tokens.input_ids)[None]
    groups = torch.from_numpy(tokens.mask("user"))[None, None]  # [1, 1, n_tokens]
    layers = range(n_layers(model))
    mass = attention_mass(model, input_ids, groups, torch.tensor([[input_ids.shape[1] - 1]]), layers)
    user = stack_layers(mass, layers)[:, :, :, 0, 0]  # [1, n_layers, n_heads]
    return [(head.layer_idx, head.head_idx) for head in choose_retrieval_heads(user, list(layers))]
