"""Attention with log α on chosen keys of chosen heads (eq. 1), through the unmodified fused kernels.

Multiplying weights by α and renormalising the row equals adding log α to those keys' logits. Where the attention is
plainly causal the summand is the product of a few more columns of query and key, as is the padding, so nothing L x L
is built. One query row, as in decoding, takes it as a mask over the cache as it is. Windows, prompts that continue a
cache, soft-capping and sinks go by blocks of query rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from ctxaware.attention.kernel import QUERY_BLOCK, LazyMask, attend_block, repeat_heads
from ctxaware.errors import InputError

COLUMNS = 8  # the fused CUDA kernels want a head width that is a multiple of 8
OUT_OF_SIGHT = 1e4  # a padding key's logit is lowered by this: its weight is 0 in float32 as in bfloat16


@dataclass
class KeyMask:
    """What the keys of one forward are, and which of them each query sees; the layers of a kind share it.

    Attributes:
        visible: transformers' mask function over positions from the start of the padded prompt.
        reach: no query sees a key `reach` or more positions before it (window or chunk size); None for no limit.
        batch, n_query, n_keys: sizes.
        first_query, first_key: positions of the first query row and of the first key that is still in the cache.
        padding: bool `[batch, n_keys]`, the keys that are padding; None where none is.
        is_causal: the layer's own mask is causal attention over all keys, as far as it can matter here.
    """

    visible: Callable
    reach: int | None
    batch: int
    n_query: int
    n_keys: int
    first_query: int
    first_key: int
    padding: torch.Tensor | None
    is_causal: bool
    memo: dict = field(default_factory=dict)

    def outside(self, user_tokens: torch.Tensor) -> torch.Tensor:
        """bool `[batch, n_keys]`: the keys outside the user's messages; what stands after the prompt was generated."""
        if (key := ("outside", user_tokens.device)) not in self.memo:  # layers may stand on several devices
            if self.batch % user_tokens.shape[0]:
                raise InputError(
                    f"user_tokens has {user_tokens.shape[0]} rows for a batch of {self.batch}; pass one a row"
                )
            user = user_tokens[:, self.first_key : self.first_key + self.n_keys]
            # beams and several answers of one prompt stand side by side
            user = user.repeat_interleave(self.batch // user_tokens.shape[0], dim=0)
            self.memo[key] = ~F.pad(user, (0, self.n_keys - user.shape[1]))
        return self.memo[key]

    def block(self, start: int, end: int, first: int, last: int, device: torch.device) -> torch.Tensor:
        """bool `[batch, 1, end - start, last - first]`: query rows by keys, counted from this forward's first.

        A row of padding sees itself, so that no row is empty: an empty one is not a number, and spreads.
        """
        rows = torch.arange(start, end, device=device)[None] + self.first_query
        rows = rows.expand(self.batch, -1)  # chunks start where a row's padding ends, so rows differ
        mask = LazyMask(self.visible, self.reach).block(rows, first + self.first_key, last + self.first_key)
        if self.padding is None:
            return mask
        keys = torch.arange(first, last, device=device) + self.first_key
        return mask & ~self.padding.to(device)[:, None, None, first:last] | (rows[0][:, None] == keys)

    def first_visible(self, row: int) -> int:
        """The first key that a query row, or one after it, may see."""
        if not self.reach:
            return 0
        return max(0, row + self.first_query - self.reach + 1 - self.first_key)


@dataclass(frozen=True)
class KeyBias:
    """log α joins the logits of some keys for some heads.

    Attributes:
        log_alpha: 0 or below.
        outside: bool `[batch, n_keys]`, the keys.
        steered: bool `[n_heads]`, the heads.
    """

    log_alpha: float
    outside: torch.Tensor
    steered: torch.Tensor

    def of_keys(self) -> torch.Tensor:
        """Float `[batch, 1, 1, n_keys]`: the summand of a steered head."""
        return (self.log_alpha * self.outside)[:, None, None]


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **_: Any,
) -> KeyMask:
    """transformers' mask interface."""
    from transformers.masking_utils import prepare_padding_mask

    present = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    present = None if present is None else present[:, kv_offset : kv_offset + kv_length]
    padding = None if present is None or present.all() else ~present
    is_causal = allow_is_causal_skip and (local_size is None or kv_offset + kv_length <= local_size)
    return KeyMask(mask_function, local_size, batch_size, q_length, kv_length, q_offset, kv_offset, padding, is_causal)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: KeyMask,
    user_tokens: torch.Tensor,
    steered: torch.Tensor | None,
    alpha: float,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """A layer's attention output, steered.

    Args:
        module: the attention layer.
        query: `[batch, n_heads, n_query, head_dim]`.
        key, value: `[batch, n_kv_heads, n_keys, head_dim]`, after the cache's update.
        mask: of this forward.
        user_tokens: bool `[prompts, n_prompt_tokens]`, positions as in the padded prompt.
        steered: bool `[n_heads]`; None where the layer has no steered head.
        alpha: 0–1.
        scaling, softcap, s_aux: the layer's own, as transformers passes them.

    Returns:
        `[batch, n_query, n_heads, head_dim]`.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = None if steered is None else KeyBias(math.log(alpha), mask.outside(user_tokens), steered)
    if softcap is None and s_aux is None:
        if bias is None and mask.padding is None and mask.is_causal and mask.n_query in (1, mask.n_keys):
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)[0]
        if mask.n_query == 1:
            return _one_row(query, key, value, mask, bias, scale).transpose(1, 2)
        if mask.is_causal and mask.n_query == mask.n_keys:
            return _causal(query, key, value, mask, bias, scale).transpose(1, 2)
    return _in_blocks(query, key, value, mask, bias, scale, softcap, s_aux).transpose(1, 2)


def _one_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: KeyMask,
    bias: KeyBias | None,
    scale: float,
) -> torch.Tensor:
    """One query row: the heads of a group are rows over the unexpanded cache, the summand is a float mask."""
    batch, n_heads, _, head_dim = query.shape
    if (of_plain := ("plain row", query.device)) not in mask.memo:
        seen = None if mask.is_causal and mask.padding is None else mask.block(0, 1, 0, mask.n_keys, query.device)
        row = torch.zeros((batch, 1, 1, mask.n_keys), dtype=query.dtype, device=query.device)
        mask.memo[of_plain] = row if seen is None else row.masked_fill_(~seen, float("-inf"))
    plain = mask.memo[of_plain]
    if bias is None:
        attn_mask = plain.expand(-1, n_heads, -1, -1)
    else:
        if (of_steered := ("steered row", query.device)) not in mask.memo:
            mask.memo[of_steered] = plain + bias.of_keys().to(plain)
        attn_mask = torch.where(bias.steered[:, None, None], mask.memo[of_steered], plain)
    groups = key.shape[1], n_heads // key.shape[1]
    out = F.scaled_dot_product_attention(
        query.reshape(batch, *groups, head_dim),
        key,
        value,
        attn_mask=attn_mask.reshape(batch, *groups, mask.n_keys),
        scale=scale,
    )
    return out.reshape(batch, n_heads, 1, value.shape[-1])


def _with_columns(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding: torch.Tensor | None,
    bias: KeyBias | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value with 8 more columns, whose product is the summand of the logits; the value's are empty.

    log α stands in two, the second the rounding error of the first: one of bfloat16 would be 1% off in a weight.
    """
    of_query = query.new_zeros(query.shape[1], COLUMNS)
    of_key = key.new_zeros(key.shape[0], key.shape[2], COLUMNS)
    if bias is not None:
        exact = bias.outside * (bias.log_alpha / scale)
        of_key[..., 0] = exact
        of_key[..., 1] = exact - of_key[..., 0]
        of_query[:, :2] = bias.steered[:, None]
    if padding is not None:
        of_key[..., 2] = padding.to(key.device) * -min(OUT_OF_SIGHT / scale, torch.finfo(key.dtype).max / 4)
        of_query[:, 2] = 1
    query = torch.cat([query, of_query[None, :, None].expand(*query.shape[:3], -1)], dim=-1)
    key = torch.cat([key, of_key[:, None].expand(*key.shape[:3], -1)], dim=-1)
    return query, key, F.pad(value, (0, key.shape[-1] - value.shape[-1]))


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: KeyMask,
    bias: KeyBias | None,
    scale: float,
) -> torch.Tensor:
    """Causal attention of equally many queries and keys."""
    if mask.padding is None and bias is not None and not bias.steered.all():  # more columns on steered heads alone
        steered = bias.steered
        key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
        out = torch.empty((*query.shape[:3], value.shape[-1]), dtype=query.dtype, device=query.device)
        for heads, of_heads in ((steered, replace(bias, steered=steered[steered])), (~steered, None)):
            parts = query[:, heads], key[:, heads], value[:, heads]
            out[:, heads] = _causal_of_all(*parts, None, of_heads, scale)
        return out
    return _causal_of_all(query, key, value, mask.padding, bias, scale)


def _causal_of_all(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding: torch.Tensor | None,
    bias: KeyBias | None,
    scale: float,
) -> torch.Tensor:
    """One call of the fused kernel."""
    width = value.shape[-1]
    if padding is not None or bias is not None:
        query, key, value = _with_columns(query, key, value, padding, bias, scale)
    grouped = key.shape[1] != query.shape[1]
    if grouped and key.shape[-1] > 256:  # the fused CUDA kernels that share key heads end here
        key, value, grouped = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1]), False
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return out[..., :width]


def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: KeyMask,
    bias: KeyBias | None,
    scale: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """Any mask, by blocks of query rows."""
    width, summand = value.shape[-1], None
    if bias is not None and softcap is None and s_aux is None:
        query, key, value = _with_columns(query, key, value, None, bias, scale)
    elif bias is not None:  # what no fused kernel takes: log α joins the logits after soft-capping
        summand = bias.steered[:, None, None] * bias.of_keys()
    key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
    out = torch.empty((*query.shape[:3], width), dtype=query.dtype, device=query.device)
    for start in range(0, mask.n_query, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, mask.n_query)
        first = mask.first_visible(start)
        last = min(mask.n_keys, end + mask.first_query - mask.first_key)
        args = query[:, :, start:end], key[:, :, first:last], value[:, :, first:last]
        seen = mask.block(start, end, first, last, query.device)
        of_block = None if summand is None else summand[..., first:last]
        out[:, :, start:end] = attend_block(*args, seen, scale, softcap, s_aux, of_block)[..., :width]
    return out
