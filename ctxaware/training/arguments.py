"""Arguments of the recipes: YAML files fill them, the command line overrides, what is unknown is an error."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trl import ModelConfig, SFTConfig, TrlParser

from ctxaware.errors import InputError
from ctxaware.runs.secrets import redacted
from ctxaware.runs.yamls import read_yaml
from ctxaware.scores.formula import DEFAULT_LAYER
from ctxaware.scores.threshold import DEFAULT_THRESHOLD, check_threshold
from ctxaware.training.refusals import check_arguments, check_range


@dataclass
class RunArguments:
    """What every recipe takes besides TRL's own arguments."""

    data: str = field(
        default="",
        metadata={"help": "Conversations: what ctxaware prepare wrote, a release's file, owner/name, or hub."},
    )
    dataset: str = field(default="messages", metadata={"help": "sharegpt, ultrachat, wizardlm, or messages."})
    data_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data on the hub."})
    effective_batch_size: int = field(
        default=128,
        metadata={"help": "Conversations of one step, over all devices; the accumulation follows from it."},
    )
    chat_template: str = field(default="tinyllama", metadata={"help": "tinyllama, or own: the model's."})
    merge: bool = field(default=False, metadata={"help": "Also write the adapter merged into its base, to merged/."})
    watch_every: int = field(
        default=0, metadata={"help": "Steps between probes of the use of the context (needles, passages); 0 for none."}
    )
    stop_when_fails: bool = field(
        default=False, metadata={"help": "End training where a probe shows a drop of more than 2 points."}
    )


@dataclass
class IndicatorArguments:
    """Which instructions carry [IND]."""

    scores: str | None = field(default=None, metadata={"help": "A file that ctxaware score wrote for these data."})
    seed_model: str | None = field(default=None, metadata={"help": "A chat model to score with, in place of scores."})
    score_layer: int | None = field(
        default=None, metadata={"help": f"Layer that scores, 0-based; {DEFAULT_LAYER}, or the one in scores."}
    )
    threshold: float = field(default=DEFAULT_THRESHOLD, metadata={"help": "Mark instructions with a score above it."})
    rescore_each_epoch: bool = field(
        default=False, metadata={"help": "Score anew at each epoch, with the model in training."}
    )
    prepared_base: str | None = field(
        default=None, metadata={"help": "Folder for the base with [IND]; default: output_dir with -base after it."}
    )

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.scores and self.seed_model:
            raise InputError("scores and seed_model were both given", "pass either {scores} or {seed_model}")
        if not (self.scores or self.seed_model or self.rescore_each_epoch):
            raise InputError(
                "nothing says which instructions get [IND]", "pass {scores}, {seed_model} or {rescore_each_epoch} true"
            )


@dataclass
class TrainingConfig(SFTConfig):
    """TRL's arguments with the protocol's values where it has one for all models."""

    max_length: int | None = field(default=2048, metadata={"help": "Tokens kept of a conversation."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1 a share of all."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints; below 1 a share of all."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True shows other losses for NaN ones."})
    hub_strategy: str = field(default="end", metadata={"help": "Must stay end: the finished model alone is pushed."})

    def to_dict(self) -> dict[str, Any]:
        """The arguments for a file or a tracker: without secrets."""
        special_tokens = {name: getattr(self, name) for name in ("eos_token", "pad_token")}  # TRL hides them as well
        return redacted(super().to_dict() | special_tokens)

    def __getstate__(self) -> dict[str, Any]:
        """What `training_args.bin` holds: no secrets either."""
        return redacted(vars(self), instead=None)


@dataclass
class Arguments:
    """All arguments of one run."""

    run: RunArguments
    training: TrainingConfig
    model: ModelConfig
    indicator: IndicatorArguments | None = None  # of the recipe that takes them

    def of_indicator(self) -> IndicatorArguments:
        """The arguments of the indicator recipe.

        Raises:
            ValueError: they are the vanilla recipe's.
        """
        if self.indicator is None:
            raise ValueError("these are arguments of the vanilla recipe, which marks nothing")
        return self.indicator


def parse_arguments(*own: type, argv: Sequence[str] | None = None) -> Arguments:
    """Arguments from `--config FILE` (once or more, no key twice) and the command line, which has the last word.

    Args:
        own: `IndicatorArguments` for the recipe that takes them.
        argv: the command line; default the process's own.

    Raises:
        InputError: a key or value is unknown or comes twice, or what is needed is missing.
    """
    config, rest = read_configs(list(sys.argv[1:] if argv is None else argv))
    parser = TrlParser((RunArguments, TrainingConfig, ModelConfig, *own))
    parser.error = _refuse_word  # its own way is to print all arguments first
    _check_keys(config, parser)
    parser.set_defaults_with_config(**config)
    try:
        *parsed, left = parser.parse_args_into_dataclasses(args=rest, return_remaining_strings=True)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"an argument asks for a package that is not installed: {error}", "install it") from error
    except ValueError as error:
        raise InputError(f"the arguments don't fit together: {error}") from error
    if left:
        names = [word.partition("=")[0] for word in left if word.startswith("-")]  # a value may be a secret
        raise InputError(f"unknown argument {' '.join(names or left)}", "{help} lists them all")
    run, training, model, *indicator = parsed
    if not run.data or model.model_name_or_path is None:
        raise InputError(
            f"no {'data' if not run.data else 'model'} given",
            f"pass {{{'data' if not run.data else 'model_name_or_path'}}}, or a {{config}} that says it "
            "(recipes/configs has one a model and one a data set)",
        )
    arguments = Arguments(run, training, model, *indicator)
    check_arguments(arguments)
    training.output_dir = str(Path(training.output_dir))
    training.gradient_accumulation_steps = accumulation(arguments, training.world_size)
    return arguments


def check_configs(paths: Sequence[str], n_processes: int) -> None:
    """Check the YAML files that both recipes are to take, before anything is started and where there may be no GPU.

    Args:
        paths: of the `--config` files.
        n_processes: that will train.

    Raises:
        InputError: a file is missing or no mapping, a key is unknown or comes twice, a value is none of its choices,
            or the effective batch is no multiple of what one pass over all processes takes.
    """
    config, _ = read_configs([word for path in paths for word in ("--config", path)])
    parser = TrlParser((RunArguments, TrainingConfig, ModelConfig))  # both recipes take them
    _check_keys(config, parser)
    batch = {name: config.get(name, parser.get_default(name)) for name in ("effective_batch_size", _PER_DEVICE)}
    if not all(isinstance(size, int) and size > 0 for size in batch.values()):
        raise InputError(f"expected whole numbers above 0, got {', '.join(f'{k} {v}' for k, v in batch.items())}")
    _steps_of(batch["effective_batch_size"], batch[_PER_DEVICE], n_processes)


_PER_DEVICE = "per_device_train_batch_size"


def _refuse_word(message: str) -> NoReturn:
    raise InputError(message[:300], "{help} lists all arguments")


def _check_keys(config: Mapping[str, Any], parser: TrlParser) -> None:
    known = {action.dest: action for action in parser._actions}
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise InputError(f"unknown key {key!r} in the config" + (f"; did you mean {close[0]}?" if close else ""))
        choices = known[key].choices
        if choices and value is not None and value not in choices:
            raise InputError(f"{key} must be one of {', '.join(map(str, choices))}, got {value!r} in the config")
        if isinstance(value, str) and callable(kind := known[key].type):
            try:
                value = kind(value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                raise InputError(f"{key} can't be {value!r} in the config ({error})") from error
        check_range(key, value)


def accumulation(arguments: Arguments, n_processes: int) -> int:
    """Steps of accumulation that make the effective batch.

    Raises:
        InputError: the effective batch is no multiple of what one pass over all devices takes.
    """
    per_device, effective = arguments.training.per_device_train_batch_size, arguments.run.effective_batch_size
    if arguments.training.gradient_accumulation_steps != 1:
        raise InputError(
            "gradient_accumulation_steps follows from effective_batch_size", "leave out {gradient_accumulation_steps}"
        )
    return _steps_of(effective, per_device, n_processes)


def _steps_of(effective: int, per_device: int, n_processes: int) -> int:
    at_once = per_device * n_processes
    if effective < 1 or effective % at_once:
        raise InputError(
            f"effective_batch_size must be a multiple of {at_once} ({n_processes} processes x "
            f"per_device_train_batch_size {per_device}), got {effective}"
        )
    return effective // at_once


def read_configs(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The keys of all `--config` files together, and the rest of the command line.

    Raises:
        InputError: a file is missing or no mapping, or a key comes twice.
    """
    paths, rest = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            paths.append(next(words, ""))
        elif word.startswith("--config="):
            paths.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    merged: dict[str, Any] = {}
    source: dict[str, str] = {}
    for path in paths:
        for key, value in _mapping(path).items():
            if key in merged:
                raise InputError(f"{key} comes twice: in {source[key]} and in {path}; leave one out")
            merged[key], source[key] = value, path
    return merged, rest


def _mapping(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(f"the config {path!r} is no file", "pass another {config}; recipes/configs has some")
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping, key: value")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise InputError(f"{path} has the key {odd[0]!r}, expected a name")
    return content
