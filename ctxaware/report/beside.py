"""Sections on what stands beside the evaluations: attention, context-dependency scores, MT-Bench, training."""

from collections.abc import Mapping
from typing import Any

from ctxaware import plots
from ctxaware.mt_bench.summary import Results
from ctxaware.report import pictures
from ctxaware.report.allocation import summary
from ctxaware.report.auto import table as auto_table
from ctxaware.report.collect import Found, Training
from ctxaware.report.page import Section
from ctxaware.report.stored import interval_of
from ctxaware.report.tables import Cell, Table, table_3, title_of
from ctxaware.scores.threshold import DEFAULT_THRESHOLD, TABLE_THRESHOLDS, above_threshold


def attention(collected: Found) -> Section:
    """Figures 3 and 4, where the retrieval head looks; and which heads retrieve."""
    section = Section("attention", "Where the answer's first token looks")
    for name, models in collected.attention.items():
        summaries = summary.summarise(models)
        section.tables.extend(_allocation(name, label, of) for label, of in summaries.items())
        section.pictures.extend(pictures.attention(name, summaries))
    rows: list[tuple[Cell, ...]] = []
    for name, of in collected.heads.items():
        best = ", ".join(f"layer {head['layer_idx']} head {head['head_idx']}" for head in of["ranking"][:5])
        agreement = [head["agreement"] for head in of["retrieval_heads"]]
        rows.append((name, of["model"], of["n_prompts"], sum(agreement) / len(agreement), best))
    if rows:
        note = "Agreement: the share of prompts whose retrieval head of a layer is that layer's most frequent one."
        columns = ("heads", "model", "prompts", "agreement, mean over layers", "read the needle most")
        section.tables.append(Table("Retrieval heads", columns, rows, note))
    return section


def _allocation(name: str, model: str, of: Mapping[str, Any]) -> Table:
    conditions, changes = list(of["allocation"]), list(of["changes"])
    rows: list[tuple[Cell, ...]] = [
        (
            title,
            *(of["allocation"][condition][share] for condition in conditions),
            *(of["changes"][change][share].signed for change in changes),
        )
        for share, title in summary.SHARE_TITLES.items()
        if any(of["allocation"][condition][share].mean for condition in conditions)
    ]
    title = f"{name}, {model}: attention of layer {of['layer']}'s retrieval head, {of['n_prompts']} prompts"
    columns = ("attention on", *(summary.TITLES[c] for c in conditions), *map(summary.in_words, changes))
    return Table(title, columns, rows, "Shares with 95% intervals over prompts; the template's own tokens left out.")


def steering(collected: Found) -> Section:
    """Table 1, from what `ctxaware steer` reported of the half of the grid on which α was not chosen."""
    section = Section("steering", "Attention steering")
    for name, of in collected.steering.items():
        tasks = list(dict.fromkeys(task for by_task in of["scores"].values() for task in by_task))
        rows: list[tuple[Cell, ...]] = [
            (title, *(interval_of(by_task[task]) if task in by_task else None for task in tasks))
            for title, by_task in of["scores"].items()
        ]
        note = "α is chosen on half of the cells and reported on the other half. 95% intervals."
        title = f"{name}: steering with α = {of['alpha']:g}"
        section.tables.append(Table(title, ("condition", *map(title_of, tasks)), rows, note))
        section.pictures.append(pictures.steering(name, of))
    return section


def automatic(collected: Found) -> Section:
    """What the automatic indicator does to prompts of five kinds, from `ctxaware auto evaluate`."""
    section = Section("auto", "The automatic indicator")
    for name, of in collected.auto.items():
        shown = auto_table(of)
        section.tables.append(Table(f"{name}: {shown.title}", shown.columns, shown.rows, shown.note))
    return section


def dependency(collected: Found) -> Section:
    """Table 3, the distributions behind it, and how layers agree."""
    section = Section("dependency", "Which training turns depend on their context")
    shares = dict(collected.selections)
    for name, by_layer in collected.scores.items():
        if len(by_layer) > 1:
            section.pictures.append(pictures.layer_agreement(f"{name}: layers", by_layer))
            continue
        ((layer, scores),) = by_layer.items()
        of_selection = [s for s in collected.selections.values() if s["scores"] == scores.manifest]
        threshold = of_selection[0]["threshold"] if of_selection else DEFAULT_THRESHOLD
        if not of_selection:
            above = {f"{t:g}": float(above_threshold(scores.values.tolist(), t).mean()) for t in TABLE_THRESHOLDS}
            shares[name] = {"share_above": above, "instructions": len(scores.values)}
        if scores.is_scored.any():
            section.pictures.append(pictures.score_histogram(name, layer, scores, threshold))
            section.pictures.append(pictures.instruction_lengths(name, layer, scores, threshold))
    if shares:
        section.paragraphs.append(
            "Shares are of all instructions. One whose response lies past the length limit has no score and counts as "
            "not dependent; the pictures show those with a score."
        )
        section.tables.append(table_3(shares))
    return section


def mt_bench(ratings: Mapping[str, Results]) -> Section:
    section = Section("mt-bench", "MT-Bench")
    for name, results in ratings.items():
        columns = ("category", *results.models)
        groups = [*((category, category) for category in results.categories), ("all", None)]
        rows = [(title, *(_rating(results, model, category) for model in results.models)) for title, category in groups]
        note = "Average rating, 1 to 10, and the number of ratings where some are missing."
        section.tables.append(Table(f"MT-Bench by category, {name}", columns, rows, note))
        section.paragraphs.extend(f"{name}: {flag}." for flag in results.flags())
        if len(results.models) <= len(plots.CATEGORICAL):
            section.pictures.append(pictures.ratings(name, results))
    return section


def _rating(results: Results, model: str, category: str | None) -> str | None:
    cell = results.cell(model, category=category)
    if cell.mean is None:
        return None
    return f"{cell.mean:.2f}" + (f" ({cell.n_scored}/{cell.n_expected})" if cell.n_scored < cell.n_expected else "")


def training_runs(trainings: list[Training]) -> Section:
    section = Section("training", "Training")
    keys = {
        "model_name_or_path": "base",
        "data": "data",
        "threshold": "threshold β",
        "effective_batch_size": "batch",
        "learning_rate": "learning rate",
        "max_steps": "steps",
        "num_train_epochs": "epochs",
        "use_peft": "adapter",
        "seed": "seed",
    }
    rows: list[tuple[Cell, ...]] = [
        (training.name, *(_plain(training.configuration.get(key)) for key in keys))
        for training in trainings
        if training.configuration
    ]
    if rows:
        section.tables.append(Table("Training runs", ("run", *keys.values()), rows))
    for training in trainings:
        if training.watch and training.watch["probes"]:
            _add_probe(training, section)
    return section


def _plain(value: object) -> str | None:
    return None if value is None else str(value)


def _add_probe(training: Training, section: Section) -> None:
    watch = training.watch or {}
    tasks = list(dict.fromkeys(question["task"] for question in watch["questions"]))
    where = {task: [i for i, question in enumerate(watch["questions"]) if question["task"] == task] for task in tasks}
    by_task = {task: [[probe["scores"][i] for i in where[task]] for probe in watch["probes"]] for task in tasks}
    section.pictures.append(pictures.probe_curves(training, tasks, by_task))
    if stopped := watch.get("stopped"):
        section.paragraphs.append(
            f"{training.name} was stopped at step {stopped['step']}: {stopped['task']} changed by "
            f"{stopped['change']:+.3f} since the first probe, a drop over {stopped['max_drop']:g} is shown."
        )
