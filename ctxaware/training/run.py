"""A training run from claim to saved model; it takes itself up where it was interrupted."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from trl import SFTTrainer

from ctxaware.data.conversations import find_file, fingerprint
from ctxaware.data.prepare import PrepareRun, prepare_dataset, read_statistics
from ctxaware.data.releases import DATASETS
from ctxaware.errors import InputError, print_error
from ctxaware.models import BETWEEN_LIBRARIES, model_fingerprint
from ctxaware.runs.claim import locked_by_all
from ctxaware.runs.ending import ends_in_one_line
from ctxaware.runs.processes import on_main
from ctxaware.runs.secrets import redacted
from ctxaware.training.arguments import Arguments, TrainingConfig
from ctxaware.training.auto_indicator import fit_auto_indicator
from ctxaware.training.callback import DataSelectionCallback
from ctxaware.training.checkpoints import (
    DATA,
    MERGED,
    claim_output,
    mark_finished,
    newest_complete,
    refuse_foreign_folder,
)
from ctxaware.training.free import changes_weights
from ctxaware.training.health import FailedTrainingError, check_trained
from ctxaware.training.merge import merge_adapter
from ctxaware.training.publish import publish


def recipe(main: Callable[[], None]) -> Callable[[], None]:
    """Decorator of a recipe's `main`: processes end together, and errors are one line.

    Exit code 1 stands for training that failed, the others as in `ends_in_one_line`.
    """

    @functools.wraps(main)
    def run() -> None:
        def who() -> str:
            state = PartialState()  # the error may be this process's own
            return "" if state.is_main_process else f"process {state.process_index}: "

        with ends_in_one_line("--{}".format, who), warnings.catch_warnings():
            # of names of arguments that transformers is about to change: the ones here are those of all its releases
            warnings.filterwarnings("ignore", BETWEEN_LIBRARIES, FutureWarning)
            try:
                main()
            except FailedTrainingError as error:
                print_error(error)
                sys.exit(1)
            finally:
                PartialState().destroy_process_group()

    return run


def say(text: str) -> None:
    """Print, in the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)


@contextlib.contextmanager
def claimed_run(arguments: Arguments) -> Iterator[bool]:
    """Hold the output folder for this run, in all its processes, until the block ends.

    Yields:
        Whether there is something left to do; False where the run is finished already.

    Raises:
        InputError: the folder holds a run of another configuration or something else, or another run is at work.
    """
    training, state = arguments.training, PartialState()
    out = Path(training.output_dir)
    on_main(state, lambda: refuse_foreign_folder(out))
    with locked_by_all(out, out, state):
        finished = on_main(state, lambda: claim_output(out, configuration(arguments)))
        if finished:
            say(f"{out} is trained already")
            if training.push_to_hub:
                on_main(state, lambda: _publish(training))
        else:
            say(
                f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} x "
                f"{training.per_device_train_batch_size} conversations x {training.gradient_accumulation_steps} "
                f"steps of accumulation = effective batch of {arguments.run.effective_batch_size}"
            )
        yield not finished


def configuration(arguments: Arguments) -> dict[str, Any]:
    """All that could change the weights: arguments, and what the names in them stand for."""
    model, run = arguments.model, arguments.run
    settings = asdict(run) | asdict(model) | (asdict(arguments.indicator) if arguments.indicator else {})
    settings |= {k: v for k, v in arguments.training.to_dict().items() if changes_weights(k)}
    del settings["watch_every"]
    settings["num_processes"] = PartialState().num_processes
    ours = "fp16" if arguments.training.fp16 else "bf16" if arguments.training.bf16 else None
    settings["mixed_precision"] = ours or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher's
    settings["base_weights"] = model_fingerprint(model.model_name_or_path, model.model_revision)
    files = {"data": run.data, "scores": arguments.indicator.scores if arguments.indicator else None}
    for name, path in files.items():
        if path and Path(path).exists():
            release = DATASETS.get(run.dataset) if name == "data" else None
            settings[f"{name}_sha256"] = fingerprint(find_file(path, release.file if release else None))
    return redacted(settings)


def load_conversations(arguments: Arguments) -> Dataset:
    """Clean conversations (`id`, `messages`), written once into `_data/` of the output folder with their counts.

    Raises:
        InputError: there are none, or the file is broken.
    """
    run, folder = arguments.run, Path(arguments.training.output_dir) / DATA

    def prepare() -> dict[str, Any] | None:
        if read_statistics(folder):  # of this run, interrupted before
            return None
        return prepare_dataset(PrepareRun(run.data, run.dataset, folder, revision=run.data_revision))

    if (statistics := on_main(PartialState(), prepare)) is not None:
        changes = {name: n for name, n in statistics["removed_or_repaired"].items() if n}
        say(f"data: {statistics['conversations']:,} conversations, {statistics['instructions']:,} instructions")
        say("".join(f"  {n:>8,} {name.replace('_', ' ')}\n" for name, n in changes.items()).rstrip() or "  all clean")
    return Dataset.from_parquet(str(find_file(folder)))


def train_and_save(trainer: SFTTrainer, arguments: Arguments, selection: DataSelectionCallback | None = None) -> None:
    """Train, from the newest complete checkpoint if there is one, and save model and tokenizer.

    Args:
        trainer: what `build_trainer` made.
        arguments: of the run.
        selection: of the indicator recipe, whose model also gets its automatic indicator.

    Raises:
        FailedTrainingError: training went wrong; the run is not finished.
        InputError: the finished model could not be pushed.
    """
    out = Path(arguments.training.output_dir)
    checkpoint, passed_over = on_main(PartialState(), lambda: newest_complete(out))
    for folder in passed_over:
        say(f"{folder} is incomplete or damaged, and passed over")
    if checkpoint:
        say(f"taking up the run at {checkpoint}")
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except ImportError as error:  # of an optimizer's package
        raise InputError(f"the trainer refuses these arguments: {' '.join(str(error).split())}") from error
    check_trained(trainer)
    trainer.save_model(_internal_call=True)  # pushed below, with its card
    trainer.create_model_card(model_name=out.name)  # last: PEFT has written one of its own
    if arguments.run.merge:
        on_main(PartialState(), lambda: _merge(trainer, arguments, out / MERGED))
    if selection:
        say(on_main(PartialState(), lambda: fit_auto_indicator(trainer, arguments, selection)))
    on_main(PartialState(), lambda: mark_finished(out))
    say(f"saved to {out}")
    if arguments.training.push_to_hub:
        on_main(PartialState(), lambda: _publish(arguments.training))


def _publish(training: TrainingConfig) -> None:
    say(f"pushed to {publish(Path(training.output_dir), training)}")


def _merge(trainer: SFTTrainer, arguments: Arguments, out: Path) -> None:
    base = trainer.model.peft_config["default"].base_model_name_or_path
    samples = [ids[:512] for ids in trainer.train_dataset[:8]["input_ids"]]
    moved = merge_adapter(trainer.model, trainer.processing_class, base, out, arguments.model.dtype, samples)
    say(f"merged into {out}; against the trained model its logits moved by at most {moved:.2g}")
