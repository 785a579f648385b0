"""The attention function that is registered with transformers' `AttentionInterface` and `AttentionMaskInterface`.

It computes a layer's output as the fused kernels do and, for the layers of a `MassRequest`, the mass on groups of keys.
No model code is patched and no hook is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "ctxaware_mass"  # the name in transformers' registries
QUERY_BLOCK = 512  # query rows of one attention call with a mask: memory is this times the keys, never L x L
MASS_COLUMNS = 8  # the fused CUDA kernels want a value width that is a multiple of 8


class LastLayerDone(Exception):
    """Leaves the forward: nothing above the last scored layer is needed."""


@dataclass
class MassRequest:
    layers: frozenset[int]
    groups: torch.Tensor  # bool [batch, n_groups, n_keys]
    rows: torch.Tensor  # int64 [batch, n_rows], ascending in each row
    rows_min: list[int]  # least and greatest position of each block of rows, known without asking the device
    rows_max: list[int]
    masses: dict[int, torch.Tensor] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)  # layers with softmax attention, in the order of the forward


current_request: ContextVar[MassRequest | None] = ContextVar("ctxaware_mass_request", default=None)


@dataclass(frozen=True)
class LazyMask:
    """A mask that is evaluated for a block of query rows at a time.

    Attributes:
        visible: transformers' mask function `(batch_idx, head_idx, q_idx, kv_idx) -> bool`.
        reach: no query sees a key `reach` or more positions before it (window or chunk size); None for no limit.
    """

    visible: Callable
    reach: int | None

    def block(self, positions: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """bool `[batch or 1, 1, n_query, end - first]` for query `positions` `[batch or 1, n_query]`."""
        device = positions.device
        batch = torch.arange(positions.shape[0], device=device)[:, None, None, None]
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        keys = torch.arange(first, end, device=device)[None, None, None, :]
        mask = self.visible(batch, head, positions[:, None, :, None], keys)
        return mask.expand(positions.shape[0], 1, positions.shape[1], end - first)


def _make_mask(
    mask_function: Callable, kv_length: int, local_size: int | None = None, allow_is_causal_skip: bool = True, **_: Any
) -> LazyMask | None:
    """transformers' mask interface: None is plain causal attention, everything else stays a function."""
    if allow_is_causal_skip and (local_size is None or kv_length <= local_size):
        return None
    return LazyMask(mask_function, local_size)


def _causal_mask() -> LazyMask:
    from transformers.masking_utils import causal_mask_function

    return LazyMask(causal_mask_function, None)


def register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _make_mask)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: LazyMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; `query` is `[batch, n_heads, n_query, head_dim]`."""
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise InputError("this model's attention is not causal: a response would see what follows; can't be scored")
    if kwargs.get("position_bias") is not None or not isinstance(attention_mask, (LazyMask, type(None))):
        raise InputError(f"{type(module).__name__} adds a bias of its own to attention, which can't be scored here")
    request, layer_idx = current_request.get(), module.layer_idx
    if request is None:
        raise RuntimeError(f"{IMPLEMENTATION} runs inside attention_mass only")
    request.seen.append(layer_idx)
    if layer_idx in request.layers:
        request.masses[layer_idx] = _mass(module, query, key, attention_mask, scaling, softcap, s_aux, request)
        if len(request.masses) == len(request.layers):
            raise LastLayerDone
    if attention_mask is None and softcap is None and s_aux is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)
    mask = attention_mask or _causal_mask()
    key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
    positions = torch.arange(query.shape[2], device=query.device)[None]
    out = torch.empty((*query.shape[:3], value.shape[-1]), dtype=query.dtype, device=query.device)
    for start in range(0, query.shape[2], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, query.shape[2])
        first = max(0, start - mask.reach + 1) if mask.reach else 0
        rows = slice(start, end)
        args = query[:, :, rows], key[:, :, first:end], value[:, :, first:end]
        out[:, :, rows] = attend_block(*args, mask.block(positions[:, rows], first, end), scaling, softcap, s_aux)
    return out.transpose(1, 2).contiguous(), None


def _mass(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: LazyMask | None,
    scaling: float | None,
    softcap: float | None,
    s_aux: torch.Tensor | None,
    request: MassRequest,
) -> torch.Tensor:
    """float32 `[batch, n_heads, n_rows, n_groups]`: attention of the requested query rows on each group of keys."""
    mask = attention_mask or _causal_mask()
    batch, n_heads, _, head_dim = query.shape
    n_groups, n_rows = request.groups.shape[1], request.rows.shape[1]
    key = repeat_heads(key, n_heads)
    # the fused CPU kernel wants values as wide as keys, the CUDA ones a multiple of 8
    width = head_dim if query.device.type == "cpu" and n_groups <= head_dim else -(-n_groups // MASS_COLUMNS) * 8
    value = F.pad(request.groups.to(query.dtype).transpose(1, 2), (0, width - n_groups))  # [batch, n_keys, width]
    value = value[:, None].expand(-1, n_heads, -1, -1)
    query = query.gather(2, request.rows[:, None, :, None].expand(-1, n_heads, -1, head_dim))
    out = torch.empty((batch, n_heads, n_rows, n_groups), dtype=torch.float32, device=query.device)
    for block, start in enumerate(range(0, n_rows, QUERY_BLOCK)):
        rows = slice(start, start + QUERY_BLOCK)
        first = max(0, request.rows_min[block] - mask.reach + 1) if mask.reach else 0
        end = request.rows_max[block] + 1
        args = query[:, :, rows], key[:, :, first:end], value[:, :, first:end]
        mass = attend_block(*args, mask.block(request.rows[:, rows], first, end), scaling, softcap, s_aux)
        out[:, :, rows] = mass[..., :n_groups].float()
    return out


def attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float | None,
    softcap: float | None,
    s_aux: torch.Tensor | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention output `[batch, n_heads, n_query, value_dim]` of one block of query rows.

    `bias` joins the logits after soft-capping; it is for layers with soft-capping or sinks, which no fused kernel has.
    """
    if softcap is None and s_aux is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    # no fused kernel of torch has soft-capping or sinks; the block keeps the weights small
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query @ key.transpose(2, 3) * scale).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + bias
    logits = logits.masked_fill(~mask, float("-inf"))
    if s_aux is not None:  # one more logit per head, which takes weight and gives no value
        sink = s_aux.float().reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        weights = torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = logits.softmax(dim=-1)
    return weights.to(value.dtype) @ value


def repeat_heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Key or value heads `[batch, n_kv_heads, n, dim]` repeated for grouped queries."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


@contextlib.contextmanager
def attention_implementation(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    """The decoder in evaluation mode with attention implementation `name`; both as they were afterwards."""
    previous = decoder.config._attn_implementation
    training = [module for module in decoder.modules() if module.training]
    decoder.eval()
    decoder.set_attn_implementation(name)
    try:
        yield
    finally:
        decoder.set_attn_implementation(previous)
        for module in training:
            module.training = True


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The text decoder: no head, no vision tower."""
    decoder = model.get_decoder()
    if not decoder._can_set_attn_implementation():
        raise InputError(
            f"{type(model).__name__} does not use transformers' attention interface, so its attention can't be read; "
            f"use a model whose implementation does (Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX and most others)"
        )
    return decoder
