"""Running an experiment's workflow with Snakemake, in this very process: whatever ends it, no lock is left behind."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctxaware.errors import InputError
from ctxaware.experiment.plan import Plan
from ctxaware.experiment.recipes import located, snakefile
from ctxaware.experiment.steps import Step
from ctxaware.runs.claim import locked

OF_EXPERIMENT = "CTXAWARE_EXPERIMENT"  # in the environment of all that a run starts: the experiment's folder
_CLUSTER = ("--profile", "--workflow-profile", "--executor", "-e", "--jobs", "-j", "--cores", "-c")


def arguments(plan: Plan, file: Path, cores: int | None, more: Sequence[str]) -> list[str]:
    """What `snakemake` is called with.

    Args:
        plan: of the experiment.
        file: the experiment's.
        cores: at most so many at a time; None for all of this machine, or what `more` says.
        more: options of Snakemake's own.
    """
    words = ["--snakefile", str(snakefile()), "--configfile", str(file)]
    words += ["--keep-going", "--rerun-incomplete", "--rerun-triggers", "mtime"]
    words += ["--nolock"]  # we hold a lock that the system frees when this process ends
    words += ["--quiet", "host", "reason"]
    elsewhere = any(word.split("=")[0] in _CLUSTER for word in more)
    if cores or not elsewhere:
        words += ["--cores", str(cores or "all")]
    if plan.n_gpus and not elsewhere:
        words += ["--resources", f"gpu={plan.n_gpus}"]  # a step takes them all: nothing else hands GPUs out here
    return [*words, *_located_profile(more)]


def _located_profile(words: Sequence[str]) -> Iterator[str]:
    """Snakemake's options, with a profile of ours found wherever it is installed."""
    after_profile = False
    for word in words:
        yield located(word) if after_profile else word
        after_profile = word in ("--profile", "--workflow-profile")


def run(plan: Plan, file: Path, cores: int | None = None, more: Sequence[str] = ()) -> list[Step]:
    """Run all steps that are to do.

    Args:
        plan, file, cores, more: as for `arguments`.

    Returns:
        The steps that failed; empty where everything is done.

    Raises:
        InputError: another process is at this experiment, or Snakemake failed where no step did.
    """
    from snakemake.cli import main

    started = time.time()
    with locked(plan.out / ".lock", plan.out):
        if n_ended := end_what_is_left(plan.out):
            print(f"{plan.out}: ended {n_ended} processes of a run that was killed", flush=True)
        os.environ[OF_EXPERIMENT] = str(plan.out.resolve())
        try:
            with _interruptions_reach_steps(plan.out):
                main(arguments(plan, file, cores, more))
        except SystemExit as end:
            if end.code in (0, None):
                return []
    failed = [step for step in plan.steps if not step.done.is_file() and _was_at_work(plan.log(step), started)]
    if not failed:
        raise InputError("Snakemake ended with an error that is no step's; what it says stands above")
    return failed


@contextlib.contextmanager
def _interruptions_reach_steps(out: Path) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the steps at work too; then the signal comes once more, to who handled it before.

    Snakemake answers SIGTERM by a handler of its own, and then waits until its steps are done, which may take hours.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def end_steps() -> None:
        while number := os.read(reader, 1)[0]:  # 0 is no signal: the block has ended
            if number in handlers:
                received.append(number)
                _end_processes(out, "terminate")

    thread = threading.Thread(target=end_steps, daemon=True)
    thread.start()
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # is told of signals whoever handles them
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            end_what_is_left(out)
            signal.raise_signal(received[0])


def end_what_is_left(out: Path) -> int:
    """End the processes that a killed run of an experiment left at work; returns how many.

    Launchers start trainers in sessions of their own, so whatever killed the run may not have reached them. Hold the
    experiment's lock: then none of them can be of a run that lives.
    """
    return _end_processes(out, "kill")


def _end_processes(out: Path, how: str) -> int:
    """Call a method of psutil's `Process` on all of an experiment but this one, and wait until they are gone."""
    import psutil

    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(OF_EXPERIMENT) == str(out.resolve()):
                getattr(process, how)()
                left.append(process)
        except (psutil.Error, OSError):  # gone, or somebody else's
            continue
    psutil.wait_procs(left, timeout=60)
    return len(left)


def _was_at_work(log: Path, started: float) -> bool:
    return log.is_file() and log.stat().st_mtime >= started


def failure(plan: Plan, step: Step) -> str:
    """One line: which step failed, the last line that it wrote, and its log."""
    lines = plan.log(step).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or lines or ["nothing was written"])[-1].removeprefix("error: ")
    return f"{step.kind} {step.name} failed: {said[:300]} - log: {os.path.relpath(plan.log(step))}"
