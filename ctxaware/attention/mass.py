"""Attention mass on groups of tokens, for every head of chosen layers, from one forward and no L x L matrix.

The sum of a head's attention weights over a set of keys is that head's attention output when the value vectors are
replaced by the indicator of the set. So one fused attention call per scored layer gives the mass of every head; the
forward stops inside the last scored layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ctxaware.attention import kernel
from ctxaware.attention.kernel import (
    IMPLEMENTATION,
    LastLayerDone,
    MassRequest,
    attention_implementation,
    current_request,
    register,
    text_decoder,
)
from ctxaware.errors import InputError
from ctxaware.models import check_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def n_layers(model: PreTrainedModel) -> int:
    """Number of layers of the text decoder."""
    return model.config.get_text_config(decoder=True).num_hidden_layers


def check_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raise `InputError` for a layer that `model` lacks."""
    last = n_layers(model) - 1
    for layer_idx in layers:
        if not 0 <= layer_idx <= last:
            raise InputError(f"layer_idx must be in 0–{last} for this model, got {layer_idx}", "pass another {layer}")


def check_ids(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """Raise `InputError` for a token id that has no row in the model's embedding."""
    n_rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    check_rows(n_rows, int(input_ids.max()) if input_ids.numel() else -1)


def attention_mass(
    model: PreTrainedModel, input_ids: torch.Tensor, groups: torch.Tensor, rows: torch.Tensor, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Attention of chosen query rows on groups of tokens, for every head of chosen layers.

    Sequences are padded on the right: causal attention never reaches the padding, so no mask for it is needed.
    Memory is linear in the length. The model is left as it was (mode, attention implementation).

    Args:
        model: a causal language model of transformers, on any device, in any dtype; in training too.
        input_ids: int64 `[batch, n_keys]`, padded on the right with any valid id.
        groups: bool `[batch, n_groups, n_keys]`: the tokens of each group.
        rows: int64 `[batch, n_rows]`: query positions, ascending; pad with a repetition of any position.
        layers: 0-based indices.

    Returns:
        By layer, float32 `[batch, n_heads, n_rows, n_groups]`, each entry 0–1.

    Raises:
        InputError: the model lacks a layer, a layer has no softmax attention, or the attention can't be
            computed exactly here.
    """
    check_layers(model, layers)
    check_ids(model, input_ids)
    request = run_forward(model, input_ids, groups, rows, layers)
    if missing := sorted(request.layers - request.masses.keys()):
        raise InputError(f"layers {missing} of this model have no softmax attention; layers that have: {request.seen}")
    return request.masses


def run_forward(
    model: PreTrainedModel, input_ids: torch.Tensor, groups: torch.Tensor, rows: torch.Tensor, layers: Sequence[int]
) -> MassRequest:
    register()
    decoder, blocks = text_decoder(model), rows.cpu().split(kernel.QUERY_BLOCK, dim=1)
    request = MassRequest(
        frozenset(layers),
        groups.to(model.device),
        rows.to(model.device),
        [int(block.min()) for block in blocks],
        [int(block.max()) for block in blocks],
    )
    token = current_request.set(request)
    try:
        with attention_implementation(decoder, IMPLEMENTATION), torch.no_grad(), contextlib.suppress(LastLayerDone):
            decoder(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        current_request.reset(token)
    return request
