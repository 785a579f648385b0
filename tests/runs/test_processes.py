import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers.integrations import deepspeed

from ctxaware.runs.processes import is_under_launcher, whole_models


class Zero3:
    """What transformers asks of DeepSpeed's configuration."""

    def is_zero3(self):
        return True


def test_models_are_loaded_whole_under_zero_3_and_shared_out_again_afterwards():
    config = Zero3()
    plugin = SimpleNamespace(set_deepspeed_weakref=lambda: deepspeed.set_hf_deepspeed_config(config))
    plugin.set_deepspeed_weakref()
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with whole_models(plugin):
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
        with pytest.raises(KeyError), whole_models(plugin):
            raise KeyError
        assert deepspeed.is_deepspeed_zero3_enabled(), "an error on the way leaves it as it was"
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_without_deepspeed_nothing_changes():
    with whole_models(None):
        assert not deepspeed.is_deepspeed_zero3_enabled()
    assert not deepspeed.is_deepspeed_zero3_enabled()


@pytest.mark.parametrize(
    ("value", "is_one_of_many"), [("", False), ("0", False), ("1", False), ("2", True), ("x", True)]
)
def test_a_launcher_s_world_is_seen_whatever_stands_there(monkeypatch, value, is_one_of_many):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert is_under_launcher() == is_one_of_many


def test_what_a_launcher_left_in_the_environment_is_one_line(model_folder, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"id": "a", "messages": []}')
    words = ["score", tmp_path / "chats.jsonl", "--model", model_folder, "--out", tmp_path / "s.parquet"]
    variables = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "ctxaware", *map(str, words)]
    done = subprocess.run(command, env={**variables, "LOCAL_RANK": "0"}, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "a launcher started this process, but it can't join the others" in line
