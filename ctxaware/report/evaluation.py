"""Tasks of the harness on a model at hand, the files of each in a folder that is there whole or not at all."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError
from ctxaware.harness.internals import answers_cached_as_json
from ctxaware.harness.paths import tasks_folder
from ctxaware.harness.settings import OUR_KEYS, content_hash, local_files
from ctxaware.models import adapter_of, model_fingerprint
from ctxaware.report.samples import TaskRun, find_samples, read_task
from ctxaware.runs.files import whole_folder
from ctxaware.runs.secrets import redacted

_FOLDERS = ("peft", "tokenizer", "delta")  # arguments of a back end that may name a folder


def check_batch_size(batch_size: str) -> None:
    """Raise `InputError` for a batch size that is neither a number from 1 on nor `auto`."""
    if not re.fullmatch(r"auto(:\d{1,6})?|[1-9]\d{0,8}", batch_size, re.ASCII):
        raise InputError(f"batch_size must be a number from 1 on, or auto, got {batch_size[:60]!r}")


# what prompts without the template can't be, of which `gap` and `steer` ask some
MARKED_OR_STEERED = ("indicator", "indicator_threshold", "steer_alpha", "steer_heads")


def refuse_own_arguments(model_args: Mapping[str, Any], more: Iterable[str] = MARKED_OR_STEERED) -> None:
    """Refuse arguments of a back end that a run sets by itself: they would win, and the results bear another name.

    Args:
        model_args: what a user passes on to the back end.
        more: names that are refused besides the model, its batch size and device, and the tasks' settings.

    Raises:
        InputError: one of them is there.
    """
    if ours := sorted({"pretrained", "batch_size", "device", *OUR_KEYS, *more} & model_args.keys()):
        raise InputError(
            f"{', '.join(ours)} can't stand among the model's arguments: the run sets its own",
            "take it out of {model_args}; an option of its own may set it",
        )


def model_arguments(name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's arguments of a model, or of an adapter: its base, with its own tokenizer and template.

    Args:
        name: hub name or folder.
        more: further arguments, which count where both name one.
    """
    if (adapter := adapter_of(name, None)) is None:
        return {"pretrained": name, **more}
    of_base = {"pretrained": adapter.base_model_name_or_path, "revision": adapter.revision}
    return {key: value for key, value in of_base.items() if value} | {"peft": name, "tokenizer": name, **more}


def contents(settings: Mapping[str, Any], model_args: Mapping[str, Any]) -> dict[str, str]:
    """What the files are that settings and a model's arguments name, so that a run taken up later asks the same.

    Args:
        settings: of the tasks.
        model_args: what a user passes on to the back end.

    Returns:
        A hash by setting or argument, of those that are files or folders on this machine.

    Raises:
        InputError: one can't be read.
    """
    folders = {key: Path(model_args[key]) for key in _FOLDERS if isinstance(model_args.get(key), str)}
    of_model = {key: model_fingerprint(str(path)) for key, path in folders.items() if path.is_dir()}
    return {key: content_hash(path) for key, path in local_files(settings).items()} | of_model


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

    arguments = redacted(dict(arguments))  # they stand in the results
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata={**arguments, **settings})
    tracker = EvaluationTracker()
    with answers_cached_as_json():
        results = simple_evaluate(
            model=lm,
            model_args=arguments,
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
        with whole_folder(folder) as unfinished:
            tracker.output_path = str(unfinished)
            tracker.save_results_aggregated(results=of_task, samples={task: samples[task]})
            tracker.save_results_samples(task_name=task, samples=samples[task])
            _check_whole(unfinished, task, folder)


def _is_by_task(part: Any, task: str) -> bool:
    return isinstance(part, dict) and task in part


def _check_whole(unfinished: Path, task: str, folder: Path) -> None:
    """The harness only logs a failure to write: a full disk leaves half a file."""
    try:
        read_run(unfinished, task)
    except InputError as error:
        raise InputError(
            f"{folder} can't be written whole ({error.message})", "make room, then run the same command again"
        ) from error


def read_run(folder: Path, task: str) -> TaskRun:
    """What `run_tasks` left in `folder`.

    Raises:
        InputError: it is not whole.
    """
    try:
        files = find_samples(folder, task)
        if len(files) > 1:
            raise InputError(f"{folder} has several sample files")
        return read_task(files[0])
    except InputError as error:
        raise InputError(error.message, f"remove {folder}, then run the same command again") from error
