"""Loading a model and its tokenizer: a user's mistake is one line, and no code that comes with a model ever runs."""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxaware.errors import InputError
from ctxaware.runs.model_folder import folder_hash

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BETWEEN_LIBRARIES = ".*deprecated and will be removed in v6"  # a warning of one library to another
_SHOWN = 300  # characters of a library's error


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """A transformers tokenizer.

    Raises:
        InputError: there is none under that name, or it needs code of its own.
    """
    from transformers import AutoTokenizer

    return _loaded(AutoTokenizer, "tokenizer", name, revision=revision, trust_remote_code=trust_remote_code)


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> "PretrainedConfig":
    """A model's configuration, an adapter's being that of its base: what can be known before weights are loaded.

    Raises:
        InputError: there is none under that name, or it needs code of its own.
    """
    from transformers import AutoConfig

    if adapter := adapter_of(name, revision):
        name, revision = adapter.base_model_name_or_path, adapter.revision
    elif revision not in (None, "main") and Path(name).is_dir():
        raise InputError(f"{name} is a folder, which has no revision {revision!r}; leave it out, or pass a hub name")
    return _loaded(AutoConfig, "model", name, revision=revision, trust_remote_code=trust_remote_code)


def window_of(config: "PretrainedConfig") -> int | None:
    """The most tokens that a model takes, by its configuration; None where it names no limit."""
    window: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def load_model(
    name: str, revision: str | None, dtype: "torch.dtype | str", device: "torch.device | str"
) -> "PreTrainedModel":
    """A causal language model in evaluation mode on `device`; an adapter is merged into its base.

    Args:
        name: hub name or folder, of a model or an adapter.
        revision: branch, tag or commit; None for the main branch.
        dtype: a torch dtype or its name; auto for that of the weights.
        device: a torch device.

    Raises:
        InputError: there is no such model, it needs code of its own, or its weights don't fit its configuration.
    """
    adapter = adapter_of(name, revision)
    if adapter is None:
        return _load_weights(name, revision, dtype, device).eval()
    base = _load_weights(adapter.base_model_name_or_path, adapter.revision, dtype, device)
    return load_adapter(base, name, revision).merge_and_unload().eval()


def load_adapter(model: "PreTrainedModel", name: str, revision: str | None = None) -> "PeftModel":
    """A PEFT adapter put on `model`, not merged, in evaluation mode.

    Raises:
        InputError: there is no such adapter, it doesn't fit the model, lacks weights, or is not in safetensors.
    """
    if adapter_of(name, revision) is None:
        raise InputError(f"{name!r} is no adapter: it has no adapter_config.json; pass an adapter's folder or hub name")
    if file_of(name, "adapter_model.safetensors", revision) is None:
        raise InputError(
            f"adapter {name!r} has no adapter_model.safetensors; pickled weights are not loaded, convert it"
        )
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")  # PEFT would leave them as initialised
        warnings.filterwarnings("ignore", BETWEEN_LIBRARIES, FutureWarning)
        return _loaded(PeftModel, "adapter", name, of=model, revision=revision).eval()


def check_checkpoint(name: str, revision: str | None = None) -> None:
    """Check a model's files for those who load it by themselves, a trainer or the harness: no weight is read.

    An encoder-decoder, which the harness can evaluate, is loaded by another class and not checked.

    Raises:
        InputError: as `load_model`, for all but the values of the weights.
    """
    if adapter := adapter_of(name, revision):
        name, revision = adapter.base_model_name_or_path, adapter.revision
    if not load_config(name, revision).is_encoder_decoder:
        _from_files(name, revision, device_map="meta")


def check_finite(name: str, model: "PreTrainedModel") -> None:
    """Raise `InputError` for weights that are no numbers: whatever such a model says, it measures nothing."""
    import torch

    for weight, values in model.named_parameters():
        if values.is_meta or not values.is_floating_point() or torch.isfinite(values.sum(dtype=torch.float32)):
            continue
        if not torch.isfinite(values).all():  # else they only add up to more than a float32 holds
            raise InputError(
                f"model {name!r} has weights that are no numbers (NaN or infinite) in {weight}; restore it"
            )


def check_rows(n_rows: int | None, largest: int) -> None:
    """Raise `InputError` where a token id has no row in an embedding of so many rows."""
    if n_rows and largest >= n_rows:
        raise InputError(
            f"the tokenizer makes token {largest} and the model's embedding has {n_rows} rows; pass the tokenizer that "
            "the model was trained with"
        )


def _load_weights(
    name: str, revision: str | None, dtype: "torch.dtype | str", device: "torch.device | str"
) -> "PreTrainedModel":
    model = _from_files(name, revision, dtype=dtype)
    check_finite(name, model)
    stays = getattr(model, "is_quantized", False)  # where its weights were put
    return model if stays else model.to(device)


def _from_files(name: str, revision: str | None, **kwargs: Any) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    kernel = str(load_config(name, revision)._attn_implementation or "")
    if "/" in kernel:
        raise InputError(
            f"model {name!r} names an attention kernel of a hub ({kernel}), which is code that is never run here; "
            "take attn_implementation out of its config.json"
        )
    model, info = _loaded(
        AutoModelForCausalLM,
        "model",
        name,
        revision=revision,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, in one line
        **kwargs,
    )
    _check_weights(name, model.state_dict().keys(), info)
    return model


def _check_weights(name: str, expected: Iterable[str], info: dict[str, Any]) -> None:
    """Transformers initialises at random what the files lack, and ignores what the configuration leaves out."""
    shapes = {re.sub(r"\d+", "N", key) for key in expected}  # names, whatever the layer's number
    problems = {
        "has no weights for {}": info["missing_keys"],
        "has weights of another shape than config.json says for {}": [key for key, *_ in info["mismatched_keys"]],
        "has weights that config.json leaves out: {}": [
            key for key in info["unexpected_keys"] if re.sub(r"\d+", "N", key) in shapes
        ],
    }
    for problem, keys in problems.items():
        if keys:
            first = min(keys, key=lambda key: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", key)])
            raise InputError(
                f"model {name!r} {problem.format(f'{len(keys)} of its parameters, as {first}')}; "
                "restore its weights or its config.json"
            )


def adapter_of(name: str, revision: str | None = None) -> "PeftConfig | None":
    """PEFT's configuration where `name` is an adapter, else None.

    Raises:
        InputError: it is damaged, PEFT is missing, or its base is an adapter too, which the libraries would leave out.
    """
    if not is_adapter(name, revision):
        return None
    if find_spec("peft") is None:
        raise InputError(f"{name} is an adapter, which needs the package peft; run: pip install 'ctxaware[train]'")
    from peft import PeftConfig

    adapter = _loaded(PeftConfig, "adapter", name, revision=revision)
    base = adapter.base_model_name_or_path
    if base and is_adapter(base, adapter.revision):
        raise InputError(
            f"{name!r} is an adapter on another adapter, {base!r}, which would be left out; merge that into its base "
            f"(PEFT's merge_and_unload), save the model, and name its folder in {name}'s adapter_config.json"
        )
    return adapter


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether `name` is an adapter: a folder or a hub name with an `adapter_config.json`."""
    from transformers.utils import find_adapter_config_file

    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except (OSError, ValueError):  # no such name: what loads a model says so
        return False


def has_tokenizer(name: str, revision: str | None = None) -> bool:
    """Whether a folder or a hub name holds a tokenizer: most adapters don't."""
    return file_of(name, "tokenizer_config.json", revision) is not None


def file_of(name: str, file: str, revision: str | None) -> str | None:
    """Where `file` of a folder or a hub name lies on this machine; None where there is none."""
    from transformers.utils import cached_file

    try:
        return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None


def _loaded(kind: Any, what: str, name: str, of: Any = None, **kwargs: Any) -> Any:
    """`kind.from_pretrained`, with whatever a broken file makes the libraries raise as one line."""
    import torch

    try:
        with _quiet():
            return kind.from_pretrained(*([] if of is None else [of]), name, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each library has errors of its own, and tokenizers raises bare ones
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{what} {name!r} needs code of its own (auto_map), which is never run here; "
                "pass one that transformers itself knows"
            ) from error
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"can't load {what} {name!r}: {cause[:_SHOWN]} - pass a hub name or the path of a model folder"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of the weights that don't fit: what is wrong with them is an error here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """What identifies a model's weights, configuration and tokenizer; of an adapter also those of its base.

    Raises:
        InputError: there is no such model, or a file of it can't be read.
    """
    own = files_fingerprint(name, revision)
    if (adapter := adapter_of(name, revision)) is None:
        return own
    return f"{own} on {files_fingerprint(adapter.base_model_name_or_path, adapter.revision)}"


def files_fingerprint(name: str, revision: str | None = None) -> str:
    """What identifies the files of a model or an adapter alone.

    The hub's commit, or for a folder a hash of its files: whole up to `HASHED_WHOLE` bytes, of a larger file its size
    and 4,096 blocks of 64 KiB spread evenly, among them both ends. Training changes far more than lies between two.
    In it is what a model is made of, so not what a run of ours writes into its folder.

    Raises:
        InputError: there is no such model, or a file of it can't be read.
    """
    return folder_hash(Path(name)) if Path(name).is_dir() else _commit(name, revision)


def _commit(name: str, revision: str | None) -> str:
    from transformers.utils.hub import extract_commit_hash

    file = file_of(name, "adapter_config.json" if adapter_of(name, revision) else "config.json", revision)
    if (commit := extract_commit_hash(file, None)) is None:
        load_config(name, revision)  # says what is wrong
        raise InputError(f"model {name!r} has no commit by which it could be recognised; pass a folder")
    return commit
