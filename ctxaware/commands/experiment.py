"""`ctxaware experiment init | run`: vanilla against + Indicator, on your models and your data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ctxaware.experiment.plan import Plan

app = typer.Typer()
experiment = typer.Typer(
    no_args_is_help=True,
    help="Vanilla tuning against tuning with the indicator, from data to tables: init, run.",
)
app.add_typer(experiment, name="experiment")


@experiment.command("init", short_help="Write a commented experiment.yaml.")
def init_command(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("experiment.yaml"),
    like: Annotated[str, typer.Option(help="Which of the examples that ship with ctxaware.")] = "example",
) -> None:
    """Write a commented experiment.yaml to change to your needs.

    \b
    Examples:
      ctxaware experiment init
      ctxaware experiment init demo.yaml --like demo
      ctxaware experiment init paper.yaml --like paper
    """
    from ctxaware.errors import InputError
    from ctxaware.experiment.recipes import examples
    from ctxaware.runs.files import write_text

    known = examples()
    if like not in known:
        raise InputError(f"--like must be one of {', '.join(known)}, got {like!r}")
    if file.exists():
        raise InputError(f"{file} is there already; name another file, or remove it")
    write_text(file, known[like].read_text(encoding="utf-8"))
    print(f"{file}: change it to your needs, then: ctxaware experiment run {file}")


@experiment.command(
    "run",
    short_help="Run what is to do of an experiment.",
    context_settings={"allow_extra_args": True},
)
def run_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The experiment, as init writes one.")] = Path("experiment.yaml"),
    cores: Annotated[
        int | None, typer.Option(min=1, help="CPU cores at most; all of this machine, if not given.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and print all steps, with what is there.")
    ] = False,
) -> None:
    """Tune both ways, evaluate, compare. Everything that can be checked is checked before training starts.

    Each step is a command, printed as it is run. Interrupted at any moment, the same command goes on; a changed
    setting runs again what depends on it, and nothing else. What stands after -- goes to Snakemake.

    \b
    Examples:
      ctxaware experiment run experiment.yaml --dry-run
      ctxaware experiment run experiment.yaml --cores 8
      ctxaware experiment run experiment.yaml -- --profile recipes/experiment/profiles/slurm

    Exit code 1: a step failed, and a line says which and where its log is. 2: the experiment can't be run as it is.
    """
    from ctxaware.errors import InputError, print_error
    from ctxaware.experiment.check import problems
    from ctxaware.experiment.config import read_experiment
    from ctxaware.experiment.plan import Plan
    from ctxaware.experiment.recipes import located
    from ctxaware.experiment.run import failure, run

    file = Path(located(str(file)))
    plan = Plan(read_experiment(file))
    if wrong := problems(plan):
        for problem in wrong:
            print_error(InputError(problem))
        raise typer.Exit(2)
    if dry_run:
        _print_steps(plan)
        return
    n_left = sum(step.is_to_do for step in plan.steps)
    print(f"{plan.out}: {len(plan.steps)} steps, {n_left} of them to do", flush=True)
    failed = run(plan, file, cores, context.args) if n_left else []
    for step in failed:
        print_error(InputError(failure(plan, step)))
    if failed:
        raise typer.Exit(1)
    if n_left := sum(step.is_to_do for step in plan.steps):  # Snakemake was asked for a part
        print(f"{plan.out}: {n_left} steps are left to do")
    else:
        _print_results(plan)


def _print_steps(plan: "Plan") -> None:
    for step in plan.steps:
        print(f"# {step.kind} {step.name}: {'to do' if step.is_to_do else 'done'}")
        print(step.shell)
    n_left = sum(step.is_to_do for step in plan.steps)
    print(f"# {len(plan.steps)} steps, {n_left} of them to do")


def _print_results(plan: "Plan") -> None:
    from ctxaware.experiment.results import tables

    for comparison in plan.comparisons:
        print()
        for table in tables(comparison, plan.experiment.thresholds):
            print(f"{comparison.name}: {table.title}\n\n{table.markdown()}\n\n{table.note}\n")
        print(f"report: {comparison.report.folder / 'report.html'}")
