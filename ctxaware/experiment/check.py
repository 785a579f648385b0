"""Everything of an experiment that can be known to be wrong before training starts, each problem a line."""

import dataclasses
import difflib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ctxaware.data.conversations import find_file, read_records
from ctxaware.data.releases import DATASETS, clean
from ctxaware.data.sources import BUILTIN, HUB
from ctxaware.errors import InputError
from ctxaware.experiment.config import Data, Model
from ctxaware.experiment.plan import Plan
from ctxaware.experiment.recipes import located
from ctxaware.scores.formula import DEFAULT_MAX_LENGTH

_EXTRAS = {"trl": "train", "peft": "train", "snakemake": "experiment"}
_UNSAFE = re.compile(r"[^\w./~+@-]")  # in a path: what --model_args or Snakemake would read as more than a name


def problems(plan: Plan) -> list[str]:
    """What is wrong, a line each; empty where nothing is."""
    found: dict[str, None] = {}
    for check in (_software, _paths, _recipes, _models, _data, _tasks, _mt_bench):
        for problem in _gathered(check(plan)):
            found[problem] = None
    return list(found)


def _gathered(check: Iterator[str]) -> Iterator[str]:
    """The problems of a check; an `InputError` is its last."""
    try:
        yield from check
    except InputError as error:
        yield str(error)


def _message(call: Callable[..., Any], *arguments: Any) -> str | None:
    """What a call refuses its arguments for; None where it does not."""
    try:
        call(*arguments)
    except InputError as error:
        return str(error)
    return None


def _pairs(plan: Plan) -> Iterator[tuple[Model, Data]]:
    return itertools.product(plan.experiment.models, plan.experiment.data)


def _software(plan: Plan) -> Iterator[str]:
    for package, extra in _EXTRAS.items():
        if find_spec(package) is None:
            python = ", with Python 3.11 or newer" if package == "snakemake" else ""
            yield f"the package {package} is not installed; run: pip install 'ctxaware[{extra}]'{python}"


def _paths(plan: Plan) -> Iterator[str]:
    for path in (str(plan.out), *(plan.base(model) for model in plan.experiment.models)):
        if unsafe := _UNSAFE.search(path):
            yield f"{path!r} holds {unsafe[0]!r}, which a path in the harness's model_args can't; choose another"
    if plan.experiment.out.startswith(("-", "~")):
        yield f"out: {plan.experiment.out} would be taken for an option or a home folder; write the path out"
    if file := next((place for place in (plan.out, *plan.out.parents) if place.is_file()), None):
        yield f"out: {file} is a file; name a folder"


def _recipes(plan: Plan) -> Iterator[str]:
    from ctxaware.training.arguments import check_configs

    for model, data in _pairs(plan):
        files = [located(path) for path in (*model.config, *data.config)]
        if problem := _message(check_configs, files, plan.n_processes):
            yield f"config of {model.name}, {data.name}: {problem}"


def _models(plan: Plan) -> Iterator[str]:
    from ctxaware.indicator.token import INDICATOR
    from ctxaware.models import load_config, load_tokenizer, window_of
    from ctxaware.training.base import training_tokenizer

    for model, data in _pairs(plan):
        base, settings = plan.base(model), plan.settings(model, data)
        revision = settings.get("model_revision")
        where = f"model {model.name}: "
        try:
            window = window_of(load_config(base, revision))
            tokenizer = training_tokenizer(base, revision, settings.get("chat_template", "tinyllama"))
        except InputError as error:
            yield f"{where}{error}"
            continue
        if Path(base).is_dir() and not [*Path(base).glob("*.safetensors"), *Path(base).glob("pytorch_model*.bin")]:
            yield f"{where}{base} has no weights (*.safetensors); restore it"
        if INDICATOR in tokenizer.get_vocab():
            yield f"{where}{base} has {INDICATOR} already, so it is no base; name the model that it was made from"
        if plan.experiment.evaluate.before_tuning == "with_template" and not load_tokenizer(base).chat_template:
            yield f"{where}{base} has no chat template; set evaluate: before_tuning: without_template"
        length = settings.get("max_length", DEFAULT_MAX_LENGTH)
        if isinstance(length, int) and window and length > window:
            yield f"{where}max_length {length} is past the model's window of {window} tokens"
        longest = plan.metadata(model, data).get("max_context_length", 0)
        if isinstance(longest, int) and window and longest > window:
            yield f"{where}max_context_length {longest} is past the model's window of {window} tokens"
        yield from _gathered(_scoring(plan, model, data))


def _scoring(plan: Plan, model: Model, data: Data) -> Iterator[str]:
    """Whether the seed model can score: its layers, its window, its template."""
    from ctxaware.models import load_config, load_tokenizer, window_of
    from ctxaware.scores.run import parse_layers

    name, trained = plan.seed_model(model, data, plan.experiment.seeds[0])
    if trained:  # it has the shape of its base
        name = trained.command[trained.command.index("--model_name_or_path") + 1]
    config = load_config(name)
    layer, length = plan.experiment.score_layer, plan.score_max_length(model, data)
    if plan.settings(model, data).get("max_length", length) is None and not plan.experiment.score_max_length:
        yield f"max_length of {model.name}, {data.name} is null, so training cuts nothing: set score_max_length"
    if problem := _message(parse_layers, str(layer), config.get_text_config(decoder=True).num_hidden_layers):
        yield f"score_layer of {name}: {problem.replace('pass layer', 'set score_layer')}"
    window = window_of(config)
    if window and length > window:
        yield f"{length} tokens are past the window of {name}, which scores: set score_max_length to {window} or less"
    if not trained and not load_tokenizer(name).chat_template:
        yield f"seed_model {name} has no chat template, which says whose each token is; name a chat model"


def _data(plan: Plan) -> Iterator[str]:
    for data in plan.experiment.data:
        source = located(data.source or "")
        if not data.source or not Path(source).exists():
            continue  # made by a script, or on the hub: prepared before any training
        records = read_records(find_file(source, DATASETS[data.dataset].file))
        try:
            if next(clean(records, data.dataset, Counter()), None) is None:
                yield f"data {data.name}: no conversation of {source} is left after cleaning; is dataset right?"
        except InputError as error:
            yield f"data {data.name}: {error}"


def _tasks(plan: Plan) -> Iterator[str]:
    from ctxaware.harness.grid import check_needle_settings
    from ctxaware.harness.reading import prompt_template
    from ctxaware.harness.settings import NeedleSettings, ReadingSettings, resolve

    yield from _unknown_tasks(plan.experiment.evaluate.tasks)
    for model, data in _pairs(plan):
        script, metadata = plan.script(data), plan.metadata(model, data)
        where = f"metadata of {model.name}, {data.name}: "
        made = {  # by a script, later
            name
            for name, value in metadata.items()
            if script and isinstance(value, str) and value.startswith(str(script.folder))
        }
        checks: tuple[tuple[type, Callable[..., Any]], ...] = (
            (NeedleSettings, check_needle_settings),
            (ReadingSettings, lambda settings: prompt_template("squad", settings.prompt)),
        )
        for cls, check in checks:
            try:
                settings = resolve(cls, metadata, f"{model.name}, {data.name}")
            except InputError as error:
                yield f"metadata of {error}"
                continue
            if "needle" in made and cls is NeedleSettings:
                settings = dataclasses.replace(settings, needle="sf")
            if problem := _message(check, settings):
                yield f"{where}{problem}"
        for name in {"source", "haystack"} - made:
            path = metadata.get(name)
            if isinstance(path, str) and path not in (HUB, BUILTIN) and not Path(path).exists():
                yield f"{where}{name} {path} does not exist"


def _unknown_tasks(tasks: Sequence[str]) -> Iterator[str]:
    """Tasks that the harness does not have; ours are looked up first, since all of its own take ten seconds to list."""
    from lm_eval.tasks import TaskManager

    from ctxaware.harness.paths import tasks_folder

    folder = str(tasks_folder())
    if set(tasks) <= set(TaskManager(include_path=folder, include_defaults=False).all_tasks):
        return
    known = set(TaskManager(include_path=folder).all_tasks)
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            yield f"evaluate: the harness has no task {task!r}" + (f"; did you mean {near[0]}?" if near else "")


def _mt_bench(plan: Plan) -> Iterator[str]:
    bench = plan.experiment.mt_bench
    if bench is None:
        return
    from ctxaware.mt_bench.endpoint import EndpointSettings, connect
    from ctxaware.mt_bench.fastchat import load_bench, load_fastchat

    load_bench(load_fastchat(), Path(bench.data_dir), for_judge=bench.judge is not None)
    if bench.judge and (problem := _message(connect, EndpointSettings(bench.base_url, bench.api_key_env))):
        yield f"mt_bench: {problem}"
