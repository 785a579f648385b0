import re
import subprocess
import sys

import pytest
from support.mt_bench import PROMPTS, N, is_first_turn_of_3, read_jsonl, write_answers
from support.server import Say
from typer.testing import CliRunner

from ctxaware.commands.app import app


@pytest.fixture
def command(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments):
        return CliRunner().invoke(app, ["mt-bench", *map(str, arguments)])

    return run


def test_from_questions_to_the_table(command, server, data_dir, tmp_path):
    out = tmp_path / "out"
    server.reply = lambda body: Say(text=f"an answer of {body['model']}")
    for name in ("vanilla", "ind"):
        made = command("answer", "--model", name, "--model-id", name, "--base-url", server.url, "--data-dir", data_dir,
                       "--out", out)  # fmt: skip
        assert (made.exit_code, made.output.count("4 of 4 answers, 4 of them new")) == (0, 1)
    server.reply = lambda body: Say(text=f"[[{7 if 'of ind' in body['messages'][-1]['content'] else 5}]]")
    judge = ("judge", "--out", out, "--data-dir", data_dir, "--judge-model", "judge", "--base-url", server.url)
    assert command(*judge, "--parallel", 4).exit_code == 0
    shown = command("show", out, "--model-id", "vanilla", "--model-id", "ind", "--picture", tmp_path / "bars.png")
    assert shown.exit_code == 0
    assert "########## Average ##########" in shown.output
    assert re.search(r"\+2\.00 \[[-+]\d\.\d\d, \+\d\.\d\d\] \(8/8\)", shown.output)
    assert "5.00 (8/8)" in shown.output
    assert "difference: ind minus vanilla" in shown.output
    assert (tmp_path / "bars.png").exists()


def test_a_report_finds_the_ratings_of_a_folder(command, server, data_dir, tmp_path):
    from ctxaware.report.collect import collect

    write_answers(tmp_path / "out")
    command(
        "judge", "--out", tmp_path / "out", "--data-dir", data_dir, "--judge-model", "a/b", "--base-url", server.url
    )
    ratings = collect([("run", tmp_path / "out")]).ratings
    assert {name: results.cell("m").mean for name, results in ratings.items()} == {"run, judged by a/b": 7}


def test_an_incomplete_table_exits_with_3_and_the_rerun_with_0(command, server, data_dir, tmp_path):
    out = tmp_path / "out"
    write_answers(out)
    judge = ("judge", "--out", out, "--data-dir", data_dir, "--judge-model", "judge", "--base-url", server.url)
    server.reply = lambda body: Say(text="no idea") if is_first_turn_of_3(body) else Say()
    judged = command(*judge)
    assert judged.exit_code == 3
    assert f"{N - 1} of {N} judgments" in judged.output
    assert "1 failed" in judged.output
    shown = command("show", out)
    assert shown.exit_code == 3
    assert f"7.00 ({N - 1}/{N})" in shown.output
    assert f"incomplete: {N - 1} of {N} ratings" in shown.output
    server.reply = lambda body: Say()
    assert command(*judge).exit_code == 0
    assert command("show", out).exit_code == 0


def test_a_table_without_any_rating_is_shown_as_such(command, server, data_dir, tmp_path):
    out = tmp_path / "out"
    write_answers(out)
    server.reply = lambda body: Say(text="no idea")
    judge = ("judge", "--out", out, "--data-dir", data_dir, "--judge-model", "judge", "--base-url", server.url)
    assert command(*judge).exit_code == 3
    shown = command("show", out)
    assert (shown.exit_code, f"none (0/{N})" in shown.output) == (3, True)


def test_an_incomplete_answer_file_exits_with_3(command, server, data_dir, tmp_path):
    server.reply = lambda body: Say(text=None) if "6 times 7" in str(body) else Say(text="fine")
    made = command("answer", "--model", "m", "--model-id", "m", "--base-url", server.url, "--data-dir", data_dir,
                   "--out", tmp_path / "out")  # fmt: skip
    assert made.exit_code == 3
    assert "3 of 4 answers" in made.output
    assert len(read_jsonl(tmp_path / "out" / "model_answer" / "m.jsonl")) == 3


def test_a_dry_run_needs_no_key_and_shows_a_prompt_of_each_kind(command, data_dir, tmp_path):
    write_answers(tmp_path / "out")
    shown = command("judge", "--out", tmp_path / "out", "--data-dir", data_dir, "--judge-model", "gpt-4", "--dry-run")
    assert shown.exit_code == 0
    assert f"calls: {N} (0 judgments are there)" in shown.output
    assert all(f"one prompt of {name}" in shown.output for name in PROMPTS)
    assert 'for example: "Rating: [[5]]"' in shown.output


def test_a_mistake_is_one_line_and_exit_code_2(data_dir, tmp_path):
    command = [sys.executable, "-m", "ctxaware", "mt-bench", "answer", "--model", "m", "--model-id", "a/b"]
    command += ["--data-dir", str(data_dir), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: model_id 'a/b'")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["answer", "judge", "show"])
def test_help_teaches_by_example_and_imports_nothing_heavy(name):
    code = (
        f"import sys; sys.argv = ['ctxaware', 'mt-bench', '{name}', '--help']\nfrom ctxaware.commands.app import main\n"
    )
    code += "try:\n    main()\nfinally:\n    print({'torch', 'openai', 'fastchat', 'matplotlib'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert f"ctxaware mt-bench {name} " in result.stdout
    assert result.stdout.strip().endswith("set()")
    if name == "answer":
        assert "[IND]" in result.stdout
