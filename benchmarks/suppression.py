"""Do the heads that read the needle matter? Needle recall without them, and without as many random heads.

    ctxaware heads "$(ctxaware demo-model)" --source builtin --needle pizza --out heads.json
    python benchmarks/suppression.py "$(ctxaware demo-model)" --heads heads.json --needle pizza --source builtin

A head is suppressed by a hook before the layer's output projection that sets its part of the input to zero, in the
prompt and in every generated token. The task is `nih_ctx` through lm-evaluation-harness, with the chat template: with
all heads, without the top percent of the ranking in `heads.json`, and without as many heads drawn from the rest, a few
times. Differences are paired by cell of the grid; the random sets' recalls are averaged before they are compared. Each
evaluation is written to --out as it ends, and one that stands there is not repeated.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("--heads", type=Path, required=True, help="what `ctxaware heads` wrote for this model")
    parser.add_argument("--out", type=Path, default=Path("suppression"))
    parser.add_argument("--percent", type=float, default=5, help="of all heads")
    parser.add_argument("--draws", type=int, default=5, help="random sets of heads; their seeds are 0, 1, …")
    parser.add_argument("--same-layers", action="store_true", help="draw as many in each layer as the top has there")
    parser.add_argument("--needle", default="sf")
    parser.add_argument("--source", default="hub")
    parser.add_argument("--grid", default="5x4")
    parser.add_argument("--max-context-length", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    from ctxaware.attention.heads import top_heads
    from ctxaware.intervals import DIFFERENCE, mean_interval
    from ctxaware.models import load_model, load_tokenizer, model_fingerprint

    found = json.loads(args.heads.read_text())
    if found["fingerprint"] != model_fingerprint(args.model):
        parser.error(f"{args.heads} holds heads of {found['model']}, which has other weights than {args.model}")
    ranking = [(head["layer_idx"], head["head_idx"]) for head in found["ranking"]]
    top = top_heads(ranking, args.percent)
    sets = {"all heads": [], f"without the top {len(top)}": top}
    where = "in the same layers, " if args.same_layers else ""
    for seed in range(args.draws):
        drawn = draw(ranking, top, args.same_layers, np.random.default_rng(seed))
        sets[f"without {len(drawn)} others, {where}seed {seed}"] = drawn
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_model(args.model, None, "auto", device), load_tokenizer(args.model)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size)
    recalls = {}
    for name, heads in sets.items():
        recalls[name] = evaluated(args, lm, model, name, heads, found["fingerprint"])
        print(f"| {name} | {mean_interval(recalls[name])} | {len(recalls[name])} |", flush=True)
    every, without_top, *others = recalls.values()
    random = np.mean(others, axis=0)  # by cell
    print(f"| mean of {len(others)} random sets | {mean_interval(random)} | {len(random)} |")
    for title, first, second in [
        ("top less all heads", without_top, every),
        ("random less all heads", random, every),
        ("top less random", without_top, random),
    ]:
        print(f"{title}: {mean_interval(np.subtract(first, second).tolist(), bounds=DIFFERENCE)}")


def draw(ranking: list[tuple[int, int]], top: list[tuple[int, int]], same_layers: bool, rng) -> list[tuple[int, int]]:
    """As many heads outside the top, drawn from all layers, or in each layer as many as the top has there."""
    rest = ranking[len(top) :]
    if not same_layers:
        return [rest[i] for i in sorted(rng.choice(len(rest), size=len(top), replace=False))]
    drawn = []
    for layer_idx in sorted({layer_idx for layer_idx, _ in top}):
        here = sorted(head for head in rest if head[0] == layer_idx)
        n = min(len(here), sum(layer == layer_idx for layer, _ in top))
        drawn += [here[i] for i in sorted(rng.choice(len(here), size=n, replace=False))]
    return drawn


def evaluated(args, lm, model, name: str, heads: list[tuple[int, int]], fingerprint: str) -> list[float]:
    """Recall of each cell; from the file of an earlier run with the same settings where there is one."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from ctxaware.commands.options import parse_grid
    from ctxaware.harness.paths import tasks_folder
    from ctxaware.runs.files import write_json

    n_lengths, n_depths = parse_grid(args.grid)
    settings = {
        "max_context_length": args.max_context_length,
        "num_context_lengths": n_lengths,
        "num_depths": n_depths,
        "needle": args.needle,
        "source": args.source,
    }
    manifest = {"settings": settings, "heads": [list(head) for head in heads], "fingerprint": fingerprint}
    file = args.out / f"{name.replace(' ', '-').replace(',', '')}.json"
    if file.is_file() and (stored := json.loads(file.read_text()))["manifest"] == manifest:
        return stored["recall"]
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=settings)
    with suppressed(model, heads):
        samples = simple_evaluate(
            model=lm,
            tasks=["nih_ctx"],
            task_manager=manager,
            apply_chat_template=True,
            log_samples=True,
            bootstrap_iters=0,
        )["samples"]["nih_ctx"]
    recall = [row["recall"] for row in sorted(samples, key=lambda row: row["doc_id"])]
    write_json(file, {"manifest": manifest, "recall": recall, "answers": [row["resps"][0][0] for row in samples]})
    return recall


@contextlib.contextmanager
def suppressed(model, heads: list[tuple[int, int]]) -> Iterator[None]:
    """The model without the output of `heads` (layer_idx, head_idx); whole again afterwards."""
    config, hooks = model.config.get_text_config(decoder=True), []
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer_idx in sorted({layer_idx for layer_idx, _ in heads}):
        kept = torch.ones(config.num_attention_heads, head_dim, device=model.device, dtype=model.dtype)
        kept[[head_idx for layer, head_idx in heads if layer == layer_idx]] = 0
        kept = kept.flatten()  # [n_heads * head_dim]
        projection = model.get_decoder().layers[layer_idx].self_attn.o_proj
        hooks.append(projection.register_forward_pre_hook(lambda _, inputs, kept=kept: (inputs[0] * kept,)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    main()
