"""The command line: choices in `--help`, and mistakes in one line."""

import os
import subprocess
import sys

import pytest

from ctxaware.commands.options import Backend, Dataset, DType, Format
from ctxaware.data.conversations import FORMATS
from ctxaware.data.releases import DATASETS
from ctxaware.devices import DTYPES


def ctxaware(*words):
    command = [sys.executable, "-m", "ctxaware", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def test_choices_are_those_of_the_library():
    assert tuple(DType.__members__) == DTYPES
    assert tuple(Dataset.__members__) == tuple(DATASETS)
    assert tuple(Format.__members__) == FORMATS
    assert tuple(Backend.__members__) == ("hf", "vllm")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "x.json", "--dataset", "alpaca", "--out", "o"], "'alpaca' is not one of 'sharegpt', 'ultrachat'"),
        (["score", "x", "--model", "m", "--out", "o", "--dtype", "int4"], "'int4' is not one of"),
        (["score", "x"], "--model"),
        (["gap", "--no-such-option"], "--no-such-option"),
        (["gape"], "gape"),
        (["gap", "--grid", "4"], "--grid must be LENGTHSxDEPTHS"),
        (["gap", "--grid", "9" * 5000 + "x2"], "--grid must be LENGTHSxDEPTHS"),
        (["gap", "--instruct", "m", "--batch-size", "0"], "batch_size must be a number from 1 on, or auto, got '0'"),
        (["prepare", "x.json", "--dataset", "messages", "--out", ""], "an empty text stands after --out; pass a value"),
        (["gap", "--out="], "an empty text stands after --out; pass a value, or leave it out"),
        (["report", ""], "an empty text stands after report"),
        (["gap"], "nothing to compare; pass --instruct, --base, or both"),
    ],
)
def test_a_mistake_in_the_options_is_one_line_and_exit_code_2(words, message):
    done = ctxaware(*words)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["--help"], ["score", "--help"], ["mt-bench", "judge", "--help"], []])
def test_help_is_printed_and_is_no_error(words):
    done = ctxaware(*words)
    assert done.returncode in (0, 2 if not words else 0)
    assert "Usage: " in done.stdout + done.stderr


def test_help_lists_the_choices():
    text = ctxaware("prepare", "--help").stdout
    assert "sharegpt|ultrachat|wizardlm|messages" in text
    assert "parquet|jsonl" in text
