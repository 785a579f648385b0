"""The `ctxaware` command: gathers the sub-commands and turns a user's mistake into one line."""

import importlib
import sys

import typer

from ctxaware.errors import InputError, print_error

COMMANDS = (  # one module each, in the order in which `--help` lists them
    "gap",
    "attention",
    "heads",
    "steer",
    "prepare",
    "score",
    "select",
    "layers",
    "gate",
    "report",
    "heatmap",
    "mt_bench",
    "tasks_path",
    "demo_model",
)

app = typer.Typer(
    name="ctxaware",
    help="Measure, and mend, what instruction tuning does to a language model's use of its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name in COMMANDS:
    app.add_typer(importlib.import_module(f"ctxaware.commands.{name}").app)


def main() -> None:
    """Run the command; an `InputError` becomes one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print_error(error)
        sys.exit(2)
