"""`ctxaware select`: [IND] on the context-dependent instructions."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
    from ctxaware.scores.select import select as select_turns
    from ctxaware.scores.threshold import DEFAULT_THRESHOLD

    if threshold is None and top_percent is None:
        threshold = DEFAULT_THRESHOLD
    done = select_turns(data, scores, out, threshold, top_percent, layer)
    statistics = done.statistics
    share = statistics["selected_share"]
    print(f"selected {statistics['selected']:,} of {statistics['instructions']:,} instructions ({share:.3f})")
    for value, share in statistics["share_above"].items():
        print(f"  above {value}: {share:.3f}")
    print("\n".join(map(str, done.files)))
    if done.warning:
        print(f"warning: {done.warning}; choose another --threshold or --top-percent", file=sys.stderr)
