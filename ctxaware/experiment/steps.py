"""A step of an experiment: one command, and the folder of its results.

The folder's name ends in a key: a hash of all that its content depends on, down to the data and the base model. So a
changed setting makes new folders for exactly the steps that depend on it, the old ones stay, and going back to an
earlier setting finds them. A step is done when `.done` stands in its folder, which is written after its command.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE = ".done"


@dataclass(frozen=True)
class Step:
    """One command and where its results go.

    Attributes:
        kind: the workflow's rule.
        name: of its folder, unique within the kind; ends in the key.
        folder: of its results.
        command: its words.
        inputs: the steps whose results it reads.
        first: steps that have to be there, whenever they were made.
        n_gpus: that it uses.
        verdict: the file that says what an exit code other than 0 means, as the gate's; None where only 0 is good.
    """

    kind: str
    name: str
    folder: Path
    command: tuple[str, ...]
    inputs: tuple["Step", ...] = ()
    first: tuple["Step", ...] = ()
    n_gpus: int = 0
    verdict: str | None = None

    @property
    def key(self) -> str:
        """The hash at the end of its name."""
        return self.name.rpartition("-")[2]

    @property
    def done(self) -> Path:
        """The file that says it is done."""
        return self.folder / DONE

    @property
    def shell(self) -> str:
        """The command as a person would type it."""
        line = shlex.join(self.command)
        if self.verdict is None:
            return line
        return f"{line} || [ $? -ne 2 -a -f {shlex.quote(str(self.folder / self.verdict))} ]"

    @property
    def is_to_do(self) -> bool:
        """Whether the workflow runs it: it is not done, or was done before what it reads."""
        if not self.done.is_file() or any(step.is_to_do for step in self.inputs):
            return True
        return any(step.done.stat().st_mtime > self.done.stat().st_mtime for step in self.inputs)


@dataclass(frozen=True)
class Row:
    """A tuned model, or the base, as the tables show it.

    Attributes:
        title: of the model; the same for all seeds.
        name: as the report knows it: the title, and the seed where there are several.
        seed: of its training; None for the base.
        evaluations: by condition.
        training: None for the base.
        answers: MT-Bench's, where they are asked for.
    """

    title: str
    name: str
    seed: int | None
    evaluations: Mapping[str, Step]
    training: Step | None = None
    answers: Step | None = None


@dataclass(frozen=True)
class Comparison:
    """One model on one data set: vanilla against + Indicator.

    Attributes:
        name: `MODEL-DATA`.
        rows: of vanilla first.
        scores: of the training turns, by seed.
        gates: is a run worse than another?
        judge: MT-Bench's; None where none is named.
        report: of everything.
    """

    name: str
    rows: Sequence[Row]
    scores: Mapping[int, Step]
    gates: Sequence[Step]
    judge: Step | None
    report: Step


def key_of(*parts: Any) -> str:
    """Eight letters that are the same for the same parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def make_step(out: Path, kind: str, name: str, key: str, command: Sequence[str], **more: Any) -> Step:
    """A step; `{folder}` in the words of its command stands for its folder."""
    full = f"{name}-{key}"
    folder = out / kind / full
    words = tuple(word.replace("{folder}", str(folder)) for word in command)
    return Step(kind, full, folder, words, **more)
