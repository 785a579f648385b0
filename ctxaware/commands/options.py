"""What several commands read from their options."""

import re
from enum import Enum
from typing import TYPE_CHECKING, Any

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from ctxaware.harness.settings import NeedleSettings


class DType(str, Enum):
    """Of a model's weights, as `devices.DTYPES`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Dataset(str, Enum):
    """What `prepare` knows, as `data.releases.DATASETS`."""

    sharegpt = "sharegpt"
    ultrachat = "ultrachat"
    wizardlm = "wizardlm"
    messages = "messages"


class Format(str, Enum):
    """Of conversations in a file, as `data.conversations.FORMATS`."""

    parquet = "parquet"
    jsonl = "jsonl"


class Backend(str, Enum):
    """Of the harness, as far as `gap` knows them."""

    hf = "hf"
    vllm = "vllm"


def parse_grid(grid: str) -> tuple[int, int]:
    """Context lengths and depths of `20x20`.

    Raises:
        InputError: it is no such text.
    """
    if not (size := re.fullmatch(r"(\d{1,9})x(\d{1,9})", grid, re.ASCII)):
        raise InputError(f"--grid must be LENGTHSxDEPTHS, such as 20x20, got {grid[:60]!r}")
    return int(size[1]), int(size[2])


def needle_settings(grid: str, max_context_length: int, needle: str, source: str) -> "NeedleSettings":
    """The needle prompts that the options name.

    Raises:
        InputError: `grid` is no grid.
    """
    from ctxaware.harness.settings import NeedleSettings

    n_lengths, n_depths = parse_grid(grid)
    return NeedleSettings(
        max_context_length=max_context_length,
        num_context_lengths=n_lengths,
        num_depths=n_depths,
        needle=needle,
        source=source,
    )


def needle_metadata(
    grid: str, max_context_length: int, needle: str, source: str, haystack: str | None
) -> dict[str, Any]:
    """The same for an evaluation, as `lm_eval --metadata` takes them.

    Raises:
        InputError: `grid` is no grid.
    """
    n_lengths, n_depths = parse_grid(grid)
    return {
        "num_context_lengths": n_lengths,
        "num_depths": n_depths,
        "max_context_length": max_context_length,
        "needle": needle,
        "source": source,
        **({"haystack": haystack} if haystack else {}),
    }


def parse_model_args(model_args: str) -> dict[str, Any]:
    """What `lm_eval --model_args` would make of a text.

    Raises:
        InputError: it is no such text.
    """
    from lm_eval.utils import simple_parse_args_string

    try:
        return simple_parse_args_string(model_args)
    except ValueError as error:
        raise InputError(f"--model-args must be name=value,name=value, got {model_args!r}") from error


def parse_names(names: str) -> tuple[str, ...]:
    """The names of `a,b`, each once."""
    return tuple(dict.fromkeys(filter(None, names.split(","))))
