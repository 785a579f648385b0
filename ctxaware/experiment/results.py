"""The tables of an experiment: 4 and 9 with paired differences over seeds, and 3 at its own thresholds."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ctxaware.experiment.steps import Comparison
from ctxaware.mt_bench.summary import Results
from ctxaware.report.samples import TaskRun, read_run
from ctxaware.report.seeds import difference_table, score_table
from ctxaware.report.tables import Table, table_3
from ctxaware.scores.table import read_scores
from ctxaware.scores.threshold import above_threshold


def tables(comparison: Comparison, thresholds: Sequence[float]) -> Iterator[Table]:
    """What a reader looks for first: scores, paired differences to vanilla, share of marked instructions.

    Args:
        comparison: all steps of which are done.
        thresholds: β, 0–1.
    """
    runs = _runs(comparison)
    yield score_table(runs, _ratings(comparison))
    yield difference_table(runs)
    yield _shares(comparison, thresholds)


def _runs(comparison: Comparison) -> dict[str, dict[str, TaskRun]]:
    """By the name that the report gives them too."""
    return {
        name: read_run(step.folder)
        for row in comparison.rows
        for condition, step in row.evaluations.items()
        for name in [row.name if condition == "never" else f"{row.name}, [IND] {condition}"]
    }


def _ratings(comparison: Comparison) -> dict[str, float | None]:
    """Of MT-Bench, where a judge judged; a + Indicator model was asked with `[IND]`."""
    if comparison.judge is None:
        return {}
    words = comparison.judge.command
    results = Results(Path(words[words.index("--out") + 1]), words[words.index("--judge-model") + 1])
    ratings = {}
    for row in comparison.rows:
        if row.answers:
            suffix = ", [IND] always" if "--indicator" in row.answers.command else ""
            ratings[row.name + suffix] = results.cell(row.answers.name).mean
    return ratings


def _shares(comparison: Comparison, thresholds: Sequence[float]) -> Table:
    """Table 3; a row for each seed whose vanilla run scored, or one where a seed model is named."""
    seeds = {step.name: seed for seed, step in comparison.scores.items()}
    shares = {}
    for seed in sorted(seeds.values()):
        step = comparison.scores[seed]
        ((_, scores),) = read_scores(step.folder / "scores.parquet").items()
        above = {f"{t:.12g}": float(above_threshold(scores.values, t).mean()) for t in thresholds}
        name = comparison.name if len(seeds) == 1 else f"{comparison.name}, seed {seed}"
        shares[name] = {"share_above": above, "instructions": len(scores.values)}
    return table_3(shares)
