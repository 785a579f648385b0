"""The `ctxaware` command: gathers the sub-commands and turns a user's mistake into one line."""

import sys

import typer

from ctxaware.commands import (
    demo_model,
    gap,
    gate,
    heatmap,
    layers,
    mt_bench,
    prepare,
    report,
    score,
    select,
    tasks_path,
)
from ctxaware.errors import InputError, print_error

app = typer.Typer(
    name="ctxaware",
    help="Measure, and mend, what instruction tuning does to a language model's use of its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# in the order in which `--help` lists them
for module in (
    gap,
    gate,
    heatmap,
    prepare,
    score,
    select,
    layers,
    mt_bench,
    report,
    tasks_path,
    demo_model,
):
    app.add_typer(module.app)


def main() -> None:
    """Run the command; an `InputError` becomes one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print_error(error)
        sys.exit(2)
