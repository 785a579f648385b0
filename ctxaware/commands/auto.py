"""The automatic indicator: `ctxaware auto fit | evaluate`."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctxaware.commands.options import DType

if TYPE_CHECKING:
    from ctxaware.auto.quality import Quality

app = typer.Typer()
auto = typer.Typer(
    no_args_is_help=True,
    help="Does this prompt need \\[IND]? Let the model say so itself: fit, evaluate.",
)
app.add_typer(auto, name="auto")


class MethodName(str, Enum):
    """As `auto.methods.METHODS`."""

    slot = "slot"
    probe = "probe"


@auto.command("fit", short_help="Fit what decides, and say how good it is.")
def fit_command(
    model: Annotated[str, typer.Option(help="Hub name or folder of the model, or of the adapter.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Conversations that the model was not trained on.", show_default=False)],
    scores: Annotated[Path, typer.Option(help="The file that score wrote for them.", show_default=False)],
    method: Annotated[
        MethodName,
        typer.Option(
            help="slot: the model's own odds of \\[IND], learnt where the loss was on all tokens. probe: a regression "
            "on hidden states, for any model."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the files; beside the model, if not given.")] = None,
    beta: Annotated[float, typer.Option(help="Turns with a score above it are context-dependent.")] = 0.6,
    layer: Annotated[
        str | None, typer.Option(help="Of the probe: 8, or several: 8,12; a quarter of the way up, if none.")
    ] = None,
    score_layer: Annotated[int | None, typer.Option(help="Which layer, where the scores are of several.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens; longer prompts are left out.")] = 2048,
    dtype: Annotated[DType, typer.Option(help="auto: bfloat16 on CUDA, else float32.")] = DType.auto,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: the best there is.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
) -> None:
    """Fit what decides whether a prompt gets \\[IND], on turns with the scores of `ctxaware score`.

    Writes auto_indicator.json (a probe's weights beside it, as safetensors) and a picture of its calibration. What is
    printed is of turns that were held out, by cross-validation over conversations. Interrupted, the same command goes
    on.

    \b
    Examples:
      ctxaware auto fit --model runs/ind --data held_out --scores scores.parquet --method slot
      ctxaware auto fit --model runs/vanilla --data held_out --scores scores.parquet --method probe --layer 8
    """
    from ctxaware.auto.indicator import FILE
    from ctxaware.auto.pictures import reliability_diagram
    from ctxaware.auto.run import FitRun, fit_model
    from ctxaware.errors import InputError
    from ctxaware.scores.table import aligned, read_one_layer

    folder = out or Path(model)
    if out is None and not folder.is_dir():
        raise InputError(f"{model} is no folder, so nothing can be written beside it; pass --out")
    score_layer, table = read_one_layer(scores, score_layer)
    scored = ((conversation, table.values[turns]) for conversation, turns in aligned(data, table))
    run = FitRun(model, folder, method.value, beta, layer, max_length, dtype.value, device, revision)
    provenance = {"data": str(data), "scores": table.manifest, "score_layer": score_layer}
    indicator, quality, left_out = fit_model(run, scored, provenance)
    for reason, n in left_out.items():
        print(f"{n:,} turns left out: {reason}")
    _print_quality(quality, beta)
    file = folder / FILE
    chosen = indicator.fitted["at_its_threshold"]
    print(
        f"threshold {indicator.threshold:.3f}: marks {chosen['marked']:.3f} of the turns, {chosen['recall']:.3f} of "
        f"the context-dependent ones, {chosen['false_alarms']:.3f} of the others"
    )
    title = f"{Path(model).name or model}, {method.value}, {data.name}"
    print(file, reliability_diagram(quality, indicator.threshold, title, file.with_suffix(".png")), sep="\n")


def _print_quality(quality: "Quality", beta: float) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{quality.n_positive:,} of {quality.n:,} turns have a score above {beta:g}")
    print(
        f"AUROC {quality.auroc:.3f} [{quality.auroc_low:.3f}, {quality.auroc_high:.3f}], "
        f"calibration error {quality.reliability.error:.3f} ({quality.error_by_chance:.3f} if all were right)"
    )
    table = Table("threshold", "marked", "of the context-dependent", "of the others")
    for at in quality.at:
        table.add_row(f"{at.threshold:g}", f"{at.marked:.3f}", f"{at.recall:.3f}", f"{at.false_alarms:.3f}")
    Console(width=None if Console().is_terminal else 100, highlight=False).print(table)


@auto.command("evaluate", short_help="What it does to prompts that need their context, and to others.")
def evaluate_command(
    model: Annotated[str, typer.Option(help="Folder or hub name of a model that fit wrote for.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for answers, JSON and Markdown.", show_default=False)],
    model_args: Annotated[
        str, typer.Option(help="More of --model ctxaware: peft=…,tokenizer=…,indicator_threshold=…")
    ] = "",
    grid: Annotated[str, typer.Option(help="Needles: context lengths x depths.")] = "5x5",
    max_context_length: Annotated[int, typer.Option(help="Of the longest needle prompt, in tokens.")] = 2000,
    needle: Annotated[str, typer.Option(help="sf, pizza, or a YAML file.")] = "sf",
    source: Annotated[str, typer.Option(help="Of needles' text and questions: hub, builtin or a path.")] = "hub",
    haystack: Annotated[str | None, typer.Option(help="The text around needles, where not from the source.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="FastChat's llm_judge/data, for MT-Bench; left out if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Reading questions.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer to MT-Bench.")] = 128,
    batch_size: Annotated[str, typer.Option(help="As lm_eval takes it.")] = "1",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: the best there is.")] = None,
) -> None:
    """Answer five kinds of prompts with \\[IND] never, always, and where the model says so, and compare.

    Needles, reading with the passage, the same questions without it and with an irrelevant one, MT-Bench's first turns.
    Interrupted, the same command goes on.

    \b
    Examples:
      ctxaware auto evaluate --model runs/ind --source builtin --data-dir DATA --out auto
      ctxaware auto evaluate --model runs/ind-base --model-args peft=runs/ind,tokenizer=runs/ind --out auto
    """
    from ctxaware.commands.options import needle_settings, parse_model_args
    from ctxaware.report.auto import AutoRun, evaluate, markdown

    needles = needle_settings(grid, max_context_length, needle, haystack or source)
    questions = data_dir / "mt_bench" / "question.jsonl" if data_dir else None
    run = AutoRun(
        model,
        out,
        parse_model_args(model_args),
        needles,
        source,
        questions,
        limit,
        max_new_tokens,
        batch_size,
        device,
    )
    print(markdown(evaluate(run)))
