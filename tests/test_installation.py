"""The literal `lm_eval` command, found tasks and all, in processes of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
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


def test_lm_eval_finds_our_model_and_it_answers_as_hf(model_folder, tmp_path):
    metadata = {"source": "builtin", "max_context_length": 600, "num_context_lengths": 2, "num_depths": 3}
    answers = {}
    for name in ("hf", "ctxaware"):
        done = command(
            "lm_eval",
            *("--model", name, "--model_args", f"pretrained={model_folder}", "--batch_size", "4"),
            *("--tasks", "nih_ctx,squad_contain", "--metadata", json.dumps(metadata), "--limit", "6"),
            *("--output_path", str(tmp_path / name), "--log_samples", "--apply_chat_template"),
        )
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / name).rglob("samples_*.jsonl"))
        answers[name] = [json.loads(line)["resps"] for file in files for line in file.read_text().splitlines()]
    assert len(answers["hf"]) == 12
    assert answers["ctxaware"] == answers["hf"]
    assert "prompt tokens asked" in done.stderr


def test_a_misspelt_argument_of_our_model_is_one_line(model_folder):
    done = command(
        "lm_eval",
        *("--model", "ctxaware", "--model_args", f"pretrained={model_folder},prefix_cach=true", "--tasks", "nih_ctx"),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: unknown model argument 'prefix_cach'; did you mean 'prefix_cache'?" in done.stderr


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
        "import sys\nsys.argv = ['ctxaware', '--help']\nfrom ctxaware.commands.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_tasks_hold_data_only():
    assert not list((ROOT / "tasks").rglob("*.py"))


def build(target, folder, out):
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel of the checkout, and the one that is built from its source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    direct = build("wheel", ROOT, folder / "direct")
    source = build("sdist", ROOT, folder / "source")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return direct, build("wheel", folder / source.name.removesuffix(".tar.gz"), folder / "again")


def test_a_wheel_carries_tasks_corpora_and_the_discovery_hook(wheels):
    for wheel in wheels:
        names = set(zipfile.ZipFile(wheel).namelist())
        assert {"ctxaware_discovery.pth", "_ctxaware_discovery.py", "ctxaware/py.typed"} <= names
        tasks = {f"ctxaware/{p.relative_to(ROOT)}" for p in (ROOT / "tasks").rglob("*") if p.is_file()}
        recipes = {f"ctxaware/{p.relative_to(ROOT)}" for p in (ROOT / "recipes").rglob("*") if p.is_file()}
        package = {str(p.relative_to(ROOT)) for p in (ROOT / "ctxaware").rglob("*") if p.is_file()}
        assert {"ctxaware/recipes/experiment/Snakefile", "ctxaware/recipes/sft_vanilla.py"} <= names
        assert tasks | {name for name in recipes | package if "__pycache__" not in name} <= names
        assert not [name for name in names if name.startswith(("tasks/", "tests/", "recipes/"))]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("tasks", "from ctxaware.harness.paths import tasks_folder; print(tasks_folder())"),
        ("recipes", "from ctxaware.experiment.recipes import recipes_folder; print(recipes_folder())"),
    ],
)
def test_an_installed_wheel_reads_its_own_data_and_a_checkout_its_folder(wheels, tmp_path, name, code):
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(tmp_path)
    for place, expected in ((tmp_path, tmp_path / "ctxaware" / name), (ROOT, ROOT / name)):
        environment = {**os.environ, "PYTHONPATH": str(place)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=place)
        assert done.stdout.strip() == str(expected), done.stderr


def test_an_editable_installation_sees_an_edited_task_at_once(wheels, tmp_path):
    """Editable wheels carry a path to the checkout and no copy of the tasks."""
    from hatchling.builders.wheel import WheelBuilder

    (editable,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"])
    names = zipfile.ZipFile(editable).namelist()
    assert not [name for name in names if "/tasks/" in name or name.startswith("tasks/")]
    assert {"ctxaware_discovery.pth", "_ctxaware_discovery.py"} <= set(names)
    (pointer,) = [name for name in names if name.endswith(".pth") and name != "ctxaware_discovery.pth"]
    assert zipfile.ZipFile(editable).read(pointer).decode().strip() == str(ROOT)


def test_importing_the_package_is_light_and_its_names_are_there():
    code = (
        "import sys, ctxaware\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'numpy', 'typer') if m in sys.modules])\n"
        "print([name for name in ctxaware.__all__ if not hasattr(ctxaware, name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n", done.stderr
