"""Attention steering as the paper's table 1 has it, with α chosen on other needle cells than it is reported on.

Half of the grid's cells choose α (a chequerboard: each half has every context length and every depth); the other half
is reported, and so are the reading tasks. Every condition's results stand in a folder of their own.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError, first_line
from ctxaware.intervals import Interval
from ctxaware.report.compare import pair
from ctxaware.report.evaluation import (
    check_batch_size,
    contents,
    model_arguments,
    read_run,
    refuse_own_arguments,
    run_tasks,
)
from ctxaware.report.samples import TaskRun
from ctxaware.report.tables import Table, mean_score, table_1
from ctxaware.runs.claim import LOCK, RUN, claim, locked, refuse_foreign_folder
from ctxaware.runs.files import user_path, write_json, write_text
from ctxaware.runs.processes import is_under_launcher
from ctxaware.runs.secrets import redacted

NEEDLE_TASKS = ("nih_ctx", "nih_ctx_prefix")
READING_TASKS = ("squad_contain", "quac_contain", "drop_contain")
CHOOSING, REPORTED = "choosing", "reported"  # the halves of the grid


@dataclass(frozen=True)
class Condition:
    """How prompts are run: α, 1 being no steering, with or without the chat template."""

    alpha: float = 1.0
    template: bool = True

    @property
    def title(self) -> str:
        """As the table's column names it."""
        if self.alpha < 1:
            return f"+ attention steering (α = {self.alpha:g})"
        return "baseline" if self.template else "without template"

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.alpha < 1:
            return f"alpha-{self.alpha:g}"
        return "baseline" if self.template else "plain"


BASELINE, PLAIN = Condition(), Condition(template=False)


@dataclass(frozen=True)
class Plan:
    """What to run."""

    model: str  # hub name or folder
    tasks: tuple[str, ...]
    alphas: tuple[float, ...]
    heads: str  # retrieval, all, or a file of `ctxaware heads`
    settings: dict[str, Any]  # the tasks' metadata
    model_args: dict[str, Any] = field(default_factory=dict)
    batch_size: str = "1"
    device: str | None = None

    def __post_init__(self) -> None:
        from ctxaware.attention.steering import check_alpha

        known = (*NEEDLE_TASKS, *READING_TASKS)
        if unknown := [task for task in self.tasks if task not in known]:
            raise InputError(f"tasks must be some of {','.join(known)}, got {','.join(unknown)}")
        if len(self.needle_tasks) != 1:
            raise InputError(f"tasks must have one of {', '.join(NEEDLE_TASKS)}, to choose α on; got {self.tasks}")
        if not self.alphas:
            raise InputError("there is no α to choose from; pass some, as 0.1,0.3")
        for alpha in self.alphas:
            check_alpha(alpha)
        if len({f"{alpha:g}" for alpha in self.alphas}) < len(self.alphas):
            raise InputError(f"two α are the same to six digits: {self.alphas}; leave one of them out")
        if 1 in self.alphas:
            raise InputError("α = 1 is no steering, which is the baseline and always run; leave it out")
        if self.settings["num_context_lengths"] * self.settings["num_depths"] < 2:
            raise InputError("the grid must have two cells or more: one half chooses α, the other is reported")
        check_batch_size(self.batch_size)
        refuse_own_arguments(self.model_args)

    @property
    def needle_tasks(self) -> list[str]:
        """Those of `NEEDLE_TASKS` that are asked for."""
        return [task for task in self.tasks if task in NEEDLE_TASKS]

    @property
    def arguments(self) -> dict[str, Any]:
        """The harness's model arguments."""
        return model_arguments(self.model, self.model_args)

    def half(self, half: str) -> list[int]:
        """Indices of a half's cells; documents are by length, then depth."""
        n_depths = self.settings["num_depths"]
        cells = range(self.settings["num_context_lengths"] * n_depths)
        return [i for i in cells if (sum(divmod(i, n_depths)) % 2 == 0) == (half == CHOOSING)]

    def configuration(self) -> dict[str, Any]:
        """All that could change the results."""
        from ctxaware.models import model_fingerprint

        path = user_path(self.heads)
        return {
            **redacted(dataclasses.asdict(self)),
            "fingerprint": model_fingerprint(self.model),
            "contents": contents(self.settings, self.model_args),
            "heads_file": path.read_text(encoding="utf-8") if path.is_file() else None,
        }


@dataclass(frozen=True)
class Result:
    """What the runs gave.

    Attributes:
        curve: recall on the choosing half by α, 1 being the baseline.
        alpha: the chosen one.
        runs: by condition's title, then by task: what is reported.
        differences: by task, then by name: paired, to the baseline.
        restored: share of what the template costs in recall that steering brings back; None where that cost is not
            certainly above 0.
    """

    curve: dict[float, Interval]
    alpha: float
    runs: dict[str, dict[str, TaskRun]] = field(repr=False)
    differences: dict[str, dict[str, Interval]]
    restored: float | None


class _Runner:
    """Runs what is not there yet; the model is loaded when it is first needed, once."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out

    @functools.cached_property
    def lm(self) -> Any:
        """The harness's model."""
        import torch

        from ctxaware.harness.model import ContextLM

        device = self.plan.device or ("cuda" if torch.cuda.is_available() else "cpu")
        more = {"batch_size": self.plan.batch_size, "device": device}
        try:
            return ContextLM.create_from_arg_obj(self.plan.arguments, more)
        except InputError:
            raise
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
            raise InputError(f"can't load {self.plan.model}: {first_line(error)}") from error

    def run(self, condition: Condition, task: str, half: str | None = None) -> TaskRun:
        """One task in one condition, on all documents or a half."""
        folder = self.out / (half or "whole") / condition.name / task
        if not folder.is_dir():
            self.lm.set_steering(condition.alpha, self.plan.heads)
            run_tasks(
                self.lm,
                {task: folder},
                arguments=self.plan.arguments,
                settings=self.plan.settings,
                template=condition.template,
                cache=self.out / "cache" / condition.name,
                documents=self.plan.half(half) if half else None,
            )
        return read_run(folder, task)


def run(plan: Plan, out: Path) -> Result:
    """Choose α and report it, evaluating what is missing under `out`.

    Every answer is kept as it is generated, and a run's files are renamed into place when whole, so that an interrupted
    command goes on where it was.

    Raises:
        InputError: `out` belongs to another plan, the model can't be steered, or a task refuses its settings.
    """
    from ctxaware.harness.window import load_tokenizer

    if is_under_launcher():
        raise InputError("ctxaware steer runs in one process; start it without a launcher")
    tokenizer = load_tokenizer(plan.arguments, "ctxaware steer")
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError(f"{plan.model} has no chat template, so no user message to steer to; pass a chat model")
    refuse_foreign_folder(out, ("steer.md", "steer.json", "recall.png"))
    with locked(out / LOCK, out):
        claim(out / RUN, plan.configuration(), out)
        return _run(plan, _Runner(plan, out))


def _run(plan: Plan, runner: _Runner) -> Result:
    (needle,) = plan.needle_tasks
    choosing = {c.alpha: runner.run(c, needle, CHOOSING) for c in (BASELINE, *map(Condition, plan.alphas))}
    curve = {alpha: mean_score(of).interval() for alpha, of in sorted(choosing.items())}
    best = Condition(max(plan.alphas, key=lambda alpha: (curve[alpha].mean, alpha)))  # of equals, the least steering
    runs: dict[str, dict[str, TaskRun]] = {}
    for condition in (BASELINE, best, PLAIN):
        runs[condition.title] = {needle: runner.run(condition, needle, REPORTED)}
    for condition in (BASELINE, best):
        runs[condition.title] |= {t: runner.run(condition, t) for t in plan.tasks if t != needle}
    differences = {task: dict(_differences(task, runs)) for task in (needle, *(t for t in plan.tasks if t != needle))}
    steered, plain = (differences[needle][c.title] for c in (best, PLAIN))
    return Result(curve, best.alpha, runs, differences, steered.mean / plain.mean if plain.low > 0 else None)


def _differences(task: str, runs: dict[str, dict[str, TaskRun]]) -> Iterator[tuple[str, Interval]]:
    """Of each condition to the baseline, paired by document."""
    for title, of in runs.items():
        if title != BASELINE.title and task in of:
            yield title, pair(runs[BASELINE.title][task], of[task]).difference().interval()


def tables(result: Result, plan: Plan) -> list[Table]:
    """Table 1, the paired differences, and how α was chosen."""
    name = Path(plan.model).name
    main = table_1({name: result.runs})
    rows = [
        (task, f"{title} less baseline", interval, interval.n)
        for task, of in result.differences.items()
        for title, interval in of.items()
    ]
    restored = "not certain to be above 0 here" if result.restored is None else f"{result.restored:.0%} brought back"
    note = f"What the template costs in recall (without it less baseline): {restored}."
    differences = Table("Paired differences", ("task", "difference", "[95% interval]", "n"), rows, note)
    curve_rows = [(f"{alpha:g}", interval, interval.n) for alpha, interval in result.curve.items()]
    note = f"α = {result.alpha:g} is chosen on these cells; what is reported above is of the other half."
    return [main, differences, Table("Recall by α on the choosing half", ("α", "recall", "n"), curve_rows, note)]


def save(result: Result, plan: Plan, out: Path) -> str:
    """Write `steer.md`, `steer.json` and `recall.png`; return the text of the first."""
    from ctxaware.plots import recall_by_alpha

    text = "\n\n".join(f"{each.title}\n\n{each.markdown()}\n\n{each.note}" for each in tables(result, plan))
    write_text(out / "steer.md", text + "\n")
    scores = {
        title: {task: dataclasses.asdict(mean_score(of).interval()) for task, of in by_task.items()}
        for title, by_task in result.runs.items()
    }
    content = {
        "plan": redacted(dataclasses.asdict(plan)),
        "alpha": result.alpha,
        "curve": {f"{alpha:g}": dataclasses.asdict(interval) for alpha, interval in result.curve.items()},
        "scores": scores,
        "differences": {
            task: {title: dataclasses.asdict(interval) for title, interval in of.items()}
            for task, of in result.differences.items()
        },
        "restored": result.restored,
    }
    write_json(out / "steer.json", content)
    (needle,) = plan.needle_tasks
    reported = {title: mean_score(of[needle]).interval() for title, of in result.runs.items()}
    title = f"{Path(plan.model).name} · {needle} · {plan.heads} heads"
    recall_by_alpha(result.curve, result.alpha, reported, title, out / "recall.png")
    return text


def parse_alphas(text: str) -> tuple[float, ...]:
    """The numbers of `0.01,0.1,0.3`, each once.

    Raises:
        InputError: one is no number.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise InputError(f"alphas must be numbers with commas between, as 0.1,0.3, got {text!r}") from error
