"""Which heads of which layers: all of them, pairs (layer_idx, head_idx), or the file that `ctxaware heads` writes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ctxaware.errors import InputError
from ctxaware.models import model_fingerprint
from ctxaware.runs.files import user_path

ALL = "all"


def heads_by_layer(
    model: Any, heads: str | Path | Iterable[tuple[int, int]], name: str | None = None
) -> dict[int, torch.Tensor]:
    """The chosen heads as bool `[n_heads]` by layer_idx; layers without one are left out.

    Args:
        model: whose layers and heads they are.
        heads: "all", pairs (layer_idx, head_idx), or the path of a file that `ctxaware heads` wrote for this model:
            its retrieval heads.
        name: under which the model was loaded, where its own configuration does not say (an adapter's).

    Raises:
        InputError: a layer or head that the model lacks, no head at all, or a file that is no such file or another
            model's.
    """
    config = model.config.get_text_config(decoder=True)
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    if heads == ALL:
        return {layer_idx: torch.ones(n_heads, dtype=torch.bool) for layer_idx in range(n_layers)}
    if isinstance(heads, str | Path):
        heads = _read(user_path(heads), model, name or model.name_or_path)
    by_layer: dict[int, torch.Tensor] = {}
    for layer_idx, head_idx in heads:
        for what, index, size in (("layer_idx", layer_idx, n_layers), ("head_idx", head_idx, n_heads)):
            if type(index) is not int or not 0 <= index < size:
                raise InputError(f"{what} must be in 0–{size - 1} for this model, got {index!r} among the heads")
        by_layer.setdefault(layer_idx, torch.zeros(n_heads, dtype=torch.bool))[head_idx] = True
    if not by_layer:
        raise InputError("there is no head to steer; pass all, or pairs (layer_idx, head_idx)")
    return by_layer


def _read(path: Path, model: Any, name: str) -> list[tuple[int, int]]:
    """The retrieval heads of a file, once it is known to be this model's."""
    if not path.is_file():
        raise InputError(f"heads must be all, or a file that `ctxaware heads` wrote; there is no file {str(path)!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        theirs = content["fingerprint"], content["n_layers"], content["n_heads"]
        pairs = [(head["layer_idx"], head["head_idx"]) for head in content["retrieval_heads"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a file that `ctxaware heads` writes ({type(error).__name__}: {error}); run it again"
        ) from error
    config = model.config.get_text_config(decoder=True)
    fingerprint = _fingerprint(name)
    ours = fingerprint, config.num_hidden_layers, config.num_attention_heads
    if ours != theirs or fingerprint is None:
        is_known = "not known to be" if fingerprint is None else "not"
        raise InputError(
            f"{path} holds heads of {content.get('model')} (fingerprint, layers, heads: {', '.join(map(str, theirs))})"
            f", which is {is_known} this model ({', '.join(map(str, ours))}); run `ctxaware heads` for this model"
        )
    return pairs


def _fingerprint(name: str) -> str | None:
    """Of the model's files; None for a model that was built in memory."""
    try:
        return model_fingerprint(name) if name else None
    except InputError:
        return None
