"""Speed and memory of attention steering: unsteered, ours on one head a layer and on all heads, and PASTA's way.

    python benchmarks/steering.py --model "$(ctxaware demo-model)" --threads 1
    python benchmarks/steering.py --random-1b --device cuda --dtype bfloat16 --lengths 4000+128,32000+128

For each length (prompt tokens + generated tokens) every way answers the same prompt in turn, so that what else the
machine does hits all alike; the median of the repetitions counts. The ratios are of CPU seconds on the CPU, which the
load of others hardly moves, and of wall time on CUDA.

- unsteered: `model.generate` with transformers' sdpa attention;
- one head a layer, all heads: `model.generate` inside `ctxaware.steer`;
- PASTA's way: eager attention, the weights of one head a layer scaled and renormalised.

Each has a process of its own, so that the peak memory is its own: "+memory" is the peak above the loaded model.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time

from scoring import PeakMemory, Worker, load

ALPHA = 0.1
UNSTEERED, ONE, ALL, PASTA = "unsteered", "one head a layer", "all heads", "PASTA's way"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name of a model")
    parser.add_argument("--random-1b", action="store_true", help="a random Llama of 1.1B parameters, TinyLlama's shape")
    parser.add_argument("--lengths", default="1800+32,4000+128,16000+32", help="prompt+generated tokens")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--batch", type=int, default=1, help="prompts at once, each 8 tokens shorter than the one before"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--pasta-up-to", type=int, default=4096, help="tokens; above, its matrices need too much")
    args = parser.parse_args()
    if bool(args.model) == args.random_1b:
        parser.error("pass either --model or --random-1b")
    clock = "cpu" if args.device == "cpu" else "wall"
    workers = {way: Worker(way, args, "steering") for way in (UNSTEERED, ONE, ALL, PASTA)}
    print(
        "| tokens | way | prompt, s | generation, s | tokens/s | speed of unsteered | of PASTA's way | +memory, MiB |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for length in args.lengths.split(","):
        n_prompt, n_new = map(int, length.split("+"))
        ways = [way for way in workers if way != PASTA or n_prompt <= args.pasta_up_to]
        for way in ways:
            workers[way].ask(f"{min(n_prompt, 256)}+8")  # warm
        answers: dict[str, list[dict]] = {way: [] for way in ways}
        for _ in range(args.repeat):
            for way in ways:
                answers[way].append(workers[way].ask(length))
        seconds = {way: statistics.median(a[clock] for a in answers[way]) for way in ways}
        for way in ways:
            of_prompt = statistics.median(a[f"{clock}_prompt"] for a in answers[way])
            memory = statistics.median(a["memory"] for a in answers[way])
            of_pasta = f"{seconds[PASTA] / seconds[way]:.2f}" if PASTA in seconds else "not run"
            print(
                f"| {n_prompt:,} + {n_new} | {way} | {of_prompt:.2f} | {seconds[way] - of_prompt:.2f} | "
                f"{args.batch * (n_prompt + n_new) / seconds[way]:,.0f} | {seconds[UNSTEERED] / seconds[way]:.3f} | "
                f"{of_pasta} | {memory:,.0f} |",
                flush=True,
            )
    for worker in workers.values():
        worker.close()


def work(settings: str) -> None:
    """Answer questions, one a line: how long the prompt and the whole took, and the memory."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    args = argparse.Namespace(**json.loads(settings))
    if args.threads:
        torch.set_num_threads(args.threads)
    model, _ = load(args)

    class FirstToken(LogitsProcessor):
        """Takes the time when the prompt is done."""

        at = None

        def __call__(self, input_ids, scores):
            self.at = self.at or clocks(args.device)
            return scores

    for line in sys.stdin:
        n_prompt, n_new = map(int, line.split("+"))
        prompt, user_tokens = make_prompts(n_prompt, args)
        first = FirstToken()
        with PeakMemory(args.device) as memory:
            start = clocks(args.device)
            with steered(args.way, model, user_tokens) as more:
                model.generate(
                    **prompt,
                    **more,
                    max_new_tokens=n_new,
                    min_new_tokens=n_new,
                    do_sample=False,
                    pad_token_id=0,
                    logits_processor=LogitsProcessorList([first]),
                )
            end = clocks(args.device)
        answer = {"memory": memory.mib}
        for name in ("wall", "cpu"):
            answer |= {name: end[name] - start[name], f"{name}_prompt": first.at[name] - start[name]}
        print(json.dumps(answer), flush=True)


def clocks(device: str) -> dict[str, float]:
    """Wall and CPU seconds, once the device is done."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    return {"wall": time.perf_counter(), "cpu": time.process_time()}


def make_prompts(n_tokens: int, args):
    """Prompts of plain tokens padded on the left; but for 4 tokens in front and 24 behind they are the user's."""
    import torch

    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(100, 30_000, (args.batch, n_tokens), generator=generator)
    attention_mask, user_tokens = torch.ones_like(input_ids), torch.ones_like(input_ids, dtype=torch.bool)
    for row in range(args.batch):
        attention_mask[row, : 8 * row] = 0
        user_tokens[row, : 8 * row + 4] = False
    user_tokens[:, -24:] = False
    prompt = {"input_ids": input_ids.to(args.device), "attention_mask": attention_mask.to(args.device)}
    return prompt, user_tokens.to(args.device)


@contextlib.contextmanager
def steered(way: str, model, user_tokens):
    """The model, steered in a way; yields what `generate` is given besides the prompt."""
    from ctxaware.attention.steering import heads_by_layer, steer
    from ctxaware.attention.steering_check import steer_eagerly

    n_layers, n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    one = [(layer_idx, layer_idx % n_heads) for layer_idx in range(n_layers)]
    if way == UNSTEERED:
        yield {}
    elif way == PASTA:
        with steer_eagerly(model, user_tokens, heads_by_layer(model, one), ALPHA):
            yield {}
    else:
        with steer(model, None, "all" if way == ALL else one, ALPHA):
            yield {"user_tokens": user_tokens}


if __name__ == "__main__":
    main()
