"""The paper's tables from result files, as typed rows that Markdown, LaTeX, HTML and data frames are made of.

Each maker is a function of runs (`read_run`) by name, in the order to show: nothing has to be complete, and what a run
does not have is an empty cell.
"""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxaware.intervals import UNIT, BoundedMean, Interval, mean_of_tasks
from ctxaware.report.samples import TaskRun, cluster

if TYPE_CHECKING:
    import pandas

Run = Mapping[str, TaskRun]  # by task
INDICATOR_SUFFIX = "_ind"
TASK_TITLES = {"nih_ctx": "NIH", "squad_contain": "SQuAD", "quac_contain": "QuAC", "drop_contain": "DROP"}
# what Markdown would take for markup; an underscore inside a word and a "<" before a space are none
_MARKDOWN = re.compile(r"[\\|*`\[\]]|(?<!\w)_|_(?!\w)|<(?=\S)|&(?=[#\w])")
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "β": r"$\beta$", "−": "$-$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "\n": " "}
)


@dataclass(frozen=True)
class Spread:
    """A mean over prompt templates with their standard deviation (n − 1): the ± of table 7."""

    mean: float
    sd: float
    n_prompts: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f}"


Cell = str | int | float | Interval | Spread | None


@dataclass(frozen=True)
class Table:
    """Rows of typed cells under named columns; `note` says what a reader needs to know of the figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: each row needs {len(self.columns)} cells")

    def texts(self) -> list[list[str]]:
        """The cells as they read."""
        return [[cell_text(cell) for cell in row] for row in self.rows]

    def markdown(self) -> str:
        """As a Markdown table without its title and note; text from data is escaped."""
        lines = [list(self.columns), ["---"] * len(self.columns)]
        for row in self.rows:
            lines.append([escape_markdown(cell) if isinstance(cell, str) else cell_text(cell) for cell in row])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self) -> str:
        """As a LaTeX table (booktabs)."""
        lines = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in (self.columns, *self.texts())]
        lines = ["{}" * line.startswith("[") + line for line in lines]  # else it is an argument of the line end before
        return "\n".join(
            [
                r"\begin{table}",
                f"\\caption{{{self.title.translate(_LATEX)}}}",
                f"\\begin{{tabular}}{{{'l' * len(self.columns)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def frame(self) -> "pandas.DataFrame":
        """As a pandas data frame; an interval becomes three columns: the mean, ` low` and ` high`."""
        import pandas

        columns: dict[str, list[object]] = {}
        for name, cells in zip(self.columns, zip(*self.rows, strict=True), strict=True):
            columns[name] = [getattr(cell, "mean", cell) for cell in cells]
            for attribute in ("low", "high", "sd"):
                if any(hasattr(cell, attribute) for cell in cells):
                    columns[f"{name} {attribute}"] = [getattr(cell, attribute, None) for cell in cells]
        return pandas.DataFrame(columns)


def escape_markdown(text: str) -> str:
    """Text from data as itself: nothing in it is markup."""
    return _MARKDOWN.sub(r"\\\g<0>", _printable(text))


def _printable(text: str) -> str:
    """On one line, and without what would steer a terminal or can't be written as UTF-8."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def cell_text(cell: Cell) -> str:
    """A cell as it reads: three decimals for a figure, nothing for what is not there."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return f"{cell:.3f}" if isinstance(cell, float) else _printable(str(cell))


def mean_score(run: TaskRun, metric: str | None = None) -> BoundedMean:
    """A run's mean score, with its clusters."""
    scores = run.scores(metric)
    return BoundedMean(list(scores.values()), [cluster(row)[1] for row in _scored(run, scores, metric)], UNIT)


def _scored(run: TaskRun, scores: Mapping[int, float], metric: str | None) -> list[dict]:
    by_number = {row["doc_id"]: row for row in run.of_metric(metric)}
    return [by_number[number] for number in scores]


def spread_over_prompts(run: TaskRun, metric: str | None = None) -> Spread | None:
    """Mean and standard deviation over the means of each prompt template; None where there is only one."""
    scores = run.scores(metric)
    by_prompt: dict[object, list[float]] = defaultdict(list)
    for row in _scored(run, scores, metric):
        by_prompt[row["doc"].get("prompt_template")].append(scores[row["doc_id"]])
    means = [statistics.fmean(values) for values in by_prompt.values()]
    return Spread(statistics.fmean(means), statistics.stdev(means), len(means)) if len(means) > 1 else None


def plain_name(task: str) -> str:
    """The task without the suffix that says `[IND]` was added: both are one column."""
    return task.removesuffix(INDICATOR_SUFFIX)


def title_of(task: str) -> str:
    """The task as the paper's tables name it."""
    return TASK_TITLES.get(plain_name(task), plain_name(task))


def tasks_of(runs: Mapping[str, Run]) -> list[str]:
    """Plain names of all tasks, those of the paper first and in its order."""
    names = dict.fromkeys(plain_name(task) for run in runs.values() for task in run)
    return [*filter(names.__contains__, TASK_TITLES), *(name for name in names if name not in TASK_TITLES)]


def of_task(run: Run, task: str) -> TaskRun | None:
    """The run of a task, plain or with `[IND]`; a run that has both is two conditions, and the plain one is shown."""
    return run.get(task) or run.get(task + INDICATOR_SUFFIX)


def _cell(run: TaskRun | None, metric: str | None) -> Interval | None:
    return None if run is None else mean_score(run, metric).interval()


def _by_task(
    first: str, title: str, runs: Mapping[str, Run], ratings: Mapping[str, float | None] | None, metric: str | None
) -> Table:
    tasks, rows = tasks_of(runs), []
    for name, run in runs.items():
        means = [mean_score(of, metric) if (of := of_task(run, task)) else None for task in tasks]
        whole = [mean for mean in means if mean is not None]
        average = mean_of_tasks(whole).interval() if len(whole) == len(tasks) > 1 else None
        intervals = [None if mean is None else mean.interval() for mean in means]
        rows.append((name, *intervals, average, (ratings or {}).get(name)))
    columns = [first, *map(title_of, tasks), "average", "MT-Bench"]
    note = " ".join(["Scores with 95% intervals by cluster.", *mixed_metrics(runs, metric)])
    return without_empty(Table(title, tuple(columns), rows, note))


def mixed_metrics(runs: Mapping[str, Run], metric: str | None = None) -> Iterator[str]:
    """A sentence for each column that holds more than one metric or filter: its figures do not compare."""
    for task in tasks_of(runs):
        names: dict[str, list[str]] = defaultdict(list)
        for name, run in runs.items():
            if of := of_task(run, task):
                names[of.metric_name(metric)].append(name)
        if len(names) > 1:
            each = "; ".join(f"{metric_name} of {', '.join(of)}" for metric_name, of in names.items())
            yield f"{title_of(task)} is not one metric, so its figures do not compare: {each}."


def without_empty(table: Table) -> Table:
    """The table without its empty columns."""
    kept = [i for i in range(len(table.columns)) if i == 0 or any(row[i] is not None for row in table.rows)]
    rows = [tuple(row[i] for i in kept) for row in table.rows]
    return Table(table.title, tuple(table.columns[i] for i in kept), rows, table.note)


def table_1(runs: Mapping[str, Mapping[str, Run]], metric: str | None = None) -> Table:
    """Table 1, attention steering: a row for each task and model, a column for each condition.

    Args:
        runs: by model, then by condition (as "baseline", "+ attention steering", "without template").
        metric: as `TaskRun.scores` takes it.
    """
    conditions = list(dict.fromkeys(name for of_model in runs.values() for name in of_model))
    tasks = tasks_of({f"{m} {c}": run for m, of_model in runs.items() for c, run in of_model.items()})
    rows = []
    for task in tasks:
        for model, of_model in runs.items():
            of_conditions = [of_task(of_model.get(condition, {}), task) for condition in conditions]
            if any(of_conditions):
                rows.append((title_of(task), model, *(_cell(run, metric) for run in of_conditions)))
    return Table("Attention steering", ("task", "model", *conditions), rows, "Scores with 95% intervals by cluster.")


def table_3(statistics_of: Mapping[str, Mapping]) -> Table:
    """Table 3, share of context-dependent instructions above each threshold.

    Args:
        statistics_of: by data set, what `ctxaware select` wrote as `statistics.json`.
    """
    thresholds = sorted({threshold for each in statistics_of.values() for threshold in each["share_above"]}, key=float)
    rows = [
        (name, *(each["share_above"].get(threshold) for threshold in thresholds), each["instructions"])
        for name, each in statistics_of.items()
    ]
    columns = ("data", *(f"> {threshold}" for threshold in thresholds), "instructions")
    return Table("Share of context-dependent instructions", columns, rows)


def table_4(
    runs: Mapping[str, Run], ratings: Mapping[str, float | None] | None = None, metric: str | None = None
) -> Table:
    """Table 4, a row for each model and condition: scores by task, their mean, and MT-Bench's rating where given."""
    return _by_task("model", "Vanilla tuning and tuning with the indicator", runs, ratings, metric)


def table_9(
    runs: Mapping[str, Run], ratings: Mapping[str, float | None] | None = None, metric: str | None = None
) -> Table:
    """Table 9, as table 4 with a row for each threshold β."""
    return _by_task("threshold β", "Ablation of the threshold", runs, ratings, metric)


def table_7(runs: Mapping[str, Mapping[str, TaskRun | None]], metric: str | None = None) -> Table:
    """Table 7, the needle test with and without template and prefix.

    Args:
        runs: by model, then by column (as "without template, prefix").
        metric: as `TaskRun.scores` takes it.
    """
    columns = list(dict.fromkeys(name for of_model in runs.values() for name in of_model))
    rows = []
    for model, of_model in runs.items():
        cells = [of_model.get(column) for column in columns]
        spreads = [None if run is None else spread_over_prompts(run, metric) for run in cells]
        shown = [spread or _cell(run, metric) for spread, run in zip(spreads, cells, strict=True)]
        rows.append((model, *shown))
    note = "Mean ± standard deviation over prompt templates; with one template, the mean with its 95% interval."
    return Table("Needle in a haystack, with and without chat template", ("model", *columns), rows, note)
