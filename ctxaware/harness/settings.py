"""The tasks' settings: YAML metadata, overridden by `--metadata`, mixed with the model's own arguments.

The harness hands a task one dictionary in which the YAML's metadata, `--model_args` and `--metadata`
are merged. Our keys are picked out of it here; what is left can be a model argument, so it is refused
only where it looks like a misspelt key of ours, and everything used or passed over is logged.
"""

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxaware.data.sources import BUILTIN, HUB
from ctxaware.errors import InputError
from ctxaware.harness.internals import model_arguments
from ctxaware.harness.needles import NEEDLES
from ctxaware.models import folder_hash
from ctxaware.runs.files import sha256_of_file, sha256_of_json, user_path

logger = logging.getLogger("lm_eval.ctxaware")  # shown by the harness's own log settings

_BOOKKEEPING = {"version", "config", "config_source", "_metadata"}


@dataclass(frozen=True)
class NeedleSettings:
    """Settings of the needle-in-a-haystack tasks. Lengths in tokens of the model's tokenizer."""

    max_context_length: int = 4000  # the whole budget: `reserve` of it is kept for template, question and answer
    min_context_length: int = 200
    num_context_lengths: int = 20
    num_depths: int = 20
    needle: str = "sf"
    prompt_template: int = 1
    reserve: int = 200
    haystack: str | None = None  # follows `source`
    source: str = HUB
    data_revision: str | None = None


@dataclass(frozen=True)
class ReadingSettings:
    """Settings of the reading tasks."""

    source: str = HUB
    prompt: str = "default"
    data_revision: str | None = None


# arguments of the harness's model that change no answer
CHANGE_NO_ANSWER = {
    *("device", "batch_size", "max_batch_size", "logits_cache", "prefix_cache", "prefix_cache_tokens", "token"),
    *("parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder"),
}
_OF_CTXAWARE = {"indicator", "indicator_threshold", "steer_alpha", "steer_heads", "prefix_cache", "prefix_cache_tokens"}
_ALSO_OF_TASKS = {
    "pretrained",
    "tokenizer",
    "max_length",
    "revision",
}  # read from metadata by tasks, also the harness's
OUR_KEYS = {f.name for cls in (NeedleSettings, ReadingSettings) for f in dataclasses.fields(cls)}


def resolve(cls: type, metadata: dict[str, Any], task: str) -> Any:
    """An instance of a settings class from the harness's merged metadata.

    Args:
        cls: `NeedleSettings` or `ReadingSettings`.
        metadata: YAML metadata, model arguments and `--metadata` in one.
        task: the task's name, for messages.

    Raises:
        InputError: a value of the wrong type, or a key that is ours but for its spelling.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {key: _typed(key, metadata[key], fields[key].type) for key in fields if metadata.get(key) is not None}
    others = sorted(set(metadata) - OUR_KEYS - _BOOKKEEPING)
    for key in others:
        _refuse_misspelt(key, task)
    _refuse_misplaced(others, task)
    settings = cls(**values)
    used = ", ".join(f"{key}={getattr(settings, key)}" for key in fields)
    unused = sorted(key for key in OUR_KEYS - set(fields) if metadata.get(key) is not None)
    rest = [
        f"; {what}: {', '.join(keys)}"
        for what, keys in (("for other tasks", unused), ("left to the model", others))
        if keys
    ]
    logger.info("%s: settings used: %s%s", task, used, "".join(rest))
    return settings


def local_files(settings: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders on this machine that settings name, by setting."""
    named = {key: settings[key] for key in ("source", "haystack", "needle") if isinstance(settings.get(key), str)}
    paths = {key: user_path(name) for key, name in named.items() if name not in (HUB, BUILTIN, *NEEDLES)}
    return {key: path for key, path in paths.items() if path.exists()}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder and of the folders in it: a name may stand for others later.

    Raises:
        InputError: one of them can't be read.
    """
    try:
        if path.is_file():
            return f"sha256:{sha256_of_file(path)[:32]}"
        folders = [path, *sorted(folder for folder in path.rglob("*") if folder.is_dir())]
        parts = [[str(folder.relative_to(path)), folder_hash(folder, ".*")] for folder in folders]
        return f"sha256:{sha256_of_json(parts)[:32]}"
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error


def _typed(key: str, value: Any, kind: str | type) -> Any:
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise InputError(f"{key} must be a whole number, got {value!r}; set it in metadata: '{{\"{key}\": 4}}'")
    if isinstance(value, str):
        return value
    raise InputError(f'{key} must be text, got {value!r}; set it in metadata: \'{{"{key}": "…"}}\'')


def _refuse_misplaced(keys: list[str], task: str) -> None:
    """Refuse arguments of the model in metadata, where no model reads them."""
    given = model_arguments()
    if given is None or not (unread := [key for key in keys if key not in given]):
        return
    from lm_eval.models.huggingface import HFLM

    of_model = set(inspect.signature(HFLM.__init__).parameters) | _OF_CTXAWARE
    for key in unread:
        if key in of_model - _ALSO_OF_TASKS:
            raise InputError(f"{task}: {key} in metadata changes nothing; pass it in model_args")


def _refuse_misspelt(key: str, task: str) -> None:
    from lm_eval.models.huggingface import HFLM

    near = difflib.get_close_matches(key, OUR_KEYS, n=1, cutoff=0.8)
    near = near or [ours for ours in sorted(OUR_KEYS) if len(key) > 4 and key in ours]
    if near and key not in HFLM.__init__.__annotations__:
        raise InputError(f"{task}: unknown setting {key!r} in metadata; did you mean {near[0]!r}?")
