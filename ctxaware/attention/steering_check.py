"""The plain formula of steering, on materialised matrices, and the self-check against it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ctxaware.attention.kernel import attention_implementation, repeat_heads, text_decoder
from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN = "ctxaware_plain_steering"  # the name in transformers' registries


@contextlib.contextmanager
def steer_eagerly(
    model: PreTrainedModel, user_tokens: torch.Tensor, heads: Mapping[int, torch.Tensor], alpha: float
) -> Iterator[list[int]]:
    """Eq. 1 to the letter, for comparison: the model's own eager attention, its weights scaled and renormalised.

    Takes whole sequences or a cache that keeps all keys; memory grows with the square of the length.

    Args:
        model: of transformers' attention interface.
        user_tokens: bool `[batch, n_prompt_tokens]`.
        heads: bool `[n_heads]` by layer_idx.
        alpha: 0–1.

    Yields:
        The layers that have computed attention, filled as they do.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    seen: list[int] = []

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> Any:
        plain = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if plain is None:
            raise InputError(f"{type(module).__name__} has no eager attention to check steering against")
        seen.append(module.layer_idx)
        out, weights = plain(module, query, key, value, attention_mask, **kwargs)
        if module.layer_idx not in heads:
            return out, weights
        user = F.pad(user_tokens, (0, key.shape[2] - user_tokens.shape[1]))
        is_scaled = heads[module.layer_idx][None, :, None, None] & ~user[:, None, None]  # [batch, n_heads, 1, n_keys]
        scaled = torch.where(is_scaled, weights * alpha, weights)
        sink = 1 - weights.sum(-1, keepdim=True) if kwargs.get("s_aux") is not None else 0  # what no key takes stays
        scaled = scaled / (scaled.sum(-1, keepdim=True) + sink)
        return (scaled @ repeat_heads(value, query.shape[1])).transpose(1, 2).contiguous(), scaled

    AttentionInterface.register(PLAIN, attend)
    AttentionMaskInterface.register(PLAIN, eager_mask)
    with attention_implementation(text_decoder(model), PLAIN):
        yield seen


def check_against_eager(
    model: PreTrainedModel, steered: Callable[..., contextlib.AbstractContextManager], n_tokens: int = 48
) -> list[int]:
    """Compare a steered forward over two short random sequences, one padded on the left, with the plain formula.

    It costs two short forwards, and turns an architecture whose attention does something unforeseen into an error in
    place of answers that are steered wrongly.

    Args:
        model: of transformers' attention interface.
        steered: of (user_tokens, heads, alpha), a block in which `model` is steered.
        n_tokens: of the longer sequence.

    Returns:
        The layers with softmax attention.

    Raises:
        InputError: the two differ by more than rounding.
    """
    decoder, config = text_decoder(model), model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    n_vocabulary = min(model.get_input_embeddings().weight.shape[0], 1000)  # plain text tokens stand early
    input_ids = torch.randint(n_vocabulary, (2, n_tokens), generator=generator).to(model.device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, : n_tokens // 3] = 0
    present = attention_mask.bool()
    user_tokens = (torch.rand((2, n_tokens), generator=generator) < 0.5).to(model.device) & present
    is_steered = torch.rand((config.num_hidden_layers, config.num_attention_heads), generator=generator) < 0.5
    heads = dict(enumerate(is_steered.to(model.device)))
    outputs = []
    with torch.no_grad():
        for way in (steered(user_tokens, heads, 0.1), steer_eagerly(model, user_tokens, heads, 0.1)):
            with way as seen:
                out = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
                outputs.append(out[0][present].float())
    difference = float((outputs[0] - outputs[1]).abs().mean() / outputs[1].abs().mean())
    if not difference <= (1e-3 if model.dtype == torch.float32 else 0.1):  # meanings differ by more, rounding by less
        raise InputError(
            f"{type(model).__name__} computes attention in a way that is not understood here (steered, it differs by "
            f"{difference:.2g} from its materialised attention); it can't be steered"
        )
    return seen
