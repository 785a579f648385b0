"""Retrieval heads: which head of a layer reads the user's text (eq. 3), and which heads of all read the needle.

The second ranks heads by the attention that the answer's tokens put on the place that they are copied from, as the
literature on retrieval heads does by decoding (arXiv 2404.15574); here the answer is given (teacher-forced), so one
forward a prompt is enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ctxaware.errors import InputError


@dataclass(frozen=True)
class AnsweredPrompt:
    """A needle prompt followed by its answer.

    Attributes:
        input_ids: int64 `[n_tokens]`.
        is_user: bool `[n_tokens]`: content of the user's message, but for the first token of the prompt.
        is_needle: bool `[n_tokens]`: the needle in the user's message.
        rows: int64 `[n_rows]`: the token before each token of the answer, ascending: those that generate the answer.
            The first one is the last token of the prompt with its response prefix.
    """

    input_ids: np.ndarray
    is_user: np.ndarray
    is_needle: np.ndarray
    rows: np.ndarray


class HeadAttention(NamedTuple):
    """What each head attends to.

    Attributes:
        user: float32 `[n_prompts, n_layers, n_heads]`: mass of the prompt's last token on the user's tokens, 0–1.
        needle: float32, the same shape: mass on the needle, mean over the tokens that generate the answer, 0–1.
    """

    user: np.ndarray
    needle: np.ndarray


def head_attention(
    model: Any,
    prompts: Sequence[AnsweredPrompt],
    layers: Sequence[int],
    on_prompt: Callable[[int, int], None] | None = None,
) -> HeadAttention:
    """Attention on the user's tokens and on the needle, for every head of `layers`, from one forward a prompt.

    Args:
        model: a causal language model of transformers.
        prompts: needle prompts with their answers.
        layers: 0-based.
        on_prompt: called with 1 and the number of tokens that have just been done.

    Raises:
        InputError: a layer is lacking or has no softmax attention, its number of heads differs from another's, or a
            mass is not finite.
    """
    import torch

    from ctxaware.attention.mass import attention_mass
    from ctxaware.attention.roles import stack_layers

    user, needle = [], []
    for prompt in prompts:
        groups = torch.from_numpy(np.stack([prompt.is_user, prompt.is_needle]))[None]
        rows = torch.from_numpy(prompt.rows)[None]
        mass = attention_mass(model, torch.from_numpy(prompt.input_ids)[None], groups, rows, layers)
        stacked = stack_layers(mass, layers)[0]  # [n_layers, n_heads, n_rows, 2]
        user.append(stacked[:, :, 0, 0])
        needle.append(stacked[:, :, :, 1].mean(axis=2))
        if on_prompt:
            on_prompt(1, len(prompt.input_ids))
    return HeadAttention(np.stack(user), np.stack(needle))


def retrieval_heads(user: np.ndarray) -> np.ndarray:
    """The retrieval head of each layer for each prompt: the one with the most attention on the user's tokens (eq. 3).

    Args:
        user: `[n_prompts, n_layers, n_heads]`: mass of the prompt's last token on the user's tokens.

    Returns:
        int64 `[n_prompts, n_layers]`.
    """
    return user.argmax(axis=2)


class LayerHead(NamedTuple):
    """The retrieval head of a layer over several prompts.

    Attributes:
        layer_idx: 0-based.
        head_idx: 0-based; the head that most prompts choose, of several such the one with the greater mean mass.
        agreement: share of the prompts that choose it, 0–1.
        user: its attention on the user's tokens, mean over the prompts, 0–1.
    """

    layer_idx: int
    head_idx: int
    agreement: float
    user: float


def choose_retrieval_heads(user: np.ndarray, layers: Sequence[int]) -> list[LayerHead]:
    """The retrieval head of each layer, and how many prompts agree on it.

    Args:
        user: `[n_prompts, n_layers, n_heads]`.
        layers: `[n_layers]`, 0-based.
    """
    n_prompts, _, n_heads = user.shape
    mean, chosen = user.mean(axis=0), retrieval_heads(user)
    heads = []
    for i, layer_idx in enumerate(layers):
        counts = np.bincount(chosen[:, i], minlength=n_heads)
        head_idx = int(np.lexsort((mean[i], counts))[-1])
        heads.append(LayerHead(layer_idx, head_idx, float(counts[head_idx] / n_prompts), float(mean[i, head_idx])))
    return heads


def rank_heads(needle: np.ndarray, layers: Sequence[int]) -> list[tuple[int, int]]:
    """All heads `(layer_idx, head_idx)`, the one with the most attention on the needle first.

    Args:
        needle: `[n_prompts, n_layers, n_heads]`.
        layers: `[n_layers]`, 0-based.
    """
    mean = needle.mean(axis=0)
    order = np.argsort(-mean, axis=None, kind="stable")
    return [(layers[i], int(j)) for i, j in zip(*np.unravel_index(order, mean.shape), strict=True)]


def top_heads(ranking: Sequence[tuple[int, int]], percent: float) -> list[tuple[int, int]]:
    """The first `percent` of a ranking, at least one head.

    Raises:
        InputError: `percent` is not above 0 and at most 100.
    """
    if not 0 < percent <= 100:
        raise InputError(f"percent must be above 0 and at most 100, got {percent}")
    return list(ranking[: max(1, round(len(ranking) * percent / 100))])


def half_overlap(needle: np.ndarray, layers: Sequence[int], percent: float) -> float | None:
    """Share of the top `percent` of heads that two halves of the prompts (even and odd ones) have in common.

    Args:
        needle: `[n_prompts, n_layers, n_heads]`.
        layers: `[n_layers]`, 0-based.

    Returns:
        0–1; None for a single prompt.
    """
    if len(needle) < 2:
        return None
    first, second = (set(top_heads(rank_heads(half, layers), percent)) for half in (needle[::2], needle[1::2]))
    return len(first & second) / len(first)
