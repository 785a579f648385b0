"""The needle prompts of `ctxaware attention`, one for each document and condition, their tokens in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxaware.attention.roles import GroupedPrompt, group_tokens
from ctxaware.chat import defuse, special_token_pattern
from ctxaware.harness.needles import load_needle
from ctxaware.harness.prompts import PROMPT_TEMPLATES, render_prompt, tokenize_prompt
from ctxaware.harness.settings import NeedleSettings
from ctxaware.indicator.marking import append_indicator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Condition:
    """One way of asking.

    Attributes:
        name: as files have it.
        title: as tables and pictures have it.
        template: whether the chat template writes the prompt.
        indicator: whether the user's message carries `[IND]`.
    """

    name: str
    title: str
    template: bool
    indicator: bool = False


PLAIN = Condition("plain", "without template", False)
TEMPLATE = Condition("template", "with template", True)
INDICATOR = Condition("indicator", "with template and [IND]", True, True)
CONDITIONS = (PLAIN, TEMPLATE, INDICATOR)


def grouped_prompt(
    tokenizer: PreTrainedTokenizerBase, doc: dict, condition: Condition, settings: NeedleSettings
) -> GroupedPrompt:
    """A document as the prompt of `condition`, with the response prefix.

    Args:
        tokenizer: the model's.
        doc: of `needle_documents`.
        condition: how to ask.
        settings: the documents'.

    Raises:
        InputError: the chat template changes the message, so that positions can't be known.
    """
    text = PROMPT_TEMPLATES[settings.prompt_template].format(context=doc["context"], question=doc["question"])
    text = defuse(text, special_token_pattern(tokenizer))
    if condition.indicator:
        text = append_indicator(text)
    rendered = render_prompt(tokenizer, text, condition.template, load_needle(settings.needle).response_prefix)
    return group_tokens(tokenizer, tokenize_prompt(tokenizer, rendered))
