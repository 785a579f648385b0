"""Step time of the recipes: `trl sft`, sft_vanilla.py and sft_indicator.py with the same settings and data.

    OMP_NUM_THREADS=1 python benchmarks/training.py --model "$(ctxaware demo-model)" --data sharegpt_sample.json \\
        --dataset sharegpt

The three run at once but take turns, one step each, so that what else the machine does hits all alike; a step lasts
from the end of the one before to its own end, with loading and collating its batch. The ratio is the median over
steps of the ratio within a step, in which all three see the same conversations. In sft_indicator.py every instruction
that has a score is marked: the most that the collator can have to do. The first two steps don't count. On the CPU
the seconds are the process's CPU seconds, which the load of others hardly moves (of one thread: several wait for each
other in them); on CUDA they are wall time.
"""

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("trl sft", "sft_vanilla.py", "sft_indicator.py")
WARM = 2
SIGN = "STEP "  # begins a worker's line to the parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--data", required=True, help="conversations")
    parser.add_argument("--dataset", default="messages", help="sharegpt, ultrachat, wizardlm, or messages")
    parser.add_argument("--conversations", type=int, default=64, help="of the data, from the start")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2, help="conversations of a step")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a conversation")
    parser.add_argument("--layer", type=int, default=15, help="that scores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3:])
        return
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = prepare(args, Path(folder))
        workers = {way: Worker(way, command) for way, command in commands.items()}
        steps = [{way: worker.step() for way, worker in workers.items()} for _ in range(args.steps)]
        for worker in workers.values():
            worker.process.kill()
    report(steps)


def prepare(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The base with template and token, clean data, and each way's arguments."""
    from ctxaware.data.conversations import find_file, read_conversations
    from ctxaware.data.prepare import PrepareRun, prepare_dataset
    from ctxaware.training.base import prepare_base

    prepare_dataset(PrepareRun(args.data, args.dataset, folder / "clean"))
    base = prepare_base(args.model, folder / "base")
    (folder / "data").mkdir()
    with open(folder / "data" / "train.jsonl", "w", encoding="utf-8") as file:
        for row, conversation in enumerate(read_conversations(find_file(folder / "clean"))):
            if row < args.conversations:
                file.write(json.dumps({"id": conversation["id"], "messages": conversation["messages"]}) + "\n")
    on_cpu = str(args.device == "cpu").lower()
    settings = {
        "model_name_or_path": base,
        "dtype": "float32",
        "learning_rate": "2e-5",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_length": args.max_length,
        "max_steps": args.steps + 1,
        "per_device_train_batch_size": args.batch,
        "use_cpu": on_cpu,
        "bf16": "false" if args.device == "cpu" else "true",
        "gradient_checkpointing": "false",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    shared = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    file = str(folder / "data" / "train.jsonl")
    ours = [*shared, "--data", file, "--effective_batch_size", str(args.batch)]
    scores = ["--seed_model", str(base), "--score_layer", str(args.layer), "--threshold", "0"]
    return {
        "trl sft": [*shared, "--dataset_name", str(folder / "data"), "--output_dir", str(folder / "trl")],
        "sft_vanilla.py": [*ours, "--output_dir", str(folder / "vanilla")],
        "sft_indicator.py": [*ours, *scores, "--output_dir", str(folder / "indicator")],
    }


class Worker:
    """A training run that does a step when it is told to."""

    def __init__(self, way: str, command: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # ready: at the start of training

    def step(self) -> dict:
        """Seconds of the next step and the loss of the step before."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith(SIGN):
                return json.loads(line.removeprefix(SIGN))
        raise SystemExit(f"a run ended with exit code {self.process.wait()}; its messages are above")


def work(way: str, command: list[str]) -> None:
    """Run one way in this process, with a callback that waits for the parent between steps."""
    import transformers.trainer

    clock = _clock()
    transformers.trainer.DEFAULT_CALLBACKS.append(clock)
    sys.argv = [way, *command]
    if way == "trl sft":
        from trl.scripts import sft

        script, training, model, mixture = sft.make_parser().parse_args_and_config()
        sft.main(script, training, model, mixture)
    else:
        runpy.run_path(str(Path(__file__).parents[1] / "recipes" / way), run_name="__main__")


def _clock():
    import torch
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        started, loss = 0.0, None
        now = staticmethod(time.perf_counter if torch.cuda.is_available() else time.process_time)

        def on_train_begin(self, args, state, control, **kwargs) -> None:
            self._wait()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._wait()

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            self.loss = (logs or {}).get("loss", self.loss)

        def _wait(self) -> None:
            told = {"seconds": self.now() - self.started, "loss_before": self.loss}
            print(f"\n{SIGN}{json.dumps(told)}", flush=True)
            sys.stdin.readline()
            self.started = self.now()

    return StepClock


def ratio(steps: list[dict], way: str, other: str) -> str:
    """The median over steps of one way's time over another's, and the quartiles."""
    if way == other:
        return "1"
    ratios = [step[way]["seconds"] / step[other]["seconds"] for step in steps[WARM:]]
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def report(steps: list[dict]) -> None:
    """The table, and whether the first two ways had the same losses."""
    print("| way | seconds a step, median | of trl sft | of sft_vanilla.py |\n|---|---:|---:|---:|")
    for way in WAYS:
        seconds = statistics.median(step[way]["seconds"] for step in steps[WARM:])
        print(f"| `{way}` | {seconds:.3f} | {ratio(steps, way, WAYS[0])} | {ratio(steps, way, WAYS[1])} |")
    losses = {way: [step[way]["loss_before"] for step in steps[1:]] for way in WAYS[:2]}
    equal = losses["trl sft"] == losses["sft_vanilla.py"]
    print(f"\nlosses of {len(steps) - 1} steps of trl sft and sft_vanilla.py: {'equal' if equal else losses}")


if __name__ == "__main__":
    main()
