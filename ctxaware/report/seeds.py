"""Runs of several seeds together: scores and paired differences averaged over seeds.

Runs belong together whose names differ by `, seed N` alone. A difference has two intervals, which answer two questions:
over questions, would others of this kind agree, with these very models; and over seeds, would other trainings agree.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ctxaware.errors import InputError
from ctxaware.intervals import DIFFERENCE, UNIT, BoundedMean, Difference, Interval, mean_of_tasks, t_interval
from ctxaware.report.compare import PROMPTS, Pairs, pair
from ctxaware.report.samples import TaskRun
from ctxaware.report.tables import Cell, Run, Table, mixed_metrics, of_task, tasks_of, title_of, without_empty

_SEED = re.compile(r", seed (\d+)")
BySeed = Mapping[str | None, Run]  # of one model and condition; None where the name has no seed


def by_seed(runs: Mapping[str, Run]) -> dict[str, dict[str | None, Run]]:
    """Runs by their name without its seed, then by seed, in the order in which they come."""
    groups: dict[str, dict[str | None, Run]] = {}
    for name, run in runs.items():
        match = _SEED.search(name)
        groups.setdefault(_SEED.sub("", name), {})[match[1] if match else None] = run
    return groups


def mean_over_seeds(runs: Sequence[TaskRun], metric: str | None = None) -> BoundedMean:
    """A task's mean score, each question's score being its mean over the runs.

    Raises:
        InputError: the runs were not asked the same questions.
    """
    pairs = [pair(runs[0], run, metric) for run in runs]
    _check_same_questions(pairs, len(runs[0].scores(metric)))
    return BoundedMean(np.mean([each.after for each in pairs], axis=0), pairs[0].clusters, UNIT)


def difference_over_seeds(pairs: Sequence[Pairs]) -> BoundedMean:
    """A task's paired difference, each question's being its mean over the pairs of runs.

    Raises:
        InputError: the pairs are not of the same questions.
    """
    _check_same_questions(pairs, len(pairs[0].rows))
    return BoundedMean(np.mean([each.differences for each in pairs], axis=0), pairs[0].clusters, DIFFERENCE)


def _check_same_questions(pairs: Sequence[Pairs], n: int) -> None:
    asked = {tuple(row["doc_hash"] for row, _ in each.rows) for each in pairs}
    if len(asked) > 1 or len(pairs[0].rows) != n:
        raise InputError(f"{pairs[0].name}: the runs were not asked the same questions; run all of them alike")


def table_9_over_seeds(runs: Mapping[str, Run], ratings: Mapping[str, float | None] | None = None) -> Table:
    """Table 9 over seeds, as `score_table` with a row for each threshold β."""
    table = score_table(runs, ratings)
    return Table("Ablation of the threshold", ("threshold β", *table.columns[1:]), table.rows, table.note)


def score_table(runs: Mapping[str, Run], ratings: Mapping[str, float | None] | None = None) -> Table:
    """Table 4 over seeds: a row for each model and condition, scores by task, their mean, and MT-Bench's rating.

    Args:
        runs: by name; those whose names differ by `, seed N` alone are one row.
        ratings: MT-Bench's average by the same names.

    Raises:
        InputError: seeds of one model were not asked the same questions.
    """
    tasks, rows = tasks_of(runs), []
    for name, seeds in by_seed(runs).items():
        means: list[BoundedMean | None] = []
        for task in tasks:
            of_seeds = [run for each in seeds.values() if (run := of_task(each, task))]
            means.append(mean_over_seeds(of_seeds) if len(of_seeds) == len(seeds) else None)
        whole = [mean for mean in means if mean is not None]
        average = mean_of_tasks(whole).interval() if len(whole) == len(tasks) > 1 else None
        intervals = [None if mean is None else mean.interval() for mean in means]
        rated = [r for other, r in (ratings or {}).items() if _SEED.sub("", other) == name and r is not None]
        rating = float(np.mean(rated)) if len(rated) == len(seeds) else None
        rows.append((name, *intervals, average, rating, len(seeds)))
    columns = ("model", *map(title_of, tasks), "average", "MT-Bench", "seeds")
    note = "Scores with 95% intervals by cluster."
    if any(row[-1] != 1 for row in rows):
        note = f"{note[:-1]}, each question's score being its mean over seeds."
    note = " ".join([note, *mixed_metrics(runs)])
    return without_empty(Table("Vanilla tuning and tuning with the indicator", columns, rows, note))


def difference_table(runs: Mapping[str, Run]) -> Table:
    """Each model and condition against the first, paired by question and seed; by task and for their mean.

    Args:
        runs: as in `score_table`, the one to compare with first.

    Raises:
        InputError: runs have no question in common, or seeds were not asked the same ones.
    """
    tasks, (first, *others) = tasks_of(runs), by_seed(runs).items()
    rows: list[tuple[Cell, ...]] = []
    notes: dict[str, None] = {}
    for name, seeds in others:
        by_task = [_pairs(first[1], seeds, task, notes) for task in tasks]
        parts = [difference_over_seeds(list(pairs.values())) if pairs else None for pairs in by_task]
        whole = [part for part in parts if part is not None]
        is_whole = len(whole) == len(tasks)
        average = mean_of_tasks(whole).interval() if is_whole and len(tasks) > 1 else None
        cells = [None if part is None else part.interval() for part in parts]
        rows.append((name, *cells, average, _over_seeds(by_task) if is_whole else None))
    columns = ("model", *map(title_of, tasks), "average", "average, over seeds")
    note = ["Differences paired by question, with 95% intervals by cluster."]
    if any(row[-1] is not None for row in rows):
        note.append("Over seeds: the mean difference of each seed, with Student's t interval.")
    return without_empty(Table(f"Against {first[0]}", columns, rows, " ".join([*note, *notes])))


def _pairs(first: BySeed, other: BySeed, task: str, notes: dict[str, None]) -> dict[str | None, Pairs]:
    """A task's pairs by seed; a run without one (the model before tuning) is paired with each. Empty if one lacks.

    What is compared is the chat template and `[IND]`; where anything else differs there is no difference to show.
    """
    named: list[str | None] = [seed for seed in {**first, **other} if seed is not None]
    pairs: dict[str | None, Pairs] = {}
    for seed in named or [None]:
        runs = [each.get(seed, each.get(None)) for each in (first, other)]
        tasks = [of_task(run, task) if run else None for run in runs]
        if tasks[0] is None or tasks[1] is None:
            return {}
        pairs[seed] = pair(tasks[0], tasks[1])
        if differing := [m.text for m in pairs[seed].mismatches if m.kind != PROMPTS]:
            notes[f"Not compared, since more than the model differs: {'; '.join(differing)}."] = None
            return {}
    return pairs


def _over_seeds(by_task: Sequence[Mapping[str | None, Pairs]]) -> Interval | None:
    """Of the mean difference over tasks, one value a seed; None for one seed, and where equal seeds show no spread."""
    seeds = list(by_task[0])
    if len(seeds) < 2:
        return None
    means = [float(np.mean([pairs[seed].differences.mean() for pairs in by_task])) for seed in seeds]
    if len(set(means)) == 1:
        return None  # an interval without width would claim that no other seed differs
    interval = t_interval(means)
    return Difference(interval.mean, interval.low, interval.high, interval.n)
