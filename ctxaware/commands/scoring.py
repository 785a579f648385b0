"""From a data set as released to marked training data: prepare, score, select, layers."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="A JSON, JSONL or Parquet file, a folder, owner/name on the hub, or hub.")
    ],
    dataset: Annotated[str, typer.Option(help="sharegpt, ultrachat, wizardlm, or messages for any other.")],
    out: Annotated[Path, typer.Option(help="Folder for conversations and statistics.json.")],
    format: Annotated[str, typer.Option(help="parquet or jsonl.")] = "parquet",
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
    from ctxaware.preparing import PrepareRun, prepare_dataset

    told = prepare_dataset(PrepareRun(source, dataset, out, format, tokenizer, revision, salvage))
    mean = f", {told['mean_tokens']:,.2f} tokens on average" if told["mean_tokens"] else ""
    print(f"{out}: {told['conversations']:,} conversations, {told['instructions']:,} instructions{mean}")
    if told["broken_after"] is not None:
        print(f"the file is broken: these come from the {told['broken_after']:,} whole records before the break")
    for name, number in told["removed_or_repaired"].items():
        if number:
            print(f"{number:>8,} {name.replace('_', ' ')}")


@app.command()
def score(
    data: Annotated[Path, typer.Argument(help="A folder that prepare wrote, or a JSON, JSONL or Parquet file.")],
    model: Annotated[str, typer.Option(help="Hub name or folder of a chat model or an adapter, the seed model.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    layer: Annotated[str, typer.Option(help="15, or several: 9,15, or all (adds a column layer).")] = "15",
    max_length: Annotated[int, typer.Option(help="Tokens kept of a conversation.")] = 2048,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch, padding included.")] = 16384,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto: bfloat16 on CUDA.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: the best there is.")] = None,
    limit: Annotated[int | None, typer.Option(help="Score only the first conversations.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
) -> None:
    """Score how much each response depends on what the user wrote.

    Columns: conversation_id, turn (0-based index of the instruction), score (0–1; null where no response token is
    left), response_tokens, user_tokens. Model, layer, lengths and versions are in the file's metadata.
    Interrupted at any moment, the same command takes up where it stopped.

    \b
    Examples:
      ctxaware score data/sharegpt --model TinyLlama/TinyLlama-1.1B-Chat-v1.0 --out scores.parquet
      ctxaware score chats.jsonl --model ./my-model --layer all --limit 500 --out layers.parquet
      accelerate launch --multi_gpu --num_processes 8 -m ctxaware score data/ultrachat --model … --out …
    """
    from accelerate import PartialState

    from ctxaware.scoring import ScoreRun, score_file

    run = ScoreRun(data, model, out, layer, max_length, batch_tokens, dtype, device, limit, revision)
    rejected = score_file(run)
    if (state := PartialState()).is_main_process:
        _say_scored(out, rejected)
    if state.num_processes > 1:
        state.destroy_process_group()


def _say_scored(out: Path, rejected: dict[str, str]) -> None:
    import numpy as np
    import pyarrow.parquet as pq

    scores = pq.read_table(out, columns=["score"])["score"].to_numpy()
    n_null = int(np.isnan(scores).sum())
    print(f"{out}: {len(scores):,} scores, {np.mean(scores > 0.6):.3f} of them above 0.6; {n_null:,} without a score")
    if rejected:
        name, reason = next(iter(rejected.items()))
        print(f"{len(rejected):,} conversations have no score, the first of them {name}: {reason}")


@app.command()
def select(
    data: Annotated[Path, typer.Argument(help="The data that were scored.")],
    scores: Annotated[Path, typer.Option(help="The file that score wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the marked data, statistics.json and pictures.")],
    threshold: Annotated[float | None, typer.Option(help="Select scores above this; 0.6 where none is given.")] = None,
    top_percent: Annotated[float | None, typer.Option(help="Select this share of turns instead, in percent.")] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer, where the scores are of several.")] = None,
) -> None:
    """Mark the context-dependent instructions with [IND]: data for the indicator recipe.

    \b
    Examples:
      ctxaware select data/sharegpt --scores scores.parquet --threshold 0.6 --out data/sharegpt_ind
      ctxaware select data/sharegpt --scores layers.parquet --layer 12 --top-percent 10 --out data/sharegpt_top
    """
    from ctxaware.selecting import select as select_turns
    from ctxaware.selection import DEFAULT_THRESHOLD

    if threshold is None and top_percent is None:
        threshold = DEFAULT_THRESHOLD
    done = select_turns(data, scores, out, threshold, top_percent, layer)
    told = done.statistics
    print(f"selected {told['selected']:,} of {told['instructions']:,} instructions ({told['selected_share']:.3f})")
    for value, share in told["share_above"].items():
        print(f"  above {value}: {share:.3f}")
    print("\n".join(map(str, done.files)))


@app.command()
def layers(
    scores: Annotated[Path, typer.Option(help="A file that score wrote with --layer all (or 9,12,15).")],
    top_percent: Annotated[float, typer.Option(help="Share of turns that a layer selects, in percent.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for picture and table; default beside the scores.")] = None,
) -> None:
    """Compare what layers select, in order to choose one for a model.

    Prints each layer's mean disagreement with the others, and the layer that agrees best.

    \b
    Examples:
      ctxaware score data/sharegpt --model ./my-model --layer all --limit 500 --out layers.parquet
      ctxaware layers --scores layers.parquet --top-percent 10
    """
    from ctxaware.selecting import compare_layers

    done = compare_layers(scores, top_percent, out)
    print("layer  mean disagreement with the others")
    for layer_idx, mean in zip(done.layers, done.mean, strict=True):
        print(f"{layer_idx:>5}  {mean:.3f}" + ("  <- agrees best" if layer_idx == done.best else ""))
    print("\n".join(map(str, done.files)))
