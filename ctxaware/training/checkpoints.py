"""What a training run leaves in its output folder, so that the same command takes it up after any interruption."""

import json
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from ctxaware.errors import InputError
from ctxaware.runs.files import write_json

RUN = "run.json"  # the configuration of the run, and whether it is finished
DATA = "_data"  # what starts with _ is left out of an upload to the hub
SCORES = "scores.parquet"
WATCH = "watch.json"  # what the probe of the use of the context scored, probe by probe
DERIVED = (DATA, "selection", SCORES, f"{SCORES}.parts", WATCH)  # what the configuration determines
COMPLETE = "complete.json"  # in a checkpoint, written last: its files and their sizes


class CompleteCheckpoints(TrainerCallback):
    """Writes into each checkpoint, when every process is done with it, what belongs to it."""

    def on_save(self, args, state, control, **kwargs) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / COMPLETE, _sizes(folder))


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE and not p.name.startswith("."))
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def newest_complete(output_dir: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that has all its files in full length, and the newer ones that lack something."""
    passed_over = []
    found = [p for p in output_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for folder in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        stored = folder / COMPLETE
        if stored.is_file() and json.loads(stored.read_text()).items() <= _sizes(folder).items():
            return folder, passed_over
        passed_over.append(folder)
    return None, passed_over


def claim_output(output_dir: Path, configuration: dict) -> bool:
    """Take an output folder for a run of this configuration, or for the rest of one.

    A run that ended before its first checkpoint (a mistake in the arguments, most often) holds nothing: its place is
    taken over.

    Returns:
        Whether the run is finished already.

    Raises:
        InputError: the folder holds a run of another configuration, or something else.
    """
    stored = output_dir / RUN
    if not stored.is_file():
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise InputError(f"{output_dir} is not empty and holds no run; pass another --output_dir or empty it")
        write_json(stored, {"configuration": configuration, "finished": False})
        return False
    run = json.loads(stored.read_text())
    before, now = run["configuration"], json.loads(json.dumps(configuration))
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing and not run["finished"] and not any(output_dir.glob("checkpoint-*")):
        for name in DERIVED:
            shutil.rmtree(output_dir / name, ignore_errors=True)  # a file is left by it
            (output_dir / name).unlink(missing_ok=True)
        write_json(stored, {"configuration": configuration, "finished": False})
        return False
    if differing:
        told = ", ".join(f"{key} {_short(before.get(key))} (now {_short(now.get(key))})" for key in differing)
        raise InputError(f"{output_dir} holds a run with {told}; pass another --output_dir or remove it")
    return run["finished"]


def mark_finished(output_dir: Path) -> None:
    """Note that the model is saved and nothing is left to do."""
    run = json.loads((output_dir / RUN).read_text())
    write_json(output_dir / RUN, run | {"finished": True})


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
