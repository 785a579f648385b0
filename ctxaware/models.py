"""Loading a model and its tokenizer, with a user's mistakes as one line."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from ctxaware.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False):
    """A transformers tokenizer.

    Raises:
        InputError: there is none under that name.
    """
    from transformers import AutoTokenizer

    return _loaded(AutoTokenizer, "tokenizer", name, revision=revision, trust_remote_code=trust_remote_code)


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False):
    """A model's configuration, an adapter's being that of its base: what can be known before weights are loaded.

    Raises:
        InputError: there is none under that name.
    """
    from transformers import AutoConfig

    if adapter := _adapter(name, revision):
        name, revision = adapter.base_model_name_or_path, adapter.revision
    return _loaded(AutoConfig, "model", name, revision=revision, trust_remote_code=trust_remote_code)


def load_model(name: str, revision: str | None, dtype, device):
    """A causal language model in evaluation mode on `device`; an adapter is merged into its base.

    Args:
        name: hub name or folder, of a model or an adapter.
        revision: branch, tag or commit; None for the main branch.
        dtype: a torch dtype or its name; auto for that of the weights.
        device: a torch device.

    Raises:
        InputError: there is no such model.
    """
    from transformers import AutoModelForCausalLM

    adapter = _adapter(name, revision)
    base, its_revision = (adapter.base_model_name_or_path, adapter.revision) if adapter else (name, revision)
    model = _loaded(AutoModelForCausalLM, "model", base, revision=its_revision, dtype=dtype).to(device)
    if adapter:
        from peft import PeftModel

        model = _loaded(PeftModel, "adapter", name, of=model, revision=revision).merge_and_unload()
    return model.eval()


def _adapter(name: str, revision: str | None):
    """PEFT's configuration where `name` is an adapter, else None."""
    from transformers.utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):  # no such name: what loads a model says so
        return None
    if found is None:
        return None
    if find_spec("peft") is None:
        raise InputError(f"{name} is an adapter, which needs the package peft; run: pip install 'ctxaware[train]'")
    from peft import PeftConfig

    return _loaded(PeftConfig, "adapter", name, revision=revision)


def _loaded(kind, what: str, name: str, of=None, **kwargs):
    try:
        return kind.from_pretrained(*([] if of is None else [of]), name, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"can't load {what} {name!r}: {cause} - pass a hub name or the path of a model folder"
        ) from error


def choose_dtype(name: str, device):
    """The torch dtype that `name` stands for; "auto" is bfloat16 on a CUDA device that has it, else float32.

    Raises:
        InputError: `name` is none of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, name)


def resolved_revision(name: str, config) -> str | None:
    """What identifies the weights: the hub's commit, or for a folder a hash of its files' sizes and both ends."""
    folder = Path(name)
    if not folder.is_dir():
        return getattr(config, "_commit_hash", None)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return f"sha256:{digest.hexdigest()[:32]}"
