"""Prompt tokens that `--model ctxaware` computes beside those that are asked for, and its time beside `--model hf`.

python benchmarks/prefix_cache.py tokens                        # counted, no model runs
python benchmarks/prefix_cache.py tokens --squad dev-v1.1.json --quac val_v0.2.json --drop drop_dataset_dev.json
python benchmarks/prefix_cache.py time --grid 10 --new-tokens 16       # both models answer the same grid, in turn
"""

import argparse
import functools
import logging
import time
from pathlib import Path

from lm_eval.tasks import TaskManager

from ctxaware.harness.paths import tasks_folder
from ctxaware.prefix_cache import common_prefix

GOALS = {"20 x 20 needle grid": 0.52, "three instruct cells of gap": 0.36, "four variants of nih_ctx": 0.16}


def prompts(tokenizer, model: Path, task: str, template: bool, metadata: dict) -> list[str]:
    """The prompts of a task, as the harness sends them."""
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    built = manager.load([task])["tasks"][task]
    apply = functools.partial(tokenizer.apply_chat_template, tokenize=False) if template else None
    built.build_all_requests(apply_chat_template=template, chat_template=apply)
    return [instance.args[0] for instance in built.instances]


def counted(tokenizer, evaluations: list[list[str]]) -> tuple[int, int]:
    """Tokens asked and computed, one prompt at a time: what the tests show the model to compute."""
    asked = computed = 0
    for texts in evaluations:
        rows = sorted(tokenizer(text, verbose=False)["input_ids"] for text in texts)
        asked += sum(map(len, rows))
        computed += sum(map(len, rows)) - sum(map(common_prefix, rows, rows[1:]))
    return asked, computed


def count_tokens(args: argparse.Namespace, model: Path) -> None:
    """Print a Markdown table of the counted tokens."""
    from transformers import AutoTokenizer

    from ctxaware.indicator.token import add_indicator

    folder = args.scratch / "tokenizer"  # the model's, with [IND]
    tokenizer = AutoTokenizer.from_pretrained(model)
    add_indicator(tokenizer)
    tokenizer.save_pretrained(folder)
    common = {"source": "builtin", "tokenizer": str(folder), "max_length": 8192}
    grid = common | {"max_context_length": 4000, "num_context_lengths": 20, "num_depths": 20}
    needle = functools.partial(prompts, tokenizer, model, metadata=grid)
    cases = {
        "20 x 20 needle grid": [needle("nih_ctx", True)],
        "three instruct cells of gap": [
            needle("nih_ctx_prefix", False),
            needle("nih_ctx_prefix", True) + needle("nih_ctx", True),
        ],
        "four variants of nih_ctx": [
            [text for suffix in ("", "_ind", "_prefix", "_prefix_ind") for text in needle(f"nih_ctx{suffix}", True)]
        ],
    }
    for name in ("squad", "quac", "drop"):
        for source in filter(None, ("builtin", getattr(args, name))):
            texts = prompts(tokenizer, model, f"{name}_contain", True, common | {"source": source})
            cases[f"{name}_contain, {Path(source).name}, {len(texts):,} questions"] = [texts]
    print("| prompts | tokens asked | computed | ratio | goal |\n|---|---:|---:|---:|---:|")
    for name, evaluations in cases.items():
        asked, computed = counted(tokenizer, evaluations)
        print(f"| {name} | {asked:,} | {computed:,} | {computed / asked:.3f} | {GOALS.get(name, '')} |", flush=True)


def measure_time(args: argparse.Namespace, model: Path) -> None:
    """Print a Markdown table of the two models' times on one grid, and whether the answers are equal."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from ctxaware import ContextLM

    lms = {
        name: kind(pretrained=str(model), dtype="float32", device=args.device, batch_size=args.batch_size)
        for name, kind in (("hf", HFLM), ("ctxaware", ContextLM))
    }
    metadata = {"source": "builtin", "pretrained": str(model), "max_context_length": args.max_context_length}
    metadata |= {"num_context_lengths": args.grid, "num_depths": args.grid}
    texts = prompts(lms["hf"].tokenizer, model, "nih_ctx", True, metadata)
    settings = {"until": [], "do_sample": False, "max_gen_toks": args.new_tokens}
    requests = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]
    lms["ctxaware"].why_no_reuse()  # the trial is not timed
    answers, wall, cpu = {}, {}, {}
    for name, lm in lms.items():
        started, started_cpu = time.perf_counter(), time.process_time()
        answers[name] = lm.generate_until(requests)
        wall[name], cpu[name] = time.perf_counter() - started, time.process_time() - started_cpu
    n = lms["ctxaware"].n_prompt_tokens
    share = n["computed"] / n["asked"]
    print(f"{len(texts)} prompts, {n['asked']:,} tokens asked, {n['computed']:,} computed ({share:.3f})")
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    print(f"equal answers: {same} of {len(texts)}\n")
    print("| model | wall, s | of hf | CPU, s | of hf |\n|---|---:|---:|---:|---:|")
    for name in lms:
        of_hf = wall[name] / wall["hf"], cpu[name] / cpu["hf"]
        print(f"| {name} | {wall[name]:.1f} | {of_hf[0]:.2f} | {cpu[name]:.1f} | {of_hf[1]:.2f} |")


def main() -> None:
    import tempfile

    from ctxaware.demo import demo_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokens", "time"])
    parser.add_argument("--model", type=Path, help="folder (default: the embedded model)")
    for name in ("squad", "quac", "drop"):
        parser.add_argument(f"--{name}", help="release file, counted beside the built-in sample")
    parser.add_argument("--grid", type=int, default=10, help="lengths and depths (default 10: 100 prompts)")
    parser.add_argument("--max-context-length", type=int, default=4000)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = Path(scratch)
        (count_tokens if args.what == "tokens" else measure_time)(args, args.model or demo_model())


if __name__ == "__main__":
    main()
