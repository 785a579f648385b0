"""What a report says: sections of sentences, tables, pictures and flips, from whatever was found.

HTML, Markdown and LaTeX are made of the same sections. A kind of result that is not there is a line under "What is
missing", with what makes it.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ctxaware.errors import InputError
from ctxaware.mt_bench.summary import Results
from ctxaware.report import beside, pictures, verdict
from ctxaware.report.collect import Evaluation, Found
from ctxaware.report.compare import PROMPTS, Pairs, pair
from ctxaware.report.flips import worst_flips
from ctxaware.report.gate import Gate, judge
from ctxaware.report.page import Report, Section
from ctxaware.report.samples import TaskRun
from ctxaware.report.seeds import by_seed, difference_table, score_table, table_9_over_seeds
from ctxaware.report.tables import Cell, Table, plain_name, table_4, table_7, table_9

_NEEDLE = "nih_ctx"
_VARIANT = re.compile(rf"{_NEEDLE}(_prompts)?(_prefix)?")  # a plain name
_BETA = re.compile(r"(?:β|beta) ?= ?(\d*\.?\d+)")  # of a run's name: a row of table 9


def make_report(
    collected: Found,
    title: str,
    max_drop: float,
    confidence: float,
    n_flips: int,
    made_by: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """Everything that a report shows.

    Args:
        collected: what there is.
        title: of the page.
        max_drop: of the gate's verdicts, 0–1.
        confidence: of the gate's verdicts, 0.5–1.
        n_flips: the worst losses that are shown for each task of a comparison.
        made_by: what makes a part that is missing, by the anchor of its section.
    """
    left_out = list(collected.left_out)
    evaluations = [_with_scores(evaluation, left_out) for evaluation in collected.evaluations]
    evaluations = [evaluation for evaluation in evaluations if evaluation.tasks]
    ratings = _overall_ratings(collected.ratings)
    sections = [
        _scores(evaluations, ratings),
        _over_seeds(evaluations, ratings, left_out),
        _compared(evaluations, max_drop, confidence, n_flips),
        _templates(evaluations),
        _heatmaps(evaluations, left_out),
        _ablation(evaluations, ratings),
        beside.attention(collected),
        beside.steering(collected),
        beside.automatic(collected),
        beside.dependency(collected),
        beside.mt_bench(collected.ratings),
        beside.training_runs(collected.trainings),
    ]
    shown = [section for section in sections if not section.is_empty]
    shown += [_provenance(evaluations, collected), _missing(shown, made_by)]
    return Report(title, left_out, [section for section in shown if not section.is_empty])


def _with_scores(evaluation: Evaluation, left_out: list[str]) -> Evaluation:
    """The evaluation with the tasks that have a score between 0 and 1."""
    tasks = {}
    for name, run in evaluation.tasks.items():
        try:
            run.scores()
            tasks[name] = run
        except InputError as error:
            left_out.append(f"{run.file.path}: {error}")
    return Evaluation(evaluation.name, evaluation.model, evaluation.template, tasks)


def _overall_ratings(ratings: Mapping[str, Results]) -> dict[str, float | None]:
    """MT-Bench's average of each model, where one judge judged."""
    if len(ratings) != 1:
        return {}
    (results,) = ratings.values()
    return {model: results.cell(model).mean for model in results.models}


def _is_needle(task: str) -> bool:
    return bool(_VARIANT.fullmatch(plain_name(task)))


def _scores(evaluations: list[Evaluation], ratings: Mapping[str, float | None]) -> Section:
    runs = {e.name: _main_tasks(e) for e in evaluations if _main_tasks(e)}
    if not runs:
        return Section("scores", "Scores")
    table = table_4(runs, ratings)
    return Section("scores", "Scores", ["Scores are from 0 to 1; higher is better."], [table])


def _main_tasks(evaluation: Evaluation) -> dict[str, TaskRun]:
    """Tasks of table 4: of the needle tests those without a response prefix, over one or four prompts."""
    matches = {name: _VARIANT.fullmatch(plain_name(name)) for name in evaluation.tasks}
    return {name: evaluation.tasks[name] for name, match in matches.items() if match is None or not match[2]}


def _ablation(evaluations: list[Evaluation], ratings: Mapping[str, float | None]) -> Section:
    runs = {e.name: _main_tasks(e) for e in evaluations if _BETA.match(e.name) and _main_tasks(e)}
    section = Section("ablation", "Ablation of the threshold")
    if len(runs) > 1:
        ordered = dict(sorted(runs.items(), key=lambda of: _beta(of[0])))
        has_seeds = any(len(seeds) > 1 for seeds in by_seed(ordered).values())
        section.tables.append(table_9_over_seeds(ordered, ratings) if has_seeds else table_9(ordered, ratings))
    return section


def _over_seeds(evaluations: list[Evaluation], ratings: Mapping[str, float | None], left_out: list[str]) -> Section:
    """Table 4 and the differences to the first run, runs of several seeds as one."""
    section = Section("seeds", "Over seeds")
    runs = {e.name: _main_tasks(e) for e in evaluations if _main_tasks(e)}
    if any(len(seeds) > 1 for seeds in by_seed(runs).values()):
        try:
            section.tables.extend([score_table(runs, ratings), difference_table(runs)])
        except InputError as error:
            left_out.append(f"over seeds: {error}")
    return section


def _beta(name: str) -> float:
    match = _BETA.match(name)
    return float(match[1]) if match else 0.0


def _compared(evaluations: list[Evaluation], max_drop: float, confidence: float, n_flips: int) -> Section:
    """Each evaluation against the first: the gate's verdicts, and the worst losses."""
    section = Section("compared", "Compared question by question")
    if len(evaluations) < 2:
        return section
    first = evaluations[0]
    section.paragraphs.append(
        f"Each row compares a run with “{first.name}”, over the questions that both were asked. “fail”: a drop of more "
        f"than {max_drop:g} is shown; “pass”: one is excluded; “inconclusive”: neither, each with {confidence:.0%} "
        "confidence. Intervals respect that questions of one passage, or needles of one cell, depend on each other."
    )
    for evaluation in evaluations[1:]:
        pairs = list(_pairs(first, evaluation, section.paragraphs))
        if pairs:
            section.tables.append(_verdicts(evaluation.name, pairs, max_drop, confidence))
        for each in pairs:
            section.flips.extend(worst_flips(first.name, evaluation.name, each, n_flips))
    return section


def _pairs(first: Evaluation, second: Evaluation, notes: list[str]) -> Iterator[Pairs]:
    """Their common tasks, paired; with `[IND]` and without are one task."""
    by_plain = {plain_name(task): run for task, run in first.tasks.items()}
    for task, run in second.tasks.items():
        if (other := by_plain.get(plain_name(task))) is None:
            continue
        try:
            yield pair(other, run)
        except InputError as error:
            notes.append(f"{second.name}, {task}: not compared with “{first.name}”: {error}.")


def _verdicts(name: str, pairs: list[Pairs], max_drop: float, confidence: float) -> Table:
    differing = [mismatch for each in pairs for mismatch in each.mismatches]
    is_judged = {mismatch.kind for mismatch in differing} <= {PROMPTS}  # template and [IND] are what is compared
    judged = verdict.table(Gate(judge(pairs, max_drop, confidence), max_drop, confidence, None, differing, []))
    rows = judged.rows if is_judged else [(*row[:-1], None) for row in judged.rows]
    note = judged.note if is_judged else f"{judged.note} No verdict: the runs do not compare as they are."
    if differing:
        note += f" What differs besides the model: {'; '.join(mismatch.text for mismatch in differing)}."
    return Table(f"{name}, against the first run", judged.columns, rows, note)


def _templates(evaluations: list[Evaluation]) -> Section:
    """Table 7: needles with and without template and prefix, a row for each model."""
    section = Section("template", "What the chat template and the missing prefix cost")
    rows: dict[str, dict[str, TaskRun]] = {}
    for evaluation in evaluations:
        for task, run in evaluation.tasks.items():
            if not (match := _VARIANT.fullmatch(plain_name(task))):
                continue
            column = ("with template" if evaluation.template else "without template") + (
                ", prefix" if match[2] else ", no prefix"
            )
            row = rows.setdefault(_without_template(evaluation.name), {})
            if column not in row or match[1]:  # over four prompts rather than one
                row[column] = run
    columns = {column for row in rows.values() for column in row}
    if len(columns) > 1:
        order = sorted(columns, key=lambda column: (column.startswith("with "), column.endswith("no prefix")))
        section.tables.append(table_7({name: {c: row.get(c) for c in order} for name, row in rows.items()}))
    return section


def _without_template(name: str) -> str:
    return name.removesuffix(", with template").removesuffix(", without template")


def _heatmaps(evaluations: list[Evaluation], left_out: list[str]) -> Section:
    section = Section("needles", "Needle in a haystack, by context length and depth")
    for evaluation in evaluations:
        for task, run in evaluation.tasks.items():
            if not _is_needle(task):
                continue
            try:
                section.pictures.append(pictures.heatmap(evaluation.name, run))
            except InputError as error:
                left_out.append(str(error))
    if section.pictures:
        section.paragraphs.append("All pictures have one scale, from 0 (dark) to 1 (bright).")
    return section


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _provenance(evaluations: list[Evaluation], collected: Found) -> Section:
    """Where each figure comes from: files, versions, settings."""
    section = Section("provenance", "Where this comes from")
    rows: list[tuple[Cell, ...]] = []
    for evaluation in evaluations:
        for task, run in evaluation.tasks.items():
            config, counts = run.results.get("config", {}), run.of_task("n-samples") or {}
            n, total = counts.get("effective"), counts.get("original")
            rows.append(
                (
                    evaluation.name,
                    task,
                    evaluation.model,
                    _text(run.of_task("versions")),
                    f"{n}" if n == total else f"{n} of {total} (limit)",
                    str(config.get("model_dtype", "")).removeprefix("torch."),
                    ", ".join(f"{name} {run.results.get(key)}" for name, key in _SOFTWARE.items()),
                    _settings(run.of_task("configs")),
                    str(run.file.path),
                )
            )
    if rows:
        columns = ("run", "task", "model", "version", "documents", "dtype", "software", "settings", "samples")
        section.tables.append(Table("Evaluations", columns, rows))
    made: list[tuple[Cell, ...]] = [
        (name, _text(s["scores"].get("model")), _text(s.get("layer"))) for name, s in collected.selections.items()
    ]
    if made:
        section.tables.append(Table("Selections", ("selection", "scored by", "layer"), made))
    return section


_SOFTWARE = {"lm-eval": "lm_eval_version", "transformers": "transformers_version"}
_SETTINGS_SHOWN = (
    *("source", "needle", "haystack", "max_context_length", "num_context_lengths", "num_depths", "prompt_template"),
    *("prompt", "data_revision", "resolved_revisions"),
)


def _settings(config: dict | None) -> str:
    metadata = (config or {}).get("metadata") or {}
    return ", ".join(f"{key}={metadata[key]}" for key in _SETTINGS_SHOWN if metadata.get(key) is not None)


_PARTS = {  # anchor of a section, and what it shows
    "scores": "scores",
    "compared": "a comparison",
    "template": "the cost of the template",
    "needles": "needle heatmaps",
    "ablation": "the ablation of the threshold",
    "attention": "attention",
    "steering": "attention steering",
    "auto": "the automatic indicator",
    "dependency": "context-dependency scores",
    "mt-bench": "MT-Bench",
    "training": "training",
}


def _missing(shown: list[Section], made_by: Mapping[str, str]) -> Section:
    anchors = {section.anchor for section in shown}
    absent = {anchor: name for anchor, name in _PARTS.items() if anchor not in anchors}
    texts = [f"{name}: {made_by[anchor]}" if anchor in made_by else name for anchor, name in absent.items()]
    return Section("missing", "What is missing", texts)
