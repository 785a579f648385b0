"""The `ctxaware` command: gathers the sub-commands and turns a user's mistake into one line."""

import sys

import typer

from ctxaware.commands import evaluate, mt_bench, scoring
from ctxaware.errors import InputError, print_error

app = typer.Typer(
    name="ctxaware",
    help="Measure, and mend, what instruction tuning does to a language model's use of its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for family in (evaluate, scoring, mt_bench):  # each family's commands stand at the top level
    app.add_typer(family.app)


def main() -> None:
    """Run the command; an `InputError` becomes one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print_error(error)
        sys.exit(2)
