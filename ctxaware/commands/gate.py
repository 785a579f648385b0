"""`ctxaware gate`: is a run worse than another?"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("gate")
def gate(
    before: Annotated[Path, typer.Argument(help="Folder of lm_eval --log_samples --output_path: what you had.")],
    after: Annotated[Path, typer.Argument(help="The same of what you have now.")],
    tasks: Annotated[
        str | None,
        typer.Option(help="Only these, comma-separated; A=B compares task A before with task B after."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What to compare, 0-1; with its filter where a task has several: exact_match,strict-match."),
    ] = None,
    max_drop: Annotated[float, typer.Option(help="The drop that is tolerated, 0-1.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the verdict, above 0.5, at most 0.9999.")] = 0.95,
    allow: Annotated[
        str | None,
        typer.Option(help="What may differ, comma-separated: missing, prompts, versions, limit, generation."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for gate.md, gate.json and gate.xml (JUnit).")] = None,
) -> None:
    """Say whether a run of the harness is worse than another: pass, fail or inconclusive.

    Compares question by question. Questions on one passage, and needles of one cell, count as dependent.
    Exit code 0: a drop of more than --max-drop is excluded. 1: one is shown. 3: the samples do not decide,
    and the answer says how many would. 2: the runs do not compare, or a file is not whole.

    \b
    Examples:
      ctxaware gate results/base results/tuned
      ctxaware gate results/base results/tuned --max-drop 0.05 --out verdict
      ctxaware gate results/vanilla results/indicator --tasks squad_contain=squad_contain_ind --allow prompts
    """
    from ctxaware.errors import InputError
    from ctxaware.report import verdict
    from ctxaware.report.gate import RunsDiffer
    from ctxaware.report.gate import gate as compare

    allowed = _split(allow, "--allow")
    try:
        answer = compare(before, after, _pairs(tasks), metric, max_drop, confidence, allowed or ())
    except RunsDiffer as error:
        kinds = ",".join(sorted({*error.kinds, *(allowed or ())}))
        raise InputError(f"{error}; run both alike, or pass --allow {kinds}") from error
    if out is not None:
        verdict.save(answer, out)
    print(verdict.markdown(answer), end="")
    raise typer.Exit(answer.exit_code)


def _split(text: str | None, option: str) -> list[str] | None:
    from ctxaware.errors import InputError

    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"{option} must be names with commas between them, got {text!r}")
    return list(dict.fromkeys(names))


def _pairs(tasks: str | None) -> list[tuple[str, str]] | None:
    from ctxaware.errors import InputError

    names = _split(tasks, "--tasks")
    if names is None:
        return None
    pairs = []
    for name in names:
        before, equals, after = name.partition("=")
        if not before or (equals and not after):
            raise InputError(f"--tasks takes TASK or BEFORE=AFTER, got {name!r}")
        pairs.append((before, after or before))
    return list(dict.fromkeys(pairs))
