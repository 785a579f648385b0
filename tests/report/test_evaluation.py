"""What a run of our tasks hands to the harness."""

import pytest
import torch
from support import tiny
from typer.testing import CliRunner

from ctxaware.commands.app import app
from ctxaware.models import load_model
from ctxaware.report.evaluation import model_arguments


@pytest.fixture
def adapter(tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra train")
    tokenizer = tiny.byte_level_tokenizer()
    base = tiny.save_model(tmp_path / "base", tokenizer)
    model = load_model(str(base), None, torch.float32, torch.device("cpu"))
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tuned.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", base


def test_an_adapter_goes_to_the_harness_with_its_base_and_its_own_tokenizer(adapter):
    folder, base = map(str, adapter)
    assert model_arguments(base, {"dtype": "float32"}) == {"pretrained": base, "dtype": "float32"}
    expected = {"pretrained": base, "peft": folder, "tokenizer": folder, "dtype": "float32"}
    assert model_arguments(folder, {"dtype": "float32"}) == expected


@pytest.mark.parametrize("command", ["gap", "steer"])
def test_gap_and_steer_take_an_adapter_as_attention_and_heads_do(adapter, tmp_path, command):
    words = ["--instruct", str(adapter[0]), "--tasks", "nih_ctx", "--source", "builtin", "--device", "cpu"]
    words += ["--grid", "2x1", "--max-context-length", "450", "--out", str(tmp_path / "out")]
    more = ["--alphas", "0.5", "--heads", "all"] if command == "steer" else []
    done = CliRunner().invoke(app, [command, *words, *more])
    assert done.exit_code == 0, str(done.exception)
    assert (tmp_path / "out" / f"{command}.json").is_file()
