import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.experiments import write_questions
from support.runs import cells as cells_of_a_grid
from support.runs import write_lines, write_run

from ctxaware.errors import InputError
from ctxaware.intervals import DIFFERENCE, Interval, mean_interval
from ctxaware.report import gap
from ctxaware.report.gap import Cell, Plan, cells, effects
from ctxaware.report.samples import find_samples
from ctxaware.runs.claim import describe_difference, locked

SETTINGS = {"num_context_lengths": 2, "num_depths": 2, "max_context_length": 500, "needle": "sf", "source": "builtin"}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("base"), tiny.byte_level_tokenizer(None), num_hidden_layers=1)


def plan(models, tasks=("nih_ctx",), **settings):
    return Plan({key: str(folder) for key, folder in models.items()}, tasks, {**SETTINGS, **settings}, device="cpu")


def test_the_cells_are_those_of_the_papers_table():
    both = {"base": "b", "instruct": "i"}
    assert [cell.title for cell in cells("nih_ctx", both)] == [
        "base, without template, prefix",
        "instruct, without template, prefix",
        "instruct, with template, prefix",
        "instruct, with template",
    ]
    assert [cell.title for cell in cells("drop_contain", both)] == [
        "base, without template",
        "instruct, without template",
        "instruct, with template",
    ]
    assert [cell.model for cell in cells("nih_ctx", {"base": "b"})] == ["base"]
    for task in ("nih_ctx", "squad_contain"):
        assert {cell for pair in effects(task).values() for cell in pair} == set(cells(task, both))


@pytest.fixture(scope="module")
def finished(base_folder, model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("gap")
    the_plan = plan({"base": base_folder, "instruct": model_folder}, ("nih_ctx", "quac_contain"))
    summary = gap.run(the_plan, out)
    gap.save(summary, the_plan, out)
    return out, the_plan, summary


def test_scores_and_paired_differences_are_those_of_the_sample_files(finished):
    out, the_plan, summary = finished
    scores = {
        cell: [row["recall"] for row in find_samples(cell.folder(out, "nih_ctx"), "nih_ctx")[0].rows()]
        for cell in cells("nih_ctx", the_plan.models)
    }
    assert all(len(values) == 4 for values in scores.values())
    for cell, values in scores.items():
        assert summary["cells"]["nih_ctx"][cell.title].mean == pytest.approx(np.mean(values))
    difference = np.mean(scores[Cell("instruct", True, True)]) - np.mean(scores[Cell("instruct", False, True)])
    assert summary["effects"]["nih_ctx"]["template effect"].mean == pytest.approx(difference)
    assert set(summary["effects"]["quac_contain"]) == {"tuning effect", "template effect"}
    assert summary["cells"]["quac_contain"]["instruct, with template"].n == 26


def test_effects_have_their_sign_and_are_paired_by_document(tmp_path):
    the_plan = plan({"base": "b", "instruct": "i"})
    scores = {  # by document; written in another order in each cell
        Cell("base", False, True): [0.9, 0.8, 0.7, 0.6],
        Cell("instruct", False, True): [0.9, 0.7, 0.7, 0.5],
        Cell("instruct", True, True): [0.6, 0.4, 0.4, 0.2],
        Cell("instruct", True, False): [0.5, 0.3, 0.3, 0.1],
    }
    for shift, (cell, values) in enumerate(scores.items()):
        rows = cells_of_a_grid(values, 2)
        write_run(cell.folder(tmp_path, "nih_ctx"), {cell.task("nih_ctx"): rows[shift:] + rows[:shift]})
    summary = gap.summarise(the_plan, tmp_path)
    assert summary["cells"]["nih_ctx"]["base, without template, prefix"].mean == pytest.approx(0.75)
    found = summary["effects"]["nih_ctx"]
    assert found["tuning effect"].mean == pytest.approx(-0.05)
    assert found["template effect"].mean == pytest.approx(-0.3)
    # each document lost the same: only the right pairs have an interval that is all on one side
    wrong_pairs = mean_interval([-0.6, -0.3, -0.3, 0.0], bounds=DIFFERENCE)
    assert found["template effect"].high < wrong_pairs.high
    assert str(found["effect of leaving out the prefix"]).startswith("-0.100 [")


def test_a_cell_from_which_lines_are_missing_is_named(tmp_path):
    the_plan = plan({"instruct": "i"}, ("squad_contain",))
    for cell in cells("squad_contain", the_plan.models):
        write_run(cell.folder(tmp_path, "squad_contain"), {"squad_contain": [0, 1, 1, 0]})
    gap.summarise(the_plan, tmp_path)
    (file,) = find_samples(cell.folder(tmp_path, "squad_contain"), "squad_contain")
    write_lines(file.path, file.rows()[:-1])
    with pytest.raises(InputError, match=r"instruct-template.*has 3 documents, without 3 …; .*counts 4"):
        gap.summarise(the_plan, tmp_path)


def test_templates_and_prefixes_are_where_the_cell_says(finished):
    out, the_plan, _ = finished
    for cell in cells("nih_ctx", the_plan.models):
        prompt = find_samples(cell.folder(out, "nih_ctx"), "nih_ctx")[0].rows()[0]["arguments"]["gen_args_0"]["arg_0"]
        assert ("<|im_start|>" in prompt) is cell.template
        assert prompt.endswith("San Francisco is") is cell.prefix


def test_table_json_and_plan_are_written(finished):
    out, _, summary = finished
    assert (out / "gap.md").read_text() == gap.table(summary) + "\n"
    content = json.loads((out / "gap.json").read_text())
    assert content["cells"]["nih_ctx"]["instruct, with template"]["n"] == 4
    assert content["plan"]["settings"]["needle"] == "sf"
    assert (out / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_the_effect_of_the_template_is_said_in_a_sentence():
    of_tuning, of_template = Interval(0.5, 0.4, 0.6, 9), Interval(-0.25, -0.5, 0.125, 9)
    effects = {"tuning effect": of_tuning, "template effect": of_template}
    only_tuning = {"tuning effect": of_tuning}
    summary = {"effects": {"nih_ctx": effects, "squad_contain": effects, "drop_contain": only_tuning}}
    score = "with the chat template the score changes by -0.250 [-0.500, +0.125]"
    assert gap.sentences(summary) == [
        f"nih_ctx: {score}, the answer begun on both sides; n = 9",
        f"squad_contain: {score}; n = 9",
    ]


def test_cells_that_differ_at_their_end_share_their_prompts(finished):
    """Three cells of the instruct model: the two with a template cost little more than one."""
    out, _, _ = finished
    plain, prefix, template = (
        find_samples(Cell("instruct", *cell).folder(out, "nih_ctx"), "nih_ctx")[0].results()
        for cell in [(False, True), (True, True), (True, False)]
    )
    assert prefix["date"] == template["date"]  # one evaluation
    assert set(prefix["results"]) == {"nih_ctx_prefix"}
    assert set(template["results"]) == {"nih_ctx"}
    before, after = plain["config"]["prompt_tokens"], template["config"]["prompt_tokens"]
    computed, asked = (after[key] - before[key] for key in ("computed", "asked"))
    assert computed / asked < 0.5


def test_a_second_run_loads_no_model_and_says_the_same(finished, monkeypatch):
    out, the_plan, summary = finished
    monkeypatch.setattr(gap, "_load", lambda *_: pytest.fail("a model was loaded"))
    assert gap.run(the_plan, out) == summary


def test_other_settings_in_the_same_folder_are_refused(finished, model_folder):
    out, _, _ = finished
    with pytest.raises(InputError, match=r"holds a run with settings.needle sf \(now pizza\); choose another output"):
        gap.run(plan({"instruct": model_folder}, needle="pizza"), out)


def test_a_second_process_and_changed_weights_under_the_same_name_are_refused(finished, tmp_path):
    import shutil

    out, the_plan, _ = finished
    refused = pytest.raises(InputError, match="another process is writing")
    with locked(out / "lock", out), refused:
        gap.run(the_plan, out)
    copies = {model: shutil.copytree(folder, tmp_path / model) for model, folder in the_plan.models.items()}
    shutil.copytree(out, tmp_path / "out")
    manifest = json.loads((out / "run.json").read_text())
    manifest["configuration"]["models"] = {model: str(folder) for model, folder in copies.items()}
    (tmp_path / "out" / "run.json").write_text(json.dumps(manifest))
    same = plan(copies, the_plan.tasks)
    gap.run(same, tmp_path / "out")
    config = copies["base"] / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(InputError, match=r"holds a run with weights.base sha256:\w+ \(now sha256:\w+\)"):
        gap.run(same, tmp_path / "out")


def test_other_questions_in_the_same_file_are_refused(model_folder, tmp_path):
    source = write_questions(tmp_path / "questions.json", 2)
    the_plan = plan({"instruct": model_folder}, ["squad_contain"], source=str(source))
    gap.run(the_plan, tmp_path / "out")
    source.write_text(source.read_text().replace("winter", "summer"))
    with pytest.raises(InputError, match=r"holds a run with contents.source sha256:\w+ \(now sha256:\w+\)"):
        gap.run(the_plan, tmp_path / "out")


def test_an_adapter_trained_anew_in_its_folder_is_refused(model_folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model_folder)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    first = dataclasses.replace(plan({"instruct": model_folder}), model_args={"peft": str(adapter)})
    before = gap._configuration(first)
    (adapter / "adapter_model.safetensors").write_bytes(b"2")
    assert describe_difference(before, gap._configuration(first)).startswith("contents.peft sha256:")


@pytest.mark.parametrize("content", ["", "[]", '{"configuration"'])
def test_a_damaged_manifest_is_one_line(finished, content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json says how .* was made, and can't be read"):
        gap.run(finished[1], tmp_path)


def test_a_report_does_not_take_its_manifest_for_a_training(finished):
    from ctxaware.report.collect import collect

    found = collect([("gap", finished[0])])
    assert found.trainings == []
    assert found.left_out == []


def test_plans_that_say_nothing_are_refused(model_folder, base_folder, tmp_path):
    with pytest.raises(InputError, match="pass instruct, base, or both"):
        plan({})
    with pytest.raises(InputError, match=r"^tasks must be some of nih_ctx,.*got mmlu"):
        plan({"base": base_folder}, ("mmlu",))
    with pytest.raises(InputError, match="has no chat template"):
        gap.run(plan({"instruct": base_folder}), tmp_path)


@pytest.mark.slow
def test_kill_9_and_the_same_command_repeats_no_answer(model_folder, tmp_path):
    command = [sys.executable, "-m", "ctxaware", "gap", "--instruct", str(model_folder), "--source", "builtin"]
    command += ["--grid", "4x4", "--max-context-length", "1200", "--tasks", "nih_ctx"]
    out = tmp_path / "gap"
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=stream, stderr=stream)
        first = out / "instruct-plain" / "nih_ctx_prefix"
        while not first.is_dir():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with contextlib.closing(sqlite3.connect(out / "cache" / "instruct_rank0.db")) as database:
        n_kept = database.execute("select count(*) from unnamed where key not like 'ctxaware %'").fetchone()[0]
    assert n_kept >= 16
    before = {f: f.stat().st_mtime_ns for f in first.rglob("*.jsonl")}
    again = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True)
    assert {f: f.stat().st_mtime_ns for f in first.rglob("*.jsonl")} == before
    assert sum(map(int, re.findall(r"Requests remaining: (\d+)", again.stderr))) == 3 * 16 - n_kept
    settings = json.loads((out / "run.json").read_text())["configuration"]["settings"]
    undisturbed = plan({"instruct": model_folder}, **settings)
    assert again.stdout.startswith(gap.table(gap.run(undisturbed, tmp_path / "whole")) + "\n")


def test_a_base_model_that_comes_later_is_added(model_folder, base_folder, tmp_path):
    gap.run(plan({"instruct": model_folder}), tmp_path)
    summary = gap.run(plan({"instruct": model_folder, "base": base_folder}), tmp_path)
    assert "tuning effect" in summary["effects"]["nih_ctx"]
    assert set(json.loads((tmp_path / "run.json").read_text())["configuration"]["models"]) == {"instruct", "base"}


def test_a_model_that_can_not_be_loaded_is_one_line(tmp_path):
    with pytest.raises(InputError, match="can't load model '/no/such/model'"):
        gap.run(plan({"base": "/no/such/model"}), tmp_path)


@pytest.mark.parametrize("name", ["pretrained", "batch_size", "device", "source", "indicator", "steer_alpha"])
def test_what_the_run_sets_can_not_stand_among_the_models_arguments(name):
    with pytest.raises(InputError, match=f"{name} can't stand among the model's arguments"):
        Plan({"instruct": "m"}, ("nih_ctx",), SETTINGS, model_args={name: "other", "dtype": "float32"})


def test_a_damaged_cell_says_what_to_remove_and_half_a_file_is_not_put_in_place(tmp_path, monkeypatch, model_folder):
    from lm_eval.loggers import EvaluationTracker

    whole = EvaluationTracker.save_results_samples

    def half(self, task_name, samples):
        whole(self, task_name, samples)
        (file,) = Path(self.output_path).rglob("samples_*")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])  # as on a full disk, which is only logged

    the_plan = plan({"instruct": model_folder})
    monkeypatch.setattr(EvaluationTracker, "save_results_samples", half)
    with pytest.raises(InputError, match=r"nih_ctx.* can't be written whole .*; make room"):
        gap.run(the_plan, tmp_path)
    assert not list(tmp_path.rglob("samples_*"))
    monkeypatch.undo()
    gap.run(the_plan, tmp_path)
    (file,) = (tmp_path / "instruct-template" / "nih_ctx").rglob("samples_*")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"remove .*instruct-template/nih_ctx, then run the same command again"):
        gap.run(the_plan, tmp_path)
    shutil.rmtree(tmp_path / "instruct-template" / "nih_ctx")
    gap.run(the_plan, tmp_path)


def test_a_damaged_cache_of_answers_is_named(model_folder, tmp_path):
    the_plan = plan({"instruct": model_folder})
    gap.run(the_plan, tmp_path)
    shutil.rmtree(tmp_path / "instruct-template")
    cache = tmp_path / "cache" / "instruct_rank0.db"
    content = bytearray(cache.read_bytes())
    for damaged in (b"this is no database" * 50, bytes(content[:4096]) + b"\xff" * (len(content) - 4096)):
        cache.write_bytes(damaged)
        with pytest.raises(InputError, match=r"the cache of answers .*instruct_rank0.db is damaged .*; remove it"):
            gap.run(the_plan, tmp_path)
    cache.unlink()
    gap.run(the_plan, tmp_path)
