from types import SimpleNamespace

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctxaware.errors import InputError
from ctxaware.indicator.token import indicator_id
from ctxaware.training.base import check_window, prepare_base, vanilla_base
from ctxaware.training.trainer import build_trainer


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_is_prepared_once_with_the_mean_row_and_the_template(tmp_path, tied):
    tokenizer = tiny.byte_level_tokenizer(chat_template=None)
    base = tiny.save_model(tmp_path / "base", tokenizer, tie_word_embeddings=tied)
    before = AutoModelForCausalLM.from_pretrained(base)
    prepared = prepare_base(str(base), tmp_path / "prepared")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(prepared), AutoTokenizer.from_pretrained(prepared)
    token_id, old = indicator_id(tokenizer), before.get_input_embeddings().weight
    assert "<|user|>" in tokenizer.chat_template
    assert torch.equal(model.get_input_embeddings().weight[:token_id], old)
    assert torch.equal(model.get_input_embeddings().weight[token_id], old.double().mean(dim=0).float())
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits[..., :token_id], before(ids).logits)
    stamped = (prepared / "model.safetensors").stat().st_mtime_ns
    assert prepare_base(str(base), tmp_path / "prepared") == prepared
    assert (prepared / "model.safetensors").stat().st_mtime_ns == stamped, "prepared again"
    assert prepare_base(str(prepared), tmp_path / "other") == prepared, "a prepared base is its own"


def test_for_an_adapter_tied_embeddings_get_a_head_of_their_own(tmp_path):
    base = tiny.save_model(tmp_path / "base", tiny.byte_level_tokenizer(), tie_word_embeddings=True)
    tied = AutoModelForCausalLM.from_pretrained(prepare_base(str(base), tmp_path / "tied"))
    folder = prepare_base(str(tmp_path / "tied"), tmp_path / "untied", untied=True)
    untied = AutoModelForCausalLM.from_pretrained(folder)
    assert folder == (tmp_path / "untied").resolve()
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(untied(ids).logits, tied(ids).logits)


def test_an_adapter_is_merged_into_the_prepared_base_that_another_one_is_trained_on(tmp_path, model_folder):
    peft = pytest.importorskip("peft")
    prepared = prepare_base(str(model_folder), tmp_path / "prepared")
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    lower = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(prepared), settings).eval()
    lower.save_pretrained(tmp_path / "lower")
    AutoTokenizer.from_pretrained(prepared).save_pretrained(tmp_path / "lower")
    base = prepare_base(str(tmp_path / "lower"), tmp_path / "merged")
    assert base == (tmp_path / "merged").resolve()
    ids = torch.tensor([[5, 6, 7]])
    merged = AutoModelForCausalLM.from_pretrained(base)
    torch.testing.assert_close(merged(ids).logits, lower(ids).logits, atol=1e-5, rtol=0)


def test_training_on_an_adapter_is_refused(tmp_path, model_folder):
    """TRL would put a second adapter on it, and the saved one would be of a base that nobody has."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), peft.LoraConfig())
    adapted.save_pretrained(tmp_path / "adapter")
    arguments = SimpleNamespace(
        training=SimpleNamespace(model_init_kwargs=None),
        model=SimpleNamespace(dtype="float32", attn_implementation="sdpa", model_revision="main"),
    )
    with pytest.raises(InputError, match=r"adapter is an adapter, .* would make an adapter on an adapter; merge it"):
        build_trainer(arguments, str(tmp_path / "adapter"), None, None)


def test_another_base_or_template_in_the_folder_is_refused(tmp_path, model_folder):
    prepare_base(str(model_folder), tmp_path / "prepared")
    with pytest.raises(
        InputError, match=r"prepared with chat_template_sha256 \w+\.\.\. \(now .*; remove it or pass another"
    ):
        prepare_base(str(model_folder), tmp_path / "prepared", template="own")
    (tmp_path / "prepared" / "prepared.json").write_text('{"configuration": {"base": "')
    with pytest.raises(InputError, match=r"prepared.json says how .*prepared was made, and can't be read"):
        prepare_base(str(model_folder), tmp_path / "prepared")
    (tmp_path / "full").mkdir()
    with pytest.raises(InputError, match="holds something else"):
        prepare_base(str(model_folder), tmp_path / "full")


def test_two_runs_at_once_prepare_one_base(tmp_path, model_folder):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=prepare_base, args=(str(model_folder), tmp_path / "prepared")) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".prepared.lock", "prepared"]


def test_conversations_past_the_window_are_refused_before_anything_is_trained(tmp_path):
    """Learnt positions end in an index error there, others in weights that no evaluation would tell apart."""
    base = tiny.save_model(tmp_path / "base", tiny.byte_level_tokenizer(), max_position_embeddings=128)
    for length in (None, 128):
        check_window(str(base), None, length)
    with pytest.raises(InputError, match="max_length 129 is longer than this model's window of 128 tokens; pass max_l"):
        check_window(str(base), None, 129)


def test_an_adapter_s_base_is_found_from_any_folder(tmp_path, monkeypatch):
    tiny.save_model(tmp_path / "base", tiny.byte_level_tokenizer())
    monkeypatch.chdir(tmp_path)
    arguments = SimpleNamespace(
        model=SimpleNamespace(model_name_or_path="./base", model_revision="main"),
        training=SimpleNamespace(max_length=64),
        run=SimpleNamespace(chat_template="own"),
    )
    assert vanilla_base(arguments)[0] == str(tmp_path / "base")
