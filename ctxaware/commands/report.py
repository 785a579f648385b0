"""`ctxaware report`: one page of everything that was measured."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

MADE_BY = {  # anchor of a section, and what makes it
    "scores": "lm_eval … --tasks ctxaware --log_samples --output_path FOLDER",
    "compared": "pass two runs or more, before=FOLDER after=FOLDER",
    "template": "ctxaware gap --base … --instruct … --out FOLDER",
    "needles": "lm_eval … --tasks nih_ctx --log_samples --output_path FOLDER",
    "ablation": "runs named beta=0.5=FOLDER beta=0.6=FOLDER …",
    "attention": "ctxaware attention --instruct … --out FOLDER",
    "steering": "ctxaware steer … --out FOLDER",
    "auto": "ctxaware auto evaluate --model … --out FOLDER",
    "dependency": "ctxaware score … --out scores.parquet, and ctxaware select",
    "mt-bench": "ctxaware mt-bench answer, then judge",
    "training": "the output folder of a recipe, with --watch_every 100 for the curve",
}


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(help="[NAME=]FOLDER of results, the one to compare with first.", metavar="RUN…")
    ],
    out: Annotated[Path, typer.Option(help="The page to write; the same as .md beside it.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Use of the context",
    latex: Annotated[bool, typer.Option("--latex", help="Also write the tables as .tex.")] = False,
    max_drop: Annotated[float, typer.Option(help="Drop of a score that the verdicts tolerate, 0 to 1.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the verdicts, over 0.5 and under 1.")] = 0.95,
    flips: Annotated[int, typer.Option(help="Worst losses shown, for each task of a comparison.", min=0)] = 5,
) -> None:
    """Show runs of lm_eval, ctxaware and the recipes on one page that needs no network.

    Takes whatever the folders hold: scores, needle grids, comparisons with the first run, context-dependency scores,
    layers, attention, MT-Bench, training. What can't be read is named at the top, what is missing at the end.

    \b
    Examples:
      ctxaware report before=results/base tuned=results/vanilla indicator=results/ind --out report.html
      ctxaware report results selected scores.parquet mt-bench runs/vanilla --latex
      ctxaware report beta=0.5=results/b05 beta=0.6=results/b06 beta=0.7=results/b07
    """
    from ctxaware.errors import InputError
    from ctxaware.report.collect import collect
    from ctxaware.report.content import make_report
    from ctxaware.report.html import write

    if not 0 <= max_drop < 1 or not 0.5 < confidence < 1:
        raise InputError(
            f"--max-drop must be in 0–1 and --confidence over 0.5 and under 1, got {max_drop:g}, {confidence:g}"
        )
    if out.suffix != ".html":
        raise InputError(f"--out must end in .html, got {out}")
    page = make_report(collect([_named(run) for run in runs]), title, max_drop, confidence, flips, MADE_BY)
    for path in write(page, out, latex):
        print(path)
    for text in page.warnings:
        typer.echo(f"left out: {text}", err=True)


def _named(run: str) -> tuple[str, Path]:
    """`NAME=FOLDER`, or a folder under its own name; a folder whose name has a `=` is a folder."""
    name, sign, folder = run.rpartition("=")
    if not sign or Path(run).exists():
        path = Path(run)
        return path.resolve().name, path
    return name, Path(folder)
