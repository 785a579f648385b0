"""The harness's sample files: finding them, reading them, and what their run was."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ctxaware.errors import InputError

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d\-.]+)\.jsonl")


@dataclass(frozen=True)
class SampleFile:
    """One task's samples from one run of the harness."""

    path: Path
    task: str
    date: str

    def rows(self) -> list[dict]:
        """The samples, in the file's order. Lines end in a line feed only: texts may hold other line ends.

        Raises:
            InputError: a line is not whole JSON; says which.
        """
        rows = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{self.path}, line {number}: not whole JSON ({error.msg}); run the task again"
                ) from error
        if not rows:
            raise InputError(f"{self.path} is empty; run the task again")
        return rows

    def results(self) -> dict:
        """The run's results file beside the samples; empty where it is absent."""
        path = self.path.with_name(f"results_{self.date}.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def find_samples(path: Path, task_prefix: str) -> list[SampleFile]:
    """Sample files of tasks whose name starts with `task_prefix`: `path` itself, or all below a folder.

    Raises:
        InputError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"))
    found = [SampleFile(f, m["task"], m["date"]) for f in files if (m := _NAME.fullmatch(f.name))]
    found = [f for f in found if f.task.startswith(task_prefix)]
    if not found:
        raise InputError(
            f"no sample file of {task_prefix} at {path}; expected samples_{task_prefix}_DATE.jsonl, which "
            f"lm_eval writes with --log_samples --output_path FOLDER"
        )
    return found
