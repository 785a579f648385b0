"""What the tests of training share: conversations, arguments, a tiny base with its template."""

import json
from pathlib import Path

from ctxaware.indicator.token import add_indicator
from ctxaware.training.arguments import IndicatorArguments, parse_arguments
from ctxaware.training.templates import chat_template
from support import tiny

QUESTIONS = ["Who keeps the light", "Where is the lake?", "Why do clocks stop", "Is salt dug or boiled?"]
ANSWERS = ["The keeper does.", "Behind the second bridge, where wool is washed.", "They are old.", "Both."]


def conversations(n: int = 12) -> list[dict]:
    """Conversations of one to three turns, no two alike."""
    made = []
    for i in range(n):
        messages = []
        for turn in range(1 + i % 3):
            k = i + turn
            messages.append({"role": "user", "content": f"{QUESTIONS[k % 4]} {i}" if k % 2 else QUESTIONS[k % 4]})
            messages.append({"role": "assistant", "content": f"{ANSWERS[k % 4]} " * (1 + i % 2) + str(i)})
        made.append({"id": f"c{i}", "messages": messages})
    return made


def write_data(path: Path, n: int = 12) -> Path:
    path.write_text("".join(json.dumps(c) + "\n" for c in conversations(n)))
    return path


def prepared_base(folder: Path, **overrides) -> Path:
    """A tiny base with template and token, as `prepare_base` writes it."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = chat_template("tinyllama", tokenizer)
    add_indicator(tokenizer)
    return tiny.save_model(folder, tokenizer, **overrides)


def command(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    """The command line of a recipe, for three steps of four conversations."""
    words = {
        "model_name_or_path": base,
        "data": data,
        "output_dir": out,
        "effective_batch_size": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_length": 64,
        "use_cpu": "true",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "disable_tqdm": "true",
        "logging_steps": 1,
        "save_strategy": "no",
        "warmup_steps": 0,
    }
    return [part for name, value in words.items() for part in (f"--{name}", str(value))] + list(more)


def arguments(base: Path, data: Path, out: Path, *more: str):
    own = [IndicatorArguments] if any(w in ("--scores", "--seed_model", "--rescore_each_epoch") for w in more) else []
    return parse_arguments(*own, argv=command(base, data, out, *more))
