import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support.mt_bench import PROMPTS, QUESTIONS, N, is_first_turn_of_3, read_jsonl, write_answers, write_jsonl
from support.mt_bench import run_judge as judge
from support.server import Say

from ctxaware.errors import InputError
from ctxaware.mt_bench import fastchat as seams
from ctxaware.mt_bench.calls import CallFailed
from ctxaware.mt_bench.judge import check_rating
from ctxaware.mt_bench.plan import dry_run
from ctxaware.mt_bench.rows import judgment_key as row_key

QUICK = {"max_retries": 1, "timeout_seconds": 5}


@pytest.fixture
def out(tmp_path):
    write_answers(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def run(out, data_dir, server):
    """Judge through the loopback server; keyword arguments change the call."""

    def call(judge_model="judge", **changes):
        arguments = {"base_url": server.url, **QUICK, **changes}
        return judge(out, arguments.pop("data_dir", data_dir), judge_model, **arguments)

    return call


def test_every_answer_is_judged_once_by_fastchat_s_prompts(run, server):
    outcome = run()
    assert (outcome.n_done, outcome.n_expected, outcome.n_new, outcome.n_failed) == (N, N, N, 0)
    rows = read_jsonl(outcome.path)
    keys = {row_key(row) for row in rows}
    assert keys == {
        ("m", i, f"single-{'math-' if i == 2 else ''}v1{'-multi-turn' if turn == 2 else ''}", turn)
        for i in (1, 2, 3, 4)
        for turn in (1, 2)
    }
    assert {row["score"] for row in rows} == {7}
    assert {row["judge_returned_model"] for row in rows} == {"judge-2026-01-01"}
    by_key = {row_key(row)[1::2]: row["user_prompt"] for row in rows}
    filled = PROMPTS["single-math-v1"].format(question="What is 6 times 7?", ref_answer_1="42", answer="m 2 first")
    assert by_key[2, 1] == filled
    filled = PROMPTS["single-v1-multi-turn"].format(
        question_1=QUESTIONS[0]["turns"][0],
        answer_1="m 1 first",
        question_2=QUESTIONS[0]["turns"][1],
        answer_2="m 1 second",
    )
    assert by_key[1, 2] == filled
    assert sorted(by_key.values()) == sorted(server.prompts)
    assert all((b["temperature"], b["max_tokens"], b["model"]) == (0, 2048, "judge") for b in server.bodies)


MISBEHAVIOUR = {
    "http_500": Say(status=500),
    "http_429": Say(status=429, headers={"Retry-After": "1"}),
    "http_400": Say(status=400),
    "timeout": Say(wait_seconds=0.8),
    "connection": Say(cut=True),
    "empty": Say(text=None),
    "refused": Say(text=None, message={"refusal": "no"}),
    "no_rating": Say(text="A fine answer, I'd say eight."),
    "no_rating an index": Say(text="The code reads arr[0] and then x)[7], which is wrong."),
    "unreadable_rating": Say(text="Rating: [[05]]"),
    "several_ratings": Say(text="The user asks for [[10]]. Rating: [[2]]"),
    "out_of_range": Say(text="Rating: [[0]]"),
    "out_of_range above": Say(text="Rating: [[11]]"),
    "no_rating negative": Say(text="Rating: [[-1]]"),
    "bad_response": Say(body=b"<html>bad gateway</html>"),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_what_is_no_rating_is_never_a_score_is_kept_apart_and_asked_for_again(run, server, name):
    kind = name.split()[0]
    server.reply = lambda body: MISBEHAVIOUR[name] if is_first_turn_of_3(body) else Say(text="Rating: [[4]]")
    outcome = run(timeout_seconds=0.4 if kind == "timeout" else 5)
    assert (outcome.n_done, outcome.n_failed, outcome.complete) == (N - 1, 1, False)
    rows = read_jsonl(outcome.path)
    assert {row["score"] for row in rows} == {4}
    assert (3, 1) not in {(row["question_id"], row["turn"]) for row in rows}
    (failure,) = read_jsonl(outcome.failures)
    assert (failure["model"], failure["question_id"], failure["turn"], failure["kind"]) == ("m", 3, 1, kind)
    assert failure["judgment"] == (MISBEHAVIOUR[name].text if kind.endswith(("rating", "ratings", "range")) else None)
    n_bad = sum(map(is_first_turn_of_3, server.bodies))
    assert n_bad == (2 if kind in ("http_500", "http_429", "timeout", "connection") else 1)  # one repetition, bounded
    server.forget()
    server.reply = lambda body: Say(text="Rating: [[9]]")
    outcome = run()
    assert (outcome.n_new, outcome.complete) == (1, True)
    assert [is_first_turn_of_3(body) for body in server.bodies] == [True]
    assert read_jsonl(outcome.path)[:-1] == rows
    server.forget()
    assert run().n_new == 0
    assert server.bodies == []


def test_odd_ratings_that_are_ratings_are_flagged(run, server):
    says = {
        "Write one line": Say(text="Rating: [[6]]. So [[6]]."),
        "Why is ice": Say(text="Rating: [8]"),
        "Name the fruit": Say(text="Rating: [[7.5]]"),
        "6 times 7": Say(text="Rating: [[3]] and then I", finish_reason="length"),
    }
    server.reply = lambda body: next(s for t, s in says.items() if t in body["messages"][-1]["content"])
    rows = {(row["question_id"], row["turn"]): row for row in read_jsonl(run().path)}
    assert {k: (r["score"], r["flags"]) for k, r in rows.items() if k[1] == 1} == {
        (1, 1): (6, ["repeated_rating"]),
        (2, 1): (3, ["judgment_cut"]),
        (3, 1): (8, ["single_brackets"]),
        (4, 1): (7.5, ["fractional"]),
    }


@pytest.mark.parametrize(
    ("judgment", "score"),
    [("[[5]]", 5), ("[[10]]", 10), ("[[1]] x", 1), ("see [3]. Rating: [[4]]", 4), ("a [[5] typo", 5), ("[[8.]]", 8.0)],
)
def test_ratings_that_count(judgment, score):
    check_rating(seams.load_fastchat(), judgment, score)


def test_a_single_bracket_beside_an_index_does_not_count():
    with pytest.raises(CallFailed):
        check_rating(seams.load_fastchat(), "arr[7] is read. Rating: [3]", 7)


def test_answers_that_were_cut_or_are_empty_are_flagged(run, out, server):
    write_answers(out, q1=["", "fine"])
    path = out / "model_answer" / "m.jsonl"
    rows = read_jsonl(path)
    rows[2]["choices"][0]["finish_reasons"] = ["length", "window"]
    write_jsonl(path, rows)
    flags = {(row["question_id"], row["turn"]): row["flags"] for row in read_jsonl(run().path)}
    assert (flags[1, 1], flags[1, 2]) == (["answer_empty"], [])
    assert (flags[3, 1], flags[3, 2]) == (["answer_cut"], ["answer_cut_by_window"])


def test_fastchat_s_own_show_result_reads_the_file(run, out, server):
    write_answers(out, "n")
    server.reply = lambda body: Say(text=f"[[{3 if 'm 1 first' in body['messages'][-1]['content'] else 6}]]")
    path = run().path
    code = "from fastchat.llm_judge.show_result import *; import argparse; display_result_single(argparse.Namespace("
    code += f"input_file={str(path)!r}, bench_name='mt_bench', judge_model='judge', model_list=None))"
    printed = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert re.findall(r"^(\w) +([\d.]+)$", printed.stdout, re.M)[-2:] == [("n", "6.00"), ("m", "5.25")]


def test_parallel_calls_give_the_same_rows(run, out, server, tmp_path):
    server.reply = lambda body: Say(text=f"Rating: [[{len(body['messages'][-1]['content']) % 10 + 1}]]")
    one = {row_key(row): row["score"] for row in read_jsonl(run().path)}
    many = {row_key(row): row["score"] for row in read_jsonl(run("judge-2", parallel=8).path)}
    assert many == one
    assert len(set(one.values())) > 1


def test_another_model_is_judged_later_and_the_first_not_again(run, out, server):
    first = run()
    before = read_jsonl(first.path)
    write_answers(out, "n")
    server.forget()
    outcome = run()
    assert (outcome.n_new, outcome.n_expected) == (N, 2 * N)
    assert read_jsonl(outcome.path)[:N] == before
    assert all("n " in prompt for prompt in server.prompts)


def test_a_path_with_brackets_works(data_dir, server, tmp_path):
    data = data_dir.rename(tmp_path / "data [1]*")
    write_answers(tmp_path / "out [1]")
    assert judge(tmp_path / "out [1]", data, "judge", base_url=server.url).complete


def test_one_model_of_several_can_be_judged(run, out, server):
    write_answers(out, "n")
    assert run(model_ids=["n"]).n_expected == N
    assert not any("m 1 first" in prompt for prompt in server.prompts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("answer", r"answers\.m"),
        ("question", r"question\.jsonl"),
        ("prompt", r"judge_prompts\.jsonl"),
        ("reference", r"gpt-4\.jsonl"),
        ("endpoint", r"endpoint .* \(now "),
        ("judge", r"judge_model a/b \(now a__b\)"),
        ("row", "another answer or prompt"),
        ("manifest", "is there but no"),
    ],
)
def test_what_changed_between_runs_is_noticed_before_any_call(run, out, data_dir, server, change, says):
    server.reply = lambda body: Say(status=500) if is_first_turn_of_3(body) else Say()
    path = run("a/b", max_retries=0).path
    server.forget()
    again = {"judge_model": "a/b"}
    if change == "answer":
        write_answers(out, q3=["another", "answer"])
    elif change == "question":
        write_jsonl(data_dir / "mt_bench" / "question.jsonl", [*QUESTIONS[:3], {**QUESTIONS[3], "category": "stem"}])
    elif change == "prompt":
        file = data_dir / "judge_prompts.jsonl"
        file.write_text(file.read_text().replace("Rate from", "Score from"))
    elif change == "reference":
        file = data_dir / "mt_bench" / "reference_answer" / "gpt-4.jsonl"
        file.write_text(file.read_text().replace("42", "43"))
    elif change == "endpoint":
        again["base_url"] = server.url.replace("127.0.0.1", "localhost")
    elif change == "judge":
        again["judge_model"] = "a__b"
    elif change == "row":
        path.write_text(path.read_text().replace("m 1 first", "m 1 other"))
    elif change == "manifest":
        (path.parent / "a__b_single.manifest.json").unlink()
    before = path.read_bytes()
    with pytest.raises(InputError, match=says):
        run(**again)
    assert server.bodies == []
    assert path.read_bytes() == before


def test_an_answer_file_written_anew_with_the_same_answers_is_no_change(run, out):
    run()
    path = out / "model_answer" / "m.jsonl"
    write_jsonl(path, [{**row, "tstamp": 2.0} for row in read_jsonl(path)[::-1]])
    assert run().n_new == 0


def test_a_wrong_key_ends_the_run_and_keeps_what_is_done(run, server):
    server.reply = lambda body: Say(status=401) if len(server.bodies) > 3 else Say()
    with pytest.raises(InputError, match="401"):
        run()
    server.forget()
    server.reply = lambda body: Say()
    assert run().n_new == N - 3
    assert len(server.bodies) == N - 3


def test_a_server_that_is_gone_ends_the_run_early(run, server, out):
    write_answers(out, "n")
    server.close()
    outcome = run(max_retries=0)
    assert (outcome.n_done, outcome.n_failed) == (0, 8)
    assert "8 calls in a row failed" in outcome.stopped


def test_the_manifest_says_how_it_was_judged(run, out, data_dir, server):
    path = run("a/b").path
    manifest = json.loads((path.parent / "a__b_single.manifest.json").read_text())
    settings = manifest["configuration"]
    assert (settings["judge_model"], settings["endpoint"]) == ("a/b", server.url)
    assert (settings["temperature"], settings["max_tokens"]) == (0, 2048)
    assert settings["data"].keys() == seams.RELEASED_SHA256.keys()
    assert settings["answers"].keys() == {"m"}
    assert manifest["judge_returned_models"] == {"judge-2026-01-01": N}
    assert {"fschat", "openai", "ctxaware"} <= manifest["runs"][0]["versions"].keys()


def test_a_dry_run_calls_nobody_writes_nothing_and_shows_what_will_be_sent(run, out, data_dir, server):
    before = sorted(path for path in out.rglob("*"))
    plan = dry_run(out, data_dir, "judge")
    assert (plan.n_calls, plan.n_done, plan.max_output_tokens, plan.n_output_tokens) == (N, 0, N * 2048, None)
    assert plan.examples.keys() == PROMPTS.keys()
    assert server.bodies == []
    assert sorted(path for path in out.rglob("*")) == before
    server.reply = lambda body: Say(status=500) if is_first_turn_of_3(body) else Say()
    run()
    sent = [body["messages"] for body in server.bodies]
    assert all(messages in sent for messages in plan.examples.values())
    assert plan.n_prompt_tokens == sum(len(m["content"]) for s in unique(sent) for m in s) // 4
    plan = dry_run(out, data_dir, "judge")
    assert (plan.n_calls, plan.n_done, plan.n_output_tokens) == (1, N - 1, round(len("Good. Rating: [[7]]") / 4))


def unique(lists):
    return [json.loads(text) for text in dict.fromkeys(json.dumps(x) for x in lists)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda out, data: (out / "model_answer" / "m.jsonl").unlink(), "has no answers"),
        (lambda out, data: write_jsonl(out / "model_answer" / "m.jsonl", []), "Missing model m's answer to Question 1"),
        (lambda out, data: (data / "judge_prompts.jsonl").unlink(), r"has no judge_prompts\.jsonl"),
        (lambda out, data: (data / "judge_prompts.jsonl").write_text("{}\n"), "FastChat can't read"),
        (lambda out, data: write_jsonl(data / "mt_bench" / "reference_answer" / "gpt-4.jsonl", []), "reference answer"),
        (
            lambda out, data: (out / "model_answer" / "m.jsonl").write_text('{"question_id": 1, "cho'),
            "Missing model m's answer to Question 1",
        ),
        (lambda out, data: write_answers(out, q1=["only one turn"]), "can't be written for question 1"),
    ],
)
def test_missing_or_broken_data_is_told_before_any_call(run, out, data_dir, server, spoil, says):
    spoil(out, data_dir)
    with pytest.raises(InputError, match=says):
        run()
    assert server.bodies == []


def test_an_unknown_model_id_is_told(run):
    with pytest.raises(InputError, match="Missing model answer for x"):
        run(model_ids=["x"])


@pytest.mark.slow
def test_after_kill_9_a_rerun_gets_exactly_the_judgments_that_are_missing(out, data_dir, server, run):
    write_answers(out, "n")
    n_before_kill = 6
    server.reply = lambda body: Say(wait_seconds=0.1 if len(server.bodies) <= n_before_kill else 60)
    command = [sys.executable, "-m", "ctxaware", "mt-bench", "judge", "--out", str(out), "--data-dir", str(data_dir)]
    command += ["--judge-model", "judge", "--base-url", server.url, "--parallel", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    path = out / "model_judgment" / "judge_single.jsonl"
    deadline = time.monotonic() + 120
    while len(read_jsonl(path)) < n_before_kill and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    kept = read_jsonl(path)
    assert len(kept) == n_before_kill
    path.write_bytes(path.read_bytes() + json.dumps(kept[0]).encode()[:40])  # and a row torn in the middle
    server.forget()
    server.reply = lambda body: Say()
    outcome = run(parallel=2)
    rows = read_jsonl(path)
    assert (outcome.n_new, outcome.complete) == (2 * N - n_before_kill, True)
    assert rows[:n_before_kill] == kept
    assert len({row_key(row) for row in rows}) == len(rows) == 2 * N
    assert sorted(server.prompts) == sorted(row["user_prompt"] for row in rows[n_before_kill:])
