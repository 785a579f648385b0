"""`experiment.yaml`: what an experiment consists of. An unknown key, a wrong type or a value out of range is an error.

Nothing heavy is imported here: the workflow reads this again for each of its jobs.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ctxaware.data.releases import DATASETS
from ctxaware.errors import InputError
from ctxaware.indicator.marking import MODES
from ctxaware.runs.yamls import read_yaml
from ctxaware.scores.threshold import DEFAULT_THRESHOLD, check_threshold

VANILLA = "vanilla"  # as seed model: the run that the + Indicator run is compared with
DEMO_MODEL = "demo-model"  # as base: the embedded model
SCRIPT_FOLDER = "{script}"  # in metadata: the folder that a data set's script wrote
BEFORE_TUNING = ("no", "with_template", "without_template")
OWN_MODEL_ARGS = {"pretrained", "peft", "tokenizer", "revision", "indicator"}
DTYPES = ("auto", "float32", "float16", "bfloat16")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
Entry = TypeVar("Entry")
Read = Callable[[Any, str], Any]  # (value, where it stands) → what it means


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} must be text, got {value!r}")
    return value


def name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(f"{where} becomes a folder's name: at most 100 letters, digits and ._-, got {value!r}")
    return value


def whole_number(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{where} must be a whole number, got {value!r}")
    return value


def count(value: Any, where: str) -> int:
    if whole_number(value, where) < 1:
        raise InputError(f"{where} must be 1 or more, got {value!r}")
    return value


def model_arguments(value: Any, where: str) -> dict[str, Any]:
    given = mapping(value, where)
    for key, entry in given.items():
        if isinstance(entry, dict | list) or re.search("[,=]", f"{key}{entry}"):
            raise InputError(f"{where}: {key} must be one plain value without , and =, got {entry!r}")
    return given


def share(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{where} must be a number in 0–1, got {value!r}")
    try:
        check_threshold(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return float(value)


def drop(value: Any, where: str) -> float:
    if share(value, where) >= 1:
        raise InputError(f"{where} must be under 1, got {value!r}")
    return float(value)


def seed(value: Any, where: str) -> int:
    if whole_number(value, where) >= 2**32:
        raise InputError(f"{where} must be under 2**32, got {value!r}")
    return value


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where} must be true or false, got {value!r}")
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where} must be a mapping, key: value, got {value!r}")
    return dict(value)


def one_of(choices: tuple[str, ...]) -> Read:
    def read(value: Any, where: str) -> str:
        value = {False: "no"}.get(value, value) if isinstance(value, bool) else value  # YAML's no is false
        if value not in choices:
            raise InputError(f"{where} must be one of {', '.join(choices)}, got {value!r}")
        return value

    return read


def several(read: Read) -> Read:
    """One value, or a list of them with no two alike; at least one."""

    def read_all(value: Any, where: str) -> tuple:
        values = value if isinstance(value, list | tuple) else [value]
        read_values = tuple(read(each, where) for each in values)
        if not read_values:
            raise InputError(f"{where} is empty; name at least one")
        if twice := sorted({str(each) for each in read_values if read_values.count(each) > 1}):
            raise InputError(f"{where} has {twice[0]} twice; name each once")
        return read_values

    return read_all


def read_by(read: Read) -> dict[str, Read]:
    """Metadata of an entry's field: how its value is read."""
    return {"read": read}


def entry(cls: type[Entry]) -> Read:
    """A mapping whose keys are the fields of a dataclass."""

    def read(value: Any, where: str) -> Entry:
        fields = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
        given = mapping(value, where)
        for unknown in [each for each in given if each not in fields]:
            near = difflib.get_close_matches(unknown, fields, n=1, cutoff=0.6)
            remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}"
            raise InputError(f"{where}: unknown key {unknown!r}; {remedy}")
        values = {}
        for each in fields.values():
            if given.get(each.name) is not None:
                values[each.name] = each.metadata["read"](given[each.name], f"{where}: {each.name}")
            elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                raise InputError(f"{where} lacks {each.name}; `ctxaware experiment init` writes an example")
        return cls(**values)

    return read


@dataclass(frozen=True)
class Model:
    """A base model and how it is tuned.

    Attributes:
        base: hub name or folder; `demo-model` is the embedded one.
        config: the recipe's YAML files.
        metadata: settings of the tasks for this model; they override those of `evaluate`.
    """

    name: str = field(metadata=read_by(name))
    base: str = field(metadata=read_by(text))
    config: tuple[str, ...] = field(metadata=read_by(several(text)))
    metadata: dict[str, Any] = field(metadata=read_by(mapping), default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A data set, from a `source` as `ctxaware prepare` takes it, or made by a script.

    Attributes:
        script: is given a folder and writes `conversations.jsonl` into it.
        config: YAML files for the recipe besides the model's.
        metadata: settings of the tasks for models tuned on it; they override those of the model.
    """

    name: str = field(metadata=read_by(name))
    source: str | None = field(metadata=read_by(text), default=None)
    script: str | None = field(metadata=read_by(text), default=None)
    dataset: str = field(metadata=read_by(one_of(tuple(DATASETS))), default="messages")
    revision: str | None = field(metadata=read_by(text), default=None)
    salvage: bool = field(metadata=read_by(flag), default=False)
    config: tuple[str, ...] = field(metadata=read_by(several(text)), default=())
    metadata: dict[str, Any] = field(metadata=read_by(mapping), default_factory=dict)

    def __post_init__(self) -> None:
        if (self.source is None) == (self.script is None):
            raise InputError(f"data {self.name}: name either source or script")


@dataclass(frozen=True)
class Evaluate:
    """What the models are asked.

    Attributes:
        tasks: of the harness.
        metadata: settings of the tasks, as `lm_eval --metadata`.
        conditions: where `[IND]` goes when the + Indicator model is asked.
        before_tuning: whether the base is asked as well, with its chat template or without one.
        batch_size: prompts at a time.
        model_args: more arguments of `lm_eval --model ctxaware`, such as dtype.
    """

    tasks: tuple[str, ...] = field(metadata=read_by(several(text)))
    metadata: dict[str, Any] = field(metadata=read_by(mapping), default_factory=dict)
    conditions: tuple[str, ...] = field(metadata=read_by(several(one_of(MODES))), default=("never", "always"))
    before_tuning: str = field(metadata=read_by(one_of(BEFORE_TUNING)), default="no")
    batch_size: int = field(metadata=read_by(count), default=8)
    model_args: dict[str, Any] = field(metadata=read_by(model_arguments), default_factory=dict)


@dataclass(frozen=True)
class MTBench:
    """MT-Bench: answers, and ratings where a judge is named."""

    data_dir: str = field(metadata=read_by(text))
    judge: str | None = field(metadata=read_by(text), default=None)
    base_url: str | None = field(metadata=read_by(text), default=None)
    api_key_env: str | None = field(metadata=read_by(text), default=None)
    parallel: int = field(metadata=read_by(count), default=8)
    max_new_tokens: int = field(metadata=read_by(count), default=1024)
    batch_size: int = field(metadata=read_by(count), default=8)


@dataclass(frozen=True)
class Experiment:
    """The file as a whole.

    Attributes:
        out: folder of all that is made.
        thresholds: β, 0–1.
        seed_model: scores the training turns: `vanilla` (each vanilla run its own), `MODEL-DATA` (that vanilla run of
            this experiment), or a model's hub name or folder.
        score_layer: 0-based.
        score_max_length: tokens kept of a conversation that is scored; None for the recipe's `max_length`.
        launch: accelerate's config for training; evaluation takes as many GPUs.
        max_drop: that the gate tolerates, 0–1.
    """

    out: str = field(metadata=read_by(text))
    models: tuple[Model, ...] = field(metadata=read_by(several(entry(Model))))
    data: tuple[Data, ...] = field(metadata=read_by(several(entry(Data))))
    evaluate: Evaluate = field(metadata=read_by(entry(Evaluate)))
    seeds: tuple[int, ...] = field(metadata=read_by(several(seed)), default=(42,))
    thresholds: tuple[float, ...] = field(metadata=read_by(several(share)), default=(DEFAULT_THRESHOLD,))
    seed_model: str = field(metadata=read_by(text), default=VANILLA)
    score_layer: int = field(metadata=read_by(whole_number), default=15)
    score_max_length: int | None = field(metadata=read_by(count), default=None)
    launch: str = field(metadata=read_by(text), default="recipes/accelerate/single_gpu.yaml")
    mt_bench: MTBench | None = field(metadata=read_by(entry(MTBench)), default=None)
    max_drop: float = field(metadata=read_by(drop), default=0.02)

    def __post_init__(self) -> None:
        for what, names in (("models", [m.name for m in self.models]), ("data", [d.name for d in self.data])):
            if twice := sorted({each for each in names if names.count(each) > 1}):
                raise InputError(f"{what} has the name {twice[0]!r} twice; give each its own")
        pairs = [f"{model.name}-{data.name}" for model in self.models for data in self.data]
        if twice := sorted({each for each in pairs if pairs.count(each) > 1}):
            raise InputError(f"two pairs of model and data are called {twice[0]}; give one of them another name")
        if len({f"{threshold:g}" for threshold in self.thresholds}) < len(self.thresholds):
            raise InputError("two thresholds are the same to six digits, and their models would have one name")
        dtype = self.evaluate.model_args.get("dtype", "auto")
        if dtype not in DTYPES:
            raise InputError(f"evaluate: model_args: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if own := sorted(OWN_MODEL_ARGS & self.evaluate.model_args.keys()):
            raise InputError(f"evaluate: model_args: {own[0]} follows from the models and conditions; leave it out")
        marked = [task for task in self.evaluate.tasks if task.endswith("_ind")]
        if marked:
            raise InputError(
                f"evaluate: tasks: {marked[0]} puts [IND] on its prompts itself; name "
                f"{marked[0].removesuffix('_ind')}, "
                "conditions say where [IND] goes"
            )


def experiment(content: Any, where: str = "experiment.yaml") -> Experiment:
    """An experiment from what YAML holds.

    Raises:
        InputError: a key is unknown or missing, or a value is none that it can have.
    """
    try:
        return entry(Experiment)(content, where)
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from error


def read_experiment(path: Path) -> Experiment:
    """An experiment from its file.

    Raises:
        InputError: there is no such file, it is no YAML, a key comes twice, or as `experiment`.
    """
    return experiment(read_yaml(path), str(path))
