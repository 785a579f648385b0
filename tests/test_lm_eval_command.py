"""The literal `lm_eval` command, found tasks and all, in processes of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def command(name, *arguments, **environment):
    path = Path(sysconfig.get_path("scripts")) / name
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT.parent
    )


def test_lm_eval_finds_runs_and_saves_our_tasks_and_heatmap_draws_them(model_folder, tmp_path):
    metadata = {"source": "builtin", "max_context_length": 600, "num_context_lengths": 2, "num_depths": 3}
    done = command(
        "lm_eval",
        *("--model", "hf", "--model_args", f"pretrained={model_folder}", "--device", "cpu", "--batch_size", "4"),
        *("--tasks", "nih_ctx,squad_contain", "--metadata", json.dumps(metadata), "--limit", "6"),
        *("--output_path", str(tmp_path), "--log_samples", "--apply_chat_template"),
    )
    assert done.returncode == 0, done.stderr
    assert "|nih_ctx" in done.stdout
    assert "recall_by_context_length" in done.stdout
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())
    assert set(results["results"]["nih_ctx"]) >= {f"{m},none" for m in ("score", "recall", "recall_error")}
    assert list(results["results"]["nih_ctx"]["recall_by_context_length,none"]) == ["200", "400"]
    assert results["configs"]["nih_ctx"]["metadata"]["num_depths"] == 3
    drawn = command("ctxaware", "heatmap", str(tmp_path))
    (picture,) = drawn.stdout.split()
    assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_a_users_mistake_is_one_line_and_exit_code_2(model_folder):
    arguments = ["--model", "hf", "--model_args", f"pretrained={model_folder}", "--device", "cpu", "--tasks", "nih_ctx"]
    done = command("lm_eval", *arguments, "--metadata", '{"source": "builtin", "max_context_length": 9000}')
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "max_context_length 9000 is past the model's window of 2048 tokens" in line


def test_discovery_adds_our_tasks_and_can_be_switched_off():
    code = (
        "from lm_eval.tasks import TaskManager as T; t = T()\n"
        "print('nih_ctx' in t.all_tasks, 'ctxaware' in t.all_groups, 'arc_easy' in t.all_tasks)\n"
        "print('nih_ctx' in T(include_defaults=False).all_tasks)"
    )
    for environment, expected in [
        ({}, "True True True\nFalse\n"),
        ({"CTXAWARE_NO_DISCOVERY": "1"}, "False False True\nFalse\n"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
        )
        assert done.stdout == expected, done.stderr


def test_tasks_path_is_the_folder_of_the_tasks():
    folder = Path(command("ctxaware", "tasks-path").stdout.strip())
    assert (folder / "nih_ctx" / "nih_ctx.yaml").is_file()


def test_start_up_does_not_import_anything_for_discovery():
    code = "import sys; print([m for m in ('ctxaware', 'lm_eval', 'yaml', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_help_does_not_import_heavy_things():
    code = (
        "import sys\nsys.argv = ['ctxaware', '--help']\nfrom ctxaware.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_wheel_carries_tasks_corpora_and_the_discovery_hook(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ctxaware_discovery.pth", "_ctxaware_discovery.py"} <= names
    for file in [*(ROOT / "ctxaware" / "tasks").rglob("*"), *(ROOT / "ctxaware" / "corpora").rglob("*")]:
        if file.is_file() and "__pycache__" not in file.parts:
            assert str(file.relative_to(ROOT)) in names
