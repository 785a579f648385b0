"""The context-awareness gap: the cells of the paper's table 7 for two models, and what separates them."""

import dataclasses
import gc
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError, first_line
from ctxaware.intervals import DIFFERENCE, Interval, mean_interval
from ctxaware.models import model_fingerprint
from ctxaware.plots import scores_and_effects
from ctxaware.report.evaluation import (
    check_batch_size,
    contents,
    model_arguments,
    read_run,
    refuse_own_arguments,
    run_tasks,
)
from ctxaware.report.samples import TaskRun, cluster
from ctxaware.report.tables import Table, mean_score
from ctxaware.runs.claim import LOCK, RUN, claim, locked, refuse_foreign_folder
from ctxaware.runs.files import write_text
from ctxaware.runs.processes import is_under_launcher
from ctxaware.runs.secrets import redacted

NEEDLE_TASK = "nih_ctx"
READING_TASKS = ("squad_contain", "quac_contain", "drop_contain")
TASKS = (NEEDLE_TASK, *READING_TASKS)
TEMPLATE_EFFECT = "template effect"


@dataclass(frozen=True)
class Cell:
    """One cell of the table: a model, with or without its chat template, with or without a response prefix."""

    model: str  # base or instruct
    template: bool
    prefix: bool

    @property
    def title(self) -> str:
        """As the table's row names it."""
        template = "with template" if self.template else "without template"
        return f"{self.model}, {template}{', prefix' if self.prefix else ''}"

    def task(self, task: str) -> str:
        """The harness's name of the task in this cell."""
        return f"{task}_prefix" if self.prefix else task

    def folder(self, out: Path, task: str) -> Path:
        """Where this cell's results of a task stand."""
        return out / f"{self.model}-{'template' if self.template else 'plain'}" / self.task(task)


def cells(task: str, models: dict[str, str]) -> list[Cell]:
    """The cells of a task: the prefix is the start of the needle, so only the needle task has it."""
    needle = task == NEEDLE_TASK
    table = [Cell("base", False, needle), Cell("instruct", False, needle)]
    table += [Cell("instruct", True, True)] if needle else []
    table += [Cell("instruct", True, False)]
    return [cell for cell in table if cell.model in models]


def effects(task: str) -> dict[str, tuple[Cell, Cell]]:
    """Name of each effect and the cells whose difference (first less second) it is."""
    needle = task == NEEDLE_TASK
    base, plain, template = (
        Cell("base", False, needle),
        Cell("instruct", False, needle),
        Cell("instruct", True, needle),
    )
    named = {"tuning effect": (plain, base), TEMPLATE_EFFECT: (template, plain)}
    if needle:
        named["effect of leaving out the prefix"] = (Cell("instruct", True, False), template)
    return named


@dataclass(frozen=True)
class Plan:
    """What to run: models, back end, tasks and their settings."""

    models: dict[str, str]  # base and/or instruct: name or folder
    tasks: tuple[str, ...]
    settings: dict[str, Any]  # the tasks' metadata
    backend: str = "hf"
    model_args: dict[str, Any] = field(default_factory=dict)
    batch_size: str = "1"
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("nothing to compare", "pass {instruct}, {base}, or both")
        check_batch_size(self.batch_size)
        refuse_own_arguments(self.model_args)
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise InputError(
                f"tasks must be some of {','.join(TASKS)}, got {','.join(unknown) or 'none'}", "pass other {tasks}"
            )

    def arguments(self, model: str) -> dict[str, Any]:
        """The harness's model arguments for one of the models."""
        return model_arguments(self.models[model], self.model_args)

    def runs(self, out: Path) -> Iterator[tuple[Cell, str]]:
        """Cells and tasks that are not there yet, model by model."""
        for model in self.models:
            for task in self.tasks:
                for cell in cells(task, self.models):
                    if cell.model == model and not cell.folder(out, task).is_dir():
                        yield cell, task


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Evaluate what is missing under `out`, each model loaded once, and return the tables' content.

    Every answer is kept in a cache as it is generated, and a cell's files are renamed into place
    when whole, so that an interrupted run continues where it was.

    Args:
        plan: what to run.
        out: the folder of results; made if absent.

    Returns:
        `cells` and `effects` by task, as `table` and JSON show them.

    Raises:
        InputError: `out` belongs to another plan, a chat template is missing, or a task refuses its settings.
    """
    if is_under_launcher():
        raise InputError("ctxaware gap runs in one process; start it without a launcher, or use the back end vllm")
    refuse_foreign_folder(out, ("gap.md", "gap.json", "gap.png"))
    with locked(out / LOCK, out):
        claim(out / RUN, _configuration(plan), out, grows=("models", "weights"))
        todo = list(plan.runs(out))
        for model in dict.fromkeys(cell.model for cell, _ in todo):
            if any(cell.template for cell, _ in todo if cell.model == model):
                _require_template(plan, model)
            lm = _load(plan, model)
            of_model = [(cell, task) for cell, task in todo if cell.model == model]
            # cells that differ only in how a prompt ends go in one evaluation, where they share all before it
            for (_, task), together in itertools.groupby(of_model, key=lambda pair: (pair[0].template, pair[1])):
                _evaluate(lm, plan, [cell for cell, _ in together], task, out)
            del lm
            gc.collect()  # the harness's models are cyclic: without this two would share the device's memory
        return summarise(plan, out)


def _configuration(plan: Plan) -> dict[str, Any]:
    """What one folder of results has in common; models may be added, tasks as well."""
    folders = {model: name for model, name in plan.models.items() if Path(name).is_dir()}
    return {
        "models": plan.models,
        "weights": {model: model_fingerprint(name) for model, name in folders.items()},
        "settings": plan.settings,
        "backend": plan.backend,
        "model_args": redacted(plan.model_args),
        "contents": contents(plan.settings, plan.model_args),
    }


def _require_template(plan: Plan, model: str) -> None:
    from ctxaware.harness.window import load_tokenizer

    tokenizer = load_tokenizer(plan.arguments(model), "ctxaware gap")
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError(
            f"{plan.models[model]} has no chat template", "pass it as {base}, and the chat model as {instruct}"
        )


def _load(plan: Plan, model: str) -> Any:
    import torch
    from lm_eval.api.registry import get_model

    from ctxaware.harness.model import ContextLM

    here = "cuda" if torch.cuda.is_available() else "cpu"
    more = {"batch_size": plan.batch_size, "device": plan.device or (here if plan.backend == "hf" else None)}
    try:
        kind = ContextLM if plan.backend == "hf" else get_model(plan.backend)
        return kind.create_from_arg_obj(plan.arguments(model), more)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, AssertionError) as error:
        raise InputError(f"can't load the {model} model {plan.models[model]}: {first_line(error)}") from error


def _evaluate(lm: Any, plan: Plan, together: list[Cell], task: str, out: Path) -> None:
    """Run cells of one model, with or without its template, and save each in a folder of its own."""
    run_tasks(
        lm,
        {cell.task(task): cell.folder(out, task) for cell in together},
        arguments=plan.arguments(together[0].model),
        settings=plan.settings,
        template=together[0].template,
        cache=out / "cache" / together[0].model,
    )


def summarise(plan: Plan, out: Path) -> dict[str, Any]:
    """Means of all cells and paired differences between them, each with a 95% interval by cluster."""
    summary: dict[str, Any] = {"cells": {}, "effects": {}}
    for task in plan.tasks:
        runs = {cell: read_run(cell.folder(out, task), cell.task(task)) for cell in cells(task, plan.models)}
        summary["cells"][task] = {cell.title: mean_score(run).interval() for cell, run in runs.items()}
        summary["effects"][task] = {
            name: _difference(runs[first], runs[second])
            for name, (first, second) in effects(task).items()
            if first in runs and second in runs
        }
    return summary


def _difference(run: TaskRun, control: TaskRun) -> Interval:
    """Paired by number, not by hash: a prefix is part of the document, and tokenizers may cut the haystack."""
    scores, of_control = run.scores(), control.scores()
    if scores.keys() != of_control.keys():
        raise InputError(f"{run.file.path} and {control.file.path} have other documents", "pass another {out}")
    differences = [scores[row["doc_id"]] - of_control[row["doc_id"]] for row in run.of_metric()]
    return mean_interval(differences, [cluster(row)[1] for row in run.of_metric()], DIFFERENCE)


def table(summary: dict[str, dict[str, dict[str, Interval]]]) -> str:
    """The summary as one Markdown table."""
    rows = []
    for task, of_cells in summary["cells"].items():
        for title, interval in (*of_cells.items(), *summary["effects"][task].items()):
            rows.append((task, title, interval, interval.n))
    return Table("Context-awareness gap", ("task", "cell", "score [95% interval]", "n"), rows).markdown()


def sentences(summary: dict[str, dict[str, dict[str, Interval]]]) -> list[str]:
    """What the template did, a sentence a task: the needle's answer is begun on both sides, so that both answer."""
    lines = []
    for task, of_task in summary["effects"].items():
        if (effect := of_task.get(TEMPLATE_EFFECT)) is not None:
            fairly = ", the answer begun on both sides" if task == NEEDLE_TASK else ""
            lines.append(f"{task}: with the chat template the score changes by {effect.signed}{fairly}; n = {effect.n}")
    return lines


def draw(summary: dict[str, dict[str, dict[str, Interval]]], plan: Plan, path: Path) -> Path:
    """The table as a picture: scores and paired differences with their intervals."""
    rows = {
        part: {f"{task}: {name}": interval for task, of in summary[part].items() for name, interval in of.items()}
        for part in ("cells", "effects")
    }
    names = " and ".join(Path(name).name for name in plan.models.values())
    return scores_and_effects(rows["cells"], rows["effects"], names, path)


def save(summary: dict[str, Any], plan: Plan, out: Path) -> None:
    """Write `gap.md`, `gap.json` and `gap.png` beside the results."""
    draw(summary, plan, out / "gap.png")
    write_text(out / "gap.md", table(summary) + "\n")
    content = {"plan": redacted(dataclasses.asdict(plan)), **_as_dicts(summary)}
    write_text(out / "gap.json", json.dumps(content, indent=2) + "\n")


def _as_dicts(node: Any) -> Any:
    if isinstance(node, Interval):
        return dataclasses.asdict(node)
    return {key: _as_dicts(value) for key, value in node.items()}
