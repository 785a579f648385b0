"""What identifies the weights that an automatic indicator belongs to."""

import json
from pathlib import Path

from ctxaware.errors import InputError
from ctxaware.models import adapter_of, file_of, load_config
from ctxaware.runs.model_folder import folder_hash

_WEIGHTS = r"(?!auto_indicator\.)(.*\.safetensors|.*\.bin|(adapter_)?config\.json)"


def weights_fingerprint(
    name: str, revision: str | None = None, base: str | None = None, base_revision: str | None = None
) -> str:
    """What identifies a model's weights and configuration, in a folder and on the hub alike; of an adapter also those
    of its base.

    Args:
        name: hub name or folder, of a model or an adapter.
        revision: branch, tag or commit.
        base, base_revision: what an adapter is put on; None for the base that it names.

    Raises:
        InputError: there is no such model, or a file of it can't be read.
    """
    adapter = adapter_of(name, revision)
    own = folder_hash(Path(name) if Path(name).is_dir() else _snapshot(name, revision, bool(adapter)), _WEIGHTS)
    if adapter is None:
        return own
    below = (base, base_revision) if base else (adapter.base_model_name_or_path, adapter.revision)
    return f"{own} on {weights_fingerprint(*below)}"


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """Where the safetensors files of a model or an adapter lie on this machine; none where its weights are pickles."""
    files = "adapter_model.safetensors" if adapter_of(name, revision) else "model.safetensors"
    names = [files]
    if index := file_of(name, f"{files}.index.json", revision):
        names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    return [Path(file) for each in names if (file := file_of(name, each, revision))]


def _snapshot(name: str, revision: str | None, is_adapter: bool) -> Path:
    """Where a hub model's configuration and weights lie on this machine."""
    needed = (
        ["adapter_config.json", "adapter_model.safetensors"] if is_adapter else ["config.json", "model.safetensors"]
    )
    if not is_adapter and (index := file_of(name, "model.safetensors.index.json", revision)):
        needed[1:] = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    files = [file_of(name, file, revision) for file in needed]
    if None in files:
        load_config(name, revision)  # says what is wrong, if it is more
        raise InputError(f"{name} lacks weights in safetensors ({', '.join(needed)}), by which it is recognised")
    return Path(str(files[0])).parent
