"""`ctxaware score`: how much each response depends on what the user wrote."""

from pathlib import Path
from typing import Annotated

import typer

from ctxaware.commands.options import DType

app = typer.Typer()


@app.command()
def score(
    data: Annotated[Path, typer.Argument(help="A folder that prepare wrote, or a JSON, JSONL or Parquet file.")],
    model: Annotated[str, typer.Option(help="Hub name or folder of a chat model or an adapter, the seed model.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    layer: Annotated[str, typer.Option(help="15, or several: 9,15, or all (adds a column layer).")] = "15",
    max_length: Annotated[int, typer.Option(help="Tokens kept of a conversation.")] = 2048,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch, padding included.")] = 16384,
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 on CUDA, else float32.")] = DType.auto,
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

    from ctxaware.scores.run import ScoreRun, score_file

    run = ScoreRun(data, model, out, layer, max_length, batch_tokens, dtype.value, device, limit, revision)
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
