"""Tasks of the harness on a model at hand, the files of each in a folder that is there whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxaware.harness.internals import answers_cached_as_json
from ctxaware.harness.paths import tasks_folder
from ctxaware.report.samples import TaskRun, find_samples, read_task
from ctxaware.runs.files import remove_unfinished, whole_folder


def run_tasks(
    lm: Any,
    folders: Mapping[str, Path],
    *,
    arguments: Mapping[str, Any],
    settings: Mapping[str, Any],
    template: bool,
    cache: Path,
    documents: Sequence[int] | None = None,
) -> None:
    """Evaluate some of our tasks, as `lm_eval` does with `--log_samples --output_path` for each.

    Tasks of one call share what their prompts share, where the model reuses prefixes.

    Args:
        lm: the harness's model.
        folders: of the results, by the task's name; made here.
        arguments: the model's, which the tasks see as `--model_args`.
        settings: the tasks', as `--metadata`.
        template: whether prompts go through the chat template.
        cache: of answers, one for each model and way of running it: its key is the prompt.
        documents: indices of those to evaluate; None for all.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata={**arguments, **settings})
    tracker = EvaluationTracker()
    with answers_cached_as_json():
        results = simple_evaluate(
            model=lm,
            model_args=dict(arguments),
            tasks=list(folders),
            task_manager=manager,
            apply_chat_template=template,
            use_cache=str(cache),
            samples=None if documents is None else {task: list(documents) for task in folders},
            log_samples=True,
            evaluation_tracker=tracker,
            bootstrap_iters=0,
        )
    samples = results.pop("samples")
    for task, folder in folders.items():
        of_task = {key: {task: part[task]} if _is_by_task(part, task) else part for key, part in results.items()}
        remove_unfinished(folder)
        with whole_folder(folder) as unfinished:
            tracker.output_path = str(unfinished)
            tracker.save_results_aggregated(results=of_task, samples={task: samples[task]})
            tracker.save_results_samples(task_name=task, samples=samples[task])
            find_samples(unfinished, task)  # the tracker only logs a failure to write


def _is_by_task(part: Any, task: str) -> bool:
    return isinstance(part, dict) and task in part


def read_run(folder: Path, task: str) -> TaskRun:
    """What `run_tasks` left in `folder`."""
    (file,) = find_samples(folder, task)
    return read_task(file)
