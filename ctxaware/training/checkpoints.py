"""What a training run leaves in its output folder, so that the same command takes it up after any interruption."""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ctxaware.errors import InputError
from ctxaware.runs.claim import CONFIGURATION, LOCK, RUN, claim, describe_difference, read_manifest, write_manifest
from ctxaware.runs.files import sha256_of_file, write_json

FINISHED = "finished"  # key of the manifest: the model is saved
DATA = "_data"  # what starts with _ is left out of an upload to the hub
SCORES = "scores.parquet"
WATCH = "watch.json"  # what the probe of the use of the context scored, probe by probe
MERGED = "merged"  # the model that `merge` writes
# what the configuration determines
DERIVED = (DATA, "selection", SCORES, f"{SCORES}.parts", WATCH, MERGED, "auto_indicator.json")
COMPLETE = "complete.json"  # in a checkpoint, written last: its files and their SHA-256


class CompleteCheckpoints(TrainerCallback):
    """Writes into each checkpoint, when every process is done with it, what belongs to it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / COMPLETE, _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file. What it takes is little beside what the file took to be written."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE and not p.name.startswith("."))
    return {str(p.relative_to(folder)): sha256_of_file(p) for p in files}


def newest_complete(output_dir: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that has all its files as they were written, and the newer ones that have not."""
    passed_over: list[Path] = []
    checkpoints = [p for p in output_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for folder in sorted(checkpoints, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        if _is_complete(folder):
            return folder, passed_over
        passed_over.append(folder)
    return None, passed_over


def _is_complete(checkpoint: Path) -> bool:
    try:
        stored = json.loads((checkpoint / COMPLETE).read_bytes())
        return isinstance(stored, dict) and bool(stored) and stored.items() <= _digests(checkpoint).items()
    except (OSError, ValueError, TypeError, RecursionError):  # never written, or damaged
        return False


def claim_output(output_dir: Path, configuration: dict[str, Any]) -> bool:
    """Take an output folder for a run of this configuration, or for the rest of one.

    A run that ended before its first checkpoint (a mistake in the arguments, most often) holds nothing: its place is
    taken over.

    Returns:
        Whether the run is finished already.

    Raises:
        InputError: the folder holds a run of another configuration, something else, or a damaged manifest.
    """
    refuse_foreign_folder(output_dir)
    stored = read_manifest(output_dir / RUN, output_dir)
    holds_nothing = stored and not stored.get(FINISHED) and not any(output_dir.glob("checkpoint-*"))
    if stored and holds_nothing and describe_difference(stored[CONFIGURATION], configuration):
        for name in DERIVED:
            shutil.rmtree(output_dir / name, ignore_errors=True)  # a file is left by it
            (output_dir / name).unlink(missing_ok=True)
        write_manifest(output_dir / RUN, {CONFIGURATION: configuration})
    return bool(claim(output_dir / RUN, configuration, output_dir).get(FINISHED))


def refuse_foreign_folder(output_dir: Path) -> None:
    """Leave a folder alone that is not empty and holds no run.

    Raises:
        InputError: it is such a folder, or a file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file", "pass another {output_dir}")
    if (output_dir / RUN).exists() or not output_dir.is_dir():
        return
    if any(path.name != LOCK and not path.name.startswith(f"{LOCK}-") for path in output_dir.iterdir()):
        raise InputError(f"{output_dir} is not empty and holds no run", "pass another {output_dir} or empty it")


def mark_finished(output_dir: Path) -> None:
    """Note that the model is saved and nothing is left to do."""
    write_manifest(output_dir / RUN, (read_manifest(output_dir / RUN, output_dir) or {}) | {FINISHED: True})
