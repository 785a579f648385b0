"""The `ctxaware` command. Each sub-command imports what it needs when it runs, so `--help` is quick."""

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from ctxaware.errors import InputError, print_error

app = typer.Typer(
    name="ctxaware",
    help="Measure and mend what instruction tuning does to a model's use of its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of the lm-eval tasks, for `lm_eval --include_path "$(ctxaware tasks-path)"`.

    Only needed where automatic discovery is switched off with CTXAWARE_NO_DISCOVERY=1.
    """
    print(Path(__file__).parent / "tasks")


def main() -> None:
    """Run the command; an `InputError` becomes one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print_error(error)
        sys.exit(2)
