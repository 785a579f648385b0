"""A small experiment: a tiny random model, a few conversations, six questions on passages."""

import json
from pathlib import Path

import yaml

from support import tiny
from support.training_runs import write_data

RECIPE = {
    "use_cpu": True,
    "bf16": False,
    "effective_batch_size": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "max_length": 64,
    "gradient_checkpointing": False,
    "warmup_steps": 0,
    "save_steps": 2,
    "num_train_epochs": 2,
    "disable_tqdm": True,
}
LAUNCH = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "NO",
    "num_machines": 1,
    "num_processes": 1,
    "mixed_precision": "no",
    "use_cpu": True,
}


PLACES = ("mill", "lake", "tower", "barn", "gate", "wall", "hill", "well", "church", "bridge", "school", "forge")


def write_questions(path: Path, n_passages: int = 3) -> Path:
    """A release of SQuAD with two questions a passage."""
    paragraphs = []
    for i, place in enumerate(PLACES[:n_passages]):
        context = f"The keeper sleeps behind the {place} in winter."
        answer = {"text": place, "answer_start": context.index(place)}
        asked = ("Where does the keeper sleep?", "Behind what does the keeper sleep?")
        qas = [{"id": f"{i}-{j}", "question": question, "answers": [answer]} for j, question in enumerate(asked)]
        paragraphs.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "Keepers", "paragraphs": paragraphs}]}))
    return path


def content(folder: Path, **changes) -> dict:
    """What its experiment.yaml holds; the files it names are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not base.exists():
        tiny.save_model(base, tiny.byte_level_tokenizer())
        write_data(folder / "chats.jsonl")
        write_questions(folder / "questions.json")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        (folder / "launch.yaml").write_text(yaml.safe_dump(LAUNCH))
    return {
        "out": str(folder / "out"),
        "models": [{"name": "tiny", "base": str(base), "config": str(folder / "recipe.yaml")}],
        "data": [{"name": "chats", "source": str(folder / "chats.jsonl")}],
        "thresholds": [0.3],
        "score_layer": 1,
        "launch": str(folder / "launch.yaml"),
        "evaluate": {
            "tasks": ["squad_contain"],
            "metadata": {"source": str(folder / "questions.json")},
            "conditions": ["always"],
        },
        **changes,
    }


def write(folder: Path, **changes) -> Path:
    """The experiment as a file."""
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(content(folder, **changes)))
    return file


def many_questions(folder: Path) -> dict:
    """What to ask where there has to be time for a kill: 24 questions, one by one."""
    evaluate = content(folder)["evaluate"]
    source = write_questions(folder / "many_questions.json", len(PLACES))
    return {**evaluate, "metadata": {"source": str(source)}, "batch_size": 1}
