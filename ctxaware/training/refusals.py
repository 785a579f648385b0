"""What the arguments of a recipe can't be, though TRL and transformers would take it."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from ctxaware.training.arguments import Arguments

# what torch and transformers would fail on late, or take for something else
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("max_length",), ("at least 2", lambda value: value >= 2)),
    **dict.fromkeys(("dataloader_num_workers", "learning_rate", "weight_decay"), ("0 or more", lambda v: not v < 0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), ("at least 0 and below 1", lambda value: 0 <= value < 1)),
    **dict.fromkeys(("save_steps", "dataset_num_proc"), ("above 0", lambda value: value > 0)),
    "num_train_epochs": ("a number", math.isfinite),
}


def check_range(name: str, value: Any) -> None:
    """Raise `InputError` for a number that an argument can't be."""
    expected, is_in = _RANGES.get(name, ("", lambda value: True))
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_in(value):
        raise InputError(f"{name} must be {expected}, got {value}", f"pass another {{{name}}}")


# TRL's arguments that these recipes have no use for, and what to do instead
_REFUSED = {
    "chat_template_path": "the saved template must be the one trained with: pass {chat_template}",
    "eos_token": "the chat template closes messages with the tokenizer's own; change it in the base's tokenizer",
    "truncation_mode": "conversations are kept from their start",
    "resume_from_checkpoint": "the same command takes up its run from the newest complete checkpoint by itself",
    "save_only_model": "such a checkpoint could not be taken up; leave it out",
    "trust_remote_code": "only models that transformers knows are trained",
    "hub_strategy": "the finished model alone is pushed",
    "completion_only_loss": "conversations have no prompt beside them: pass {assistant_only_loss} true",
    "dataset_text_field": "conversations are read as messages, and the chat template makes their text",
    "dataset_kwargs": "the recipes make the tokens themselves",
    "eval_packing": "the recipes hold no data out; evaluate what they save with lm_eval",
    "eval_strategy": "the recipes hold no data out; evaluate what they save with lm_eval",
}


def check_arguments(arguments: "Arguments") -> None:
    """Check a recipe's arguments, each alone and with the others.

    Raises:
        InputError: one would do nothing, do harm, or fail late.
    """
    run, training, model = arguments.run, arguments.training, arguments.model
    defaults = {field.name: field.default for field in fields(training)}
    for name in _RANGES:
        check_range(name, getattr(training, name, None))
    for name in ("model_init_kwargs", "gradient_checkpointing_kwargs"):
        if not isinstance(value := getattr(training, name), dict | None):
            raise InputError(f"{name} must be a mapping in JSON, got {value!r}", f"pass another {{{name}}}")
    if training.eval_on_start:
        raise InputError("eval_on_start can't be set here", _REFUSED["eval_strategy"])
    for name, instead in _REFUSED.items():
        if (value := getattr(training, name)) != defaults[name]:
            raise InputError(f"{name} can't be set here, got {value!r}", instead)
    if training.per_device_train_batch_size < 1:
        raise InputError(f"per_device_train_batch_size must be at least 1, got {training.per_device_train_batch_size}")
    if run.watch_every < 0 or (run.stop_when_fails and not run.watch_every):
        raise InputError(f"watch_every must be the steps between two probes, such as 100, got {run.watch_every}")
    lora = {field.name: field.default for field in fields(model) if field.name.startswith("lora_")}
    if not model.use_peft and (set_anyway := [name for name in lora if getattr(model, name) != lora[name]]):
        raise InputError(
            f"{set_anyway[0]} is of an adapter, and all weights would be trained",
            f"pass {{use_peft}} true, or leave out {{{set_anyway[0]}}}",
        )
    if run.merge and not model.use_peft:
        raise InputError("there is no adapter to merge", "pass {use_peft} true, or leave out {merge}")
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        raise InputError("quantized weights can't be trained themselves", "pass {use_peft} true for an adapter on them")
