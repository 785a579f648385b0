"""`ctxaware experiment run` as a user starts it: what it prints, killed, taken up, changed, failing in a part."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytest.importorskip("snakemake")

from support import experiments

from ctxaware.experiment.config import read_experiment
from ctxaware.experiment.plan import Plan

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path, monkeypatch):
    """Paths of commands are from the working directory."""
    monkeypatch.chdir(tmp_path)


def start(file, *more):
    words = [sys.executable, "-m", "ctxaware", "experiment", "run", str(file), *more]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        cwd=file.parent,
        start_new_session=True,
    )


def run(file, *more):
    running = start(file, *more)
    out, _ = running.communicate()
    return running.returncode, out


def kill_when(file, is_time):
    """Start it, and end it with all its children when it is time, as a power cut would."""
    running = start(file)
    while not is_time():
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()


def test_dry_run_prints_each_step_as_a_command_and_what_is_there(tmp_path):
    file = experiments.write(tmp_path, thresholds=[0.3, 0.35])
    status, out = run(file, "--dry-run")
    assert status == 0, out
    plan = Plan(read_experiment(file))
    for step in plan.steps:
        assert f"# {step.kind} {step.name}: to do\n{step.shell}\n" in out
    assert out.splitlines()[-1] == "# 11 steps, 11 of them to do"
    assert not (tmp_path / "out").exists()

    for step in plan.steps[:2]:
        step.folder.mkdir(parents=True)
        step.done.touch()
    status, out = run(file, "--dry-run")
    assert f"# vanilla {plan.steps[1].name}: done\n" in out
    assert out.splitlines()[-1] == "# 11 steps, 9 of them to do"
    status, said = run(file, "--", "--dry-run")  # Snakemake's own says the same
    assert status == 0, said
    assert {step.name for step in plan.steps if step.name + ".log" in said} == {step.name for step in plan.steps[2:]}
    assert said.splitlines()[-1].endswith("9 steps are left to do")

    os.utime(plan.steps[0].done, (time.time() + 60,) * 2)  # prepared anew: what reads it has to follow
    assert run(file, "--dry-run")[1].splitlines()[-1] == "# 11 steps, 10 of them to do"


def test_mistakes_are_a_line_each_and_nothing_is_written(tmp_path):
    file = experiments.write(tmp_path, score_layer=15, evaluate={"tasks": "nih_ctx", "metadata": {"source": "none"}})
    status, out = run(file)
    assert status == 2
    lines = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert "source none does not exist" in lines[1]
    assert "Traceback" not in out
    assert not (tmp_path / "out").exists()


def test_the_slurm_profile_asks_for_gpus_and_time_for_each_step(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    file = experiments.write(tmp_path)
    launch = tmp_path / "launch.yaml"
    launch.write_text(launch.read_text().replace("num_processes: 1", "num_processes: 2").replace("true", "false"))
    status, out = run(file, "--", "--profile", "recipes/experiment/profiles/slurm", "--dry-run")
    assert status == 0, out
    resources = re.findall(r"^rule (\w+):.*?resources: (.*?)$", out, flags=re.MULTILINE | re.DOTALL)
    assert resources == []


def of_kind(plan, kind):
    return [step for step in plan.steps if step.kind == kind]


def dates(steps):
    return {step.name: step.done.stat().st_mtime_ns for step in steps}


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_the_same_command_goes_on(tmp_path):
    file = experiments.write(tmp_path, evaluate=experiments.many_questions(tmp_path))
    plan = Plan(read_experiment(file))
    (vanilla,), evaluations = of_kind(plan, "vanilla"), of_kind(plan, "evaluate")
    kill_when(file, lambda: (vanilla.folder / "checkpoint-2" / "complete.json").is_file())
    assert not vanilla.done.exists()

    def some_answers():
        return any(step.folder.is_dir() and n_answers(step.folder) > 5 for step in evaluations)

    kill_when(file, some_answers)
    assert "taking up the run at" in plan.log(vanilla).read_text()
    done = [step for step in plan.steps if step.done.is_file()]
    asked = next(step for step in evaluations if step.folder.is_dir() and not step.done.is_file())
    n_there = n_answers(asked.folder)
    trained = dates(done)

    status, out = run(file)
    assert status == 0, out
    assert f"{len(plan.steps)} steps, {len(plan.steps) - len(done)} of them to do" in out
    assert dates(done) == trained, "what was done is not done again"
    (cached,) = re.findall(r"Cached requests: (\d+)", plan.log(asked).read_text())[-1:]
    assert int(cached) >= n_there
    assert "tiny-chats: Against vanilla" in out
    (report,) = of_kind(plan, "report")
    assert out.splitlines()[-1] == f"report: {report.folder}/report.html"
    assert (report.folder / "report.html").is_file()
    assert {"gate.md", "gate.json", "gate.xml"} <= {path.name for path in of_kind(plan, "gate")[0].folder.iterdir()}

    status, again = run(file)
    assert status == 0
    assert "of them to do" not in again.splitlines()[0] or ", 0 of them to do" in again.splitlines()[0]
    assert again.splitlines()[1:] == out[out.index("\ntiny-chats: ") :].splitlines()


@pytest.mark.slow
def test_two_thresholds_and_two_seeds_with_a_threshold_that_selects_nothing(tmp_path):
    file = experiments.write(tmp_path, seeds=[1, 2], thresholds=[0.3, 0.99])
    status, out = run(file)
    assert status == 1, out
    failed = [line for line in out.splitlines() if line.startswith("error: indicator ")]
    assert len(failed) == 2
    for line in failed:
        assert "failed: with threshold 0.99 no instruction is selected" in line
        assert Path(line.rpartition("log: ")[2]).name.startswith("tiny-chats-beta-0.99-seed-")
    plan = Plan(read_experiment(file))
    missing = {step.kind for step in plan.steps if not step.done.is_file()}
    assert missing == {"indicator", "evaluate", "gate", "report"}
    assert sum(step.done.is_file() for step in of_kind(plan, "evaluate")) == 4, "the others went on"
    there = dates(step for step in plan.steps if step.done.is_file())

    file = experiments.write(tmp_path, seeds=[1, 2], thresholds=[0.3, 0.31])
    status, out = run(file)
    assert status == 0, out
    plan = Plan(read_experiment(file))
    assert there.items() <= dates(plan.steps).items(), "a new threshold needs no new vanilla run and no new scores"
    for title in ("β=0.3, [IND] always", "β=0.31, [IND] always"):
        assert len(re.findall(rf"^\| {re.escape(title).replace('β', '.')} \|", out, flags=re.MULTILINE)) >= 0
    report = (of_kind(plan, "report")[0].folder / "report.md").read_text()
    for part in ("Over seeds", "Ablation of the threshold", "average, over seeds", "scores, seed 1"):
        assert part in report


def n_answers(folder):
    """Answers that an evaluation has kept."""
    import sqlite3

    total = 0
    for path in folder.glob("answers*.db"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1) as connection:
                total += connection.execute("SELECT count(*) FROM unnamed").fetchone()[0]
        except sqlite3.Error:  # being made
            continue
    return total
