"""Messages → token ids and labels, the same for every recipe, and the table of turns that carry `[IND]`."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ctxaware.chat import defuse, n_instructions, special_token_pattern, template_errors
from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages
from ctxaware.training.arguments import Arguments

_IGNORED = -100  # label of a token that takes no part in the loss


class Encoder:
    """Messages → `input_ids` and `labels`, the same function for every recipe.

    Args:
        tokenizer: with the chat template of training.
        max_length: tokens kept from the start; None for all.
        assistant_only_loss: labels of responses alone; else of all tokens. Where the template lacks `{% generation %}`,
            TRL's form of it says which tokens are responses.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None, assistant_only_loss: bool = False
    ) -> None:
        has_marks = re.search(r"\{%-?\s*generation\b", tokenizer.chat_template)
        self._masking_template = _with_generation(tokenizer) if assistant_only_loss and not has_marks else None
        self.tokenizer, self.max_length, self.assistant_only_loss = tokenizer, max_length, assistant_only_loss
        self._pattern = special_token_pattern(tokenizer)

    def __call__(self, messages: Sequence[dict], selected: Sequence[bool]) -> dict[str, list[int]]:
        """Tokens of one conversation, with the indicator on the selected instructions.

        The text of special tokens that a message holds is made ordinary text first.

        Args:
            messages: dicts with `role` and `content`.
            selected: one entry per user message.

        Raises:
            InputError: the chat template rejects the conversation, or the one that says which tokens are responses
                gives other tokens.
        """
        plain = [{"role": m["role"], "content": defuse(m["content"], self._pattern)} for m in messages]
        marked = mark_messages(plain, selected)
        with template_errors():
            encoded = self._encode(marked, self.assistant_only_loss, self._masking_template)
            if self._masking_template and encoded["input_ids"] != self._encode(marked, False)["input_ids"]:
                raise InputError(
                    "assistant_only_loss: TRL's training form of this chat template writes this conversation otherwise "
                    "than the template itself, so training would not see what evaluation sees"
                )
        ids = encoded["input_ids"][: self.max_length]
        if not self.assistant_only_loss:
            return {"input_ids": ids, "labels": list(ids)}
        is_response = encoded["assistant_masks"][: self.max_length]
        return {"input_ids": ids, "labels": [i if r else _IGNORED for i, r in zip(ids, is_response, strict=True)]}

    def _encode(self, messages: list[dict], masks: bool, chat_template: str | None = None) -> Any:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=masks,
            tokenizer_kwargs={"verbose": False},  # longer than the window: cut by the caller
        )


def _with_generation(tokenizer: PreTrainedTokenizerBase) -> str:
    """TRL's form of a known chat template, with `{% generation %}` around responses.

    Raises:
        InputError: TRL does not know this template.
    """
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        template = None
    if template is None:
        raise InputError(
            "assistant_only_loss needs a chat template with {% generation %}, or one for which TRL has such a form",
            "pass {chat_template} tinyllama",
        )
    return template


class TurnTable:
    """Which turns are selected: one bool a turn, in memory that dataloader workers share.

    Args:
        conversations: a `datasets.Dataset` with `id` and `messages`.
    """

    def __init__(self, conversations: Dataset) -> None:
        self.conversations = conversations
        counts = [n_instructions(messages) for messages in conversations["messages"]]
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # of each conversation; then the total
        self.selected = torch.zeros(int(self.first[-1]), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.selected)

    def of(self, row: int) -> list[bool]:
        """The entries of one conversation's turns."""
        return self.selected[self.first[row] : self.first[row + 1]].tolist()


def make_encoder(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """What turns messages into token ids and labels in this run."""
    return Encoder(tokenizer, arguments.training.max_length, arguments.training.assistant_only_loss)


def encode_dataset(
    conversations: Dataset, encode: Encoder, selected: TurnTable | None = None, num_proc: int | None = None
) -> Dataset:
    """The training set: `input_ids`, `labels`, and `row`, the conversation's place among `conversations`.

    Args:
        conversations: with `messages`.
        encode: of the run.
        selected: which turns carry `[IND]`, for a set that is marked beforehand; None for none.
        num_proc: processes.
    """

    def encoded(example: dict, row: int) -> dict:
        marks = [False] * n_instructions(example["messages"]) if selected is None else selected.of(row)
        return encode(example["messages"], marks) | {"row": row}

    return conversations.map(
        encoded,
        with_indices=True,
        remove_columns=conversations.column_names,
        num_proc=num_proc,
        desc="Tokenizing",
        load_from_cache_file=False,
        keep_in_memory=num_proc is None and len(conversations) < 10_000,
    )
