"""Prompts in the order of their token ids, and the keys and values of what they share computed once.

In that order each prompt's longest common prefix with all earlier ones is the one with the prompt just before,
so one cache of batch size 1 is enough: it is cut back to that prefix and grown by what the prompt shares with
the next. A batch gets copies of it, padded on the left as the harness pads, and only the tails are fed together.
"""

import contextlib
import inspect
import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

# Tokens that a forward pass of its own costs as much as, whatever it is fed: on a GPU reading the weights.
LAUNCH_TOKENS = {"cpu": 16}
_GPU_LAUNCH_TOKENS = 256

# Tokens fed at a time behind a cache: there the kernel computes what its mask hides, so that one long piece costs more
# than several short ones (a third more for 3,600 tokens behind 400).
PIECE_TOKENS = 1024


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences."""
    n = min(len(a), len(b))
    # slices compare at C speed: find the first length at which they differ
    return bisect_left(range(n), True, key=lambda i: a[: i + 1] != b[: i + 1]) if n else 0


@dataclass(frozen=True)
class Prompt:
    """One prompt of a model call.

    Attributes:
        input_ids: its tokens, as the model sees them (cut on the left where the window asks for it).
        text: what was encoded, before it was cut; for log-likelihoods the context without the continuation.
        n_scored: how many of the last positions' logits are needed: 1 to generate, a continuation's length to score.
        cache_key: one entry a token, equal where keys and values may be shared; empty: the tokens decide.
    """

    input_ids: tuple[int, ...]
    text: str = ""
    n_scored: int = 1
    cache_key: tuple = ()

    @property
    def key(self) -> tuple:
        """`cache_key`, or the tokens."""
        return self.cache_key or self.input_ids


@dataclass(frozen=True)
class ModelCall:
    """What one call of the transformers model sees.

    Attributes:
        input_ids: `[batch, n_keys]`: the prompts' tokens that are keys in this call, cached ones included; padding
            is on the left, on the right where the harness scores without reuse.
        attention_mask: `[batch, n_keys]`, 0 on padding. Keys that come after these were generated.
        prompts: the prompt of each row; the row may be its beginning only.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompts: tuple[Prompt, ...]


Around = Callable[[ModelCall], contextlib.AbstractContextManager]


def unchanged(call: ModelCall) -> contextlib.AbstractContextManager:
    """An `Around` that changes nothing."""
    return contextlib.nullcontext()


class PrefixCache:
    """The shared prefixes of prompts that are visited in the order of `plan`.

    Args:
        model: a causal language model for which `cache_trial.why_not_exact` knows no reason.
        around: opens a context manager around every call of the model.
    """

    def __init__(self, model: PreTrainedModel, around: Around):
        self.model, self._around = model, around
        self._accepts = forward_parameters(model)
        self._launch = LAUNCH_TOKENS.get(model.device.type, _GPU_LAUNCH_TOKENS)
        self.n_computed = 0  # prompt tokens fed to the model by this object
        self._shared: dict[tuple, int] = {}
        self._trunk, self._key = DynamicCache(), ()
        self._read: tuple[list[Prompt], DynamicCache] | None = None  # what `read` saw, and its keys and values

    def plan(self, prompts: Sequence[Prompt]) -> list[int]:
        """The order in which to visit prompts, as indices; remembers what each shares with its neighbours."""
        order = sorted(range(len(prompts)), key=lambda i: prompts[i].key)
        keys = [prompts[i].key for i in order]
        between = [0, *(common_prefix(a, b) for a, b in itertools.pairwise(keys)), 0]
        self._shared = {}
        for i, key in enumerate(keys):
            self._shared[key] = max(between[i], between[i + 1], self._shared.get(key, 0))
        return order

    def fill(self, prompts: Sequence[Prompt]) -> tuple[DynamicCache, int]:
        """A cache for a batch of prompts (in any order; batches in that of `plan`), padded on the left to the longest.

        Returns:
            The keys and values of all columns but the last `n_tail`, which are left to feed, and `n_tail`.
        """
        if self._read:
            read, self._read = self._read, None
            return self._going_on(prompts, *read)
        order = sorted(range(len(prompts)), key=lambda i: prompts[i].key)
        lengths = [len(p.input_ids) for p in prompts]
        shared = [min(self._shared.get(p.key, 0), len(p.input_ids) - p.n_scored) for p in prompts]
        own = [n - s for n, s in zip(lengths, shared, strict=True)]
        n_tail = self._tail(own, max(p.n_scored for p in prompts), PIECE_TOKENS if any(shared) else max(lengths))
        rows = _Rows(len(prompts), max(lengths) - n_tail)
        for i in order:
            self._grow(prompts[i], max(shared[i], lengths[i] - n_tail))
            rows.put(i, self._trunk, 0, 0, max(0, lengths[i] - n_tail))
        self.n_computed += sum(min(n_tail, n) for n in lengths)
        return rows.cache(), n_tail

    def _going_on(
        self, prompts: Sequence[Prompt], read: Sequence[Prompt], held: DynamicCache
    ) -> tuple[DynamicCache, int]:
        """As `fill`, from the keys and values of what was read."""
        n_columns = held.get_seq_length()
        from_row, n_tails = [], []
        for prompt in prompts:
            shared = [common_prefix(each.key, prompt.key) for each in read]
            from_row.append(max(range(len(read)), key=shared.__getitem__))
            n_tails.append(len(prompt.input_ids) - min(max(shared), len(prompt.input_ids) - prompt.n_scored))
        n_tail = max(n_tails)
        rows = _Rows(len(prompts), max(len(p.input_ids) for p in prompts) - n_tail)
        for i, prompt in enumerate(prompts):
            start = n_columns - len(read[from_row[i]].input_ids)  # rows are padded on the left
            rows.put(i, held, from_row[i], start, max(0, len(prompt.input_ids) - n_tail))
        self.n_computed += sum(min(n_tail, len(p.input_ids)) for p in prompts)
        return rows.cache(), n_tail

    def _tail(self, own: Sequence[int], n_scored: int, most: int) -> int:
        """Tokens to feed to all rows together, so that the cost of all forward passes is least.

        Args:
            own: tokens of each row that no neighbour shares.
            n_scored: the least it may be.
            most: the most it may be, where that is not less than `n_scored`.
        """

        def cost(n_tail: int) -> int:
            alone = sum(max(n - n_tail, self._launch) for n in own if n > n_tail)
            return max(n_tail * len(own), self._launch) + alone

        kinks = {n_scored, self._launch // len(own), *own, *(n - self._launch for n in own)}  # linear between these
        return min({max(min(n, most), n_scored) for n in kinks}, key=lambda n: (cost(n), n))

    def _grow(self, prompt: Prompt, n_tokens: int) -> None:
        """Make the trunk the first `n_tokens` of a prompt, or more of it where that is there already."""
        n_held = self._trunk.get_seq_length()
        n_kept = min(common_prefix(self._key, prompt.key), n_held)
        if n_held > n_kept:
            self._trunk.crop(n_kept - n_held)
        if n_kept < n_tokens:
            self._key = ()  # nothing holds while the model runs: an error may leave layers of two lengths
            input_ids = torch.tensor([prompt.input_ids[:n_tokens]], device=self.model.device)
            ends = [*range(n_kept + PIECE_TOKENS, n_tokens, PIECE_TOKENS)] if n_kept else []  # from nothing: causal
            for start, end in itertools.pairwise([n_kept, *ends, n_tokens]):
                piece = input_ids[:, :end]
                self._forward(piece, torch.ones_like(piece), start, self._trunk, (prompt,), 1)
            self.n_computed += n_tokens - n_kept
        self._key = prompt.key

    def score(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """Logits of the last `n_scored` positions of each prompt, `[n_scored, vocab]`."""
        logits, self._read = self.read(prompts), None
        return logits

    def read(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """As `score`; the next `fill` then takes prompts that go on from these, and computes what is new in them."""
        cache, n_tail = self.fill(prompts)
        input_ids, attention_mask = left_padded([p.input_ids for p in prompts], self.model.device)
        n_logits = max(p.n_scored for p in prompts)
        n_cached = input_ids.shape[1] - n_tail
        logits = self._forward(input_ids, attention_mask, n_cached, cache, tuple(prompts), n_logits)
        self._read = list(prompts), cache
        return [row[-p.n_scored :] for row, p in zip(logits, prompts, strict=True)]

    def _forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        n_cached: int,
        cache: DynamicCache,
        prompts: tuple[Prompt, ...],
        n_logits: int,
    ) -> torch.Tensor:
        """Logits `[batch, n, vocab]`, n at least `n_logits`, of all columns after the first `n_cached`."""
        optional = {
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, n_cached:],
            "logits_to_keep": n_logits,
        }
        optional = {name: value for name, value in optional.items() if name in self._accepts}
        mask = None if attention_mask.all() else attention_mask
        with torch.no_grad(), self._around(ModelCall(input_ids, attention_mask, prompts)):
            return self.model(
                input_ids=input_ids[:, n_cached:],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **optional,
            ).logits


class _Rows:
    """The rows of a batch's cache, padded on the left to `width` columns."""

    def __init__(self, n_rows: int, width: int):
        self._n_rows, self._width = n_rows, width
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put(self, row: int, source: DynamicCache, of: int, start: int, n_tokens: int) -> None:
        """Copy `n_tokens` to a row: of another cache's row `of`, from column `start` on."""
        if not n_tokens:
            return
        for layer_idx, layer in enumerate(source.layers):
            if layer_idx == len(self._layers):
                self._layers.append((self._empty(layer.keys), self._empty(layer.values)))
            for ours, theirs in zip(self._layers[layer_idx], (layer.keys, layer.values), strict=True):
                ours[row, :, self._width - n_tokens :] = theirs[of, :, start : start + n_tokens]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self._n_rows, like.shape[1], self._width, like.shape[3])  # [batch, heads, width, dim]

    def cache(self) -> DynamicCache:
        """The rows as a cache; an empty one where no row holds a token."""
        cache = DynamicCache()
        for layer_idx, (keys, values) in enumerate(self._layers):
            cache.update(keys[:, :, :0], values[:, :, :0], layer_idx)
            cache.layers[layer_idx].keys, cache.layers[layer_idx].values = keys, values  # no second copy
        return cache


def read_whole(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    """The logits of `PrefixCache.read` for a model whose cache can't be cut: each prompt computed alone, and whole."""
    takes, rows = "logits_to_keep" in forward_parameters(model), [torch.tensor([p.input_ids]) for p in prompts]
    kept = [{"logits_to_keep": p.n_scored} if takes else {} for p in prompts]
    with torch.no_grad():
        logits = [model(row.to(model.device), **kwargs).logits[0] for row, kwargs in zip(rows, kept, strict=True)]
    return [each[-p.n_scored :] for each, p in zip(logits, prompts, strict=True)]


def left_padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[batch, longest]` padded on the left, and their attention mask."""
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return input_ids, attention_mask


def forward_parameters(model: PreTrainedModel) -> set[str]:
    """Names that the model's own `forward` takes, that of the base where an adapter is around it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)
