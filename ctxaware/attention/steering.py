"""Attention steering (eq. 1): on chosen heads, attention to every token outside the user's messages is scaled by α.

    with ctxaware.steer(model, tokenizer, heads=[(15, 3)], alpha=0.1) as steering:
        answers = model.generate(**steering.encode(messages), max_new_tokens=50)

Row by row the weights on tokens outside are multiplied by α and the row is renormalised, in the prompt and while
generating; BOS, role markers and what was generated so far are outside. Which tokens are the user's is known from the
rendering (`ctxaware.chat`), never searched for.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctxaware import chat
from ctxaware.attention import key_bias
from ctxaware.attention.head_selection import heads_by_layer
from ctxaware.attention.kernel import attention_implementation, text_decoder
from ctxaware.attention.steering_check import check_against_eager
from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IMPLEMENTATION = "ctxaware_steering"  # the name in transformers' registries
_active: dict[int, Steering] = {}  # by the id of the decoder's config, which every attention layer holds
_softmax_layers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of models known to be steered exactly


class Steering:
    """What `steer` gives: it encodes conversations, and knows the user's tokens of the prompt that is running.

    Attributes:
        alpha: 0–1.
        heads: bool `[n_heads]` by layer_idx, the steered heads of each layer that has one.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: dict[int, torch.Tensor], alpha: float
    ) -> None:
        self.tokenizer, self.heads, self.alpha = tokenizer, heads, alpha
        self._device = model.device
        self._user_tokens: torch.Tensor | None = None

    def encode(self, conversations: Sequence) -> dict[str, torch.Tensor]:
        """Prompts for `model.generate(**…)`, padded on the left.

        Args:
            conversations: a list of messages (dicts with `role` and `content`), or a list of such lists.

        Returns:
            `input_ids` and `attention_mask` int64 and `user_tokens` bool, each `[batch, n_tokens]`.

        Raises:
            InputError: a conversation has no user message, or the template does not show one as it is.
        """
        one = bool(conversations) and isinstance(conversations[0], dict)
        rows = []
        for messages in [conversations] if one else conversations:
            rendered = chat.render(self.tokenizer, messages, add_generation_prompt=True)
            tokenized = chat.tokenize(self.tokenizer, rendered)
            rows.append((tokenized.input_ids, user_mask(tokenized)))
        if not rows:
            raise InputError("there is no conversation to encode; pass at least one list of messages")
        pad_id = next(i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if i is not None)
        n_tokens = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), n_tokens), pad_id)
        attention_mask, user_tokens = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
        for row, (ids, is_user) in enumerate(rows):
            input_ids[row, n_tokens - len(ids) :] = torch.from_numpy(ids)
            attention_mask[row, n_tokens - len(ids) :] = 1
            user_tokens[row, n_tokens - len(ids) :] = torch.from_numpy(is_user)
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "user_tokens": user_tokens}
        return {name: tensor.to(self._device) for name, tensor in named.items()}

    @contextlib.contextmanager
    def at(self, user_tokens: torch.Tensor) -> Iterator[None]:
        """Steer forwards of one prompt, or batch of prompts, to these tokens.

        Args:
            user_tokens: bool `[batch, n_prompt_tokens]`, as the prompts are padded; later keys were generated.

        Raises:
            InputError: they are no such tensor.
        """
        if user_tokens.ndim != 2 or user_tokens.dtype != torch.bool:
            raise InputError(
                f"user_tokens must be bool [batch, n_tokens], got {user_tokens.dtype} {user_tokens.ndim}-d"
            )
        previous, self._user_tokens = self._user_tokens, user_tokens.to(self._device)
        try:
            yield
        finally:
            self._user_tokens = previous

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: key_bias.KeyMask,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One layer's output `[batch, n_query, n_heads, head_dim]`, steered where the layer has steered heads."""
        if self._user_tokens is None:
            raise InputError(
                "steering needs to know the user's tokens; call model.generate(**steering.encode(messages)), or run "
                "the model inside `with steering.at(user_tokens)`"
            )
        steered = self.heads.get(module.layer_idx)
        if steered is not None:
            steered = self.heads[module.layer_idx] = steered.to(query.device)
        return key_bias.attend(
            module, query, key, value, mask, self._user_tokens.to(query.device), steered, self.alpha, **kwargs
        )


def user_mask(tokenized: chat.Tokenized) -> np.ndarray:
    """bool `[n_tokens]`: the tokens of user messages.

    Raises:
        InputError: there is none.
    """
    is_user = tokenized.mask("user")
    if not is_user.any():
        raise InputError(
            f"steering needs a user message with text; the messages of this prompt are: {', '.join(tokenized.roles)}"
        )
    return is_user


@contextlib.contextmanager
def steer(
    model: Any, tokenizer: Any, heads: str | Path | Iterable[tuple[int, int]], alpha: float, name: str | None = None
) -> Iterator[Steering]:
    """Steer `model` towards the user's tokens inside the block; afterwards it is as it was.

    Attention implementation, caching, batching and `generate` are transformers' own. At α = 1 nothing is touched.

    Args:
        model: a decoder-only language model that uses transformers' attention interface.
        tokenizer: its fast tokenizer with a chat template.
        heads: "all", pairs (layer_idx, head_idx), or the path of a file that `ctxaware heads` wrote for this model.
        alpha: in (0, 1]: what attention to tokens outside the user's is multiplied by, before the row is renormalised.
        name: under which the model was loaded, where it does not say itself (an adapter's); a heads file must be its.

    Raises:
        InputError: α or a head is out of range, or the model can't be steered exactly.
    """
    check_alpha(alpha)
    if model.config.is_encoder_decoder:
        raise InputError(f"{type(model).__name__} is an encoder-decoder; steering is defined for decoder-only models")
    by_layer = heads_by_layer(model, heads, name)
    decoder = text_decoder(model)
    steering = Steering(model, tokenizer, by_layer, alpha)
    if alpha == 1:
        with _taking_user_tokens(model, steering):
            yield steering
        return
    if id(decoder.config) in _active:
        raise InputError("this model is being steered already; leave that block first")
    _require_softmax(model, by_layer)
    with _switched_on(decoder, steering), _taking_user_tokens(model, steering):
        yield steering


@contextlib.contextmanager
def _switched_on(decoder: PreTrainedModel, steering: Steering) -> Iterator[None]:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, key_bias.make_mask)
    with attention_implementation(decoder, IMPLEMENTATION):
        _active[id(decoder.config)] = steering
        try:
            yield
        finally:
            del _active[id(decoder.config)]


def _require_softmax(model: PreTrainedModel, heads: dict[int, torch.Tensor]) -> None:
    """Check once for a model that it is steered exactly, and each time that the heads are in softmax layers."""
    if model not in _softmax_layers:

        @contextlib.contextmanager
        def steered(user_tokens: torch.Tensor, heads: dict[int, torch.Tensor], alpha: float) -> Iterator[None]:
            steering = Steering(model, None, heads, alpha)
            with _switched_on(text_decoder(model), steering), steering.at(user_tokens):
                yield

        _softmax_layers[model] = check_against_eager(model, steered)
    if missing := sorted(heads.keys() - set(_softmax_layers[model])):
        raise InputError(
            f"layers {missing} of this model have no softmax attention; layers that have: {_softmax_layers[model]}"
        )


@contextlib.contextmanager
def _taking_user_tokens(model: PreTrainedModel, steering: Steering) -> Iterator[None]:
    """`model.generate` takes `user_tokens` and keeps them for the layers: transformers passes no such argument on."""
    generate = model.generate

    @functools.wraps(generate)
    def with_user_tokens(*args: Any, user_tokens: torch.Tensor | None = None, **kwargs: Any) -> Any:
        prompts = kwargs.get("input_ids", args[0] if args else None)
        if user_tokens is not None and prompts is not None and prompts.shape != user_tokens.shape:
            shapes = list(user_tokens.shape), list(prompts.shape)
            raise InputError(f"user_tokens must have the shape of input_ids, got {shapes[0]} and {shapes[1]}")
        if user_tokens is not None and not user_tokens.any(dim=1).all():
            raise InputError("user_tokens must have a user's token in every row: there is nothing to steer to")
        if steering.alpha < 1:
            _use_growing_cache(model, kwargs)
        with contextlib.nullcontext() if user_tokens is None else steering.at(user_tokens):
            return generate(*args, **kwargs)

    own = model.__dict__.get("generate")
    model.generate = with_user_tokens
    try:
        yield
    finally:
        del model.generate
        if own is not None:
            model.generate = own


def _use_growing_cache(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Override the kind of cache that a checkpoint names; refuse one of fixed size that was asked for."""
    kinds = settings.get("cache_implementation"), getattr(settings.get("past_key_values"), "is_compileable", False)
    if kinds not in ((None, False), ("dynamic", False)):
        raise InputError("steering needs a cache that grows; leave out cache_implementation and static caches")
    if model.generation_config.cache_implementation and settings.get("past_key_values") is None:
        settings["cache_implementation"] = "dynamic"


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: key_bias.KeyMask,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface."""
    steering = _active.get(id(module.config))
    if steering is None:
        raise InputError(f"{type(module).__name__} holds a configuration of its own, so it can't be steered")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise InputError("this model's attention is not causal, so it can't be steered")
    if kwargs.get("position_bias") is not None or not isinstance(attention_mask, key_bias.KeyMask):
        raise InputError(f"{type(module).__name__} takes a mask or bias of its own, so it can't be steered")
    out = steering.attend(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, s_aux=s_aux)
    return out.contiguous(), None


def check_alpha(alpha: float) -> None:
    """Raise `InputError` for an α outside (0, 1]."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not (0 < alpha <= 1):
        raise InputError(f"alpha must be a number above 0 and up to 1 (no steering), got {alpha!r}")
