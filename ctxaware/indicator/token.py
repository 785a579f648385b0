"""The indicator token `[IND]`: its spelling, and how a tokenizer and a model get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INDICATOR = "[IND]"


def indicator_token() -> AddedToken:
    """`[IND]` as an added special token that takes the space before it, so that space is no token of its own."""
    from tokenizers import AddedToken

    return AddedToken(INDICATOR, special=True, normalized=False, lstrip=True)


def indicator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id of `[IND]`.

    Raises:
        InputError: the tokenizer has no single `[IND]` token.
    """
    ids = tokenizer.encode(INDICATOR, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != INDICATOR:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} has no single {INDICATOR} token (it makes {len(ids)} tokens of it); "
            f"use a model trained with the indicator, or add the token with ctxaware.add_indicator"
        )
    return ids[0]


def add_indicator(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None, pad_to_multiple_of: int | None = None
) -> int:
    """Add `[IND]` to a tokenizer and, if given, a model, whose new rows become the exact mean of the old ones.

    Does nothing where the token is there already.

    Args:
        tokenizer: a transformers tokenizer, changed in place.
        model: a causal language model, resized in place where its embedding is too short.
        pad_to_multiple_of: rows, as in `resize_token_embeddings`.

    Returns:
        The token id of `[IND]`.
    """
    is_new = INDICATOR not in tokenizer.get_vocab()
    if is_new:
        tokenizer.add_special_tokens({"extra_special_tokens": [indicator_token()]}, replace_extra_special_tokens=False)
    token_id = indicator_id(tokenizer)
    if model is not None and (is_new or token_id >= _n_rows(model)):
        _add_row(model, token_id, len(tokenizer), pad_to_multiple_of)
    return token_id


def _n_rows(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _add_row(model: PreTrainedModel, token_id: int, vocab_size: int, pad_to_multiple_of: int | None) -> None:
    import torch

    n_old = _n_rows(model)
    if vocab_size > n_old or pad_to_multiple_of:
        model.resize_token_embeddings(
            max(vocab_size, n_old), pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False
        )
    matrices = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not matrices[0]:
        matrices.append(output.weight)
    with torch.no_grad():
        for weight in matrices:  # [n_rows, hidden]; summed in float64, so that the order of sums can't show
            mean = weight[: min(token_id, n_old)].double().mean(dim=0).to(weight.dtype)
            weight[token_id] = mean
            weight[n_old:] = mean
