"""The harness's sample files: finding them, reading them whole or not at all, and what their run was.

A sample file is whole when it has every document that the results file beside it counts, each once, when the hashes
of its documents, prompts and targets add up to the one that the results file recorded, and when its scores have the
means that stand there.
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError
from ctxaware.report.whole import AGAIN, Files, check_whole, filter_of, of_task
from ctxaware.runs.shapes import NUMBER, Maybe, check_shape

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d\-.]+)\.jsonl")
_RESULTS = {"config": Maybe(dict), "model_name": Maybe(str)}  # besides what is of each task
PASSAGE_FIELDS = ("context", "passage", "article", "story")  # where data sets keep the text that questions are about


@dataclass(frozen=True)
class SampleFile:
    """One task's samples from one run of the harness."""

    path: Path
    task: str
    date: str

    def rows(self) -> list[dict]:
        """The samples, in the file's order. Lines end in a line feed only: texts may hold other line ends.

        Raises:
            InputError: a line is no JSON object, a document is there twice, or some that the results file beside it
                counts are missing, says which; or the scores are not those that it averages.
        """
        rows = []
        for number, line in enumerate(_read(self.path).split("\n"), 1):
            if line:
                rows.append(_parse(line, f"{self.path}, line {number}"))
        if not rows:
            raise InputError(f"{self.path} is empty", AGAIN)
        results = self.results()
        check_whole(Files(self.path, self.results_path, self.task), rows, results)
        return rows

    @property
    def results_path(self) -> Path:
        """Where the harness writes the results of this run."""
        return self.path.with_name(f"results_{self.date}.json")

    def is_newer(self, other: "SampleFile") -> bool:
        """Whether its run began later: by the second that its results file holds, else by the name.

        The name has the local time of the machine: another time zone, or the end of summer time, turns the order round.
        """
        own, others = (file.results().get("date") for file in (self, other))
        if isinstance(own, (int, float)) and isinstance(others, (int, float)):
            return own > others
        return self.date > other.date

    def results(self) -> dict:
        """The run's results file beside the samples; empty where it is absent.

        Raises:
            InputError: it is no whole JSON object.
        """
        return _parse(_read(self.results_path), str(self.results_path)) if self.results_path.is_file() else {}


@dataclass(frozen=True)
class TaskRun:
    """One task of one run: its samples, whole, and the results file of that run."""

    file: SampleFile
    rows: list[dict] = field(repr=False)
    results: dict = field(repr=False)

    @property
    def task(self) -> str:
        """The task's name."""
        return self.file.task

    def of_task(self, key: str) -> Any:
        """What the results file says of this task under `key` (versions, n-shot, configs, …); None where nothing."""
        return of_task(self.results, key, self.task)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.results.get("model_name") or self.file.path.parent.name)

    @property
    def template(self) -> bool:
        """Whether prompts went through the chat template."""
        return bool(self.results.get("chat_template"))

    def scores(self, metric: str | None = None) -> dict[Any, float]:
        """Score by document number.

        Args:
            metric: as the harness's table names it, with its filter where a task has several
                (`exact_match,strict-match`); None for `score`, or the only metric there is.

        Raises:
            InputError: there is no such metric, it is not between 0 and 1, or lower is better.
        """
        name, _, rows = self._choose(metric)
        better = self.of_task("higher_is_better")
        if isinstance(better, dict) and better.get(name) is False:
            raise InputError(f"{self.task}: of {name} lower is better; choose a metric of which higher is better")
        values = {}
        for row in rows:
            value = row.get(name)
            if isinstance(value, bool | int | float) and 0 <= value <= 1:
                values[row["doc_id"]] = float(value)
            else:
                raise InputError(
                    f"{self.file.path}: document {row['doc_id']} has {name} {json.dumps(value)[:60]}, expected a "
                    "number from 0 to 1; run the task again without predict_only, or choose another metric"
                )
        return values

    def of_metric(self, metric: str | None = None) -> list[dict]:
        """The rows of the metric's filter, by document number."""
        return sorted(self._choose(metric)[2], key=lambda row: row["doc_id"])

    def metric_name(self, metric: str | None = None) -> str:
        """What `scores` reads: the metric and its filter, as the results file spells them (`acc,none`)."""
        return ",".join(self._choose(metric)[:2])

    def _choose(self, metric: str | None) -> tuple[str, str, list[dict]]:
        filters = list(dict.fromkeys(filter_of(row) for row in self.rows))
        listed = self.rows[0].get("metrics", ["score"])
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        name, _, chosen = (metric or ("score" if "score" in names or len(names) != 1 else names[0])).partition(",")
        known = names if len(filters) == 1 else [f"{n},{f}" for n in names for f in filters]
        if name not in names or (chosen or filters[0]) not in filters or (len(filters) > 1 and not chosen):
            raise InputError(f"{self.task} has no metric {metric or 'score'!r}; it has {', '.join(known)}")
        chosen = chosen or filters[0]
        return name, chosen, [row for row in self.rows if filter_of(row) == chosen]


def cluster(row: dict) -> tuple[str, str]:
    """What a sample depends on: its kind (`cell`, `passage` or `question`) and a name that is the same for all of it.

    Needles of one context length and depth are one cell, whatever the prompt; questions on one text are one passage.
    """
    doc: dict = row["doc"] if isinstance(row.get("doc"), dict) else {}
    if "context_length" in doc and "depth_percent" in doc:
        return "cell", f"{doc['context_length']} tokens, {doc['depth_percent']}%"
    for name in PASSAGE_FIELDS:
        if isinstance(text := doc.get(name), str) and text:
            return "passage", hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return "question", str(row.get("doc_hash", row["doc_id"]))


def needle_cells(rows: Sequence[dict], path: Path) -> tuple[list[int], list[float]]:
    """Context length and depth of each sample of a needle grid.

    Args:
        rows: of a sample file.
        path: the file, named in the error.

    Raises:
        InputError: one has none.
    """
    for row in rows:
        check_shape(row.get("doc"), {"context_length": int, "depth_percent": NUMBER}, f"{path}, doc {row['doc_id']}")
    return [row["doc"]["context_length"] for row in rows], [row["doc"]["depth_percent"] for row in rows]


def find_samples(path: Path, task_prefix: str = "") -> list[SampleFile]:
    """Sample files of tasks whose name starts with `task_prefix`: `path` itself, or all below a folder.

    Raises:
        InputError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"))
    matches = [(file, match) for file in files if (match := _NAME.fullmatch(file.name))]
    samples = [SampleFile(file, m["task"], m["date"]) for file, m in matches if m["task"].startswith(task_prefix)]
    if not samples:
        raise InputError(
            f"no sample file of {task_prefix or 'any task'} at {path}; expected samples_{task_prefix or 'TASK'}_DATE"
            ".jsonl, which lm_eval writes with its options log_samples and output_path"
        )
    return samples


def newest_samples(path: Path) -> dict[str, SampleFile]:
    """The newest sample file of each task below a folder, or the file itself.

    Raises:
        InputError: there is none, or the folder holds runs of several models.
    """
    newest: dict[str, SampleFile] = {}
    for file in find_samples(path):
        if file.task not in newest or file.is_newer(newest[file.task]):
            newest[file.task] = file
    if len(folders := {file.path.parent for file in newest.values()}) > 1:
        names = ", ".join(sorted(str(folder.relative_to(path)) for folder in folders))
        raise InputError(f"{path} holds runs in several folders ({names}); pass one of them")
    return newest


def read_task(file: SampleFile) -> TaskRun:
    """A task's samples with the results of their run.

    Raises:
        InputError: the samples are not whole, or their results file is missing.
    """
    rows = file.rows()
    if not (results := file.results()):
        raise InputError(
            f"{file.path} has no {file.results_path.name} beside it, so nothing says whether it is whole; "
            "keep the files of a run together"
        )
    check_shape(results, _RESULTS, str(file.results_path))
    check_shape(of_task(results, "configs", file.task), Maybe({"metadata": Maybe(dict)}), str(file.results_path))
    return TaskRun(file, rows, results)


def read_run(path: Path, tasks: Collection[str] | None = None) -> dict[str, TaskRun]:
    """The newest run of each task below a folder.

    Args:
        path: a folder that `lm_eval --log_samples --output_path FOLDER` wrote, or one sample file.
        tasks: only these; None for all.

    Raises:
        InputError: as `newest_samples` and `read_task` do.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; pass what lm_eval wrote with its options log_samples and output_path")
    files = newest_samples(path)
    return {task: read_task(file) for task, file in files.items() if tasks is None or task in tasks}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}", AGAIN) from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error


def _parse(text: str, where: str) -> dict:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
        raise InputError(f"{where}: not whole JSON ({reason})", AGAIN) from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}", AGAIN)
    return value
