"""`ctxaware experiment run`, disturbed: the same command goes on afterwards. Kill -9 is in test_run.py.

Only the data of an experiment are made here (what stands after `--` goes to Snakemake); the other steps are commands
whose interruptions tests/faults has.
"""

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

from support import experiments, faults

from ctxaware.errors import InputError
from ctxaware.experiment.config import read_experiment
from ctxaware.experiment.plan import Plan
from ctxaware.experiment.run import run as run_plan
from ctxaware.runs.claim import locked

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
UNTIL_PREPARED = ("--", "--until", "prepare")
SCRIPT = """import json, pathlib, sys, time
folder, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
(here / "started").touch()
while not (here / "go").exists():
    time.sleep(0.05)
messages = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
folder.mkdir(parents=True, exist_ok=True)
(folder / "conversations.jsonl").write_text(json.dumps({"id": "a", "messages": messages}) + "\\n")
"""


def start(file, *more):
    words = [sys.executable, "-m", "ctxaware", "experiment", "run", str(file), *more]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, cwd=file.parent,
        start_new_session=True,
    )  # fmt: skip


def run(file, *more):
    running = start(file, *more)
    out, _ = running.communicate()
    return running.returncode, out


def steps_of(file, kind):
    return [step for step in Plan(read_experiment(file)).steps if step.kind == kind]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_experiment_leaves_no_process_and_goes_on(tmp_path, number, code):
    (tmp_path / "make.py").write_text(SCRIPT)
    file = experiments.write(tmp_path, data=[{"name": "made", "script": str(tmp_path / "make.py")}])
    running = start(file, *UNTIL_PREPARED)
    while not (tmp_path / "started").exists():
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.05)
    os.kill(running.pid, number)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == code, out
    assert out.count("interrupted: what is done is kept; run the same command again to go on") == 1
    assert "Traceback" not in out
    assert faults.processes_of(running.pid) == []
    (tmp_path / "go").touch()
    status, out = run(file, *UNTIL_PREPARED)
    assert status == 0, out
    (prepared,) = steps_of(file, "prepare")
    assert prepared.done.is_file()


@pytest.fixture
def disk(tmp_path):
    if not faults.can_mount(tmp_path / "try"):
        pytest.skip("no file system can be mounted here")
    with faults.mounted(tmp_path / "disk", faults.MEBIBYTE) as remount:
        yield remount


def test_an_experiment_on_a_full_disk_names_the_step_and_goes_on(tmp_path, disk):
    file = experiments.write(tmp_path, out=str(tmp_path / "disk" / "out"))
    filler = tmp_path / "disk" / "filler"
    filler.write_bytes(b"0" * (faults.MEBIBYTE - 24 * 4096))
    status, out = run(file, *UNTIL_PREPARED)
    assert status in (1, 2), out
    assert "Traceback" not in out
    assert re.search(r"error: .*(No space left|make room)", out), out
    filler.unlink()
    status, out = run(file, *UNTIL_PREPARED)
    assert status == 0, out
    assert all(step.done.is_file() for step in steps_of(file, "prepare"))


def test_an_experiment_in_a_read_only_place_is_refused_and_goes_on(tmp_path, disk):
    file = experiments.write(tmp_path, out=str(tmp_path / "disk" / "out"))
    disk("ro")
    status, out = run(file, *UNTIL_PREPARED)
    assert status == 2, out
    assert "error: can't lock" in out
    disk("rw")
    status, out = run(file, *UNTIL_PREPARED)
    assert status == 0, out


def test_a_torn_file_of_a_step_is_named_by_the_step_that_reads_it(tmp_path):
    file = experiments.write(tmp_path, seed_model=str(tmp_path / "base"), score_max_length=64)
    (prepared,) = steps_of(file, "prepare")
    status, out = run(file, *UNTIL_PREPARED)
    assert status == 0, out
    torn = prepared.folder / "conversations.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    status, out = run(file, "--", "--until", "score")
    assert status == 1, out
    (line,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: score ")
    assert f"{torn} is not a whole Parquet file" in line
    prepared.done.unlink()
    status, out = run(file, "--", "--until", "score")
    assert status == 0, out
    assert all(step.done.is_file() for step in steps_of(file, "score"))


def test_a_second_experiment_on_one_folder_is_refused(tmp_path):
    file = experiments.write(tmp_path)
    plan = Plan(read_experiment(file))
    with locked(plan.out / ".lock", plan.out), pytest.raises(InputError, match="another process is writing"):
        run_plan(plan, file)
