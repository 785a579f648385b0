"""`ctxaware heads`: the retrieval head of each layer and a ranking of all heads, from answered needle prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.attention.heads import (
    AnsweredPrompt,
    HeadAttention,
    choose_retrieval_heads,
    half_overlap,
    head_attention,
    rank_heads,
)
from ctxaware.chat import Rendered, Span, defuse, special_token_pattern
from ctxaware.devices import choose_dtype
from ctxaware.errors import InputError
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.needles import load_needle
from ctxaware.harness.prompts import PROMPT_TEMPLATES, render_prompt, tokenize_prompt
from ctxaware.harness.settings import NeedleSettings
from ctxaware.models import load_config, load_model, load_tokenizer, model_fingerprint, window_of
from ctxaware.plots import PNG_MARK, layer_head_map
from ctxaware.runs.claim import locked, refuse_foreign_file
from ctxaware.runs.files import remove_unfinished, write_json
from ctxaware.runs.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP_PERCENT = 5  # of the heads: the share that the literature calls retrieval heads


@dataclass(frozen=True)
class HeadSearch:
    """What a search found.

    Attributes:
        layers: `[n_layers]`, 0-based.
        attention: of every head for every prompt.
    """

    layers: list[int]
    attention: HeadAttention


def answered_prompt(tokenizer: PreTrainedTokenizerBase, doc: dict, settings: NeedleSettings) -> AnsweredPrompt:
    """A document as a prompt, with the needle itself as the answer; with the chat template where there is one.

    Args:
        tokenizer: the model's.
        doc: of `needle_documents`.
        settings: the documents'.

    Raises:
        InputError: the needle has no words after the response prefix, does not stand in the prompt exactly once, or
            the template changes the message.
    """
    needle = load_needle(settings.needle)
    answer, prefix = needle.needle, needle.response_prefix
    if not answer.startswith(prefix) or not answer[len(prefix) :].strip():
        raise InputError(f"the needle must be its response prefix {prefix!r} and more, in single spaces: {answer!r}")
    text = PROMPT_TEMPLATES[settings.prompt_template].format(context=doc["context"], question=doc["question"])
    text = defuse(text, special_token_pattern(tokenizer))
    if text.count(answer) != 1:
        raise InputError(f"the needle must stand in the prompt once, and does {text.count(answer)} times: {answer!r}")
    rendered = render_prompt(tokenizer, text, bool(tokenizer.chat_template), answer)
    return _with_parts(tokenizer, rendered, answer, prefix)


def _with_parts(tokenizer: PreTrainedTokenizerBase, rendered: Rendered, answer: str, prefix: str) -> AnsweredPrompt:
    """The tokens of a rendered prompt whose response is `answer`, which starts with `prefix`."""
    n = len(rendered.spans)
    needle_at, end = rendered.text.index(answer), len(rendered.text)
    # tokens belong to the last span that they overlap
    parts = (
        Span(n, "needle", needle_at, needle_at + len(answer)),
        Span(n + 1, "answer", end - len(answer) + len(prefix), end),
    )
    tokens = tokenize_prompt(tokenizer, Rendered(rendered.text, (*rendered.spans, *parts)))
    is_needle = tokens.mask("needle")
    is_user = tokens.mask("user") | is_needle
    is_user[0] = is_needle[0] = False  # BOS, or what serves as the attention sink in its place
    return AnsweredPrompt(tokens.input_ids, is_user, is_needle, np.flatnonzero(tokens.mask("answer")) - 1)


def search_heads(model: Any, tokenizer: PreTrainedTokenizerBase, settings: NeedleSettings) -> HeadSearch:
    """Attention of every head on the user's text and on the needle, for every prompt of `settings`.

    Args:
        model: a causal language model of transformers.
        tokenizer: its own.
        settings: of the needle prompts.

    Raises:
        InputError: a prompt does not fit the model's window, or its attention can't be computed exactly here.
    """
    from ctxaware.attention.check import check_against_eager
    from ctxaware.attention.mass import n_layers

    layers = list(range(n_layers(model)))
    check_against_eager(model, layers)
    prompts = [answered_prompt(tokenizer, doc, settings) for doc in needle_documents(settings, tokenizer)]
    window = window_of(model.config)
    longest = max(len(prompt.input_ids) for prompt in prompts)
    if window and longest > window:
        raise InputError(f"a prompt of {longest} tokens does not fit this model's window of {window} tokens")
    with progress_bar("heads", len(prompts), "tokens") as advance:
        return HeadSearch(layers, head_attention(model, prompts, layers, advance))


def find_heads(name: str, settings: NeedleSettings, dtype: str, out: Path) -> dict[str, Any]:
    """Search the heads of a model, and write the JSON file `out` and a picture beside it.

    Returns:
        What the file holds: `model`, `revision`, `n_layers`, `n_heads`, `with_template`, `settings`, `n_prompts`,
        `retrieval_heads` (one a layer) and `ranking` (all heads, the one that reads the needle most first).

    Raises:
        InputError: there is no such model, or its heads can't be searched.
    """
    import torch

    if out.is_dir() or out.suffix == ".png":
        raise InputError(f"{out} is {'a folder' if out.is_dir() else 'a picture'}; pass a JSON file, as heads.json")
    refuse_foreign_file(out, '"retrieval_heads"')
    refuse_foreign_file(out.with_suffix(".png"), PNG_MARK)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(name)
    window = window_of(load_config(name))
    needle_documents(settings, tokenizer, window)  # a wrong setting shows before weights are loaded
    with locked(out.with_name(f".{out.name}.lock"), out):
        remove_unfinished(out.with_suffix(".png"))
        model = load_model(name, None, choose_dtype(dtype, device), device)
        return _write(search_heads(model, tokenizer, settings), name, bool(tokenizer.chat_template), settings, out)


def _write(search: HeadSearch, name: str, with_template: bool, settings: NeedleSettings, out: Path) -> dict[str, Any]:
    content = {
        "model": name,
        "fingerprint": model_fingerprint(name),
        "n_layers": len(search.layers),
        "n_heads": search.attention.user.shape[2],
        "with_template": with_template,
        "settings": dataclasses.asdict(settings),
        "n_prompts": len(search.attention.user),
        **describe(search),
    }
    write_json(out, content)
    dots = [head["head_idx"] for head in content["retrieval_heads"]]
    title = f"{Path(name).name}:\nattention of the answer's tokens on the needle"
    mean = search.attention.needle.mean(axis=0)
    layer_head_map(mean, search.layers, dots, title, "share, mean over the prompts", out.with_suffix(".png"))
    return content


def describe(search: HeadSearch) -> dict[str, Any]:
    """`retrieval_heads`, `ranking` and how stable each is over the prompts."""
    needle = search.attention.needle
    mean = needle.mean(axis=0)
    return {
        "retrieval_heads": [head._asdict() for head in choose_retrieval_heads(search.attention.user, search.layers)],
        "ranking": [
            {"layer_idx": i, "head_idx": j, "needle": float(mean[search.layers.index(i), j])}
            for i, j in rank_heads(needle, search.layers)
        ],
        f"top_{TOP_PERCENT}_percent_overlap_of_halves": half_overlap(needle, search.layers, TOP_PERCENT),
    }
