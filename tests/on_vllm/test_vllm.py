"""vLLM really run, on its CPU build and the embedded model (`make test-vllm`); answers beside those of transformers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-vllm runs this in an environment of its own")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, so that what it is fed can be seen

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import ctxaware
from ctxaware.harness.paths import tasks_folder
from ctxaware.indicator.token import indicator_id
from ctxaware.models import load_model, load_tokenizer
from ctxaware.report.samples import find_samples, read_task

ENGINE = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
SMALL = {"source": "builtin", "needle": "pizza", "max_context_length": 600, "num_context_lengths": 2, "num_depths": 3}
TASKS = ("nih_ctx", "nih_ctx_prefix", "squad_contain", "quac_contain", "drop_contain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model with the row of [IND]."""
    path = tmp_path_factory.mktemp("model")
    source = ctxaware.demo_model()
    model, tokenizer = load_model(source, None, "float32", "cpu"), load_tokenizer(source)
    ctxaware.add_indicator(tokenizer, model)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def lm(folder):
    from ctxaware.harness.vllm import ContextVLLM

    return ContextVLLM(pretrained=folder, **ENGINE)


@pytest.fixture(scope="module")
def hf(folder):
    return HFLM(pretrained=folder, dtype="float32", max_length=ENGINE["max_model_len"], device="cpu", batch_size=4)


def evaluate(lm, folder, tasks, limit=6, **settings):
    metadata = {"pretrained": folder, "max_model_len": ENGINE["max_model_len"], **SMALL, **settings}
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    return simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, apply_chat_template=True, limit=limit, bootstrap_iters=0
    )["samples"]


@pytest.fixture
def fed(lm, monkeypatch):
    """Token ids of each prompt that the engine is given, in its order."""
    prompts = []
    generate = lm.model.generate

    def recorded(given, *args, **kwargs):
        prompts.extend(tuple(each["prompt_token_ids"]) for each in given)
        return generate(given, *args, **kwargs)

    monkeypatch.setattr(lm.model, "generate", recorded)
    return prompts


def answers(samples):
    return {(sample["doc_id"], task): sample["resps"][0][0] for task, rows in samples.items() for sample in rows}


def texts(samples):
    return [sample["arguments"][0][0] for rows in samples.values() for sample in rows]


def test_tasks_send_the_same_tokens_and_get_the_same_answers_as_under_hf(lm, hf, folder, fed):
    ours, theirs = (evaluate(each, folder, TASKS) for each in (lm, hf))
    assert texts(ours) == texts(theirs)
    assert sorted(fed) == sorted(tuple(hf.tok_batch_encode([text])[0][0].tolist()) for text in texts(theirs))
    differing = {key: pair for key, pair in both(answers(ours), answers(theirs)).items() if pair[0] != pair[1]}
    print(f"{len(answers(ours)) - len(differing)} of {len(answers(ours))} answers equal; others: {differing}")
    assert len(answers(ours)) == 6 * len(TASKS)
    assert not differing


def both(first, second):
    assert first.keys() == second.keys()
    return {key: (first[key], second[key]) for key in first}


def test_the_indicator_is_sent_as_the_tasks_with_ind_send_it(lm, folder, fed, monkeypatch):
    by_task = evaluate(lm, folder, ("nih_ctx_ind",))
    of_task, fed[:] = list(fed), []
    monkeypatch.setattr(lm, "indicator", "always")
    by_model = evaluate(lm, folder, ("nih_ctx",))
    assert sorted(fed) == sorted(of_task)
    mark = indicator_id(load_tokenizer(folder))
    assert all(ids.count(mark) == 1 for ids in fed)
    assert list(answers(by_model).values()) == list(answers(by_task).values())


def test_a_prompt_longer_than_the_window_is_refused(lm, folder):
    with pytest.raises(ctxaware.InputError, match="1024"):
        evaluate(lm, folder, ("nih_ctx",), max_context_length=2000)


def command(*words):
    return [sys.executable, "-m", *words]


def arguments(folder, **more):
    return ",".join(f"{key}={value}" for key, value in {"pretrained": folder, **ENGINE, **more}.items())


def run(words, **kwargs):
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **kwargs)
    return done.returncode, done.stdout, done.stderr


def test_the_command_with_the_indicator_on_every_prompt(folder, tmp_path):
    out = {}
    for model, of_engine in (("ctxaware-vllm", arguments(folder, indicator="always")), ("ctxaware", None)):
        words = command("lm_eval", "--model", model, "--tasks", "nih_ctx", "--metadata", json.dumps(SMALL))
        of_engine = of_engine or f"pretrained={folder},dtype=float32,max_length=1024,indicator=always"
        words += ["--model_args", of_engine, "--apply_chat_template", "--log_samples"]
        code, _, log = run([*words, "--output_path", str(tmp_path / model)])
        assert code == 0, log[-3000:]
        (file,) = find_samples(tmp_path / model, "nih_ctx")
        out[model] = [json.loads(line) for line in Path(read_task(file).file.path).read_text().splitlines()]
    first, second = ({row["doc_id"]: (row["arguments"], row["resps"]) for row in rows} for rows in out.values())
    assert first == second
    assert all("[IND]" in json.dumps(row["arguments"]) for rows in out.values() for row in rows)


def test_a_gap_that_is_killed_goes_on_and_says_what_transformers_say(folder, tmp_path):
    words = command("ctxaware", "gap", "--instruct", folder, "--source", "builtin", "--tasks", "nih_ctx")
    words += ["--needle", "pizza", "--grid", "2x3", "--max-context-length", "600"]
    on_vllm = [*words, "--model-backend", "vllm", "--out", str(tmp_path / "vllm")]
    on_vllm += ["--model-args", ",".join(f"{key}={value}" for key, value in ENGINE.items())]
    log = tmp_path / "log"
    first = tmp_path / "vllm" / "instruct-plain" / "nih_ctx_prefix"
    with log.open("w") as stream:
        process = subprocess.Popen(on_vllm, stdout=stream, stderr=stream, start_new_session=True)
        while not first.is_dir():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {file: file.stat().st_mtime_ns for file in first.rglob("*.jsonl")}
    code, table, log = run(on_vllm)
    assert code == 0, log[-3000:]
    assert before
    assert {file: file.stat().st_mtime_ns for file in first.rglob("*.jsonl")} == before
    code, by_transformers, log = run([*words, "--device", "cpu", "--out", str(tmp_path / "hf")])
    assert code == 0, log[-3000:]
    assert of_table(table) == of_table(by_transformers)


def of_table(printed):
    """What the command says, without vLLM's log, which goes to standard output as well."""
    return printed[printed.index("| task |") : printed.index("\npicture: ")]
