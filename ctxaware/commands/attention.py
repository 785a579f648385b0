"""`ctxaware attention`: where the answer's first token looks, without and with the chat template."""

from pathlib import Path
from typing import Annotated

import typer

from ctxaware.commands.options import DType

app = typer.Typer()


@app.command("attention")
def attention(
    instruct: Annotated[list[str], typer.Option(help="A chat model, hub name or folder; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder for table, JSON and pictures; a second run continues there.")],
    base: Annotated[str | None, typer.Option(help="The pretrained base, asked without template.")] = None,
    indicator: Annotated[
        bool, typer.Option("--indicator", help="Also ask with [IND], of models that were trained with it.")
    ] = False,
    layer: Annotated[str, typer.Option(help="15, or several: 9,15, or all; one forward a prompt in any case.")] = "15",
    grid: Annotated[str, typer.Option(help="Needle grid: context lengths x depths.")] = "20x20",
    max_context_length: Annotated[int, typer.Option(help="Longest prompt with its answer, in tokens.")] = 4000,
    needle: Annotated[str, typer.Option(help="sf, pizza, or a YAML or JSON file.")] = "sf",
    source: Annotated[str, typer.Option(help="hub, builtin, or a folder of .txt files: the haystack.")] = "hub",
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 on CUDA, else float32.")] = DType.auto,
) -> None:
    """Say how much of a model's attention the user's text gets, without and with the chat template.

    Of needle prompts with the start of the answer, where the token that generates the next word looks: at the user's
    tokens, the assistant's, BOS or the template's; in each layer, of the head that looks most at the user's. Prints
    shares and paired differences with 95% intervals; attention.parquet holds every head. Interrupted at any moment,
    the same command takes up where it stopped.

    \b
    Examples:
      ctxaware attention --instruct meta-llama/Llama-2-7b-chat-hf --base meta-llama/Llama-2-7b-hf --out llama2
      ctxaware attention --instruct ./my-ind-model --indicator --layer all --out ind
      ctxaware attention --instruct "$(ctxaware demo-model)" --source builtin --needle pizza --grid 6x6 --out demo
      accelerate launch --multi_gpu --num_processes 8 -m ctxaware attention --instruct … --out …
    """
    from ctxaware.commands.options import needle_settings
    from ctxaware.report.allocation import pictures, summary
    from ctxaware.report.allocation.run import AllocationRun, measure
    from ctxaware.report.allocation.table import read
    from ctxaware.runs.files import write_json, write_text
    from ctxaware.runs.processes import process_state

    settings = needle_settings(grid, max_context_length, needle, source)
    path = measure(AllocationRun(tuple(instruct), base, indicator, layer, settings, dtype.value, out))
    if (state := process_state()).is_main_process:
        models = read(path)
        result = summary.summarise(models)
        text = summary.markdown(result)
        write_json(out / "attention.json", summary.as_json(result))
        write_text(out / "attention.md", text + "\n")
        print(text)
        print()
        print("\n".join(map(str, [path, out / "attention.json", *pictures.draw(models, result, out)])))
    if state.num_processes > 1:
        state.destroy_process_group()
