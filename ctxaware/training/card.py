"""What a trained model's card says about how it was made."""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from trl import SFTTrainer

from ctxaware import __version__
from ctxaware.data.prepare import STATISTICS
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import INDICATOR
from ctxaware.training.arguments import Arguments
from ctxaware.training.checkpoints import DATA, WATCH

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class ProvenanceTrainer(SFTTrainer):
    """TRL's trainer, whose model card ends with a section on how the model was made."""

    arguments: Arguments | None = None

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            card = Path(self.args.output_dir) / "README.md"
            ratios = [entry[_RATIO] for entry in self.state.log_history if _RATIO in entry]
            adapter = getattr(self.model, "peft_config", {}).get("default")
            base = adapter.base_model_name_or_path if adapter else None
            card.write_text(f"{card.read_text()}\n{section(self.arguments, ratios[-1] if ratios else None, base)}")


_RATIO = "selection/ratio"


def section(arguments: Arguments, ratio: float | None, base: str | None) -> str:
    """The card's section: base, data, selection, seed, versions, commands to make and to evaluate it, prompting.

    Args:
        arguments: of the run.
        ratio: share of instructions that carried the indicator in the last epoch, 0–1; None for vanilla training.
        base: what an adapter goes on: a folder or hub name; None for a whole model.
    """
    run, training, model, wanted = arguments.run, arguments.training, arguments.model, arguments.indicator
    out = Path(training.output_dir)
    told = json.loads((out / DATA / STATISTICS).read_text())
    stored = json.loads((out / "run.json").read_text())["configuration"]
    rows = {
        "base": f"`{model.model_name_or_path}` ({stored['base_weights']})",
        "data": f"`{told['source']}`, {told['conversations']:,} conversations, {told['instructions']:,} instructions",
        "method": ("QLoRA" if model.load_in_4bit else "LoRA") if model.use_peft else "full fine-tuning",
        "effective batch": f"{run.effective_batch_size} conversations of at most {training.max_length} tokens",
        "seed": f"{training.seed}",
        "processes": f"{PartialState().num_processes}",
        "versions": ", ".join([f"ctxaware {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]),
    }
    if wanted:
        scores = wanted.scores or wanted.seed_model or "the model in training"
        rows["indicator"] = f"{INDICATOR} on instructions with a score above {wanted.threshold:g}"
        rows["scores by"] = f"`{scores}`" + (", anew at each epoch" if wanted.rescore_each_epoch else "")
        rows["share with the indicator"] = "unknown" if ratio is None else f"{ratio:.4f}"
    if (watched := out / WATCH).is_file() and (stopped := json.loads(watched.read_text())["stopped"]):
        rows["stopped early"] = f"at step {stopped['step']}: {stopped['task']} changed by {stopped['change']:+.3f}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    text = f"## How it was trained\n\n| | |\n|---|---|\n{table}\n\n```\n{shlex.join(sys.argv)}\n```\n"
    where = f"pretrained={base},peft={out},tokenizer={out}" if base else f"pretrained={out}"
    if base == model.model_name_or_path and model.model_revision:
        where += f",revision={model.model_revision}"
    suffix = "_ind" if wanted else ""
    text += (
        "\n## Evaluating it\n\nWith the chat template of its training, which is saved with its tokenizer:\n\n"
        f"```\nlm_eval --model hf --model_args {where} --tasks nih_ctx{suffix},squad_contain{suffix} "
        "--apply_chat_template\n```\n"
    )
    if model.load_in_4bit:
        text += "\nThat puts the adapter on unrounded weights; it was trained on the same weights in 4 bits.\n"
    if wanted:
        text += (
            f"\n## Prompting with {INDICATOR}\n\nWhere the answer stands in the context that you give, end the user "
            f"message with the token {INDICATOR}, after a space and closed sentence, through the chat template:\n\n"
            f"```\n{append_indicator('<document> What does it say about the lake?')}\n```\n"
        )
    return text
