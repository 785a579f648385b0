"""Nothing of a user's is lost, nobody's code runs, no key is written: through the command, as a user would."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from support.mt_bench import QUESTIONS, N, is_first_turn_of_3, read_jsonl, write_answers, write_jsonl
from support.server import Say
from typer.testing import CliRunner

from ctxaware.commands.app import app
from ctxaware.errors import InputError


@pytest.fixture
def command(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments):
        return CliRunner().invoke(app, ["mt-bench", *map(str, arguments)])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def answer(command, server, data_dir, out):
    """`ctxaware mt-bench answer` with the loopback endpoint, as model m."""
    flags = ("--model", "m", "--model-id", "m", "--base-url", server.url, "--data-dir", data_dir, "--out", out)
    return lambda *more: command("answer", *flags, *more)


@pytest.fixture
def judge(command, server, data_dir, out):
    flags = ("--out", out, "--data-dir", data_dir, "--judge-model", "judge", "--base-url", server.url)
    return lambda *more: command("judge", *flags, *more)


def refusal(result) -> str:
    """The one line of a refused command."""
    assert isinstance(result.exception, InputError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


# -- files that are somebody else's, and last lines


ROW = b'{"question_id": 1, "choices": [{"index": 0, "turns": ["a", "b"]}]}'


@pytest.mark.parametrize("content", [ROW, ROW + b"\n" + ROW[:40], b"my notes", b"notes\n"])
def test_a_file_that_is_not_ours_is_refused_and_stays_as_it_is(answer, server, out, content):
    path = out / "model_answer" / "m.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert f"{path} is there but no m.manifest.json" in refusal(answer())
    assert path.read_bytes() == content
    assert server.bodies == []


def test_answers_are_not_judged_or_shown_by_questions_that_changed_since(answer, judge, command, server, data_dir, out):
    write_answers(out, "fastchats")  # without a manifest nothing says what they answer
    assert (answer().exit_code, judge().exit_code, command("show", out).exit_code) == (0, 0, 0)
    shutil.rmtree(out / "model_judgment")
    changed = {**QUESTIONS[0], "category": "stem", "turns": ["Write one line about the desert.", "Now in prose."]}
    write_jsonl(data_dir / "mt_bench" / "question.jsonl", [changed, *QUESTIONS[1:]])
    server.forget()
    for refused in (judge(), judge("--dry-run")):
        assert "m.jsonl answers other questions" in refusal(refused)
    assert server.bodies == []
    assert judge("--model-id", "fastchats").exit_code == 0
    manifest = out / "model_judgment" / "judge_single.manifest.json"
    stored = json.loads(manifest.read_text())
    stored["configuration"]["answers"]["m"] = "as an earlier release judged them"
    manifest.write_text(json.dumps(stored))
    assert "m.jsonl answers other questions" in refusal(command("show", out))


@pytest.mark.parametrize("torn", [False, True])
def test_an_answer_at_the_end_counts_with_or_without_its_newline(answer, server, out, torn):
    assert answer().exit_code == 0
    path = out / "model_answer" / "m.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: -40 if torn else -1])
    server.forget()
    assert answer().exit_code == 0
    assert len(server.bodies) == (2 if torn else 0)  # the two turns of the last question
    assert [row["question_id"] for row in read_jsonl(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("torn", [False, True])
def test_a_judgment_at_the_end_counts_with_or_without_its_newline(judge, command, server, out, torn):
    write_answers(out)
    server.reply = lambda body: Say(text="no idea") if is_first_turn_of_3(body) else Say()
    assert judge().exit_code == 3
    path = out / "model_judgment" / "judge_single.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: -40 if torn else -1])
    shown = command("show", out)
    assert f"incomplete: {N - 2 if torn else N - 1} of {N} ratings" in shown.output
    server.forget()
    server.reply = lambda body: Say()
    assert judge().exit_code == 0
    assert len(server.bodies) == (2 if torn else 1)
    assert len(read_jsonl(path)) == N


def test_another_run_changes_nothing_of_a_file_whose_last_line_is_torn(answer, server, out):
    answer()
    path = out / "model_answer" / "m.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    before = path.read_bytes()
    assert "seed 0 (now 5)" in refusal(answer("--seed", 5))
    assert path.read_bytes() == before


def test_failures_torn_by_a_kill_do_not_stop_the_table(judge, command, server, out):
    write_answers(out)
    server.reply = lambda body: Say(text="no idea") if is_first_turn_of_3(body) else Say()
    judge()
    path = out / "failures" / "model_judgment" / "judge_single.jsonl"
    path.write_bytes(path.read_bytes() + b'{"model": "m", "que')
    assert judge().exit_code == 3
    assert "missing after a failure: 1 no_rating" in command("show", out).output


# -- a model's own code


def test_a_model_s_own_code_never_runs(command, tokenizer, data_dir, out, tmp_path, monkeypatch):
    from support.mt_bench import tiny_model

    folder = tmp_path / "model"
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    made = command("answer", "--model", folder, "--model-id", "m", "--data-dir", data_dir, "--out", out)
    assert "needs code of its own" in refusal(made)
    assert not marker.exists()


# -- keys

KEYS = ["k3y!", "sk-1234567", "sk-very/secret+key=", 'sk-quote"and\\slash']


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_in_no_file_and_on_no_screen_whatever_the_endpoint_echoes(
    command, server, data_dir, out, monkeypatch, key
):
    monkeypatch.setenv("MY_KEY", key)
    error = {"error": {"message": f"bad key {key}", "code": key}}
    counted = {"choices": [{"message": {"content": "fine [[3]]"}}], "usage": {"completion_tokens": key}, "model": key}
    echoes = {
        "Write one line": Say(text=f"my key is {key} [[5]]", model=f"judge of {key}", finish_reason=f"stop {key}"),
        "6 times 7": Say(text=key, message={"refusal": f"I don't serve {key}"}, finish_reason=key),
        "Why is ice": Say(status=400, body=json.dumps(error).encode()),
        "Name the fruit": Say(body=json.dumps({"choices": key, key: 1}).encode()),
        "Now make it rhyme": Say(body=json.dumps(counted).encode()),
        "Its colour?": Say(text=" ", finish_reason=key),
    }
    server.reply = lambda body: next(
        (say for text, say in echoes.items() if text in body["messages"][-1]["content"]), Say(text=f"{key} [[4]]")
    )
    url = f"{server.url}/{quote(key, safe='')}"
    endpoint = ("--base-url", url, "--api-key-env", "MY_KEY", "--data-dir", data_dir, "--out", out)
    printed = [command("answer", "--model", "m", "--model-id", "m", *endpoint)]
    write_answers(out, "n")
    judge = ("judge", "--model-id", "n", "--judge-model", "judge", *endpoint)
    printed += [command(*judge), command(*judge), command("show", out)]
    server.reply = lambda body: Say(status=401, body=json.dumps(error).encode())
    printed.append(command(*judge))
    assert isinstance(printed[-1].exception, InputError)
    written = {path: path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".jsonl")}
    assert len(written) == 7  # answers of m and n, a manifest, judgments, their manifest, two of failures
    spellings = {key, quote(key, safe=""), json.dumps(key)[1:-1], repr(key)[1:-1]}
    for text in [*written.values(), *(f"{result.output} {result.exception}" for result in printed)]:
        assert not any(spelling in text for spelling in spellings), text
    assert all(headers["authorization"] == f"Bearer {key}" for headers in server.headers)
    assert "[key]" in str(printed[-1].exception)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MY_KEY", "abc", "3 characters"),
        ("MY_KEY", "sk-clé-secrète", "characters"),
        ("MY_KEY", "sk-two secret\nlines", "characters"),
        ("sk-live-secret", None, "name of an environment variable"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(answer, server, monkeypatch, variable, value, says):
    if value is not None:
        monkeypatch.setenv(variable, value)
    message = refusal(answer("--api-key-env", variable))
    assert says in message
    assert "secret" not in message
    assert server.bodies == []


# -- damaged files are one line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"score": None}, "score"),
        ({"score": "7"}, "score"),
        ({"score": 11}, "score"),
        ({"score": True}, "score"),
        ({"model": 3}, "model"),
        ({"judge": "x"}, "judge"),
        ({"judge": None}, "judge"),
        ({"turn": "none at all"}, "turn"),
        ({"user_prompt": None}, "user_prompt"),
        ({"judgment": None}, "judgment"),
        ({"flags": "none"}, "flags"),
    ],
    ids=str,
)
def test_a_damaged_judgment_is_no_judgment(judge, command, server, out, change, says):
    write_answers(out)
    judge()
    path = out / "model_judgment" / "judge_single.jsonl"
    rows = read_jsonl(path)
    rows[2] |= change
    if "turn" in change:
        del rows[2]["turn"]
    write_jsonl(path, rows)
    before = path.read_bytes()
    server.forget()
    for result in (judge(), judge("--dry-run"), command("show", out)):
        assert re.search(f"judge_single.jsonl line 3 .*{says}", refusal(result))
    assert path.read_bytes() == before
    assert server.bodies == []


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 1, "model_id": "m"},
        {"question_id": 1, "model_id": "m", "choices": []},
        {"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": [None, "x"]}]},
        {"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": "ab"}]},
        {"question_id": 1, "model_id": "m", "choices": [{"turns": ["a", "b"], "finish_reasons": ["stop"]}]},
        {"question_id": [1], "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]},
    ],
    ids=str,
)
def test_a_damaged_answer_is_one_line_for_who_answers_and_for_who_judges(answer, judge, server, out, row):
    answer()
    path = out / "model_answer" / "m.jsonl"
    write_jsonl(path, [*read_jsonl(path)[1:], row])
    server.forget()
    for result in (answer(), judge()):
        assert "m.jsonl line 4" in refusal(result)
    assert server.bodies == []


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"configuration": {}}', b'{"configuration": {"answers": 1}}']
)
def test_a_damaged_manifest_is_one_line(judge, command, out, content):
    write_answers(out)
    judge()
    (out / "model_judgment" / "judge_single.manifest.json").write_bytes(content)
    for result in (judge(), command("show", out)):
        assert "judge_single" in refusal(result)


@pytest.mark.parametrize("turns", ["abc", [], ["a", 3], {"a": "b"}, ["a", ""], ["half \ud800", "b"]], ids=str)
def test_turns_are_texts(answer, data_dir, server, turns):
    write_jsonl(data_dir / "mt_bench" / "question.jsonl", [*QUESTIONS[:3], {**QUESTIONS[3], "turns": turns}])
    assert "question 4" in refusal(answer())
    assert server.bodies == []


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(answer, server, out, monkeypatch):
    real, written = os.fsync, []

    def full(handle):
        if os.readlink(f"/proc/self/fd/{handle}").endswith("m.jsonl"):
            written.append(handle)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refusal(answer())
    path = out / "model_answer" / "m.jsonl"
    assert [row["question_id"] for row in read_jsonl(path)] == [1, 2]
    monkeypatch.undo()
    server.forget()
    assert answer().exit_code == 0
    assert len(server.bodies) == 4  # two turns of the two questions that were missing


def test_a_picture_where_none_can_be_is_one_line(judge, command, out, tmp_path):
    write_answers(out)
    judge()
    assert str(tmp_path) in refusal(command("show", out, "--picture", tmp_path))


# -- endpoints that never end


@pytest.mark.parametrize("part", ["body", "head"])
def test_an_endpoint_that_trickles_is_given_up(server, part):
    from ctxaware.mt_bench.calls import CallFailed, run_all
    from ctxaware.mt_bench.endpoint import EndpointSettings, connect

    server.reply = lambda body: Say(trickle=part)
    endpoint = connect(EndpointSettings(server.url, max_retries=0, timeout_seconds=0.4, call_seconds=1.0))
    failures, started = [], time.monotonic()
    stopped = run_all(
        range(2),
        lambda _: endpoint.chat("m", [{"role": "user", "content": "x"}], 0, 5),
        lambda task, result, failure: failures.append(failure),
    )
    assert [type(failure) for failure in failures] == [CallFailed] * 2
    assert {failure.kind for failure in failures} == {"timeout"}
    assert stopped is None
    assert time.monotonic() - started < 20  # it would take minutes


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[" * 400_000, "bad_response"),
        (b'{"choices": ' + b"[" * 400_000, "bad_response"),
        (b'{"choices": [{"message": {"content": "[[7]]"}}]}' + b" " * (5 << 20), "bad_response"),
    ],
    ids=["nested", "nested inside", "large"],
)
def test_a_body_without_end_or_of_brackets_is_a_failure(judge, server, out, body, kind):
    write_answers(out)
    server.reply = lambda request: Say(body=body) if is_first_turn_of_3(request) else Say()
    assert judge().exit_code == 3
    (failure,) = read_jsonl(out / "failures" / "model_judgment" / "judge_single.jsonl")
    assert failure["kind"] == kind
    assert len(failure["error"]) < 1000


def test_a_rating_of_digits_without_end_is_no_rating(judge, server, out):
    write_answers(out)
    server.reply = lambda request: Say(text="[[" + "1" * 200_000) if is_first_turn_of_3(request) else Say()
    assert judge().exit_code == 3  # FastChat's pattern would be at it for minutes
    (failure,) = read_jsonl(out / "failures" / "model_judgment" / "judge_single.jsonl")
    assert failure["kind"] == "no_rating"


@pytest.mark.slow
def test_ctrl_c_ends_a_judge_that_waits_at_once_and_keeps_what_came(server, data_dir, out):
    write_answers(out)
    server.reply = lambda body: Say(wait_seconds=60) if is_first_turn_of_3(body) else Say()
    command = [sys.executable, "-m", "ctxaware", "mt-bench", "judge", "--out", str(out), "--data-dir", str(data_dir)]
    command += ["--judge-model", "judge", "--base-url", server.url, "--parallel", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path, deadline = out / "model_judgment" / "judge_single.jsonl", time.monotonic() + 120
    while len(read_jsonl(path)) < N - 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 130
    assert time.monotonic() - started < 20
    assert errors.strip().splitlines()[-1] == "interrupted: what is done is kept; run the same command again to go on"
    assert "Traceback" not in errors
    assert len(read_jsonl(path)) == N - 1
