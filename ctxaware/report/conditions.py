"""Under which condition a model answered: with its template or without, marked, steered, with which arguments."""

from dataclasses import dataclass
from typing import Any

from ctxaware.harness.settings import CHANGE_NO_ANSWER
from ctxaware.report.samples import TaskRun
from ctxaware.report.tables import INDICATOR_SUFFIX

_TOLD = {"pretrained", "model", "peft", "indicator", "steer_alpha"}  # arguments that are shown by themselves


@dataclass(frozen=True)
class Condition:
    """What may make one model's answers differ between two runs of a task.

    Attributes:
        model: name or folder, with its adapter.
        template: whether prompts went through the chat template.
        marks: in words, whether prompts carried the indicator, and whether attention was steered.
        arguments: others of the model that may change an answer, `key=value`.
    """

    model: str
    template: bool
    marks: tuple[str, ...]
    arguments: tuple[str, ...]


def condition_of(task: TaskRun) -> Condition:
    """The condition of a run of a task, by its results file."""
    arguments = _model_args(task.results)
    adapter, alpha = arguments.get("peft"), arguments.get("steer_alpha")
    marks = []
    if task.task.endswith(INDICATOR_SUFFIX):
        marks.append("[IND] always")
    elif (chosen := arguments.get("indicator")) not in (None, "never"):
        marks.append(f"[IND] {chosen}")
    if alpha is not None:
        marks.append(f"steered, α = {alpha}")
    others = {key: value for key, value in arguments.items() if key not in _TOLD | CHANGE_NO_ANSWER}
    if alpha in (None, 1, "1", "1.0"):
        others.pop("steer_heads", None)
    return Condition(
        f"{task.model} with {adapter}" if adapter else task.model,
        task.template,
        tuple(marks),
        tuple(f"{key}={value}" for key, value in sorted(others.items())),
    )


def _model_args(results: dict) -> dict[str, Any]:
    """The harness's model arguments, which it writes as text or as an object."""
    given = results.get("config", {}).get("model_args") or {}
    if isinstance(given, dict):
        return given
    return dict(part.split("=", 1) for part in str(given).split(",") if "=" in part)
