import json
import shutil

import pytest
import torch
from support import tiny

from ctxaware.errors import InputError
from ctxaware.indicator.token import add_indicator
from ctxaware.models import (
    check_checkpoint,
    load_adapter,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
)
from ctxaware.runs import model_folder


@pytest.fixture
def adapter(tmp_path):
    """An adapter with random LoRA weights and a row of its own for `[IND]`, and its base."""
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    tokenizer = tiny.byte_level_tokenizer()
    row = add_indicator(tokenizer)
    base = tiny.save_model(tmp_path / "base", tokenizer)
    targets = ["q_proj", "down_proj"]
    config = LoraConfig(
        target_modules=targets, init_lora_weights=False, trainable_token_indices={"embed_tokens": [row]}
    )
    model = get_peft_model(load_model(str(base), None, torch.float32, "cpu"), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "trainable_tokens_delta" in name:
                weight += 1
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return model.eval(), tmp_path / "adapter", base, row


def test_an_adapter_loads_as_the_model_that_it_makes_of_its_base(adapter):
    model, folder, base, row = adapter
    ids = torch.tensor([[5, 6, row, 7]])
    loaded = load_model(str(folder), None, torch.float32, "cpu")
    with torch.no_grad():
        logits = loaded(ids).logits
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=0)
        assert not torch.allclose(logits, load_model(str(base), None, torch.float32, "cpu")(ids).logits, atol=1e-2)
    assert type(loaded).__name__ == "LlamaForCausalLM"  # plain: attention is where scoring looks for it
    assert load_config(str(folder)).num_hidden_layers == load_config(str(base)).num_hidden_layers
    assert load_tokenizer(str(folder)).convert_tokens_to_ids("[IND]") == row


def test_an_adapter_without_its_base_is_named(adapter):
    _, folder, base, _ = adapter
    shutil.rmtree(base)
    with pytest.raises(InputError, match=r"can't load model '.*base'"):
        load_model(str(folder), None, torch.float32, "cpu")
    with pytest.raises(InputError, match=r"can't load model '.*base'"):
        load_config(str(folder))


def test_an_adapter_on_an_adapter_is_refused_by_whoever_loads_it(adapter, tmp_path):
    _, lower, base, _ = adapter
    upper = shutil.copytree(lower, tmp_path / "upper")
    config = json.loads((upper / "adapter_config.json").read_text())
    (upper / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(lower)}))
    model = load_model(str(base), None, torch.float32, "cpu")
    for load in (
        lambda: load_model(str(upper), None, torch.float32, "cpu"),
        lambda: load_config(str(upper)),
        lambda: check_checkpoint(str(upper)),
        lambda: load_adapter(model, str(upper)),
        lambda: model_fingerprint(str(upper)),
    ):
        with pytest.raises(InputError, match=r"is an adapter on another adapter, '.*adapter', .*; merge that into its"):
            load()
    pytest.importorskip("lm_eval")
    from ctxaware.harness.model import ContextLM

    with pytest.raises(InputError, match=r"peft=.* is no adapter: it has no adapter_config\.json"):
        ContextLM(pretrained=str(base), peft=str(base), device="cpu")

    for pretrained, peft in ((base, upper), (lower, lower)):
        with pytest.raises(InputError, match=r"adapter.*would be left out; merge"):
            ContextLM(str(pretrained), peft=str(peft), device="cpu")


CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """Puts a model's own code into a folder, as `auto_map` names it; its marker says whether it ran. A yes to all."""
    marker = tmp_path / "the code ran"
    monkeypatch.setattr("builtins.input", lambda *_: "y")

    def plant(folder, file, **auto_map):
        (folder / "own.py").write_text(CODE.format(marker=str(marker)))
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"auto_map": auto_map} | {"model_type": "own"}))
        return marker

    return plant


def test_a_model_s_own_code_is_refused_in_one_line_and_nobody_is_asked(tmp_path, with_code):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer())
    marker = with_code(folder, "config.json", AutoConfig="own.Config", AutoModelForCausalLM="own.Model")
    for load in (load_config, lambda name: load_model(name, None, torch.float32, "cpu")):
        with pytest.raises(InputError, match="needs code of its own") as error:
            load(str(folder))
        assert "\n" not in str(error.value)
    assert not marker.exists()


def test_a_configuration_that_transformers_knows_does_not_open_the_door_to_a_model_s_code(tmp_path, with_code):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer())
    marker = with_code(folder, "config.json", AutoModelForCausalLM="own.Model")
    reconfigure(folder, model_type="vit")  # no causal language model of transformers' own
    with pytest.raises(InputError, match="needs code of its own"):
        load_model(str(folder), None, torch.float32, "cpu")
    assert not marker.exists()


def test_a_tokenizer_s_own_code_is_refused(tmp_path, with_code):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "OwnTokenizer"}))
    marker = with_code(folder, "tokenizer_config.json", AutoTokenizer=["own.Tokenizer", None])
    with pytest.raises(InputError, match="needs code of its own"):
        load_tokenizer(str(folder))
    assert not marker.exists()


def test_an_adapter_on_a_base_with_its_own_code_is_refused(adapter, with_code):
    _, folder, base, _ = adapter
    marker = with_code(base, "config.json", AutoConfig="own.Config", AutoModelForCausalLM="own.Model")
    with pytest.raises(InputError, match="needs code of its own"):
        load_model(str(folder), None, torch.float32, "cpu")
    assert not marker.exists()


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 5}, r"no weights for 27 .*model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"leaves out: 9 .*model\.layers\.1\."),
        ({"intermediate_size": 48}, "other shape"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_an_error(tmp_path, changes, says):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer())
    reconfigure(folder, **changes)
    with pytest.raises(InputError, match=says):
        load_model(str(folder), None, torch.float32, "cpu")


@pytest.mark.parametrize("n_bytes", [0, 5, 4000])
def test_weights_that_are_cut_off_are_told_in_one_line(tmp_path, n_bytes):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match="can't load model") as error:
        load_model(str(folder), None, torch.float32, "cpu")
    assert "\n" not in str(error.value)


def test_an_adapter_that_lacks_weights_is_an_error(adapter):
    from safetensors.torch import load_file, save_file

    _, folder, _, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"missing adapter keys.*layers\.1"):
        load_model(str(folder), None, torch.float32, "cpu")


def test_an_adapter_of_pickles_is_refused(adapter):
    _, folder, _, _ = adapter
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_model(str(folder), None, torch.float32, "cpu")


def test_a_kernel_of_a_hub_is_code_too(tmp_path):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer())
    reconfigure(folder, attn_implementation="somebody/kernel")
    with pytest.raises(InputError, match="somebody/kernel"):
        load_model(str(folder), None, torch.float32, "cpu")


@pytest.mark.parametrize("whole", [True, False])
def test_a_fingerprint_notices_a_change_at_any_place_of_the_weights(tmp_path, monkeypatch, whole):
    folder = tiny.save_model(tmp_path / "m", tiny.byte_level_tokenizer(), hidden_size=64)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if not whole:  # tiny blocks of a file that counts as large
        monkeypatch.setattr(model_folder, "HASHED_WHOLE", 1000)
        monkeypatch.setattr(model_folder, "_BLOCK", 16)
    before = model_fingerprint(str(folder))
    assert model_fingerprint(str(folder)) == before
    (folder / "README.md").write_text("a card")
    assert model_fingerprint(str(folder)) == before
    changed = 1 if whole else 2 * len(content) // model_folder._N_BLOCKS
    for at in (0, len(content) // 3, len(content) // 2, len(content) - changed):
        bad = bytes(255 - b for b in content[at : at + changed])
        weights.write_bytes(content[:at] + bad + content[at + changed :])
        assert model_fingerprint(str(folder)) != before
    weights.write_bytes(content)
    assert model_fingerprint(str(folder)) == before
    reconfigure(folder, rms_norm_eps=1e-3)
    assert model_fingerprint(str(folder)) != before


MADE_OF = {
    **{"model-00001-of-00002.safetensors": True, "model.safetensors.index.json": True, "pytorch_model.bin": True},
    **{"generation_config.json": True, "adapter_config.json": True, "adapter_model.safetensors": True},
    **{"tokenizer.json": True, "tokenizer.model": True, "special_tokens_map.json": True, "vocab.txt": True},
    **{"merges.txt": True, "vocab.json": True, "added_tokens.json": True, "chat_template.jinja": True},
    **{"chat_template.json": True, "modeling_own.py": True, "scores.parquet": False, "heads.json": False},
    **{"run.json": False, "lock": False, "heads.png": False, "auto_indicator.json": False, "README.md": False},
    **{"auto_indicator.safetensors": False, "training_args.bin": False, "gap.json": False, "notes.txt": False},
}


@pytest.mark.parametrize("name", MADE_OF)
def test_a_fingerprint_is_of_what_a_model_is_made_of(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("before")
    before = model_folder.folder_hash(tmp_path)
    (tmp_path / name).write_text("after")
    assert (model_folder.folder_hash(tmp_path) != before) == MADE_OF[name]


def test_a_fingerprint_of_an_adapter_notices_a_change_of_its_base(adapter):
    _, folder, base, _ = adapter
    before = model_fingerprint(str(folder))
    reconfigure(base, rms_norm_eps=1e-3)
    assert model_fingerprint(str(folder)) != before


def test_a_fingerprint_of_no_model_is_told():
    with pytest.raises(InputError, match="can't load model 'no/such-model'"):
        model_fingerprint("no/such-model")


def test_a_fingerprint_of_a_hub_name_is_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    snapshot = tmp_path / "models--who--m" / "snapshots" / commit
    tiny.save_model(snapshot, tiny.byte_level_tokenizer())
    (tmp_path / "models--who--m" / "refs").mkdir()
    (tmp_path / "models--who--m" / "refs" / "main").write_text(commit)
    assert model_fingerprint("who/m") == commit


def test_a_folder_has_no_revision(model_folder):
    assert load_config(str(model_folder), "main").model_type == "llama"
    with pytest.raises(InputError, match="is a folder, which has no revision 'v2'; leave it out, or pass a hub name"):
        load_config(str(model_folder), "v2")


def test_further_chat_templates_are_part_of_a_model(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    assert model_fingerprint(str(folder)) == model_fingerprint(str(model_folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    assert model_fingerprint(str(folder)) != model_fingerprint(str(model_folder))
