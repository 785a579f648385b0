"""Speed and memory of the context-dependency score: the published algorithm, ours, and the bare forward pass.

    python benchmarks/scoring.py --model "$(ctxaware demo-model)" --data data/sharegpt
    python benchmarks/scoring.py --random-1b --device cuda --dtype bfloat16 --lengths 2048

For each length one conversation of exactly that many tokens is scored by three programs in turn, so that what
else the machine does hits all alike; the median of the repetitions counts. The ratios are of CPU seconds on the CPU,
which the load of others hardly moves, and of wall time on CUDA.

- published: the whole model with `output_attentions=True`, all attention matrices kept, summed at the scored layer;
- ours: `ctxaware.dependency`;
- bare: the forward pass up to and with the scored layer, fused attention, nothing computed besides. Each in its own
  process, so that the peak memory is its own. "+memory" is the peak above what the loaded model takes.
  (`--threads 1` keeps waiting threads out of the CPU seconds.)

`--batch` repeats the conversation in a batch for ours and bare; the published way takes one at a time.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

WAYS = ("published", "ours", "bare")
USER = "The lighthouse keeper wrote down what ships he saw, their flags and the hour, and which wind blew that day. "
REPLY = (
    "He saw three ships before noon: two under sail with a northerly wind, one with a red flag waiting for the tide. "
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name of a chat model")
    parser.add_argument("--random-1b", action="store_true", help="a random Llama of 1.1B parameters, TinyLlama's shape")
    parser.add_argument("--data", type=Path, help="conversations, joined to the lengths; synthetic text without")
    parser.add_argument("--lengths", default="512,2048,8192", help="tokens")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="conversations at once, for ours and bare")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--published-up-to", type=int, default=8192, help="tokens; above, its matrices need too much")
    args = parser.parse_args()
    if bool(args.model) == args.random_1b:
        parser.error("pass either --model or --random-1b")
    workers = {way: Worker(way, args) for way in WAYS}
    clock = "cpu" if args.device == "cpu" else "wall"
    print("| tokens | way | seconds | CPU seconds | tokens/s | faster than published | of bare | +memory, MiB |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    differences = []
    for n_tokens in map(int, args.lengths.split(",")):
        ways = [way for way in WAYS if way != "published" or n_tokens <= args.published_up_to]
        for way in ways:
            workers[way].ask(n_tokens)  # warm
        answers: dict[str, list[dict]] = {way: [] for way in ways}
        for _ in range(args.repeat):
            for way in ways:
                answers[way].append(workers[way].ask(n_tokens))
        median = {
            way: {key: statistics.median(answer[key] for answer in answers[way]) for key in ("wall", "cpu", "memory")}
            for way in ways
        }
        for way in ways:
            one = median[way]
            faster = f"{median['published'][clock] / one[clock]:.1f} x" if "published" in ways else "not run"
            print(
                f"| {n_tokens:,} | {way} | {one['wall']:.2f} | {one['cpu']:.2f} | {n_tokens / one['wall']:,.0f} | "
                f"{faster} | {one[clock] / median['bare'][clock]:.2f} | {one['memory']:,.0f} |",
                flush=True,
            )
        if "published" in ways:
            found = [answers[way][0]["score"] for way in ("published", "ours")]
            differences.append(f"{n_tokens:,} tokens: published {found[0]:.7f}, ours {found[1]:.7f}")
    print("\nscores: " + "; ".join(differences))
    for worker in workers.values():
        worker.close()


class Worker:
    """One of the three ways in a process of its own."""

    def __init__(self, way: str, args: argparse.Namespace, program: str = "scoring"):
        settings = json.dumps(vars(args) | {"way": way}, default=str)
        code = f"import sys; sys.path.insert(0, sys.argv[1]); import {program}; {program}.work(sys.argv[2])"
        command = [sys.executable, "-c", code, str(Path(__file__).parent), settings]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: int | str) -> dict:
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("a worker ended; its error stands above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def work(settings: str) -> None:
    """Answer questions, one a line: how long it took, per conversation, and the score."""
    import torch

    args = argparse.Namespace(**json.loads(settings))
    if args.threads:
        torch.set_num_threads(args.threads)
    model, tokenizer = load(args)
    answer = globals()[args.way]
    for line in sys.stdin:
        example = make_example(tokenizer, args, int(line))
        with PeakMemory(args.device) as memory:
            started, cpu_started = time.perf_counter(), time.process_time()
            score = answer(model, example, args)
            if args.device != "cpu":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        n = 1 if args.way == "published" else args.batch
        print(json.dumps({"wall": wall / n, "cpu": cpu / n, "score": score, "memory": memory.mib}), flush=True)


class PeakMemory:
    """Peak of the device's memory above that at the start; on the CPU the kernel's own mark, for Linux."""

    def __init__(self, device: str):
        self.device, self.mib = device, 0.0

    def __enter__(self):
        import torch

        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed would hide this one's needs
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.start = in_status("VmRSS")
        return self

    def __exit__(self, *_):
        import torch

        peak = in_status("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()
        self.mib = (peak - self.start) / 2**20


def in_status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def load(args):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    dtype = getattr(torch, args.dtype)
    if args.model:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    else:
        tokenizer = None
        shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 8192}
        with torch.device(args.device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32000, **shape, **heads), dtype=dtype)
    return model.to(args.device).eval(), tokenizer


def make_example(tokenizer, args, n_tokens: int):
    """A conversation of exactly `n_tokens` tokens, as the scorer encodes it."""
    import numpy as np

    from ctxaware.scores.formula import Encoded, encode

    if tokenizer is None:  # no text for random weights: a quarter of each of four turns is the user's
        position = np.arange(n_tokens)
        turn, within = np.divmod(position, max(1, n_tokens // 4))
        is_user = within < n_tokens // 16
        response_turn = np.where(is_user, -1, np.minimum(turn, 3))
        return Encoded(
            "random", position % 32000, is_user, response_turn, np.cumsum(np.bincount(np.minimum(turn, 3)[is_user]))
        )
    messages, needed = [], 0
    for user, reply in texts(args.data):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
        needed += (len(user) + len(reply)) // 3
        if (
            needed > n_tokens
            and len(encode(tokenizer, {"id": "", "messages": messages}, n_tokens).input_ids) == n_tokens
        ):
            break
    return encode(tokenizer, {"id": "example", "messages": messages}, n_tokens)


def texts(data: Path | None):
    """Instructions and responses without end."""
    if data is None:
        while True:
            yield USER * 4, REPLY * 9
    from ctxaware.data.conversations import read_conversations

    while True:
        for conversation in read_conversations(data):
            contents = [m["content"] for m in conversation["messages"] if m["role"] != "system"]
            yield from zip(contents[::2], contents[1::2], strict=False)


def published(model, example, args) -> float:
    """Every attention matrix of every layer, then the sum over user tokens at one layer; the mean over turns."""
    import numpy as np
    import torch

    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(torch.from_numpy(example.input_ids)[None].to(model.device), output_attentions=True)
    attention = out.attentions[args.layer][0]  # [n_heads, n_tokens, n_tokens]
    mass = attention[..., torch.from_numpy(example.is_user).to(model.device)].sum(-1).amax(0).float().cpu().numpy()
    return float(np.mean([mass[example.response_turn == t].mean() for t in np.unique(example.response_turn) if t >= 0]))


def ours(model, example, args) -> float:
    """As `ctxaware.dependency` scores a batch."""
    from ctxaware.scores.formula import _score_batch

    scored = _score_batch(model, [example] * args.batch, [args.layer])[0]
    scores = [turn.score for turn in scored if turn.score is not None]
    return sum(scores) / len(scores)


def bare(model, example, args) -> float:
    """The layers up to and with the scored one, whole, with fused attention."""
    import torch

    decoder = model.get_decoder()
    model.set_attn_implementation("sdpa")
    layers = decoder.layers
    decoder.layers = layers[: args.layer + 1]
    try:
        with torch.no_grad():
            decoder(torch.from_numpy(example.input_ids)[None].repeat(args.batch, 1).to(model.device), use_cache=False)
    finally:
        decoder.layers = layers
    return 0.0


if __name__ == "__main__":
    main()
