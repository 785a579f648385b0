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
from typer.testing import CliRunner

from ctxaware.commands.app import app
from ctxaware.errors import InputError
from ctxaware.experiment.config import read_experiment
from ctxaware.experiment.plan import Plan
from ctxaware.experiment.recipes import recipes_folder, snakefile
from ctxaware.experiment.run import OF_EXPERIMENT, arguments, end_what_is_left

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


def kill_when(file, is_time, kill, number=signal.SIGKILL):
    """Start it, and send a signal when it is time: by `os.killpg` to all, by `os.kill` to the command alone."""
    running = start(file)
    while not is_time():
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.01)
    kill(running.pid, number)
    out, _ = running.communicate(timeout=120)
    return running.returncode, out


def in_process(*words):
    """The command without a process of its own: nothing heavy is imported twice."""
    done = CliRunner().invoke(app, ["experiment", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def of_kind(plan, kind):
    return [step for step in plan.steps if step.kind == kind]


def last_line(text):
    return text.strip().splitlines()[-1]


def test_dry_run_prints_each_step_as_a_command_and_what_is_there(tmp_path):
    chats = experiments.content(tmp_path)["data"][0]
    file = experiments.write(tmp_path, data=[chats, {**chats, "name": "more", "dataset": "sharegpt"}])
    status, out = in_process("run", file, "--dry-run")
    assert status == 0, out
    plan = Plan(read_experiment(file))
    for step in plan.steps:
        assert f"# {step.kind} {step.name}: to do\n{step.shell}\n" in out
    assert last_line(out) == "# 16 steps, 16 of them to do"
    assert not (tmp_path / "out").exists()

    def is_done(kind, data, seconds_ago):
        (step,) = [step for step in of_kind(plan, kind) if data in step.name]
        step.folder.mkdir(parents=True)
        step.done.touch()
        os.utime(step.done, (time.time() - seconds_ago,) * 2)
        return step

    done = [is_done("prepare", "chats", 100), is_done("vanilla", "chats", 60), is_done("prepare", "more", 10)]
    is_done("vanilla", "more", 60)  # before its data were prepared anew
    _, out = in_process("run", file, "--dry-run")
    assert set(re.findall(r"^# \w+ (\S+): done$", out, flags=re.MULTILINE)) == {step.name for step in done}
    assert last_line(out) == "# 16 steps, 13 of them to do"
    status, said = run(file, "--", "--dry-run")  # Snakemake's own says the same
    assert status == 0, said
    to_do = {step.name for step in plan.steps if f"{step.name}.log" in said}
    assert to_do == {step.name for step in plan.steps if step not in done}
    assert last_line(said) == f"{tmp_path}/out: 13 steps are left to do"


def test_mistakes_are_a_line_each_and_nothing_is_written(tmp_path):
    file = experiments.write(tmp_path, score_layer=15, evaluate={"tasks": "nih_ctx", "metadata": {"source": "none"}})
    status, out = in_process("run", file)
    assert status == 2
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)
    assert "source none does not exist" in lines[1]
    assert not (tmp_path / "out").exists()


def test_init_writes_an_example_and_overwrites_nothing(tmp_path):
    status, out = in_process("init")
    assert (status, out) == (
        0,
        "experiment.yaml: change it to your needs, then: ctxaware experiment run experiment.yaml\n",
    )
    assert read_experiment(Path("experiment.yaml")).out == "experiments/mine"
    with pytest.raises(InputError, match=r"experiment\.yaml is there already; name another file, or remove it"):
        in_process("init")
    with pytest.raises(InputError, match="--like must be one of beta, demo, example, paper, got 'mine'"):
        in_process("init", "other.yaml", "--like", "mine")


def test_the_slurm_profile_asks_for_gpus_and_time_for_each_step(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    file = experiments.write(tmp_path)
    launch = tmp_path / "launch.yaml"
    launch.write_text(launch.read_text().replace("num_processes: 1", "num_processes: 2").replace("true", "false"))
    profile = recipes_folder() / "experiment" / "profiles" / "slurm"
    words = ["--snakefile", snakefile(), "--configfile", file, "--profile", profile, "--dry-run", "--cores", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *words], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    out = done.stdout + done.stderr
    assert done.returncode == 0, out
    steps = re.findall(r"logs/(\w+)/.*\n +asks for: (.*)", out)
    assert dict(steps) == {
        "prepare": "1 threads, 0 GPU, 60 min, 8000 MB",
        "vanilla": "16 threads, 2 GPU, 2880 min, 128000 MB",
        "score": "4 threads, 2 GPU, 360 min, 32000 MB",
        "indicator": "16 threads, 2 GPU, 2880 min, 128000 MB",
        "evaluate": "4 threads, 2 GPU, 720 min, 32000 MB",
        "gate": "1 threads, 0 GPU, 60 min, 8000 MB",
        "report": "1 threads, 0 GPU, 60 min, 8000 MB",
    }


def dates_of(steps):
    return {step.name: step.done.stat().st_mtime_ns for step in steps}


def test_what_snakemake_is_called_with(tmp_path, monkeypatch):
    plan, file = Plan(read_experiment(experiments.write(tmp_path))), Path("e.yaml")

    def said(cores=None, more=()):
        return " ".join(arguments(plan, file, cores, more))

    assert said().endswith("--nolock --quiet host reason --cores all")
    assert said(cores=4).endswith("--cores 4")
    profile = recipes_folder() / "experiment" / "profiles" / "slurm"
    assert said(more=["--profile", "recipes/experiment/profiles/slurm"]).endswith(f"reason --profile {profile}")
    monkeypatch.setattr(plan, "n_gpus", 8)
    assert said().endswith("--cores all --resources gpu=8"), "one step at a time has the GPUs of this machine"
    assert "gpu=" not in said(more=["--jobs=3", "--executor", "slurm"])


def test_what_a_killed_run_left_at_work_is_ended_and_nothing_else(tmp_path):
    def at_work(of):
        environment = {**os.environ, OF_EXPERIMENT: str(of)}
        return subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE)

    mine, other, none = at_work(tmp_path / "out"), at_work(tmp_path / "out2"), at_work("")
    try:
        assert end_what_is_left(tmp_path / "elsewhere" / ".." / "out") == 1
        assert mine.poll() is not None
        assert (other.poll(), none.poll()) == (None, None)
        assert end_what_is_left(tmp_path / "out") == 0
    finally:
        for process in (mine, other, none):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_sigterm_ends_the_step_that_is_at_work_too(tmp_path):
    file = experiments.write(tmp_path)
    plan = Plan(read_experiment(file))
    logs = [plan.log(step) for step in of_kind(plan, "vanilla")]

    def in_training():
        return any(log.is_file() and log.stat().st_size > 300 for log in logs)

    status, out = kill_when(file, in_training, os.kill, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, out
    assert last_line(out) == "interrupted: what is done is kept; run the same command again to go on"
    assert end_what_is_left(plan.out) == 0


@pytest.mark.long
def test_killed_in_training_and_in_evaluation_it_goes_on_and_ends_though_one_threshold_selects_nothing(tmp_path):
    evaluate = experiments.many_questions(tmp_path)
    file = experiments.write(tmp_path, seeds=[1, 2], thresholds=[0.3, 0.99], evaluate=evaluate)
    plan = Plan(read_experiment(file))
    vanilla, evaluations = of_kind(plan, "vanilla"), of_kind(plan, "evaluate")

    def in_training():
        return next((step for step in vanilla if (step.folder / "checkpoint-2" / "complete.json").is_file()), None)

    kill_when(file, in_training, os.killpg)
    trained = in_training()
    assert not trained.done.exists()

    def in_evaluation():
        return next((step for step in evaluations if n_answers(step.folder) > 5 and not step.done.is_file()), None)

    kill_when(file, in_evaluation, os.kill)
    assert f"taking up the run at {trained.folder}/checkpoint-" in plan.log(trained).read_text()
    asked = in_evaluation()
    n_there = n_answers(asked.folder)
    done = [step for step in plan.steps if step.done.is_file()]
    dates = dates_of(done)

    status, out = run(file)
    assert status == 1, out
    assert f"{len(plan.steps)} steps, {len(plan.steps) - len(done)} of them to do" in out
    assert dates_of(done) == dates, "what was done is not done again"
    (cached,) = re.findall(r"Cached requests: (\d+)", plan.log(asked).read_text())[-1:]
    assert int(cached) >= n_there
    failed = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(failed) == 2, "a threshold that selects nothing fails, for each seed"
    for line in failed:
        assert re.match(
            r"error: indicator tiny-chats-beta-0.99-seed-[12]-\w+ failed: with threshold 0.99 no instr", line
        )
        assert Path(line.rpartition(" - log: ")[2]).is_file()
    assert {step.kind for step in plan.steps if not step.done.is_file()} == {"indicator", "evaluate", "gate", "report"}
    assert sum(step.done.is_file() for step in evaluations) == 4, "the others went on"

    file = experiments.write(tmp_path, seeds=[1, 2], thresholds=[0.3], evaluate=evaluate)
    status, out = run(file)
    assert status == 0, out
    plan = Plan(read_experiment(file))
    assert f"{len(plan.steps)} steps, 1 of them to do" in out, "all but the report serves on"
    (report,) = of_kind(plan, "report")
    assert last_line(out) == f"report: {report.folder}/report.html"
    # a tiny random model scores 0 with every seed, and seeds that agree have no interval
    table = re.findall(r"^\| ([^|]*) \| [+-]0\.\d+ \[.*?\] \|(?: [+-]0\.\d+ \[.*?\] \|)?$", out, flags=re.MULTILINE)
    assert table == ["+ Indicator, \\[IND\\] always"]
    page = (report.folder / "report.md").read_text()
    for part in ("Over seeds", "vanilla, seed 1", "scores, seed 2"):
        assert part in page
    status, again = run(file)
    assert status == 0
    assert again.splitlines()[1:] == out[out.index("\ntiny-chats: ") :].splitlines()


def n_answers(folder):
    """Answers that an evaluation has kept."""
    import sqlite3

    total, asked = 0, "SELECT count(*) FROM unnamed WHERE key NOT LIKE 'ctxaware %'"
    for path in folder.glob("answers*.db"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1) as connection:
                total += connection.execute(asked).fetchone()[0]
        except sqlite3.Error:  # being made
            continue
    return total
