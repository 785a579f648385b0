"""Two runs question by question: what was paired, what does not fit, and the paired difference.

The pairing is by the hash of the document, so the order of the files, other tasks beside and re-runs do not matter.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctxaware.errors import InputError
from ctxaware.intervals import DIFFERENCE, BoundedMean
from ctxaware.report.samples import TaskRun, cluster

MISSING, PROMPTS, VERSIONS, LIMIT, GENERATION = "missing", "prompts", "versions", "limit", "generation"
MISMATCHES = {  # what may differ between two runs, and what it means where it does
    MISSING: "documents or tasks that only one run has",
    PROMPTS: "prompts",
    VERSIONS: "versions of the task, or gold answers",
    LIMIT: "runs on a part of the task's documents (limit)",
    GENERATION: "generation settings",
}


@dataclass(frozen=True)
class Mismatch:
    """Why two runs do not compare as they are: a key of `MISMATCHES`, and where."""

    kind: str
    text: str


@dataclass(frozen=True)
class Pairs:
    """One task in two runs.

    Attributes:
        name: the task; `a → b` where the runs name it differently.
        rows: `[n]` pairs of samples (before, after), by document number.
        before, after: `[n]` scores, 0–1.
        clusters: `[n]` names of what each pair depends on.
        cluster_kind: `cell`, `passage` or `question`.
        mismatches: what differs between the runs.
    """

    name: str
    rows: list[tuple[dict, dict]] = field(repr=False)
    before: np.ndarray = field(repr=False)
    after: np.ndarray = field(repr=False)
    clusters: list[str] = field(repr=False)
    cluster_kind: str
    mismatches: list[Mismatch]

    @property
    def differences(self) -> np.ndarray:
        """`[n]`: after less before, −1 to 1."""
        return self.after - self.before

    @property
    def losses(self) -> int:
        """Pairs whose score fell."""
        return int((self.differences < 0).sum())

    @property
    def gains(self) -> int:
        """Pairs whose score rose."""
        return int((self.differences > 0).sum())

    @property
    def is_binary(self) -> bool:
        """Whether all scores are 0 or 1."""
        return bool(np.isin([self.before, self.after], (0, 1)).all())

    def difference(self) -> BoundedMean:
        """The paired difference, after less before, with its clusters."""
        return BoundedMean(self.differences, self.clusters, DIFFERENCE)

    def mcnemar(self) -> float | None:
        """Two-sided p-value of McNemar's exact test; None where scores are not 0 or 1."""
        from scipy.stats import binomtest

        n_flips = self.losses + self.gains
        if not self.is_binary:
            return None
        return float(binomtest(self.losses, n_flips).pvalue) if n_flips else 1.0


def pair(before: TaskRun, after: TaskRun, metric: str | None = None) -> Pairs:
    """Pair two runs of a task by document.

    Raises:
        InputError: no document is in both, the runs have not the same metric, or it can't be compared.
    """
    name = before.task if before.task == after.task else f"{before.task} → {after.task}"
    scores = before.scores(metric), after.scores(metric)
    metrics = before.metric_name(metric), after.metric_name(metric)
    if metrics[0] != metrics[1]:
        raise InputError(
            f"{name}: the first run has {metrics[0]}, the second {metrics[1]}; they do not compare",
            "choose a {metric} (with its filter) that both have, or run the task again",
        )
    keyed = [dict(_keyed(run.of_metric(metric), run)) for run in (before, after)]
    common = [key for key in keyed[0] if key in keyed[1]]
    if not common:
        raise InputError(
            f"{name}: the two runs have no document in common ({before.file.path} and {after.file.path}); "
            "run both with the same task settings and, for needles, the same tokenizer"
        )
    rows = [(keyed[0][key], keyed[1][key]) for key in common]
    labels = [cluster(row) for row, _ in rows]
    return Pairs(
        name,
        rows,
        np.array([scores[0][row["doc_id"]] for row, _ in rows]),
        np.array([scores[1][row["doc_id"]] for _, row in rows]),
        [label for _, label in labels],
        Counter(kind for kind, _ in labels).most_common(1)[0][0],
        list(_mismatches(name, before, after, keyed, rows)),
    )


def _keyed(rows: list[dict], run: TaskRun) -> Iterator[tuple[tuple[str, int], dict]]:
    """Rows by the document's hash; a document that a data set holds twice is told apart by its order."""
    n_seen: Counter = Counter()
    for row in rows:
        if not isinstance(digest := row.get("doc_hash"), str):
            raise InputError(f"{run.file.path}: document {row['doc_id']} has no doc_hash; run the task again")
        yield (digest, n_seen[digest]), row
        n_seen[digest] += 1


def _mismatches(
    name: str, before: TaskRun, after: TaskRun, keyed: Sequence[dict], rows: list[tuple[dict, dict]]
) -> Iterator[Mismatch]:
    n_only = [len(keyed[0].keys() - keyed[1].keys()), len(keyed[1].keys() - keyed[0].keys())]
    if any(n_only):
        yield Mismatch(
            MISSING, f"{name}: {n_only[0]} documents are only in the first run, {n_only[1]} only in the second"
        )
    if n_other := sum(x.get("prompt_hash") != y.get("prompt_hash") for x, y in rows):
        yield Mismatch(PROMPTS, f"{name}: {n_other} of {len(rows)} prompts differ{_why(before, after)}")
    for key, what in (("versions", "task version"), ("n-shot", "number of examples")):
        if (x := before.of_task(key)) != (y := after.of_task(key)):
            yield Mismatch(VERSIONS, f"{name}: {what} {x} against {y}")
    if n_other := sum(x.get("target_hash") != y.get("target_hash") for x, y in rows):
        yield Mismatch(VERSIONS, f"{name}: {n_other} of {len(rows)} gold answers differ")
    for run, which in ((before, "first"), (after, "second")):
        counts = run.of_task("n-samples")
        if counts.get("original") != counts.get("effective"):
            n, total = counts.get("effective"), counts.get("original")
            yield Mismatch(LIMIT, f"{name}: the {which} run has {n} of {total} documents")
    settings = [_generation(run) for run in (before, after)]
    if settings[0] != settings[1]:
        keys = sorted(k for k in settings[0].keys() | settings[1].keys() if settings[0].get(k) != settings[1].get(k))
        values = ", ".join(f"{k} {settings[0].get(k)} against {settings[1].get(k)}" for k in keys)
        yield Mismatch(GENERATION, f"{name}: {values}")


def _generation(run: TaskRun) -> dict:
    config = run.of_task("configs")
    settings = config.get("generation_kwargs") if isinstance(config, dict) else None
    return settings if isinstance(settings, dict) else {}


def _why(before: TaskRun, after: TaskRun) -> str:
    """What the results files say about prompts that differ."""
    reasons = []
    for key, what in (("chat_template", "chat template"), ("system_instruction", "system instruction")):
        if (x := before.results.get(key)) != (y := after.results.get(key)):
            kind = "another" if x and y else f"{'with' if x else 'without'} against {'with' if y else 'without'}"
            reasons.append(f"{kind} {what}")
    return f" ({', '.join(reasons)})" if reasons else ""
