"""Whether a sample file is whole: its documents, their hashes and their scores, against the results file beside it."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError

AGAIN = "run the task again"


@dataclass(frozen=True)
class Files:
    """A task's sample file and the results file of its run."""

    samples: Path
    results: Path
    task: str


def check_whole(files: Files, rows: list[dict], results: dict) -> None:
    """Check what was read of a sample file.

    Args:
        files: named in the error.
        rows: the samples.
        results: the results file; empty where it is absent.

    Raises:
        InputError: a document is there twice or is missing, or documents, prompts, targets or scores are not those of
            the run.
    """
    _check_documents(files, rows, results)
    _check_hashes(files, rows, results)
    _check_means(files, rows, results)


def filter_of(row: dict) -> str:
    """The harness scores an answer once for each of the task's filters."""
    return str(row.get("filter", "none"))


def of_task(results: dict, key: str, task: str) -> Any:
    table = results.get(key)
    return table.get(task) if isinstance(table, dict) else None


def _check_documents(files: Files, rows: list[dict], results: dict) -> None:
    """Each document once a filter, and as many as the results file counts."""
    by_filter: dict[str, set[int]] = {}
    for row in rows:
        number = row.get("doc_id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{files.samples}: a line has doc_id {number!r}, expected the number of a document")
        seen = by_filter.setdefault(filter_of(row), set())
        if number in seen:
            raise InputError(f"{files.samples} has document {number} twice", AGAIN)
        seen.add(number)
    if not results:
        return
    counts = of_task(results, "n-samples", files.task)
    if not isinstance(counts, dict) or not isinstance(counts.get("effective"), int):
        raise InputError(f"{files.results} does not say how many documents {files.task} has", AGAIN)
    expected = counts["effective"]
    for name, seen in by_filter.items():
        if len(seen) != expected:
            is_counted_from_0 = max(seen) < expected  # else a choice of documents: --samples
            absent = (i for i in range(expected) if i not in seen)  # a damaged file may count more than memory holds
            missing = list(itertools.islice(absent, 5)) if is_counted_from_0 else []
            which = f", without {', '.join(map(str, missing))} …" if missing else ""
            filtered = f" of filter {name}" if len(by_filter) > 1 else ""
            raise InputError(
                f"{files.samples} has {len(seen)} documents{filtered}{which}; {files.results.name} counts {expected}",
                AGAIN,
            )


def _check_hashes(files: Files, rows: list[dict], results: dict) -> None:
    """The file's documents, prompts and targets are those that the results file recorded."""
    recorded = of_task(results, "task_hashes", files.task)
    if recorded is None:
        return
    text = "".join(str(row.get(key)) for row in rows for key in ("doc_hash", "prompt_hash", "target_hash"))
    if hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() != recorded:
        raise InputError(
            f"{files.samples} is not of the run that {files.results.name} describes: documents, prompts or targets "
            "differ; keep the files of a run together"
        )


def _check_means(files: Files, rows: list[dict], results: dict) -> None:
    """The scores have the means that the results file recorded, of the metrics whose mean is what it records."""
    config, recorded = (of_task(results, key, files.task) for key in ("configs", "results"))
    metrics = config.get("metric_list") if isinstance(config, dict) else None
    if not isinstance(recorded, dict) or not isinstance(metrics, list):
        return
    by_filter: dict[str, list[dict]] = {}
    for row in rows:
        by_filter.setdefault(filter_of(row), []).append(row)
    for metric in metrics:
        if not isinstance(metric, dict) or metric.get("aggregation") != "mean":
            continue
        key = str(metric.get("metric"))
        for name, of_filter in by_filter.items():
            mean, values = recorded.get(f"{key},{name}"), [row.get(key) for row in of_filter]
            numbers = [value for value in values if isinstance(value, bool | int | float)]
            if len(numbers) < len(values) or not isinstance(mean, int | float):
                continue
            if abs(sum(numbers) / len(numbers) - mean) > 1e-6:
                raise InputError(
                    f"{files.samples} has a mean {key} of {sum(numbers) / len(numbers):.6f}, "
                    f"{files.results.name} one of {mean:.6f}; a score was changed",
                    AGAIN,
                )
