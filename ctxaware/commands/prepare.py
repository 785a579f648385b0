"""`ctxaware prepare`: a data set as released → clean conversations."""

from pathlib import Path
from typing import Annotated

import typer

from ctxaware.commands.options import Dataset, Format

app = typer.Typer()


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="A JSON, JSONL or Parquet file, a folder, owner/name on the hub, or hub.")
    ],
    dataset: Annotated[Dataset, typer.Option(help="What the release is; messages for any other.")],
    out: Annotated[Path, typer.Option(help="Folder for conversations and statistics.json.")],
    format: Annotated[Format, typer.Option(help="Of the file that is written.")] = Format.parquet,
    tokenizer: Annotated[str | None, typer.Option(help="Hub name or folder, for the mean number of tokens.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a broken file, take what stands before the break.")
    ] = False,
) -> None:
    """Clean a data set as released: conversations (id, messages) and a count for all that was removed or repaired.

    \b
    Examples:
      ctxaware prepare ShareGPT_V3_unfiltered_cleaned_split.json --dataset sharegpt --out data/sharegpt
      ctxaware prepare hub --dataset ultrachat --out data/ultrachat --tokenizer TinyLlama/TinyLlama-1.1B-Chat-v1.0
      ctxaware prepare my_chats.jsonl --dataset messages --out data/mine
    """
    from ctxaware.data.prepare import PrepareRun, prepare_dataset

    statistics = prepare_dataset(PrepareRun(source, dataset.value, out, format.value, tokenizer, revision, salvage))
    mean = f", {statistics['mean_tokens']:,.2f} tokens on average" if statistics["mean_tokens"] else ""
    print(f"{out}: {statistics['conversations']:,} conversations, {statistics['instructions']:,} instructions{mean}")
    if statistics["broken_after"] is not None:
        print(f"the file is broken: these come from the {statistics['broken_after']:,} whole records before the break")
    for name, number in statistics["removed_or_repaired"].items():
        if number:
            print(f"{number:>8,} {name.replace('_', ' ')}")
