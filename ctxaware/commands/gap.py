"""`ctxaware gap`: what instruction tuning and the chat template cost."""

from pathlib import Path
from typing import Annotated

import typer

from ctxaware.commands.options import Backend

app = typer.Typer()


@app.command("gap")
def gap(
    instruct: Annotated[str | None, typer.Option(help="The instruction-tuned model: hub name or folder.")] = None,
    base: Annotated[str | None, typer.Option(help="Its pretrained base model: hub name or folder.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results; a second run continues there.")] = Path("gap"),
    tasks: Annotated[
        str, typer.Option(help="Some of nih_ctx,squad_contain,quac_contain,drop_contain.")
    ] = "nih_ctx,squad_contain,quac_contain,drop_contain",
    grid: Annotated[str, typer.Option(help="Needle grid: context lengths x depths.")] = "20x20",
    max_context_length: Annotated[int, typer.Option(help="Longest needle prompt with its answer, in tokens.")] = 4000,
    needle: Annotated[str, typer.Option(help="sf, pizza, or a YAML or JSON file.")] = "sf",
    source: Annotated[str, typer.Option(help="hub, or builtin for the sample that ships with ctxaware.")] = "hub",
    haystack: Annotated[
        str | None, typer.Option(help="hub, builtin, or a folder of .txt files; follows --source.")
    ] = None,
    model_backend: Annotated[Backend, typer.Option(help="The harness's back end.")] = Backend.hf,
    model_args: Annotated[str, typer.Option(help="More arguments for the back end, as lm_eval takes them.")] = "",
    batch_size: Annotated[str, typer.Option(help="Prompts at a time, or auto.")] = "1",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:0, cpu, …; default: the back end's choice.")] = None,
) -> None:
    """Say how much context awareness instruction tuning and the chat template cost.

    Runs the cells of the paper's table 7 and prints scores and paired differences, each with a 95%
    interval. Either model may be left out. Interrupted, the same command goes on where it was.

    \b
    Examples:
      ctxaware gap --base meta-llama/Llama-2-7b-hf --instruct meta-llama/Llama-2-7b-chat-hf --batch-size 8
      ctxaware gap --instruct "$(ctxaware demo-model)" --source builtin --grid 5x5 --max-context-length 1000
    """
    from lm_eval.utils import setup_logging

    from ctxaware.commands.options import needle_metadata, parse_model_args, parse_names
    from ctxaware.report import gap as gap_module

    setup_logging()
    models = {"base": base, "instruct": instruct}
    plan = gap_module.Plan(
        models={key: name for key, name in models.items() if name},
        tasks=parse_names(tasks),
        settings=needle_metadata(grid, max_context_length, needle, source, haystack),
        backend=model_backend.value,
        model_args=parse_model_args(model_args),
        batch_size=batch_size,
        device=device,
    )
    summary = gap_module.run(plan, out)
    gap_module.save(summary, plan, out)
    print(gap_module.table(summary))
    print()
    for line in gap_module.sentences(summary):
        print(line)
    print(f"picture: {out / 'gap.png'}")
