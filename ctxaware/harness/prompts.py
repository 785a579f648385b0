"""Prompt templates of the protocol (sections 1 and 2), and a user message as the prompt that a model continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ctxaware.chat import Rendered, Span, Tokenized, render, template_errors, tokenize
from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_TEMPLATES = {  # the paper's table 8; {context} on lines of its own
    1: "You are a helpful AI assistant that answers a question using only the provided document:\n"
    "{context}\n"
    "Question: {question}",
    2: "You are a helpful AI assistant that answers a question using only the provided context:\n"
    "{context}\n"
    "Question: {question}",
    3: "Document:\n{context}\nAnswer the question according to the provided document: {question}",
    4: "Context:\n{context}\nAnswer the question according to the provided context: {question}",
}

PASSAGE_QUESTION = "{context}\nAnswer the question according to the above passage: {question}"
PASSAGE_PIECES = "{context}\nAnswer the question with pieces from the the above passage: {question}"  # "the the": sic
ULTRACHAT = "{context} {question}"


def user_prompt(
    text: str, chat_template: Callable | None = None, system: str = "", response_prefix: str = ""
) -> str | list:
    """One user message as a prompt that a model continues.

    With a template the system message is sent also where it is empty (otherwise some templates write
    one of their own); a template that refuses it gets none. The prefix follows the generation prompt:
    no closing assistant message is needed, which some templates refuse.

    Args:
        text: the user's message.
        chat_template: `(messages, add_generation_prompt=True) -> str`, as the harness's models offer; None for none.
        system: the system message.
        response_prefix: the start of the answer.

    Raises:
        InputError: a prefix was asked for and the back end takes messages instead of text, or the template
            drops a system message that says something.
    """
    from jinja2.exceptions import TemplateError

    if chat_template is None:
        head = f"{system}\n\n" if system else ""
        return f"{head}{text}\n\n{response_prefix}" if response_prefix else head + text
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    try:
        prompt = chat_template(messages, add_generation_prompt=True)
    except TemplateError:
        prompt = chat_template(messages[1:], add_generation_prompt=True)
    if isinstance(prompt, str) and system.strip() not in prompt:
        raise InputError("the chat template takes no system message; leave out system_instruction")
    if not response_prefix:
        return prompt
    if not isinstance(prompt, str):
        raise InputError(
            "a response prefix can't be sent with messages; use a task without _prefix, or text: "
            "model local-completions with tokenized_requests=True and tokenizer=NAME_OR_FOLDER"
        )
    return prompt + (" " if prompt and not prompt[-1].isspace() else "") + response_prefix


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, with_template: bool, response_prefix: str = ""
) -> Rendered:
    """What `user_prompt` writes, and where the user's message and the response prefix (an assistant's) stand in it.

    Args:
        tokenizer: a transformers tokenizer, with a chat template where one is asked for.
        text: the user's message.
        with_template: whether the chat template writes the prompt.
        response_prefix: the start of the answer.

    Raises:
        InputError: there is no template, or it changes the message, so that positions can't be known.
    """
    if with_template:
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
        try:
            rendered = render(tokenizer, messages, add_generation_prompt=True)
        except InputError:  # the template refuses or leaves out a system message
            rendered = render(tokenizer, messages[1:], add_generation_prompt=True)
        prompt = user_prompt(text, _template_of(tokenizer), response_prefix=response_prefix)
    else:
        rendered = Rendered(text, (Span(0, "user", 0, len(text)),))
        prompt = user_prompt(text, response_prefix=response_prefix)
    if not isinstance(prompt, str) or not prompt.startswith(rendered.text):
        raise InputError("the chat template writes a prompt with an empty system message in two ways: can't be located")
    spans = rendered.spans
    if response_prefix:
        spans += (Span(len(spans), "assistant", len(prompt) - len(response_prefix), len(prompt)),)
    return Rendered(prompt, spans)


def _template_of(tokenizer: PreTrainedTokenizerBase) -> Callable:
    def apply(messages: list[dict], **kwargs: Any) -> str:
        with template_errors(refusals=False):
            return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)

    return apply


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> Tokenized:
    """A prompt as the harness encodes it: the tokenizer adds its special tokens unless BOS stands there already.

    Args:
        tokenizer: a fast tokenizer.
        rendered: from `render_prompt`.
    """
    has_bos = bool(tokenizer.bos_token) and rendered.text.startswith(tokenizer.bos_token)
    return tokenize(tokenizer, rendered, add_special_tokens=not has_bos)
