"""The tokenizer, the window and the generation settings of the model that the harness is evaluating.

The harness does not hand its model to a task. `running_model` finds it in the evaluation that is under
way; where there is none (tasks loaded by hand), the model's arguments are read as the back ends read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctxaware import models
from ctxaware.errors import InputError
from ctxaware.harness.internals import own_tokenizer, running_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
NOT_UNDONE = (  # no value passed to `generate` takes these back
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "stop_strings", "max_time"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "guidance_scale"),
    *("penalty_alpha", "dola_layers"),
)
_API_WINDOW = 2048  # what the harness's API models take where max_length is not given


def is_endpoint(model_args: dict[str, Any]) -> bool:
    """Whether the model is behind an HTTP endpoint, so that its name need not be a hub name."""
    return bool(model_args.get("base_url")) or ("pretrained" not in model_args and "model" in model_args)


def load_tokenizer(model_args: dict[str, Any], required: str | None = None) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None where nothing names one.

    `tokenizer` in the arguments or in `--metadata` wins, then the running model's own, then that of the model's name.

    Args:
        model_args: the harness's merged metadata.
        required: what needs it, for the error; None if it can be done without.

    Raises:
        InputError: it is required and not known, or can't be loaded.
    """
    keys = ("tokenizer", "tokenizer_path") if is_endpoint(model_args) else _TOKENIZER_KEYS
    name = next((model_args[key] for key in keys if isinstance(model_args.get(key), str)), None)
    is_named = any(isinstance(model_args.get(key), str) for key in ("tokenizer", "tokenizer_path"))
    own = own_tokenizer(running_model(), is_optional=is_named)
    if own is not None and (not is_named or own.name_or_path == name):
        return own
    if name is None and not required:
        return None
    if name is None:
        raise InputError(
            f"{required} counts tokens and the model's arguments name no tokenizer; add tokenizer=NAME_OR_FOLDER to "
            f"model_args (or to metadata, where tasks are loaded by hand)"
        )
    return models.load_tokenizer(name, model_args.get("revision"), bool(model_args.get("trust_remote_code")))


def model_window(model_args: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """The most tokens, prompt and answer, that the model takes without cutting; None where nothing says.

    Args:
        model_args: the harness's merged metadata.
        tokenizer: the model's, consulted where its config names no length.
    """
    lm = running_model()
    if lm is not None and isinstance(getattr(lm, "max_length", None), int):
        own: Any = getattr(lm, "tokenizer", None)
        cuts = getattr(lm, "truncation", False) and hasattr(own, "model_max_length")
        return min(lm.max_length, own.model_max_length) if cuts else lm.max_length
    given = next((int(model_args[key]) for key in _WINDOW_KEYS if model_args.get(key)), None)
    if is_endpoint(model_args):
        return (given or _API_WINDOW) - 1  # the harness's API models keep one token back
    if given or "pretrained" not in model_args:
        return given
    from lm_eval.models.utils import resolve_max_length

    name, trust = model_args["pretrained"], bool(model_args.get("trust_remote_code"))
    return resolve_max_length(models.load_config(name, model_args.get("revision"), trust), tokenizer)


def count_tokens(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each prompt as the harness encodes it: special tokens are added unless BOS is there already."""
    lm = running_model()
    asked = getattr(lm, "add_bos_token", None)
    counts = []
    for prompt in prompts:
        has_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
        add = False if has_bos else True if asked is None else bool(asked)
        counts.append(len(tokenizer(prompt, add_special_tokens=add, verbose=False)["input_ids"]))
    return counts


def leaking_generation_settings() -> dict[str, Any]:
    """Settings of the running transformers model that would change greedy decoding.

    transformers merges a checkpoint's generation config into every `generate` call; the harness does not reset it.

    Returns:
        Name and value of each, without those that only sampling uses; empty for other back ends.
    """
    config = getattr(getattr(running_model(), "model", None), "generation_config", None)
    if config is None:
        return {}
    return {
        key: value
        for key in (*NEUTRAL_GENERATION, *NOT_UNDONE, "max_new_tokens")
        if (value := getattr(config, key, None)) not in (None, NEUTRAL_GENERATION.get(key))
    }
