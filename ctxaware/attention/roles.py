"""How the last token of a prompt allots its attention: on the user's, the assistant's, BOS and the template's tokens.

Protocol section 6, figures 3 and 4 of the paper. One forward a prompt gives the shares of every head of all chosen
layers; nothing of the size length x length is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.chat import Tokenized
from ctxaware.errors import InputError
from ctxaware.indicator.token import INDICATOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where every token of a prompt belongs, to exactly one. `first` is the first token where it is no BOS: models
# without BOS make it their attention sink, so its weight says nothing about the text that it is part of.
GROUPS = ("user", "indicator", "assistant", "bos", "first", "template")
# What is compared between prompts with and without a template: no template's own tokens, and one sink.
SHARES = ("user", "indicator", "assistant", "bos")
BATCH_TOKENS = 16384  # tokens of a padded batch; a longer prompt goes alone


@dataclass(frozen=True)
class GroupedPrompt:
    """A prompt's tokens and the group of each.

    Attributes:
        input_ids: int64 `[n_tokens]`.
        groups: int8 `[n_tokens]`: index into `GROUPS`.
    """

    input_ids: np.ndarray
    groups: np.ndarray


def group_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Tokenized) -> GroupedPrompt:
    """Say of each token of a prompt which group it belongs to.

    User and assistant are the tokens of the messages' content; `[IND]` is a group of its own; the first token is BOS or
    `first`, whoever it belongs to; all that is left, system messages too, is the template's.

    Args:
        tokenizer: that of the prompt.
        prompt: with the response prefix as an assistant message.
    """
    groups = np.full(len(prompt.input_ids), GROUPS.index("template"), dtype=np.int8)
    for role in ("user", "assistant"):
        groups[prompt.mask(role)] = GROUPS.index(role)
    indicator = tokenizer.get_vocab().get(INDICATOR)
    if indicator is not None:
        groups[prompt.mask("user") & (prompt.input_ids == indicator)] = GROUPS.index("indicator")
    is_bos = prompt.input_ids[0] == tokenizer.bos_token_id
    groups[0] = GROUPS.index("bos" if is_bos else "first")
    return GroupedPrompt(prompt.input_ids, groups)


def allocate(
    model: Any,
    prompts: Sequence[GroupedPrompt],
    layers: Sequence[int],
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The attention of each prompt's last token on each group, for every head of `layers`.

    Prompts that follow each other share a batch, so like lengths should stand together.

    Args:
        model: a causal language model of transformers.
        prompts: from `group_tokens`.
        layers: 0-based.
        on_batch: called with the number of prompts and of tokens that have just been done.

    Returns:
        float32 `[n_prompts, n_layers, n_heads, n_groups]`; the groups of a row sum to 1, but for what an attention
        sink that is no token (gpt-oss) takes.

    Raises:
        InputError: a layer is lacking or has no softmax attention, its number of heads differs from another's, memory
            ran out, or a share is not finite.
    """
    done = []
    for batch in _batches(prompts):
        done.append(_allocate_batch(model, batch, layers))
        if on_batch:
            on_batch(len(batch), sum(len(prompt.input_ids) for prompt in batch))
    return np.concatenate(done)


def _batches(prompts: Sequence[GroupedPrompt]) -> list[list[GroupedPrompt]]:
    batches: list[list[GroupedPrompt]] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt.input_ids)) if batches else len(prompt.input_ids)
        if not batches or (len(batches[-1]) + 1) * longest > BATCH_TOKENS:
            batches.append([])
            longest = len(prompt.input_ids)
        batches[-1].append(prompt)
    return batches


def _allocate_batch(model: Any, batch: list[GroupedPrompt], layers: Sequence[int]) -> np.ndarray:
    import torch

    from ctxaware.attention.mass import attention_mass

    n_tokens = max(len(prompt.input_ids) for prompt in batch)
    input_ids = torch.zeros((len(batch), n_tokens), dtype=torch.long)  # what padding holds is never seen
    groups = torch.zeros((len(batch), len(GROUPS), n_tokens), dtype=torch.bool)
    for i, prompt in enumerate(batch):
        n = len(prompt.input_ids)
        input_ids[i, :n] = torch.from_numpy(prompt.input_ids)
        groups[i, :, :n] = torch.arange(len(GROUPS))[:, None] == torch.from_numpy(prompt.groups)[None]
    last = torch.tensor([[len(prompt.input_ids) - 1] for prompt in batch])
    try:
        mass = attention_mass(model, input_ids, groups, last, layers)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory with {len(batch)} prompts of up to {n_tokens} tokens; lower the longest context length"
        ) from error
    return stack_layers(mass, layers)[:, :, :, 0]


def stack_layers(mass: dict[int, Any], layers: Sequence[int]) -> np.ndarray:
    """What `attention_mass` returns as one float32 array `[batch, n_layers, n_heads, n_rows, n_groups]`.

    Raises:
        InputError: layers differ in their number of heads, or a mass is not finite.
    """
    n_heads = {mass[i].shape[1] for i in layers}
    if len(n_heads) > 1:
        raise InputError(f"this model's layers have different numbers of heads ({sorted(n_heads)}); choose one layer")
    stacked = np.stack([mass[i].cpu().numpy() for i in layers], axis=1)
    if not np.isfinite(stacked).all():
        raise InputError("the model gives attention that is not finite in this dtype; use float32")
    return stacked


def renormalised(shares: np.ndarray) -> np.ndarray:
    """The attention on user, indicator, assistant and BOS tokens, summing to 1: the template's own is left out.

    The first token counts as BOS where it is none, so that the attention sink stands in the same place in every prompt.

    Args:
        shares: `[..., n_groups]` in the order of `GROUPS`.

    Returns:
        `[..., n_shares]` in the order of `SHARES`.
    """
    by_name = dict(zip(GROUPS, np.moveaxis(np.asarray(shares, dtype=np.float64), -1, 0), strict=True))
    kept = np.stack(
        [by_name["user"], by_name["indicator"], by_name["assistant"], by_name["bos"] + by_name["first"]], axis=-1
    )
    return kept / kept.sum(axis=-1, keepdims=True)


def user_mass(shares: np.ndarray) -> np.ndarray:
    """The attention on U, the content of user messages, `[IND]` among it: `[..., n_groups]` to `[...]`."""
    return shares[..., GROUPS.index("user")] + shares[..., GROUPS.index("indicator")]
