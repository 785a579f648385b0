"""One task of the harness on a model at hand, its files in a folder that is there whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxaware.harness.paths import tasks_folder
from ctxaware.report.samples import TaskRun, find_samples, read_task
from ctxaware.runs.files import remove_unfinished, whole_folder


def run_task(
    lm: Any,
    task: str,
    folder: Path,
    *,
    arguments: Mapping[str, Any],
    settings: Mapping[str, Any],
    template: bool,
    cache: Path,
    documents: Sequence[int] | None = None,
) -> None:
    """Evaluate one of our tasks, as `lm_eval` does with `--log_samples --output_path folder`.

    Args:
        lm: the harness's model.
        task: its name.
        folder: of the results; made here.
        arguments: the model's, which the task sees as `--model_args`.
        settings: the task's, as `--metadata`.
        template: whether prompts go through the chat template.
        cache: of answers, one for each model and way of running it: its key is the prompt.
        documents: indices of those to evaluate; None for all.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata={**arguments, **settings})
    remove_unfinished(folder)
    with whole_folder(folder) as unfinished:
        tracker = EvaluationTracker(output_path=str(unfinished))
        results = simple_evaluate(
            model=lm,
            model_args=dict(arguments),
            tasks=[task],
            task_manager=manager,
            apply_chat_template=template,
            use_cache=str(cache),
            samples=None if documents is None else {task: list(documents)},
            log_samples=True,
            evaluation_tracker=tracker,
            bootstrap_iters=0,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name=task, samples=samples[task])
        find_samples(unfinished, task)  # the tracker only logs a failure to write


def read_run(folder: Path, task: str) -> TaskRun:
    """What `run_task` left in `folder`."""
    (file,) = find_samples(folder, task)
    return read_task(file)
