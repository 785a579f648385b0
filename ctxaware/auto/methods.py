"""What says whether a prompt needs `[IND]`: the model's own odds of it (slot), or a probe on a hidden state.

Both look at beginnings of the prompt (`heads`) and make one number of what the model shows there: a log-odds, which the
calibration turns into a probability.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from ctxaware.auto.fork import Fork
from ctxaware.cache_trial import why_not_exact
from ctxaware.errors import InputError
from ctxaware.prefix_cache import PrefixCache, Prompt, read_whole, unchanged
from ctxaware.runs.progress import Advance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLOT, PROBE = "slot", "probe"
METHODS = (SLOT, PROBE)
BATCH = 8  # prompts read together
Looked = TypeVar("Looked")


class Head(NamedTuple):
    """A beginning of a prompt that the model has to be seen on; the plain or the marked prompt goes on from one.

    Attributes:
        prompt: its tokens.
        marked, plain: tokens that may follow `prompt` less its last `n_scored - 1`, of which the slot compares the
            probabilities; either may be empty.
    """

    prompt: Prompt
    marked: tuple[int, ...] = ()
    plain: tuple[int, ...] = ()


class Seen(NamedTuple):
    """What a model shows at the end of a head.

    Attributes:
        logits: `[n_scored, vocab]`, of its last positions.
        hidden: float32 `[n_layers * hidden_size]` of its last token, at the method's layers; empty where it has none.
    """

    logits: torch.Tensor
    hidden: np.ndarray


class Method(Protocol):
    """Slot or probe.

    Attributes:
        name: one of `METHODS`.
        layers: 0-based, whose outputs it looks at.
        needs_mark: whether the tokenizer must have `[IND]`.
    """

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def needs_mark(self) -> bool: ...

    def heads(self, fork: Fork) -> list[Head]:
        """What the model has to be seen on."""

    def log_odds(self, head: Head, seen: Seen) -> float:
        """A head's part of the log-odds that the prompt needs its context, before calibration; their sum is all."""


@dataclass(frozen=True)
class Slot:
    """The model's own odds of `[IND]`, learnt where the loss is on all tokens.

    Whole continuations are compared: the tokens of the marked rendering from where the two part up to `[IND]`, with the
    full stop that a message may get, against those of the plain rendering up to the one that closes the message.
    """

    name: str = SLOT
    layers: tuple[int, ...] = ()
    needs_mark: bool = True

    def heads(self, fork: Fork) -> list[Head]:
        """All before `[IND]`; and all before the closing token where the plain rendering has more than that alone."""
        marked = fork.marked[fork.n_common : fork.n_marked]
        plain = fork.plain[fork.n_common : fork.n_plain]
        before = Prompt(fork.marked[: fork.n_marked - 1], n_scored=len(marked))
        if len(plain) == 1:
            return [Head(before, marked, plain)]
        return [Head(before, marked), Head(Prompt(fork.plain[: fork.n_plain - 1], n_scored=len(plain)), plain=plain)]

    def log_odds(self, head: Head, seen: Seen) -> float:
        """log p(marked continuation) - log p(plain continuation)."""
        log_p = torch.log_softmax(seen.logits.float(), dim=-1)  # [n_scored, vocab]
        marked = sum(log_p[i, token] for i, token in enumerate(head.marked))
        return float(marked - sum(log_p[i, token] for i, token in enumerate(head.plain)))


@dataclass(frozen=True)
class Probe:
    """A logistic regression on the hidden state of the prompt's last token (the end of the generation prompt).

    Attributes:
        layers: 0-based; the output of each, one after the other.
        weights: float32 `[n_layers * hidden_size]`.
        bias: of the log-odds.
    """

    layers: tuple[int, ...]
    weights: np.ndarray
    bias: float
    name: str = PROBE
    needs_mark: bool = False

    def heads(self, fork: Fork) -> list[Head]:
        """The plain prompt."""
        return [Head(Prompt(fork.plain))]

    def log_odds(self, head: Head, seen: Seen) -> float:
        """The regression's."""
        if len(seen.hidden) != len(self.weights):
            raise InputError(
                f"the probe has {len(self.weights)} weights and this model shows {len(seen.hidden)} numbers at layers "
                f"{list(self.layers)}; fit it on this model"
            )
        return float(seen.hidden.astype(np.float64) @ self.weights.astype(np.float64)) + self.bias


Read = Callable[[list[Prompt]], list[torch.Tensor]]  # as PrefixCache.score


def see(model: "PreTrainedModel", heads: Sequence[Head], layers: Sequence[int], read: Read) -> list[Seen]:
    """What the model shows at the ends of heads.

    Args:
        model: it.
        heads: at least one.
        layers: 0-based, whose outputs to keep.
        read: computes the heads, the ends of all in its last call of the model.
    """
    with _last_states(model, layers) as states:
        logits = read([head.prompt for head in heads])
    if not layers:
        return [Seen(rows, np.zeros(0, np.float32)) for rows in logits]
    hidden = torch.cat([states[layer_idx] for layer_idx in layers], dim=-1).float().cpu().numpy()
    return [Seen(rows, each) for rows, each in zip(logits, hidden, strict=True)]


def look(
    model: "PreTrainedModel",
    heads: Sequence[Head],
    layers: Sequence[int],
    of: Callable[[Head, Seen], Looked],
    advance: Advance | None = None,
) -> list[Looked]:
    """What `of` makes of each head, in their order; what prompts share is computed once where the model allows it.

    Args:
        model: it.
        heads: any number.
        layers: 0-based, whose outputs to keep.
        of: called with each head and what the model shows there, which is not kept.
        advance: called with the number of heads that have just been done, and of tokens.
    """
    looked: dict[int, Looked] = {}
    prompts = [head.prompt for head in heads]
    cache = PrefixCache(model, unchanged) if len(heads) > 1 and why_not_exact(model) is None else None
    order, n_batch = (cache.plan(prompts), BATCH) if cache else (list(range(len(heads))), 1)
    read = cache.score if cache else functools.partial(read_whole, model)
    for start in range(0, len(order), n_batch):
        batch = order[start : start + n_batch]
        chosen = [heads[i] for i in batch]
        looked.update(zip(batch, map(of, chosen, see(model, chosen, layers, read)), strict=True))
        if advance:
            advance(len(batch), sum(len(prompts[i].input_ids) for i in batch))
    return [looked[i] for i in range(len(heads))]


@contextlib.contextmanager
def _last_states(model: "PreTrainedModel", layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """By layer `[batch, hidden_size]`: its output at the last position, in the last call within the block."""
    states: dict[int, torch.Tensor] = {}
    blocks: Any = decoder_layers(model) if layers else []
    handles = []
    for layer_idx in layers:
        if not 0 <= layer_idx < len(blocks):
            raise InputError(
                f"layer_idx must be in 0–{len(blocks) - 1} for this model, got {layer_idx}", "pass another {layer}"
            )

        def keep(module: torch.nn.Module, arguments: tuple, output: Any, layer_idx: int = layer_idx) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states[layer_idx] = hidden[:, -1].detach()  # [batch, hidden_size]

        handles.append(blocks[layer_idx].register_forward_hook(keep))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def usual_layer(n_layers: int) -> int:
    """The layer that a probe looks at where none is named: a quarter of the way up, the best on real conversations."""
    return -(-n_layers // 4)


def decoder_layers(model: "PreTrainedModel") -> torch.nn.ModuleList:
    """The layers of the text decoder, in order.

    Raises:
        InputError: the model keeps them in no list.
    """
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise InputError(f"{type(model).__name__} keeps its {n_layers} layers in no list, so a probe can't look at one")
