"""Time to build a needle grid: ours (the haystack tokenised once) beside the plain way (encode, cut, decode a cell).

python benchmarks/nih_grid.py                      # the embedded model's tokenizer, 400 documents to 32,000 tokens
python benchmarks/nih_grid.py --tokenizer gpt2 --max-context-length 8000
"""

import argparse
import time

from ctxaware.harness.grid import build_grid, grid_context_lengths, grid_depths
from ctxaware.harness.needles import NEEDLES


def plain_cell(tokenizer, haystack: str, needle: str, context_length: int, depth: float) -> str:
    """One document as published code makes it: cut and insert in token space, then decode."""
    needle_ids = tokenizer.encode(needle, add_special_tokens=False)
    ids = tokenizer.encode(haystack, add_special_tokens=False, verbose=False)[: context_length - len(needle_ids)]
    if depth == 100:
        return tokenizer.decode(ids + needle_ids)
    full_stop = tokenizer.encode(".", add_special_tokens=False)[-1]
    at = int(len(ids) * depth / 100)
    while at and ids[at - 1] != full_stop:
        at -= 1
    return tokenizer.decode(ids[:at] + needle_ids + ids[at:])


def true_share(tokenizer, contexts: list[str], lengths: list[int]) -> float:
    """Share of documents that have exactly the tokens asked for."""
    counts = [len(tokenizer(c, add_special_tokens=False, verbose=False)["input_ids"]) for c in contexts]
    return sum(count == length for count, length in zip(counts, lengths, strict=True)) / len(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="name or folder; default: the embedded model's")
    parser.add_argument("--max-context-length", type=int, default=32_000, help="tokens (default 32,000)")
    parser.add_argument("--grid", type=int, default=20, help="lengths and depths (default 20: 400 documents)")
    args = parser.parse_args()

    from transformers import AutoTokenizer

    from ctxaware.demo import demo_model
    from ctxaware.harness.haystack import load_haystack

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or demo_model())
    text, needle = load_haystack("builtin"), NEEDLES["sf"]
    lengths = grid_context_lengths(200, args.max_context_length, args.grid, 200)
    depths = grid_depths(args.grid)
    cells = [(length, depth) for length in lengths for depth in depths]

    start = time.perf_counter()
    ours = [doc["context"] for doc in build_grid(tokenizer, text, needle, lengths, depths)]
    ours_seconds = time.perf_counter() - start

    copies = -(-args.max_context_length * 8 // len(text))  # as much text as the longest cell can need
    long_text = " ".join([text] * copies)
    start = time.perf_counter()
    plain = [plain_cell(tokenizer, long_text, needle.needle, *cell) for cell in cells]
    plain_seconds = time.perf_counter() - start

    wanted = [length for length, _ in cells]
    print(
        f"{len(cells)} documents of {lengths[0]:,} to {lengths[-1]:,} tokens, {tokenizer.name_or_path.split('/')[-1]}"
    )
    print("| way | seconds | exact token counts |\n|---|---|---|")
    print(f"| encode, cut, decode for each cell | {plain_seconds:.2f} | {true_share(tokenizer, plain, wanted):.0%} |")
    print(f"| haystack tokenised once | {ours_seconds:.2f} | {true_share(tokenizer, ours, wanted):.0%} |")
    print(f"ratio {plain_seconds / ours_seconds:.0f}")


if __name__ == "__main__":
    main()
