"""What the probe of the use of the context costs, as a share of training time, at the protocol's batch sizes.

    OMP_NUM_THREADS=1 python benchmarks/watch.py --model "$(ctxaware demo-model)" --data sharegpt_sample.json \\
        --dataset sharegpt

One process trains with the callback of the recipes and asks the probe before the first step and after the last one.
The seconds of a conversation (forward, backward, its share of the optimizer's step) and of a probe are measured in
that one run; the share follows for a probe every 100 steps of 64 and of 128 conversations. `--layers 6` takes a random
model with the shape of the first six layers: it never ends an answer, so every question is answered in full length,
the most that a probe can cost. On the CPU the seconds are the process's CPU seconds.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 1  # steps that don't count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--data", required=True, help="conversations")
    parser.add_argument("--dataset", default="messages", help="sharegpt, ultrachat, wizardlm, or messages")
    parser.add_argument("--layers", type=int, default=0, help="of a random model in its shape; 0 for the model itself")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2, help="conversations of a step")
    parser.add_argument(
        "--max-length", type=int, default=2048, help="tokens kept of a conversation, as in the protocol"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps, probes, n_questions = measure(args, Path(folder))
    a_conversation, a_probe = sum(steps[WARM:]) / len(steps[WARM:]) / args.batch, sum(probes) / len(probes)
    print(f"a conversation {a_conversation:.2f} s, a probe of {n_questions} questions {a_probe:.2f} s", flush=True)
    print("| conversations a step | probe, of its 100 steps |\n|---:|---:|")
    for batch in (64, 128):
        print(f"| {batch} | {a_probe / (100 * batch * a_conversation):.3%} |")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float], int]:
    """Seconds of each step and of each probe, and the number of questions."""
    from transformers import AutoModelForCausalLM, TrainerCallback

    from ctxaware.harness.probe import probe_questions
    from ctxaware.models import load_config
    from ctxaware.training.arguments import parse_arguments
    from ctxaware.training.base import vanilla_base
    from ctxaware.training.encoding import encode_dataset, make_encoder
    from ctxaware.training.run import load_conversations, start
    from ctxaware.training.trainer import build_trainer
    from ctxaware.training.watch import ContextAwarenessCallback

    clock = time.process_time if args.device == "cpu" else time.perf_counter
    base = Path(args.model)
    if args.layers:
        config = load_config(args.model)
        config.num_hidden_layers = args.layers
        base = folder / "base"
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    arguments = parse_arguments(argv=[str(word) for pair in _settings(args, folder) for word in pair])
    arguments.model.model_name_or_path = args.model  # whose tokenizer it is
    start(arguments)
    rows = load_conversations(arguments).select(range(args.steps * args.batch))
    _, tokenizer = vanilla_base(arguments)
    trainer = build_trainer(arguments, str(base), tokenizer, encode_dataset(rows, make_encoder(arguments, tokenizer)))
    steps: list[float] = []
    probes: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(clock() - self.began)

    class Timed(ContextAwarenessCallback):
        def _ask(self, *asked: Any) -> None:
            began = clock()
            super()._ask(*asked)
            probes.append(clock() - began)

    questions = probe_questions(tokenizer)
    trainer.add_callback(Clock())
    Timed(questions, every_n_steps=args.steps).attach(trainer)
    trainer.train()
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    print(json.dumps({"tokens of a conversation": sum(lengths) / len(lengths), "steps": steps, "probes": probes}))
    return steps, probes, len(questions)


def _settings(args: argparse.Namespace, folder: Path) -> list[tuple[str, Any]]:
    settings = {
        "model_name_or_path": args.model,
        "data": args.data,
        "dataset": args.dataset,
        "output_dir": folder / "run",
        "chat_template": "own",
        "effective_batch_size": args.batch,
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps,
        "max_length": args.max_length,
        "learning_rate": "2e-5",
        "use_cpu": str(args.device == "cpu").lower(),
        "bf16": str(args.device == "cuda").lower(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    return [(f"--{name}", value) for name, value in settings.items()]


if __name__ == "__main__":
    main()
