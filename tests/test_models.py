import shutil

import pytest
import torch
from support import tiny

from ctxaware.errors import InputError
from ctxaware.indicator.token import add_indicator
from ctxaware.models import load_config, load_model, load_tokenizer


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
