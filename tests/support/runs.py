"""Result folders as `lm_eval --log_samples` writes them, with scores of our choice."""

import hashlib
import json
from pathlib import Path

DATE = "2026-01-02T03-04-05.678"


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sample(number, score, doc=None, metric="score", prompt="", target="", **more):
    """One line of a sample file."""
    doc = doc or {"question": f"question {number}"}
    return {
        **{"doc_id": number, "doc": doc, "filter": "none", "metrics": [metric], metric: score},
        **{"target": target, "resps": [["an answer"]], "filtered_resps": ["an answer"]},
        **{"doc_hash": digest(doc), "prompt_hash": digest([doc, prompt]), "target_hash": digest(target), **more},
    }


def passages(scores, size):
    """Samples of questions on passages, `size` questions each."""
    return [
        sample(n, score, {"context": f"passage {n // size}", "question": f"question {n}"})
        for n, score in enumerate(scores)
    ]


def cells(scores, n_depths=3):
    """Samples of a needle grid."""
    docs = [
        {"context_length": 200 * (n // n_depths + 1), "depth_percent": 50.0 * (n % n_depths)}
        for n, _ in enumerate(scores)
    ]
    return [sample(n, score, doc) for n, (score, doc) in enumerate(zip(scores, docs, strict=True))]


def write_run(folder, tasks, date=DATE, model="model", results=None, **of_tasks):
    """Write a run and return `folder`.

    Args:
        folder: made if absent.
        tasks: rows by task (or scores, each a question of its own).
        results: entries that replace those of the results file; None takes one out.
        of_tasks: by key of the results file (with `_` for `-`), what to say of every task.
    """
    path = Path(folder) / model
    path.mkdir(parents=True, exist_ok=True)
    rows_of = {
        task: [row if isinstance(row, dict) else sample(n, row) for n, row in enumerate(rows)]
        for task, rows in tasks.items()
    }
    content = {
        "model_name": model,
        "chat_template": None,
        "versions": dict.fromkeys(tasks, 1.0),
        "configs": {task: {"generation_kwargs": {"max_gen_toks": 50}} for task in tasks},
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            task: dict.fromkeys(rows[0].get("metrics", ["score"]), True) for task, rows in rows_of.items()
        },
        "n-samples": {
            task: {"original": (n := len({row["doc_id"] for row in rows})), "effective": n}
            for task, rows in rows_of.items()
        },
        "task_hashes": {task: hash_of(rows) for task, rows in rows_of.items()},
    }
    content |= {key.replace("_", "-"): dict.fromkeys(tasks, value) for key, value in of_tasks.items()}
    content |= results or {}
    content = {key: value for key, value in content.items() if value is not None or key == "chat_template"}
    (path / f"results_{date}.json").write_text(json.dumps(content))
    for task, rows in rows_of.items():
        write_lines(path / f"samples_{task}_{date}.jsonl", rows)
    return Path(folder)


def hash_of(rows) -> str:
    """The harness's hash over a task's samples."""
    return hashlib.sha256(
        "".join(str(row[key]) for row in rows for key in ("doc_hash", "prompt_hash", "target_hash")).encode()
    ).hexdigest()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
