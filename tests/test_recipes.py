"""The recipes as scripts: run, killed, taken up, refused; in one process and in two."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import tiny
from safetensors.torch import load_file
from training_runs import command, prepared_base, write_data

ROOT = Path(__file__).parents[1]
METHODS = {
    "full": (),
    "lora": ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"),
    "qlora": ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--load_in_4bit", "true"),
}
RESUMABLE = ("--num_train_epochs", "2", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "3")
RESCORED = ("--rescore_each_epoch", "true", "--score_layer", "1")


def recipe(name, argv, log, kill_at=None):
    """Exit status of a recipe in a child process (forked: no time for imports), which dies by kill -9 at a step."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(log, "w")  # noqa: SIM115 - the process ends with it
        status = 1
        try:
            from ctxaware.checkpoints import CompleteCheckpoints

            def die(self, args, state, control, **kwargs):
                if state.global_step == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            CompleteCheckpoints.on_step_end = die
            sys.argv = [name, *argv]
            runpy.run_path(str(ROOT / "recipes" / name), run_name="__main__")
            status = 0
        except SystemExit as error:
            status = error.code or 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saved(out):
    (file,) = [p for p in out.glob("*.safetensors")]
    return {name: value.numpy().tobytes() for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.mark.parametrize("method", METHODS)
def test_kill_9_and_the_same_command_give_the_same_weights(data, tmp_path, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    base = prepared_base(tmp_path / "base", hidden_size=64)
    # on the CPU bitsandbytes repacks 4-bit weights for a forward pass in evaluation mode, and training goes on with
    # what it unpacks: after scoring, a run that was not interrupted differs in the last bits from one that was
    chosen = ("--seed_model", str(base), "--score_layer", "1") if method == "qlora" else RESCORED
    more = (*METHODS[method], *RESUMABLE, *chosen, "--threshold", "0.3")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert recipe("sft_indicator.py", command(base, data, whole, *more), log) == 0, log.read_text()
    argv = command(base, data, killed, *more)
    assert recipe("sft_indicator.py", argv, log, kill_at=5) == -signal.SIGKILL
    assert not list(killed.glob("*.safetensors"))
    first = {path: path.stat().st_mtime_ns for path in (killed / "selection").iterdir()}
    assert len(first) == (1 if method == "qlora" else 2), "each epoch has a selection of its own"
    optimizer = killed / "checkpoint-4" / "optimizer.pt"
    if method == "lora":  # a checkpoint that was cut off is passed over
        optimizer.write_bytes(optimizer.read_bytes()[:100])
    assert recipe("sft_indicator.py", argv, log) == 0, log.read_text()
    told = log.read_text()
    assert ("checkpoint-4 is incomplete and passed over" in told) == (method == "lora")
    assert f"taking up the run at {killed}/checkpoint-{2 if method == 'lora' else 4}" in told
    assert {path: path.stat().st_mtime_ns for path in (killed / "selection").iterdir()} == first, "scored again"
    assert saved(killed) == saved(whole)
    assert recipe("sft_indicator.py", argv, log) == 0
    assert "is trained already" in log.read_text()
    assert recipe("sft_indicator.py", [*argv, "--seed", "7"], log) == 2
    assert log.read_text().splitlines()[-1].startswith(f"error: {killed} holds a run with seed 42 (now 7)")
