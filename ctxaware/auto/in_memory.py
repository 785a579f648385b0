"""Whether a model in memory is the one of some files, by a few rows of its weights: what it costs is not noticed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxaware.auto.weights import weight_files
from ctxaware.errors import InputError
from ctxaware.models import adapter_of

if TYPE_CHECKING:
    import torch

_N_ROWS = 4  # compared of a tensor: whatever trains or merges a matrix changes each of its rows
_RTOL, _ATOL = 2.0**-7, 1e-7  # the rounding of weights that were bfloat16 or float16 at some time
_ROUNDING = 2.0**-8  # of a row of bfloat16, once in the base and once after merging
_OF_PEFT = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)|\.(token_adapter|original_module)(?=\.)")


def check_in_memory(model: Any, name: str) -> None:
    """Check that a model in memory is that of some files, an adapter's being put on its base or merged into it.

    Of each kind of tensor the first and the last layer's are looked at. Quantised weights can't be compared.

    Args:
        model: of transformers or PEFT.
        name: folder or hub name of the model or the adapter.

    Raises:
        InputError: it is another one.
    """
    if getattr(model, "is_quantized", False):
        return
    adapter = adapter_of(name)
    base = adapter.base_model_name_or_path if adapter else name
    tensors = {_OF_PEFT.sub("", key): value for key, value in model.state_dict().items()}
    on_top = {_OF_PEFT.sub("", key): rows for key, rows in _first_rows(name).items()} if adapter else {}
    adapted = {key: any(each.startswith(f"{key.rpartition('.')[0]}.") for each in on_top) for key in tensors}
    is_wrapped = bool(getattr(model, "peft_config", None))
    of_base = _first_rows(base, adapter.revision if adapter else None)
    differing = _differing(tensors, of_base)
    problem = None
    if is_wrapped != bool(adapter) and is_wrapped:
        problem = "it has an adapter on it"
    elif any(not adapted.get(key) for key in differing) and (is_wrapped or not adapter or adapter.peft_type == "LORA"):
        problem = f"it has other weights, as {min(key for key in differing if not adapted.get(key))}"
    elif is_wrapped:
        problem = None if _has_adapter(model, on_top) else "the adapter on it is another one"
    elif adapter and not differing & {key for key, is_adapted in adapted.items() if is_adapted}:
        trained = [rows for key, rows in on_top.items() if "lora_B" in key]
        problem = "it is without its adapter" if any(rows.any() for rows in trained) else None
    elif adapter and _is_merged_otherwise(tensors, of_base, name):
        problem = "another adapter is merged into it"
    if problem:
        raise InputError(
            f"the model is not that of {name}, which this automatic indicator belongs to: {problem}; "
            "load both from that folder (an adapter put on its base), or pass an indicator of this model"
        )


def _has_adapter(model: Any, on_top: Mapping[str, "torch.Tensor"]) -> bool:
    from peft import get_peft_model_state_dict

    active = model.active_adapters() if callable(model.active_adapters) else model.active_adapters
    for each in active:
        tensors = get_peft_model_state_dict(model, adapter_name=each, save_embedding_layers=False)
        if not _differing({_OF_PEFT.sub("", key): value for key, value in tensors.items()}, on_top):
            return True
    return False


def _is_merged_otherwise(
    tensors: Mapping[str, "torch.Tensor"], of_base: Mapping[str, "torch.Tensor"], adapter: str
) -> bool:
    """Whether what was added to a base is not of a LoRA adapter: it adds s·B·A, whose rows are combinations of A's.

    Rows are compared by what is left of them beside A's rows, against the rounding of bfloat16; where an adapter adds
    no more than that, or in another way (DoRA, transposed matrices), nothing is said.
    """
    import torch
    from safetensors import safe_open

    for path in weight_files(adapter):
        with safe_open(path, "pt") as file:
            keys = {_OF_PEFT.sub("", key): key for key in file.keys()}  # noqa: SIM118
            if any("lora_magnitude_vector" in key for key in keys):
                continue
            for weight in of_base.keys() & tensors.keys():
                if (of_a := keys.get(f"{weight.removesuffix('.weight')}.lora_A.weight")) is None:
                    continue
                own, base = (x[:_N_ROWS].detach().cpu().double() for x in (tensors[weight], of_base[weight]))
                a = file.get_tensor(of_a).double()
                if own.shape != base.shape or own.shape[-1] != a.shape[-1]:
                    continue
                added = own - base
                left = added - added @ torch.linalg.pinv(a) @ a
                is_more = left.norm(dim=-1) > torch.maximum(_ROUNDING * own.norm(dim=-1), added.norm(dim=-1) / 2)
                if is_more.any():
                    return True
    return False


def _kind(key: str) -> str:
    return re.sub(r"\d+", "N", key)


def _first_rows(name: str, revision: str | None = None) -> dict[str, "torch.Tensor"]:
    """The first rows of a few tensors in a model's or an adapter's files; none of pickles."""
    from safetensors import safe_open

    rows: dict[str, torch.Tensor] = {}
    where: dict[str, Path] = {}
    for path in weight_files(name, revision):
        with safe_open(path, "pt") as file:
            where |= dict.fromkeys(file.keys(), path)
    layers: dict[str, list[str]] = {}
    for key in sorted(where, key=lambda key: [int(part) for part in re.findall(r"\d+", key)]):
        layers.setdefault(_kind(key), []).append(key)
    for key in {key for keys in layers.values() for key in (keys[0], keys[-1])}:
        with safe_open(where[key], "pt") as file:
            part = file.get_slice(key)
            rows[key] = part[:_N_ROWS] if part.get_shape() else file.get_tensor(key)
    return rows


def _differing(tensors: Mapping[str, "torch.Tensor"], rows: Mapping[str, "torch.Tensor"]) -> set[str]:
    """Which rows are not those of the tensors; a kind of tensor that the model has not at all, has another name there.

    A tied output matrix is the embedding, whatever the files hold under its name.
    """
    import torch

    kinds = set(map(_kind, tensors))
    places = [value.data_ptr() for value in tensors.values() if not value.is_meta]
    differing = set()
    for key, stored in rows.items():
        if (tensor := tensors.get(key)) is None:
            differing |= {key} if _kind(key) in kinds else set()
            continue
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1 or not stored.numel():
            continue
        if key.endswith("lm_head.weight") and places.count(tensor.data_ptr()) > 1:
            continue
        own = tensor[: len(stored)] if tensor.ndim else tensor
        own, stored = own.detach().float().cpu(), stored.float()
        is_same = own.shape == stored.shape and torch.allclose(own, stored, _RTOL, _ATOL)
        differing |= set() if is_same else {key}
    return differing
