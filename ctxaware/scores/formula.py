"""The context-dependency score of conversations held in memory (protocol section 4), with any model object.

How much the most attentive head of a middle layer looks at what the user wrote, averaged over the tokens
of a response. `ctxaware.scores.run` runs this over a file of conversations; a training callback can call it
with the model that is being trained.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctxaware.chat import NOBODY, defuse, n_instructions, render, special_token_pattern, tokenize
from ctxaware.errors import InputError
from ctxaware.runs.files import is_text
from ctxaware.runs.progress import Advance

if TYPE_CHECKING:
    import re

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_LAYER = 15
DEFAULT_MAX_LENGTH = 2048  # tokens
DEFAULT_BATCH_TOKENS = 16384  # tokens of a padded batch


class TurnScore(NamedTuple):
    """The score of one instruction and its response at one layer.

    Attributes:
        conversation_id: the conversation's `id`.
        turn: 0-based index of the instruction, that is of the user message among user messages.
        layer: 0-based.
        score: 0–1; None where no response token is left or the conversation can't be scored.
        response_tokens: tokens of the response, within the length limit.
        user_tokens: tokens of this and all earlier user messages, within the length limit.
    """

    conversation_id: str
    turn: int
    layer: int
    score: float | None
    response_tokens: int
    user_tokens: int


@dataclass
class Scored:
    """Scores in the order of the conversations, turns and layers.

    Attributes:
        turns: one entry a turn and layer.
        rejected: reason by conversation id, where the chat template can't show the conversation.
        tokens: number of tokens that went through the model, without padding.
    """

    turns: list[TurnScore]
    rejected: dict[str, str]
    tokens: int = 0


@dataclass(frozen=True)
class Encoded:
    """A conversation as the scorer needs it.

    Attributes:
        conversation_id: its `id`.
        input_ids: int64 `[n_tokens]`.
        is_user: bool `[n_tokens]`: content of a user message.
        response_turn: int64 `[n_tokens]`: the turn whose response the token is part of, or `NOBODY`.
        user_tokens: int64 `[n_turns]`: user tokens up to and with each turn.
    """

    conversation_id: str
    input_ids: np.ndarray
    is_user: np.ndarray
    response_turn: np.ndarray
    user_tokens: np.ndarray

    @property
    def response_tokens(self) -> np.ndarray:
        """int64 `[n_turns]`."""
        counted = self.response_turn[self.response_turn != NOBODY]
        return np.bincount(counted, minlength=len(self.user_tokens))

    @property
    def rows(self) -> np.ndarray:
        """Positions of the response tokens that have a user token before them: all that needs a forward pass."""
        after_user = np.cumsum(self.is_user) > 0
        return np.flatnonzero((self.response_turn != NOBODY) & after_user)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: dict,
    max_length: int | None = DEFAULT_MAX_LENGTH,
    pattern: "re.Pattern[str] | None" = None,
) -> Encoded:
    """Render, tokenise and cut a conversation, and find its user and response tokens.

    Consecutive assistant messages are one response; one before every instruction is no response. The text of a
    special token inside a message stays text.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        conversation: `id` and `messages` (dicts with `role` and `content`).
        max_length: tokens kept from the start; None for all.
        pattern: `special_token_pattern(tokenizer)`, where it is at hand already.

    Raises:
        InputError: the chat template can't show this conversation as it is.
    """
    pattern = pattern or special_token_pattern(tokenizer)
    for i, message in enumerate(conversation["messages"]):
        if not is_text(message["content"]):
            raise InputError(f"message {i} holds half a surrogate pair, which is no text; ctxaware prepare replaces it")
    messages = [{"role": m["role"], "content": defuse(m["content"], pattern)} for m in conversation["messages"]]
    tokenized = tokenize(tokenizer, render(tokenizer, messages), max_length)
    is_user = np.array([m["role"] == "user" for m in messages] + [False])
    turn = np.cumsum(is_user) - 1  # of each message; -1, which is NOBODY, before the first instruction
    is_response = np.array([m["role"] == "assistant" for m in messages] + [False])
    response_turn = np.where(is_response, turn, NOBODY)
    per_turn = np.bincount(turn[tokenized.owner[is_user[tokenized.owner]]], minlength=int(is_user.sum()))
    return Encoded(
        conversation_id=conversation["id"],
        input_ids=tokenized.input_ids,
        is_user=is_user[tokenized.owner],  # NOBODY, -1, takes the entry at the end
        response_turn=response_turn[tokenized.owner],
        user_tokens=np.cumsum(per_turn),
    )


def score_conversations(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Iterable[dict],
    *,
    layers: Sequence[int] = (DEFAULT_LAYER,),
    max_length: int | None = DEFAULT_MAX_LENGTH,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_batch: Advance | None = None,
) -> Scored:
    """Score every turn of every conversation at `layers`.

    Conversations of like length share a batch. The model is used where it is, in the dtype that it has, and is
    left as it was; autocast is up to the caller.

    Args:
        model: a causal language model of transformers, not wrapped for data parallelism.
        tokenizer: its fast tokenizer with a chat template.
        conversations: dicts with `id` and `messages`.
        layers: 0-based.
        max_length: tokens kept of a conversation; None for all.
        batch_tokens: greatest number of tokens of a batch, padding included; a longer conversation goes alone.
        on_batch: called with the number of conversations and of tokens that have just been done.

    Raises:
        InputError: the model lacks a layer, its attention can't be scored, memory ran out, or a score is not finite.
    """
    from ctxaware.attention.mass import check_layers

    check_layers(model, layers)
    pattern = special_token_pattern(tokenizer)
    done = Scored([], {})
    by_position: list[list[TurnScore]] = []
    to_run: list[tuple[int, Encoded]] = []
    for conversation in conversations:
        try:
            encoded = encode(tokenizer, conversation, max_length, pattern)
        except InputError as error:
            done.rejected[conversation["id"]] = str(error)
            n_turns = n_instructions(conversation["messages"])
            by_position.append(
                [TurnScore(conversation["id"], t, i, None, 0, 0) for t in range(n_turns) for i in layers]
            )
            encoded = None
        else:
            by_position.append([])
        if encoded is not None and len(encoded.rows):
            to_run.append((len(by_position) - 1, encoded))
            continue
        if encoded is not None:  # no response or no user token: 0 or nothing, without the model
            by_position[-1] = _turn_scores(encoded, layers, None)
        if on_batch:
            on_batch(1, 0)
    for batch in _batches(to_run, batch_tokens):
        scored = _score_batch(model, [encoded for _, encoded in batch], layers)
        for (position, _), turns in zip(batch, scored, strict=True):
            by_position[position] = turns
        n_tokens = sum(_needed(encoded) for _, encoded in batch)
        done.tokens += n_tokens
        if on_batch:
            on_batch(len(batch), n_tokens)
    done.turns = [turn for turns in by_position for turn in turns]
    return done


def _needed(encoded: Encoded) -> int:
    """Tokens up to the last one that is scored: by causality, what follows it changes nothing."""
    return int(encoded.rows[-1]) + 1


def _batches(to_run: list[tuple[int, Encoded]], batch_tokens: int) -> Iterator[list[tuple[int, Encoded]]]:
    """Conversations in batches of like length, the longest first: if memory runs out, then at once."""
    batch: list[tuple[int, Encoded]] = []
    for item in sorted(to_run, key=lambda item: (-_needed(item[1]), item[0])):
        if batch and (len(batch) + 1) * _needed(batch[0][1]) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _score_batch(model: "PreTrainedModel", batch: list[Encoded], layers: Sequence[int]) -> list[list[TurnScore]]:
    import torch

    from ctxaware.attention.mass import attention_mass

    n_tokens, n_rows = max(map(_needed, batch)), max(len(encoded.rows) for encoded in batch)
    input_ids = torch.zeros((len(batch), n_tokens), dtype=torch.long)  # what padding holds is never seen
    groups = torch.zeros((len(batch), 1, n_tokens), dtype=torch.bool)
    rows = torch.zeros((len(batch), n_rows), dtype=torch.long)
    for i, encoded in enumerate(batch):
        needed = _needed(encoded)
        input_ids[i, :needed] = torch.from_numpy(encoded.input_ids[:needed])
        groups[i, 0, :needed] = torch.from_numpy(encoded.is_user[:needed])
        rows[i, : len(encoded.rows)] = torch.from_numpy(encoded.rows)
        rows[i, len(encoded.rows) :] = int(encoded.rows[-1])
    try:
        mass = attention_mass(model, input_ids, groups, rows, layers)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory with a batch of {len(batch)} x {n_tokens} tokens", "lower {batch_tokens} or {max_length}"
        ) from error
    best = {i: mass[i][..., 0].amax(dim=1).double().cpu().numpy() for i in layers}  # max over heads: [batch, n_rows]
    for i in layers:
        if not np.isfinite(best[i]).all():
            raise InputError(f"layer {i} gives scores that are not finite in {model.dtype}", "use {dtype} float32")
    return [_turn_scores(e, layers, {i: best[i][b, : len(e.rows)] for i in layers}) for b, e in enumerate(batch)]


def _turn_scores(encoded: Encoded, layers: Sequence[int], best: dict[int, np.ndarray] | None) -> list[TurnScore]:
    """The mean over each response of `best` (by layer, one value per row); 0 where no user token stands before it."""
    counts = encoded.response_tokens
    means = []
    for layer_idx in layers:
        sums = np.zeros(len(counts))
        if best is not None:
            np.add.at(sums, encoded.response_turn[encoded.rows], best[layer_idx])
        means.append([float(s / n) if n else None for s, n in zip(sums, counts, strict=True)])
    return [
        TurnScore(
            encoded.conversation_id, turn, layer_idx, scores[turn], int(counts[turn]), int(encoded.user_tokens[turn])
        )
        for turn in range(len(counts))
        for layer_idx, scores in zip(layers, means, strict=True)
    ]
