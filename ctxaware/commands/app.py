"""The `ctxaware` command: gathers the sub-commands and turns a user's mistake into one line."""

import importlib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from ctxaware.errors import InputError, print_error
from ctxaware.runs.ending import ends_in_one_line

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

MAY_BE_EMPTY = ("--model-args",)  # as it is where it is not given

app = typer.Typer(
    name="ctxaware",
    help="Measure, and mend, what instruction tuning does to a language model's use of its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name in COMMANDS:
    app.add_typer(importlib.import_module(f"ctxaware.commands.{name}").app)


def _refuse_empty_words(words: Sequence[str]) -> None:
    """Refuse an empty text, which a script makes of a variable that is not set: as a path it is the current folder."""
    for before, word in itertools.pairwise(["ctxaware", *words]):
        name, sign, value = word.partition("=")
        place = before if not word else name if word.startswith("--") and sign and not value else None
        if place is not None and place not in MAY_BE_EMPTY:
            raise InputError(f"an empty text stands after {place}; pass a value, or leave it out")


USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, wherever this release of typer keeps it


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _who() -> str:
    """What stands before an error of one of several processes, as a launcher numbers them; "" for the first."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "


def main() -> None:
    """Run the command; a mistake in its options, or an `InputError`, becomes one line and exit code 2."""
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, whatever a notebook's shell has set
    if isinstance(sys.stdout, io.TextIOWrapper):  # a console may lack a character of a model's name
        sys.stdout.reconfigure(errors="backslashreplace")
    with ends_in_one_line(_option, _who):
        _refuse_empty_words(sys.argv[1:])
        try:
            exit_code = app(standalone_mode=False)
        except USAGE_ERROR as error:
            print_error(error.format_message())
            exit_code = error.exit_code
        except typer.Abort:
            exit_code = 1
    sys.exit(exit_code if isinstance(exit_code, int) else 0)
