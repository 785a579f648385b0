"""What a report can show: finding results of every kind below folders, each read whole or named as left out."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError
from ctxaware.mt_bench.summary import Results
from ctxaware.report.allocation.table import ModelShares
from ctxaware.report.allocation.table import read as read_attention
from ctxaware.report.conditions import Condition, condition_of
from ctxaware.report.samples import SampleFile, TaskRun, find_samples, read_task
from ctxaware.report.stored import read_auto, read_heads, read_probes, read_selection, read_steering
from ctxaware.runs.claim import CONFIGURATION, RUN
from ctxaware.runs.files import UNFINISHED, read_json
from ctxaware.runs.shapes import check_shape
from ctxaware.scores.table import Scores, read_scores
from ctxaware.training.checkpoints import DATA, WATCH

STATISTICS, STEERING, HEADS, AUTO = "statistics.json", "steer.json", "heads.json", "auto_evaluation.json"
_OF_HARNESS = re.compile(r"(samples_.+|results)_\d{4}-\d\d-\d\dT[\d\-.]+\.jsonl?")
_OF_STEER = re.compile(r"(choosing|reported|whole)/(baseline|plain|alpha-[^/]+)")  # below the folder of `steer.json`


class TwoOfOneName(InputError):
    """Two results would have one name in the report."""


@dataclass(frozen=True)
class Evaluation:
    """One model under one condition, and the tasks that it was asked.

    Attributes:
        name: as the report calls it, unique among all.
        model: name or folder of the model, with its adapter.
        template: whether prompts went through the chat template.
        tasks: by name, the newest run of each.
    """

    name: str
    model: str
    template: bool
    tasks: dict[str, TaskRun]


@dataclass(frozen=True)
class Training:
    """A run of a recipe, or of any trainer with the probe."""

    name: str
    configuration: dict[str, Any]
    watch: dict[str, Any] | None


@dataclass
class Found:
    """Everything that was found, by the name of the run it belongs to.

    Attributes:
        evaluations: in the order of the runs; the first is what the others are compared with.
        selections: statistics of `ctxaware select`.
        scores: by file and layer, of `ctxaware score`.
        ratings: of `ctxaware mt-bench judge`.
        trainings: of the recipes.
        attention: shares of attention, of `ctxaware attention`.
        heads: what `ctxaware heads` wrote.
        steering: what `ctxaware steer` wrote as `steer.json`.
        auto: what `ctxaware auto evaluate` wrote as `auto_evaluation.json`.
        left_out: what could not be read or was passed over, a line each.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    selections: dict[str, dict] = field(default_factory=dict)
    scores: dict[str, dict[int, Scores]] = field(default_factory=dict)
    ratings: dict[str, Results] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)
    attention: dict[str, list[ModelShares]] = field(default_factory=dict)
    heads: dict[str, dict] = field(default_factory=dict)
    steering: dict[str, dict] = field(default_factory=dict)
    auto: dict[str, dict] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def collect(runs: Sequence[tuple[str, Path]]) -> Found:
    """Find and read everything below some folders.

    Args:
        runs: name and folder (or file) of each, in the order to show. Names may repeat.

    Raises:
        InputError: a folder does not exist, holds nothing that a report shows, or two evaluations have one name.
    """
    collected = Found()
    conditions: list[_Condition] = []
    for name, path in runs:
        if not path.exists():
            raise InputError(f"{path} does not exist; pass folders that lm_eval, ctxaware or a recipe wrote")
        before = _size(collected) + len(conditions)
        files = sorted(_files(path, collected.left_out))
        conditions += _conditions(name, files, collected)
        for file in files:
            _read_other(name, path, file, collected)
        if _size(collected) + len(conditions) == before:
            raise InputError(
                f"{path} holds nothing that a report shows; expected what lm_eval with log_samples, ctxaware "
                "score, select, attention, mt-bench judge or a recipe wrote"
            )
    collected.evaluations = _named(conditions)
    return collected


def _size(collected: Found) -> int:
    return sum(len(getattr(collected, name)) for name in collected.__dataclass_fields__)


def _files(path: Path, left_out: list[str]) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, names, files in os.walk(path):
        here = Path(folder)
        names[:] = sorted(name for name in names if _is_walked(here / name, path, left_out))
        yield from (here / name for name in files)


def _is_walked(folder: Path, root: Path, left_out: list[str]) -> bool:
    """Whether results are looked for below a folder; by what it is, since a model's results bear the model's name."""
    if folder.name.endswith(UNFINISHED):
        return False
    if folder.name == DATA and (folder.parent / RUN).is_file():  # what a recipe made its data of
        return False
    steer = folder.parent.parent
    if _OF_STEER.fullmatch(f"{folder.parent.name}/{folder.name}") and folder.parent != root:
        if (steer / STEERING).is_file():  # it says what is to be shown of these
            return False
        if (steer / RUN).is_file():
            line = f"{steer}: ctxaware steer is not done; give its command again"
            left_out += [line] if line not in left_out else []
            return False
    if not folder.name.startswith("."):
        return True
    found = [file for file in folder.rglob("*") if _OF_HARNESS.fullmatch(file.name)]
    if any(file.parent == folder for file in found):  # `.__tuned` is lm_eval's name for the model ./tuned
        return True
    if found:
        left_out.append(f"{folder}: a hidden folder with results of lm_eval; pass it by itself to show them")
    return False


@dataclass
class _Condition:
    """What one model was asked under one condition of one run, on its way to an `Evaluation`."""

    run: str
    of: Condition
    tasks: dict[str, TaskRun] = field(default_factory=dict)


def _conditions(run: str, files: Sequence[Path], collected: Found) -> list[_Condition]:
    """The evaluations of one run, tasks that were asked under one condition together."""
    conditions: dict[Condition, _Condition] = {}
    for path in files:
        try:
            (sample,) = find_samples(path) if path.name.startswith("samples_") else (None,)
            if sample is None:
                if path.name.startswith("results_") and not _samples_of(path):
                    collected.left_out.append(f"{path}: no samples beside it; run lm_eval with log_samples")
                continue
            task = read_task(sample)
        except InputError as error:
            collected.left_out.append(str(error))
            continue
        condition = condition_of(task)
        tasks = conditions.setdefault(condition, _Condition(run, condition)).tasks
        _keep_newest(tasks, sample, task, collected)
    return sorted(conditions.values(), key=lambda condition: condition.of.template)  # as they come, plain ones first


def _samples_of(results: Path) -> list[Path]:
    """Sample files of the run that a results file is of."""
    date = results.stem.removeprefix("results_")
    return list(results.parent.glob(f"samples_*_{glob.escape(date)}.jsonl"))


def _keep_newest(tasks: dict[str, TaskRun], sample: SampleFile, task: TaskRun, collected: Found) -> None:
    other = tasks.get(task.task)
    if other is None or sample.is_newer(other.file):
        tasks[task.task], task = task, other or task
    if other is not None:
        collected.left_out.append(
            f"{task.file.path}: an older run of the same task; {tasks[task.task].file.date} is shown"
        )


def _named(conditions: Sequence[_Condition]) -> list[Evaluation]:
    """Evaluations with names: that of the run, and what tells its conditions apart."""
    evaluations = []
    for condition in conditions:
        of, beside = condition.of, [other.of for other in conditions if other.run == condition.run]
        parts = [condition.run, *of.marks]
        if len({other.model for other in beside}) > 1:
            parts.insert(1, Path(of.model).name)
        parts += [each for each in of.arguments if any(each not in other.arguments for other in beside)]
        if len({other.template for other in beside}) > 1:
            parts.append("with template" if of.template else "without template")
        evaluations.append(Evaluation(", ".join(parts), of.model, of.template, condition.tasks))
    names = [evaluation.name for evaluation in evaluations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TwoOfOneName(f"two evaluations are called {twice[0]!r}; name the folders: before=FOLDER after=FOLDER")
    return evaluations


def _read_other(run: str, root: Path, path: Path, collected: Found) -> None:
    """Whatever is no evaluation; a file of another kind is passed over."""
    name = run if path.parent == root or path == root else f"{run}, {path.parent.relative_to(root)}"
    try:
        if path.name == STATISTICS and "share_above" in read_json(path):
            _put(collected.selections, name, read_selection(path))
        elif path.suffix == ".parquet":
            _read_parquet(run if path == root else f"{run}, {path.relative_to(root)}", path, collected)
        elif path.parent.name == "model_judgment" and path.name.endswith("_single.manifest.json"):
            content = read_json(path)
            check_shape(content, {CONFIGURATION: {"judge_model": str}}, str(path))
            judge = content[CONFIGURATION]["judge_model"]
            _put(collected.ratings, f"{run}, judged by {judge}", Results(path.parent.parent, judge))
        elif path.name == RUN:
            configuration = read_json(path).get(CONFIGURATION)
            if isinstance(configuration, dict) and "base_weights" in configuration:  # else of gap, steer or score
                collected.trainings.append(Training(name, configuration, _watch(path)))
        elif path.name == WATCH and not path.with_name(RUN).is_file():
            collected.trainings.append(Training(name, {}, read_probes(path)))
        elif path.name.endswith(HEADS) and {"retrieval_heads", "ranking"} <= read_json(path).keys():
            _put(collected.heads, name, read_heads(path))
        elif path.name == STEERING:
            _put(collected.steering, name, read_steering(path))
        elif path.name == AUTO:
            _put(collected.auto, name, read_auto(path))
    except TwoOfOneName:
        raise
    except (InputError, KeyError, OSError) as error:
        collected.left_out.append(f"{path}: {error}" if not isinstance(error, InputError) else str(error))


def _put(mapping: dict, name: str, value: Any) -> None:
    """Add an entry; a second one under the same name would hide the first."""
    if name in mapping:
        raise TwoOfOneName(f"two results are called {name!r}; name the folders: before=FOLDER after=FOLDER")
    mapping[name] = value


def _watch(run: Path) -> dict | None:
    path = run.with_name(WATCH)
    return read_probes(path) if path.is_file() else None


def _read_parquet(name: str, path: Path, collected: Found) -> None:
    """A file of scores or of shares of attention; other Parquet is passed over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole Parquet file ({error}); make it again") from error
    if {"conversation_id", "turn", "score", "user_tokens"} <= columns:
        _put(collected.scores, name, read_scores(path))
    elif {"prompt", "layer", "head", "group", "share"} <= columns:
        _put(collected.attention, name.removesuffix(f", {path.name}"), read_attention(path))
