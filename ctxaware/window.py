"""The tokenizer and the window of the model that a harness run evaluates, from its arguments.

A task is not handed the model, only its arguments (and with a chat template, a method of it).
"""

import functools
import logging
from typing import Any

from ctxaware.errors import InputError

logger = logging.getLogger("lm_eval.ctxaware")

_TOKENIZER_KEYS = ("tokenizer", "tokenizer_path", "pretrained", "model")  # hf, vllm; sglang; API back ends
_WINDOW_KEYS = ("max_length", "max_model_len", "context_length")  # hf and API; vllm; sglang
NEUTRAL_GENERATION = {  # the values that leave greedy decoding as it is
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
}
_API_WINDOW = 2048  # what the harness's API models take where max_length is not given


def is_endpoint(model_args: dict[str, Any]) -> bool:
    """Whether the model is behind an HTTP endpoint, so that its name need not be a hub name."""
    return bool(model_args.get("base_url")) or ("pretrained" not in model_args and "model" in model_args)


def load_tokenizer(model_args: dict[str, Any], required: str | None = None):
    """The model's tokenizer, or None where its arguments name none.

    Args:
        model_args: the harness's merged metadata.
        required: what needs it, for the error; None if it can be done without.

    Raises:
        InputError: it is required and not named, or can't be loaded.
    """
    keys = ("tokenizer", "tokenizer_path") if is_endpoint(model_args) else _TOKENIZER_KEYS
    name = next((model_args[key] for key in keys if isinstance(model_args.get(key), str)), None)
    if name is None and not required:
        return None
    if name is None:
        raise InputError(
            f"{required} counts tokens and the model's arguments name no tokenizer; add tokenizer=NAME_OR_FOLDER to "
            f"--model_args (or to --metadata, where a model object is evaluated)"
        )
    return _load_tokenizer(name, model_args.get("revision"), bool(model_args.get("trust_remote_code")))


@functools.lru_cache(maxsize=4)
def _load_tokenizer(name: str, revision: str | None, trust_remote_code: bool):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"can't load the tokenizer {name!r}: {str(error).splitlines()[0]}") from error


def model_window(model_args: dict[str, Any], tokenizer=None, lm=None) -> int | None:
    """The most tokens, prompt and answer, that the model takes without cutting; None where nothing says.

    Args:
        model_args: the harness's merged metadata.
        tokenizer: the model's, consulted where its config names no length.
        lm: the harness's model, where it is known: its own `max_length` is the truth.
    """
    if isinstance(getattr(lm, "max_length", None), int):
        return lm.max_length
    given = next((int(model_args[key]) for key in _WINDOW_KEYS if model_args.get(key)), None)
    if is_endpoint(model_args):
        return (given or _API_WINDOW) - 1  # the harness's API models keep one token back
    if given or "pretrained" not in model_args:
        return given
    from lm_eval.models.utils import resolve_max_length

    return resolve_max_length(_load_config(model_args), tokenizer)


def _load_config(model_args: dict[str, Any]):
    from transformers import AutoConfig

    name, revision = model_args["pretrained"], model_args.get("revision") or "main"
    gguf = {"gguf_file": model_args["gguf_file"]} if model_args.get("gguf_file") else {}
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=bool(model_args.get("trust_remote_code")), **gguf
        )
    except (OSError, ValueError) as error:
        raise InputError(f"can't load the config of {name!r}: {str(error).splitlines()[0]}") from error


def count_tokens(prompts: list[str], tokenizer) -> list[int]:
    """Tokens of each prompt as the harness encodes it: special tokens are added unless BOS is there already."""
    counts = []
    for prompt in prompts:
        has_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
        counts.append(len(tokenizer(prompt, add_special_tokens=not has_bos, verbose=False)["input_ids"]))
    return counts


def leaking_generation_settings(model_args: dict[str, Any]) -> dict[str, Any]:
    """Settings in a local checkpoint's generation config that would change greedy decoding.

    transformers merges them into every `generate` call; the harness does not reset them.

    Returns:
        Name and value of each, without those that only sampling uses.
    """
    if is_endpoint(model_args) or "pretrained" not in model_args:
        return {}
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(
            model_args["pretrained"], revision=model_args.get("revision") or "main"
        )
    except (OSError, ValueError):
        return {}  # most base models have none
    return {
        key: value
        for key in (*NEUTRAL_GENERATION, "max_new_tokens")
        if (value := getattr(config, key, None)) not in (None, NEUTRAL_GENERATION.get(key))
    }
