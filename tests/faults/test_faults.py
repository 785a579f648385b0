"""Every long command, disturbed in every way: the same command afterwards gives the undisturbed result.

The table of docs/reliability.md names these tests. A command is disturbed at a file that it is about to put in its
place, so the moment is the same each time.
"""

import contextlib
import importlib
import json
import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastchat", reason="needs the extra mt-bench")
pytest.importorskip("trl", reason="needs the extra train")

from support import auto, faults, scores, tiny
from support.mt_bench import read_jsonl, write_answers, write_data
from support.server import Server
from support.training_runs import command as training_command
from support.training_runs import conversations, prepared_base
from support.training_runs import write_data as write_chats

from ctxaware.mt_bench.fastchat import load_fastchat

ROOT = Path(__file__).parents[2]
NEEDLES = ("--grid", "2x1", "--max-context-length", "450", "--source", "builtin")
QUICK = ("prepare", "score", "select", "fit", "answer", "judge")
NOISE = r".*(?:[Ww]arn|deprecat|Failed to load|kernels-community).*"  # users can do nothing about it
EVERYTHING = os.environ.get("CTXAWARE_FAULTS") == "all"


@dataclass(frozen=True)
class Place:
    """What all commands read."""

    folder: Path
    url: str

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def marked(self) -> Path:
        """A model with `[IND]` and an automatic indicator."""
        return self.folder / "marked"

    @property
    def chats(self) -> Path:
        return self.folder / "chats.jsonl"


@dataclass(frozen=True)
class Command:
    """A long command.

    Attributes:
        argv: its words, with the output to write.
        result: what of an output must be as in the undisturbed run.
        at_file: it is disturbed at this file, of those that it puts in their places.
        output: name of its output.
        prepare: makes what must be there before in the output.
        without: entries of a result that differ from run to run.
    """

    argv: Callable[[Place, Path], list]
    result: Callable[[Path], Any]
    at_file: int
    output: str = "out"
    prepare: Callable[[Path], None] = lambda out: None


def bytes_of(*names):
    return lambda out: {name: (out / name).read_bytes() for name in names}


def rows_of(name, *without):
    def read(out):
        rows = read_jsonl(out / name)
        return sorted(json.dumps({k: v for k, v in row.items() if k not in without}, sort_keys=True) for row in rows)

    return read


def gap_result(out):
    gap = json.loads((out / "gap.json").read_text())
    return gap["cells"], gap["effects"], (out / "gap.md").read_text(), (out / "gap.png").is_file()


def steer_result(out):
    steer = json.loads((out / "steer.json").read_text())
    return {**steer, "plan": None}, (out / "recall.png").is_file()


def evaluated_result(out):
    evaluated = json.loads((out / "auto_evaluation.json").read_text())
    return evaluated, (out / "auto_evaluation.md").read_text()


def heads_result(out):
    return json.loads(out.read_text()), out.with_suffix(".png").is_file()


def weights(out):
    (file,) = out.glob("*.safetensors")
    run = json.loads((out / "run.json").read_text())
    return file.read_bytes(), run["finished"], (out / "README.md").is_file()


def endpoint(place, out):
    return ("--base-url", place.url, "--data-dir", place.folder / "bench", "--out", out)


TRAINING = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "3", "--dataloader_num_workers", "1")
COMMANDS = {
    "prepare": Command(
        lambda place, out: ["prepare", place.chats, "--dataset", "messages", "--out", out],
        bytes_of("conversations.parquet", "statistics.json"),
        at_file=2,
    ),
    "score": Command(
        lambda place, out: [
            *("score", place.chats, "--model", place.model, "--layer", "1", "--device", "cpu"),
            *("--max-length", "128", "--batch-tokens", "512", "--out", out),
        ],
        Path.read_bytes,
        at_file=3,
        output="scores.parquet",
    ),
    "select": Command(
        lambda place, out: [
            *("select", place.folder / "scored.jsonl", "--scores", place.folder / "scores.parquet"),
            *("--threshold", "0.5", "--out", out),
        ],
        bytes_of("conversations.parquet", "statistics.json", "scores.png", "instruction_lengths.png"),
        at_file=2,
    ),
    "gap": Command(
        lambda place, out: [
            *("gap", "--instruct", place.model, "--tasks", "nih_ctx", *NEEDLES, "--device", "cpu"),
            *("--batch-size", "4", "--out", out),
        ],
        gap_result,
        at_file=3,
    ),
    "attention": Command(
        lambda place, out: ["attention", "--instruct", place.model, "--layer", "1", *NEEDLES, "--out", out],
        bytes_of("attention.parquet", "attention.json", "attention.md", "allocation.png"),
        at_file=3,
    ),
    "heads": Command(
        lambda place, out: ["heads", place.model, *NEEDLES, "--out", out],
        heads_result,
        at_file=2,
        output="heads.json",
    ),
    "steer": Command(
        lambda place, out: [
            *("steer", "--instruct", place.model, "--tasks", "nih_ctx", "--alphas", "0.1", "--heads", "all"),
            *(*NEEDLES, "--device", "cpu", "--batch-size", "4", "--out", out),
        ],
        steer_result,
        at_file=4,
    ),
    "fit": Command(
        lambda place, out: [
            *("auto", "fit", "--model", place.marked, "--method", "slot", "--beta", "0.5", "--device", "cpu"),
            *("--data", place.chats, "--scores", place.folder / "chats.parquet", "--out", out),
        ],
        lambda out: (json.loads((out / "auto_indicator.json").read_text()), (out / "auto_indicator.png").is_file()),
        at_file=2,
    ),
    "evaluate": Command(
        lambda place, out: [
            *("auto", "evaluate", "--model", place.marked, *NEEDLES, "--limit", "2", "--device", "cpu"),
            *("--batch-size", "4", "--max-new-tokens", "4", "--out", out),
        ],
        evaluated_result,
        at_file=3,
    ),
    "answer": Command(
        lambda place, out: ["mt-bench", "answer", "--model", "m", "--model-id", "m", *endpoint(place, out)],
        rows_of("model_answer/m.jsonl", "answer_id", "tstamp"),
        at_file=4,
    ),
    "judge": Command(
        lambda place, out: ["mt-bench", "judge", "--judge-model", "judge", *endpoint(place, out)],
        rows_of("model_judgment/judge_single.jsonl", "tstamp"),
        at_file=6,
        prepare=write_answers,
    ),
    "training": Command(
        lambda place, out: [
            "sft_vanilla.py",
            *training_command(place.folder / "base", place.folder / "few.jsonl", out, *TRAINING),
        ],
        weights,
        at_file=5,
    ),
}


def import_all():
    """What the commands import, once for all processes that are forked from this one."""
    for name in (
        "lm_eval.evaluator",
        "matplotlib.figure",
        "openai",
        "ctxaware.harness.model",
        "ctxaware.harness.tasks",
    ):
        importlib.import_module(name)
    load_fastchat()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import_all()
    folder = tmp_path_factory.mktemp("faults")
    tiny.save_model(folder / "model", tiny.byte_level_tokenizer())
    tokenizer = auto.tokenizer_with_indicator()
    auto.save_indicator(auto.save_model(folder / "marked", tokenizer), tokenizer)
    prepared_base(folder / "base")
    write_chats(folder / "few.jsonl")
    chats = conversations(70)
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    scores.write_scores(
        folder / "chats.parquet",
        conversations=chats,
        score=lambda name, turn, _: random.Random(f"{name} {turn}").random(),
    )
    (folder / "scored.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in scores.CONVERSATIONS))
    scores.write_scores(folder / "scores.parquet")
    write_data(folder / "bench")
    server = Server()
    yield Place(folder, server.url)
    server.close()


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory):
    """By command: the result of a run that nothing disturbs, and the bytes of its output. Made when first asked for."""
    made = {}

    def of(name):
        if name not in made:
            command, folder = COMMANDS[name], tmp_path_factory.mktemp(f"{name}-undisturbed")
            out = folder / "run" / command.output
            command.prepare(out)
            assert faults.run(command.argv(place, out), folder / "log") == 0, (folder / "log").read_text()
            assert re.findall(NOISE, (folder / "log").read_text()) == []
            made[name] = command.result(out), faults.size_of(out.parent)
        return made[name]

    return of


@dataclass
class Run:
    """One command in a place of its own, and what the undisturbed one gave."""

    place: Place
    command: Command
    folder: Path
    expected: Any
    size: int

    @property
    def out(self) -> Path:
        return self.folder / "run" / self.command.output

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def words(self) -> list:
        return self.command.argv(self.place, self.out)

    def again(self, code=0, at_file=0, number=signal.SIGKILL) -> str:
        """Run it, expecting an exit code; what it printed."""
        got = faults.run(self.words(), self.log, at_file, number)
        printed = self.log.read_text()
        assert got == code, printed
        assert "Traceback" not in printed, printed
        return printed

    def refused(self) -> str:
        """Run it, expecting one line that says what to do."""
        printed = self.again(code=2)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, printed
        return errors[0]

    def check(self):
        """The result is the undisturbed one, and nothing half-written is left."""
        assert self.command.result(self.out) == self.expected
        assert faults.unfinished(self.folder) == []


@pytest.fixture
def disturbed(place, undisturbed, tmp_path):
    """A command by name, with an output of its own."""

    def of(name):
        return Run(place, COMMANDS[name], tmp_path, *undisturbed(name))

    return of


def cells(*others):
    """All commands; those that are neither quick nor among `others` only where everything is asked for."""
    skipped = pytest.mark.skipif(not EVERYTHING, reason="CTXAWARE_FAULTS=all runs every cell of the table")
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in (*QUICK, *others) else skipped) for name in COMMANDS]
    )


@cells("training", "heads")
def test_kill_9(disturbed, name):
    run = disturbed(name)
    run.command.prepare(run.out)
    run.again(-signal.SIGKILL, run.command.at_file)
    run.again()
    run.check()


@cells("gap")
def test_sigterm(disturbed, name):
    run = disturbed(name)
    run.command.prepare(run.out)
    child = faults.start(run.words(), run.log, run.command.at_file, signal.SIGTERM)
    code, printed = faults.ended(child), run.log.read_text()
    assert code == 143, printed
    assert printed.count("interrupted: what is done is kept; run the same command again to go on") == 1
    assert "Traceback" not in printed
    assert faults.unfinished(run.folder) == []
    assert faults.processes_of(child) == []
    run.again()
    run.check()


@pytest.fixture
def disk(tmp_path):
    """A disk of its own for the runs of a test; takes its size in bytes."""
    if not faults.can_mount(tmp_path / "try"):
        pytest.skip("no file system can be mounted here")
    with contextlib.ExitStack() as stack:
        yield lambda size: stack.enter_context(faults.mounted(tmp_path / "run", size))


@cells("training", "gap")
def test_full_disk(disturbed, disk, name):
    run = disturbed(name)
    remount = disk(max(run.size // 8192, 1) * 4096)
    run.command.prepare(run.out)
    assert re.search("make room", run.refused())
    assert faults.unfinished(run.folder) == []
    remount(f"size={64 * faults.MEBIBYTE}")
    run.again()
    run.check()


@cells("attention")
def test_read_only(disturbed, disk, name):
    run = disturbed(name)
    remount = disk(64 * faults.MEBIBYTE)
    run.command.prepare(run.out)
    run.again(-signal.SIGKILL, run.command.at_file)
    remount("ro")
    assert re.search("[Rr]ead-only|readonly|can't (lock|write)", run.refused())
    remount("rw")
    run.again()
    run.check()


@cells("training")
def test_torn_newest_file(disturbed, name):
    run = disturbed(name)
    run.command.prepare(run.out)
    run.again(-signal.SIGKILL, run.command.at_file)
    files = [p for p in run.out.parent.rglob("*") if p.is_file() and p.stat().st_size and "lock" not in p.name]
    newest = max((p for p in files if not p.name.endswith(".unfinished")), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    code = faults.run(run.words(), run.log)
    if code:  # it says which file, and what to do about it
        (line,) = [line for line in run.log.read_text().splitlines() if line.startswith("error: ")]
        assert code == 2
        assert newest.name in line
        assert "remove" in line
        newest.unlink()
        run.again()
    run.check()


@cells("steer")
def test_second_process(disturbed, name):
    run = disturbed(name)
    run.command.prepare(run.out)
    first = faults.start(run.words(), run.folder / "first", run.command.at_file, signal.SIGSTOP)
    try:
        faults.wait_until_stopped(first)
        assert "another process is writing" in run.refused()
    finally:
        os.kill(first, signal.SIGCONT)
    assert faults.ended(first) == 0, (run.folder / "first").read_text()
    run.check()


def test_the_table_of_the_documentation_names_these_tests():
    """Each command has a row, each disturbance a column, and each cell a test that there is."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(test_\w+)\[(\w+)\]`", text))
    kinds = [name for name in globals() if name.startswith("test_") and hasattr(globals()[name], "pytestmark")]
    assert named == {(kind, name) for kind in kinds for name in COMMANDS}
