"""`ctxaware layers`: how layers agree on what they select."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
    from ctxaware.scores.layers import compare_layers

    done = compare_layers(scores, top_percent, out)
    print("layer  mean disagreement with the others")
    for layer_idx, mean in zip(done.layers, done.mean, strict=True):
        print(f"{layer_idx:>5}  {mean:.3f}" + ("  <- agrees best" if layer_idx == done.best else ""))
    print("\n".join(map(str, done.files)))
