"""A trained model's card: what it is, how it was made, how to evaluate and to prompt it.

The card is our own, as huggingface_hub's `ModelCard`: TRL's template writes names into Markdown as they are.
"""

import json
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import ModelCard, ModelCardData
from trl import SFTTrainer

from ctxaware import __version__
from ctxaware.data.prepare import STATISTICS
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import INDICATOR
from ctxaware.runs.claim import CONFIGURATION, RUN, read_manifest
from ctxaware.runs.files import write_text
from ctxaware.runs.secrets import redact_text, secrets_in
from ctxaware.training.arguments import Arguments
from ctxaware.training.checkpoints import DATA, WATCH
from ctxaware.training.publish import publish

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_RATIO = "selection/ratio"


class ProvenanceTrainer(SFTTrainer):
    """TRL's trainer with our model card, which pushes no more than a model."""

    arguments: Arguments  # of the run; `build_trainer` sets it

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Push the model's files; TRL would push the whole folder."""
        if self.is_world_process_zero():
            publish(Path(self.args.output_dir), self.args)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md; what TRL would write into it is not asked for."""
        if self.is_world_process_zero():
            ratios = [entry[_RATIO] for entry in self.state.log_history if _RATIO in entry]
            adapter = getattr(self.model, "peft_config", {}).get("default")
            base = adapter.base_model_name_or_path if adapter else None
            card = model_card(self.arguments, ratios[-1] if ratios else None, base)
            write_text(Path(self.args.output_dir) / "README.md", str(card))


def inline_code(text: str) -> str:
    """Any text as Markdown code within a line or a table's cell: nothing in it is markup."""
    text = "".join(c if c.isprintable() else " " for c in text)
    fence = "`" * (_longest_run(text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{padding}{text}{padding}{fence}".replace("|", r"\|")


def code_block(text: str) -> str:
    """Any text as a block of Markdown code, whose fence is longer than any in it."""
    text = text.encode("utf-8", "replace").decode()  # a path that is no UTF-8 has half characters
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}\n{text}\n{fence}\n"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def model_card(arguments: Arguments, ratio: float | None, base: str | None) -> ModelCard:
    """The card: base, data, selection, seed, versions, commands to make and to evaluate it, prompting.

    Args:
        arguments: of the run.
        ratio: share of instructions that carried the indicator in the last epoch, 0–1; None for vanilla training.
        base: what an adapter goes on: a folder or hub name; None for a whole model.
    """
    name = arguments.model.model_name_or_path
    data = ModelCardData(
        base_model=None if Path(name).is_dir() else name,  # the hub takes no path for a model
        library_name="peft" if base else "transformers",
        pipeline_tag="text-generation",
        tags=["ctxaware", "generated_from_trainer", "sft", "trl"],
    )
    title = inline_code(Path(arguments.training.output_dir).name)
    parts = [
        f"# {title}\n\n{inline_code(name)}, instruction-tuned with TRL's `SFTTrainer` and ctxaware.\n",
        _how_it_was_trained(arguments, ratio),
        _how_to_evaluate(arguments, base),
    ]
    if arguments.indicator:
        parts.append(_how_to_prompt())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(parts))


def _how_it_was_trained(arguments: Arguments, ratio: float | None) -> str:
    run, training, model, indicator = arguments.run, arguments.training, arguments.model, arguments.indicator
    out = Path(training.output_dir)
    statistics = json.loads((out / DATA / STATISTICS).read_text(encoding="utf-8"))  # `load_conversations` checked it
    manifest = read_manifest(out / RUN, out) or {CONFIGURATION: {}}
    n_conversations, n_instructions = statistics["conversations"], statistics["instructions"]
    rows = {
        "base": f"{inline_code(model.model_name_or_path)} ({manifest[CONFIGURATION].get('base_weights')})",
        "data": f"{inline_code(statistics['source'])}, {n_conversations:,} conversations, "
        f"{n_instructions:,} instructions",
        "method": ("QLoRA" if model.load_in_4bit else "LoRA") if model.use_peft else "full fine-tuning",
        "effective batch": f"{run.effective_batch_size} conversations of at most {training.max_length} tokens",
        "seed": f"{training.seed}",
        "processes": f"{PartialState().num_processes}",
        "versions": ", ".join([f"ctxaware {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]),
    }
    if indicator:
        scores = indicator.scores or indicator.seed_model or "the model in training"
        rows["indicator"] = f"{INDICATOR} on instructions with a score above {indicator.threshold:g}"
        rows["scores by"] = inline_code(scores) + (", anew at each epoch" if indicator.rescore_each_epoch else "")
        rows["share with the indicator"] = "unknown" if ratio is None else f"{ratio:.4f}"
    if (watched := out / WATCH).is_file() and (stopped := json.loads(watched.read_text())["stopped"]):
        rows["stopped early"] = f"at step {stopped['step']}: {stopped['task']} changed by {stopped['change']:+.3f}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    secrets = secrets_in([vars(run), vars(training), vars(model)])
    command = redact_text(shlex.join(sys.argv), secrets)
    return f"## How it was trained\n\n| | |\n|---|---|\n{table}\n\n{code_block(command)}"


def _how_to_evaluate(arguments: Arguments, base: str | None) -> str:
    out, model = Path(arguments.training.output_dir), arguments.model
    model_args = f"pretrained={base},peft={out},tokenizer={out}" if base else f"pretrained={out}"
    if base == model.model_name_or_path and model.model_revision:
        model_args += f",revision={model.model_revision}"
    suffix = "_ind" if arguments.indicator else ""
    tasks = f"nih_ctx{suffix},squad_contain{suffix}"
    options = {"model": "hf", "model_args": shlex.quote(model_args), "tasks": tasks, "apply_chat_template": ""}
    command = " ".join(["lm_eval", *(f"--{name} {value}".rstrip() for name, value in options.items())])
    text = (
        "## Evaluating it\n\nWith the chat template of its training, which is saved with its tokenizer:\n\n"
        + code_block(command)
    )
    if model.load_in_4bit:
        text += "\nThat puts the adapter on unrounded weights; it was trained on the same weights in 4 bits.\n"
    return text


def _how_to_prompt() -> str:
    return (
        f"## Prompting with {INDICATOR}\n\nWhere the answer stands in the context that you give, end the user "
        f"message with the token {INDICATOR}, after a space and closed sentence, through the chat template:\n\n"
        + code_block(append_indicator("<document> What does it say about the lake?"))
    )
