"""The `ctxaware` command: gathers the sub-commands and turns a user's mistake into one line."""

import importlib
import sys
from typing import Any

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
    "auto",
    "gate",
    "report",
    "heatmap",
    "mt_bench",
    "experiment",
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


USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, wherever this release of typer keeps it


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def main() -> None:
    """Run the command; a mistake in its options, or an `InputError`, becomes one line and exit code 2."""
    try:
        exit_code = app(standalone_mode=False)
    except InputError as error:
        print_error(error, _option)
        exit_code = 2
    except USAGE_ERROR as error:
        print_error(error.format_message())
        exit_code = error.exit_code
    except typer.Abort:
        exit_code = 1
    sys.exit(exit_code if isinstance(exit_code, int) else 0)
