"""`ctxaware steer`: what attention steering brings back of the context, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("steer")
def steer(
    instruct: Annotated[str, typer.Option(help="The instruction-tuned model: hub name or folder.")],
    out: Annotated[Path, typer.Option(help="Folder of results; a second run continues there.")] = Path("steer"),
    alphas: Annotated[
        str, typer.Option(help="What attention outside the user's text may be multiplied by; the best is chosen.")
    ] = "0.01,0.1,0.3,0.5,0.7,0.9",
    heads: Annotated[
        str, typer.Option(help="retrieval (one a layer, found on one prompt), all, or a file of `ctxaware heads`.")
    ] = "retrieval",
    tasks: Annotated[
        str, typer.Option(help="nih_ctx or nih_ctx_prefix, and some of squad_contain,quac_contain,drop_contain.")
    ] = "nih_ctx_prefix,quac_contain,drop_contain",
    grid: Annotated[str, typer.Option(help="Needle grid: context lengths x depths.")] = "20x20",
    max_context_length: Annotated[int, typer.Option(help="Longest needle prompt with its answer, in tokens.")] = 4000,
    needle: Annotated[str, typer.Option(help="sf, pizza, or a YAML or JSON file.")] = "sf",
    source: Annotated[str, typer.Option(help="hub, or builtin for the sample that ships with ctxaware.")] = "hub",
    haystack: Annotated[
        str | None, typer.Option(help="hub, builtin, or a folder of .txt files; follows --source.")
    ] = None,
    model_args: Annotated[str, typer.Option(help="More arguments of --model ctxaware, as lm_eval takes them.")] = "",
    batch_size: Annotated[str, typer.Option(help="Prompts at a time, or auto.")] = "1",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:0, cpu, …; default: cuda where there is one.")] = None,
) -> None:
    """Steer attention towards the user's text and say what that brings back (the paper's table 1).

    α is chosen on half of the needle cells; all that is reported is of the other half, and of the reading tasks:
    baseline, with steering, without chat template, paired differences with 95% intervals, and the curve of recall
    against α. Interrupted, the same command goes on where it was.

    \b
    Examples:
      ctxaware steer --instruct meta-llama/Llama-2-7b-chat-hf --batch-size 8 --out steer
      ctxaware steer --instruct "$(ctxaware demo-model)" --source builtin --needle pizza --grid 4x4
    """
    from lm_eval.utils import setup_logging

    from ctxaware.commands.options import needle_metadata, parse_model_args, parse_names
    from ctxaware.report import steer as steer_report

    plan = steer_report.Plan(
        model=instruct,
        tasks=parse_names(tasks),
        alphas=steer_report.parse_alphas(alphas),
        heads=heads,
        settings=needle_metadata(grid, max_context_length, needle, source, haystack),
        model_args=parse_model_args(model_args),
        batch_size=batch_size,
        device=device,
    )
    setup_logging()
    print(steer_report.save(steer_report.run(plan, out), plan, out))
