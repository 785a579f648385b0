"""The gate: is a run worse than another by more than a limit? For each task and their mean.

*fail* means that a drop over the limit is shown, *pass* that one is excluded, each with the confidence asked for.
Otherwise the answer is *inconclusive*. Several tasks are several chances to fail by luck, so their p-values are
adjusted by Holm's method. To pass, every task has to, which needs no adjustment: luck would have to strike everywhere
(an intersection-union test).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxaware.errors import InputError
from ctxaware.intervals import MeanOfTasks, mean_of_tasks
from ctxaware.noninferiority import FAIL, INCONCLUSIVE, PASS, p_values, verdict_of
from ctxaware.report.compare import MISMATCHES, MISSING, Mismatch, Pairs, pair
from ctxaware.report.samples import TaskRun, read_run

EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
MOST_CONFIDENCE = 0.9999
POWER = 0.8  # how often a "detectable" drop is shown, and a "deciding" number of samples decides
MEAN = "mean of tasks"


class RunsDiffer(InputError):
    """Two runs do not compare as they are; `kinds` are the keys of `MISMATCHES` that would have to be allowed."""

    def __init__(self, mismatches: Iterable[Mismatch]) -> None:
        mismatches = list(mismatches)
        self.kinds = sorted({mismatch.kind for mismatch in mismatches})
        super().__init__("the runs do not compare: " + "; ".join(mismatch.text for mismatch in mismatches))


@dataclass(frozen=True)
class Judgment:
    """What the gate says of one task, or of the mean of all.

    Attributes:
        name: of the task, or `MEAN`.
        before, after: mean scores, 0–1.
        difference: after less before.
        lower, upper: one-sided confidence bounds of the difference: each holds with the confidence asked for.
        n: pairs; of the mean, of all tasks.
        n_clusters: passages, cells or questions that are independent of each other.
        cluster_kind: which of them.
        losses, gains: pairs whose score fell, and rose.
        mcnemar_p: two-sided, exact; None where scores are not 0 or 1, and for the mean.
        p_fail: one-sided, for "no drop over the limit", adjusted for the number of tasks.
        p_pass: one-sided, for "a drop over the limit".
        detectable_drop: the smallest true drop that would fail four times in five; None where none would.
        n_to_decide: samples of this kind that would decide four times in five if the difference stays as it is; None
            where there is a verdict, and where no number would.
        verdict: `PASS`, `FAIL` or `INCONCLUSIVE`.
    """

    name: str
    before: float
    after: float
    difference: float
    lower: float
    upper: float
    n: int
    n_clusters: int
    cluster_kind: str
    losses: int
    gains: int
    mcnemar_p: float | None
    p_fail: float
    p_pass: float
    detectable_drop: float | None
    n_to_decide: int | None
    verdict: str


@dataclass(frozen=True)
class Gate:
    """The gate's answer.

    Attributes:
        judgments: of the tasks, and last of their mean where there are several.
        max_drop: the limit, 0–1.
        confidence: of each verdict, 0.5–1.
        metric: what was compared; None for each task's own.
        mismatches: what differs between the runs and was allowed.
        runs: by task, the two runs.
    """

    judgments: list[Judgment]
    max_drop: float
    confidence: float
    metric: str | None
    mismatches: list[Mismatch]
    runs: list[tuple[TaskRun, TaskRun]]

    @property
    def verdict(self) -> str:
        """`FAIL` where anything fails, `PASS` where everything passes."""
        verdicts = {judgment.verdict for judgment in self.judgments}
        return FAIL if FAIL in verdicts else PASS if verdicts == {PASS} else INCONCLUSIVE

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return EXIT_CODES[self.verdict]


def gate(
    before: Path,
    after: Path,
    tasks: Sequence[tuple[str, str]] | None = None,
    metric: str | None = None,
    max_drop: float = 0.02,
    confidence: float = 0.95,
    allow: Sequence[str] = (),
) -> Gate:
    """Compare two runs of the harness.

    Args:
        before, after: folders that `lm_eval --log_samples --output_path FOLDER` wrote.
        tasks: pairs of task names (before, after); None for all tasks, by name.
        metric: as `TaskRun.scores` takes it.
        max_drop: the drop that is tolerated, 0–1.
        confidence: of each verdict, over 0.5 and under 1.
        allow: keys of `MISMATCHES` that do not matter.

    Raises:
        RunsDiffer: the runs do not compare.
        InputError: a run is not whole, or an argument is out of range.
    """
    if not 0 <= max_drop < 1:
        raise InputError(f"the largest drop must be at least 0 and under 1, got {max_drop}")
    if not 0.5 < confidence <= MOST_CONFIDENCE:
        raise InputError(f"the confidence must be over 0.5 and at most {MOST_CONFIDENCE}, got {confidence}")
    if unknown := sorted(set(allow) - MISMATCHES.keys()):
        raise InputError(f"what may differ is one of {', '.join(MISMATCHES)}, got {', '.join(unknown)}")
    runs, mismatches = _runs(before, after, tasks)
    pairs = [pair(*both, metric) for both in runs]
    mismatches += [mismatch for each in pairs for mismatch in each.mismatches]
    if refused := [mismatch for mismatch in mismatches if mismatch.kind not in allow]:
        raise RunsDiffer(refused)
    return Gate(judge(pairs, max_drop, confidence), max_drop, confidence, metric, mismatches, runs)


def _runs(
    before: Path, after: Path, tasks: Sequence[tuple[str, str]] | None
) -> tuple[list[tuple[TaskRun, TaskRun]], list[Mismatch]]:
    chosen = (None, None) if tasks is None else ({x for x, _ in tasks}, {y for _, y in tasks})
    first, second = read_run(before, chosen[0]), read_run(after, chosen[1])
    tasks = tasks or [(task, task) for task in dict.fromkeys([*first, *second])]
    mismatches = []
    for x, y in tasks:
        for name, run, path in ((x, first, before), (y, second, after)):
            if name not in run:
                mismatches.append(Mismatch(MISSING, f"{path} has no samples of {name}"))
    runs = [(first[x], second[y]) for x, y in tasks if x in first and y in second]
    if not runs:
        raise RunsDiffer(mismatches)
    return runs, mismatches


def judge(pairs: Sequence[Pairs], max_drop: float, confidence: float) -> list[Judgment]:
    """The verdict of each task, and of their mean where there are several."""
    alpha = 1 - confidence
    parts = [each.difference() for each in pairs]
    subjects = [(mean_of_tasks([part]), [each]) for part, each in zip(parts, pairs, strict=True)]
    if len(pairs) > 1:
        subjects.append((mean_of_tasks(parts), list(pairs)))
    p_fail, p_pass = p_values([each.differences for each in pairs], [each.clusters for each in pairs], max_drop)
    strictest = alpha / len(subjects)  # Holm's first step
    judgments = []
    for (difference, of), p, q in zip(subjects, p_fail, p_pass, strict=True):
        verdict = verdict_of(p, q, alpha)
        to_decide = n_to_decide(difference, max_drop, strictest, alpha) if verdict == INCONCLUSIVE else None
        kinds = dict.fromkeys(each.cluster_kind for each in of)
        judgments.append(
            Judgment(
                name=of[0].name if len(of) == 1 else MEAN,
                before=float(np.mean([each.before.mean() for each in of])),
                after=float(np.mean([each.after.mean() for each in of])),
                difference=difference.mean,
                lower=difference.lower(confidence),
                upper=difference.upper(confidence),
                n=sum(len(each.rows) for each in of),
                n_clusters=len({name for each in of for name in each.clusters}),
                cluster_kind=next(iter(kinds)) if len(kinds) == 1 else "cluster",
                losses=sum(each.losses for each in of),
                gains=sum(each.gains for each in of),
                mcnemar_p=of[0].mcnemar() if len(of) == 1 else None,
                p_fail=p,
                p_pass=q,
                detectable_drop=detectable_drop(difference, max_drop, strictest),
                n_to_decide=to_decide,
                verdict=verdict,
            )
        )
    return judgments


def detectable_drop(difference: MeanOfTasks, max_drop: float, alpha: float) -> float | None:
    """The smallest true drop in every task that would fail with `POWER`; None where none would."""
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    if any(part.df <= 0 for part in difference.parts):
        return None

    def excess(drop: float) -> float:
        tested, spread = [], []
        for part in difference.parts:
            variance, scale = part.variance(-drop), part.design_effect / part.n
            tested.append(stdtrit(part.df, 1 - alpha) * math.sqrt(scale * (variance + (drop - max_drop) ** 2)))
            spread.append(stdtrit(part.df, POWER) * math.sqrt(scale * variance))
        return drop - max_drop - difference.combined(tested) - difference.combined(spread)

    nearly_all = 1 - 1e-9
    return float(brentq(excess, max_drop + 1e-6, nearly_all, xtol=1e-6)) if excess(nearly_all) > 0 else None


def n_to_decide(difference: MeanOfTasks, max_drop: float, alpha_fail: float, alpha_pass: float) -> int | None:
    """Samples like these (as many tasks, clusters of the same size) that would decide with `POWER`.

    The difference is taken to stay as it is. None where it is at the limit, or where all samples are of one cluster.
    """
    from scipy.special import ndtri

    gap = difference.mean + max_drop
    if abs(gap) < 1e-9 or any(part.df <= 0 for part in difference.parts):
        return None
    alpha = alpha_pass if gap > 0 else alpha_fail
    tested = difference.combined([part.standard_error(max(-1.0, part.mean - gap)) for part in difference.parts])
    spread = difference.combined([part.standard_error(part.mean) for part in difference.parts])
    n = sum(part.n for part in difference.parts)
    needed = math.ceil(n * ((ndtri(1 - alpha) * tested + ndtri(POWER) * spread) / gap) ** 2)
    return max(needed, n + 1)
