"""Runs of several seeds together: scores and paired differences averaged over seeds.

Runs belong together whose names differ by `, seed N` alone. A difference has two intervals, which answer two questions:
over questions, would others of this kind agree, with these very models; and over seeds, would other trainings agree.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ctxaware.errors import InputError
from ctxaware.intervals import DIFFERENCE, UNIT, BoundedMean, Difference, Interval, mean_of_tasks, t_interval
from ctxaware.report.compare import LIMIT, PROMPTS, Pairs, pair
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


def mean_over_seeds(runs: Mapping[str | None, TaskRun], metric: str | None = None) -> BoundedMean:
    """A task's mean score, each question's score being its mean over the runs.

    Args:
        runs: by seed.
        metric: as `TaskRun.scores` takes it.

    Raises:
        InputError: the runs were not asked the same questions, or not in the same way.
    """
    pairs = _pairs_of_seeds(runs, metric)
    return BoundedMean(np.mean([each.after for each in pairs], axis=0), pairs[0].clusters, UNIT)


def _pairs_of_seeds(runs: Mapping[str | None, TaskRun], metric: str | None = None) -> list[Pairs]:
    """The first seed with each, itself too. A limit may stand in all of them: they have the same questions.

    Raises:
        InputError: more than the model differs; says between which seeds, and what.
    """
    (first, run), *_ = runs.items()
    pairs = []
    for seed, other in runs.items():
        pairs.append(pair(run, other, metric))
        if differing := [mismatch.text for mismatch in pairs[-1].mismatches if mismatch.kind != LIMIT]:
            raise InputError(
                f"seed {seed or 'without a number'} was not asked as seed {first or 'without a number'} was "
                f"({'; '.join(differing)})",
                "run all of them alike",
            )
    return pairs


def difference_over_seeds(pairs: Sequence[Pairs]) -> BoundedMean:
    """A task's paired difference, each question's being its mean over the pairs of runs.

    Raises:
        InputError: the pairs are not of the same questions.
    """
    _check_same_questions(pairs)
    return BoundedMean(np.mean([each.differences for each in pairs], axis=0), pairs[0].clusters, DIFFERENCE)


def _check_same_questions(pairs: Sequence[Pairs]) -> None:
    asked = {tuple(row["doc_hash"] for row, _ in each.rows) for each in pairs}
    if len(asked) > 1:
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

    Returns:
        Seeds that were not asked alike have no score; the note says which and why.
    """
    tasks, rows = tasks_of(runs), []
    notes: dict[str, None] = {}
    for name, seeds in by_seed(runs).items():
        means = [_mean(name, seeds, task, notes) for task in tasks]
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
    note = " ".join([note, *notes, *mixed_metrics(runs)])
    return without_empty(Table("Vanilla tuning and tuning with the indicator", columns, rows, note))


def _mean(name: str, seeds: BySeed, task: str, notes: dict[str, None]) -> BoundedMean | None:
    """A task's mean over seeds; None where one lacks it, and, with a note, where they were not asked alike."""
    runs = {seed: of for seed, run in seeds.items() if (of := of_task(run, task))}
    if len(runs) < len(seeds):
        return None
    try:
        return mean_over_seeds(runs)
    except InputError as error:
        notes[f"{name}, {title_of(task)}: not averaged over seeds, since {error}."] = None
        return None


def difference_table(runs: Mapping[str, Run]) -> Table:
    """Each model and condition against the first, paired by question and seed; by task and for their mean.

    Args:
        runs: as in `score_table`, the one to compare with first.

    Returns:
        Where more than the model differs, between two runs or between seeds, there is no difference; the note says why.
    """
    tasks, (first, *others) = tasks_of(runs), by_seed(runs).items()
    rows: list[tuple[Cell, ...]] = []
    notes: dict[str, None] = {}
    for name, seeds in others:
        by_task = [_pairs(name, first[1], seeds, task, notes) for task in tasks]
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


def _pairs(name: str, first: BySeed, other: BySeed, task: str, notes: dict[str, None]) -> dict[str | None, Pairs]:
    """A task's pairs by seed; a run without one (the model before tuning) is paired with each. Empty if one lacks.

    What is compared is the chat template and `[IND]`; where anything else differs there is no difference to show.
    """
    named: list[str | None] = [seed for seed in {**first, **other} if seed is not None]
    pairs: dict[str | None, Pairs] = {}
    try:
        for seed in named or [None]:
            runs = [each.get(seed, each.get(None)) for each in (first, other)]
            tasks = [of_task(run, task) if run else None for run in runs]
            if tasks[0] is None or tasks[1] is None:
                return {}
            pairs[seed] = pair(tasks[0], tasks[1])
            if differing := [m.text for m in pairs[seed].mismatches if m.kind != PROMPTS]:
                raise InputError(f"more than the model differs: {'; '.join(differing)}")
        for each in (first, other):
            _pairs_of_seeds({seed: run for seed in each if (run := of_task(each[seed], task))})
    except InputError as error:
        notes[f"{name}, {title_of(task)}: not compared, since {error}."] = None
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
