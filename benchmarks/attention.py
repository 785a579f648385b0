"""Cost of the allocation of attention: `ctxaware attention`'s forward for all layers, the bare forward, and eager.

    python benchmarks/attention.py --model "$(ctxaware demo-model)"
    python benchmarks/attention.py --model meta-llama/Llama-2-7b-chat-hf --device cuda --dtype bfloat16 --lengths 4000

The three take turns on the same random tokens in one process. The ratios are of medians: of CPU seconds on the CPU,
which the load of others hardly moves, and of wall time on CUDA.

- bare: the whole decoder with fused attention, without a head on top, nothing computed besides;
- ours: `ctxaware.attention.roles.allocate`, six groups of tokens, every head of all layers;
- eager: `output_attentions=True`, the last row of every layer's matrices summed by group.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--lengths", default="512,2000,4000", help="tokens")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eager-up-to", type=int, default=2000, help="tokens; above, its matrices need too much")
    args = parser.parse_args()
    from ctxaware.models import load_model

    model = load_model(args.model, None, getattr(torch, args.dtype), torch.device(args.device))
    print("| tokens | way | seconds | of bare | greatest difference from eager |")
    print("|---:|---|---:|---:|---:|")
    for n_tokens in map(int, args.lengths.split(",")):
        ways = {name: way for name, way in WAYS.items() if name != "eager" or n_tokens <= args.eager_up_to}
        prompt = make_prompt(model, n_tokens)
        shares = {name: way(model, prompt) for name, way in ways.items()}  # warm
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeat):
            for name, way in ways.items():
                seconds[name].append(timed(way, model, prompt))
        median = {name: statistics.median(of) for name, of in seconds.items()}
        for name in ways:
            difference = ""
            if name == "ours" and "eager" in ways:
                difference = f"{np.abs(shares['ours'] - shares['eager']).max():.1e}"
            ratio = median[name] / median["bare"]
            print(f"| {n_tokens:,} | {name} | {median[name]:.2f} | {ratio:.3f} | {difference} |", flush=True)


def make_prompt(model, n_tokens: int):
    """Random tokens in six groups of like size."""
    from ctxaware.attention.roles import GROUPS, GroupedPrompt

    rng = np.random.default_rng(0)
    n_vocabulary = min(model.get_input_embeddings().weight.shape[0], 10_000)
    groups = rng.integers(len(GROUPS), size=n_tokens).astype(np.int8)
    return GroupedPrompt(rng.integers(n_vocabulary, size=n_tokens), groups)


def timed(way: Callable, model, prompt) -> float:
    """Seconds of one call: of the processor on the CPU, of the clock on CUDA."""
    if model.device.type == "cpu":
        started = time.process_time()
        way(model, prompt)
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    way(model, prompt)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def bare(model, prompt) -> None:
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model.get_decoder()(torch.from_numpy(prompt.input_ids)[None].to(model.device), use_cache=False)


def ours(model, prompt) -> np.ndarray:
    from ctxaware.attention.roles import allocate

    return allocate(model, [prompt], range(model.config.get_text_config(decoder=True).num_hidden_layers))[0]


def eager(model, prompt) -> np.ndarray:
    from ctxaware.attention.roles import GROUPS

    model.set_attn_implementation("eager")
    with torch.no_grad():
        ids = torch.from_numpy(prompt.input_ids)[None].to(model.device)
        attentions = model.get_decoder()(ids, use_cache=False, output_attentions=True).attentions
    last = torch.stack([matrix[0, :, -1] for matrix in attentions]).float().cpu().numpy()  # [n_layers, n_heads, n_keys]
    return np.stack([last[..., prompt.groups == group].sum(-1) for group in range(len(GROUPS))], axis=-1)


WAYS = {"bare": bare, "ours": ours, "eager": eager}


if __name__ == "__main__":
    main()
