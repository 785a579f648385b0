"""`ctxaware heads`: which heads read the user's text, and which read the needle."""

from pathlib import Path
from typing import Annotated

import typer

from ctxaware.commands.options import DType

app = typer.Typer()


@app.command("heads")
def heads(
    model: Annotated[str, typer.Argument(help="Hub name or folder.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write; a picture of the same name stands beside it.")],
    grid: Annotated[str, typer.Option(help="Needle prompts: context lengths x depths.")] = "5x5",
    max_context_length: Annotated[int, typer.Option(help="Longest prompt with its answer, in tokens.")] = 4000,
    needle: Annotated[str, typer.Option(help="sf, pizza, or a YAML or JSON file.")] = "sf",
    source: Annotated[str, typer.Option(help="hub, builtin, or a folder of .txt files: the haystack.")] = "hub",
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 on CUDA, else float32.")] = DType.auto,
) -> None:
    """Find the retrieval head of each layer (eq. 3), and rank all heads by what they read of the needle.

    The answer is given to the model, so one forward a prompt is enough. The chat template writes the prompts of a model
    that has one.

    \b
    Examples:
      ctxaware heads meta-llama/Llama-2-7b-chat-hf --out heads.json
      ctxaware heads "$(ctxaware demo-model)" --source builtin --needle pizza --out heads.json
    """
    from ctxaware.commands.options import needle_settings
    from ctxaware.report.head_search import TOP_PERCENT, find_heads

    result = find_heads(model, needle_settings(grid, max_context_length, needle, source), dtype.value, out)
    print(f"retrieval head of each layer, over {result['n_prompts']} prompts")
    print("layer  head  agreement  attention on the user's tokens")
    for head in result["retrieval_heads"]:
        print(f"{head['layer_idx']:>5}  {head['head_idx']:>4}  {head['agreement']:>9.2f}  {head['user']:.3f}")
    print("\nheads that read the needle most\nlayer  head  attention on the needle")
    for head in result["ranking"][:10]:
        print(f"{head['layer_idx']:>5}  {head['head_idx']:>4}  {head['needle']:.3f}")
    overlap = result[f"top_{TOP_PERCENT}_percent_overlap_of_halves"]
    if overlap is not None:
        print(f"of the top {TOP_PERCENT}%, two halves of the prompts share {overlap:.0%}")
    print(f"{out}\n{out.with_suffix('.png')}")
