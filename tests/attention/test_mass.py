"""Masses by indicator values against the plain formula: every architecture, layer, batch and mode."""

import pytest
import torch
import transformers as tf
from support.architectures import CONFIGS, N_LAYERS, SMALL, VOCABULARY, LargestTensor, random_model

from ctxaware.attention import kernel
from ctxaware.attention.check import check_against_eager, eager_mass
from ctxaware.attention.mass import attention_mass
from ctxaware.errors import InputError


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys(), scope="module")
def model(request):
    return random_model(request.param())


def example(n_tokens, seed=0, n_groups=1):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCABULARY, (1, n_tokens), generator=generator)
    return input_ids, torch.rand((1, n_groups, n_tokens), generator=generator) < 0.4


def test_every_layer_in_one_pass_equals_the_materialised_attention(model):
    input_ids, groups = example(30)
    ours = attention_mass(model, input_ids, groups, torch.arange(30)[None], range(N_LAYERS))
    plain = eager_mass(model, input_ids, groups, range(N_LAYERS))
    for i in range(N_LAYERS):
        torch.testing.assert_close(ours[i], plain[i], atol=1e-5, rtol=0)
        assert plain[i].std() > 0.05, "the example must tell heads and rows apart"


@pytest.mark.parametrize("layer_idx", [0, N_LAYERS // 2, N_LAYERS - 1])
def test_one_layer_some_rows_in_blocks_smaller_than_the_window(model, layer_idx, monkeypatch):
    monkeypatch.setattr(kernel, "QUERY_BLOCK", 4)
    input_ids, groups = example(41)
    rows = torch.tensor([[3, 4, 5, 11, 12, 19, 20, 21, 22, 23, 40]])
    ours = attention_mass(model, input_ids, groups, rows, [layer_idx])
    plain = eager_mass(model, input_ids, groups, [layer_idx])
    torch.testing.assert_close(ours[layer_idx], plain[layer_idx][:, :, rows[0]], atol=1e-5, rtol=0)


def test_a_padded_batch_equals_one_by_one(model):
    lengths = [33, 9, 21]
    singles = [example(n, seed=n, n_groups=2) for n in lengths]
    input_ids = torch.zeros((3, 33), dtype=torch.long)
    groups = torch.ones((3, 2, 33), dtype=torch.bool)  # padding inside a group must not count either
    rows = torch.zeros((3, 33), dtype=torch.long)
    for i, (ids, group) in enumerate(singles):
        input_ids[i, : lengths[i]], groups[i, :, : lengths[i]] = ids[0], group[0]
        rows[i, : lengths[i]] = torch.arange(lengths[i])
    batch = attention_mass(model, input_ids, groups, rows, [0, N_LAYERS - 1])
    for i, (ids, group) in enumerate(singles):
        plain = eager_mass(model, ids, group, [0, N_LAYERS - 1])
        for layer_idx, mass in plain.items():
            torch.testing.assert_close(batch[layer_idx][i, :, : lengths[i]], mass[0], atol=1e-5, rtol=0)


def test_the_model_is_left_as_it_was(model):
    input_ids, groups = example(12)
    before, implementation = model(input_ids).logits, model.config._attn_implementation
    model.train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) or "Conv1D" in type(m).__name__)
    frozen.eval()
    attention_mass(model, input_ids, groups, torch.arange(12)[None], [1])
    assert model.training
    assert model.get_decoder().training
    assert not frozen.training
    assert model.config._attn_implementation == implementation
    model.eval()
    torch.testing.assert_close(model(input_ids).logits, before, atol=0, rtol=0)


def test_the_self_check_agrees(model):
    assert check_against_eager(model, range(N_LAYERS)) < 1e-5


def test_bfloat16_moves_masses_little():
    model = random_model(CONFIGS["llama, grouped heads"]())
    input_ids, groups = example(30)
    args = input_ids, groups, torch.arange(30)[None], [0, 1]
    exact = attention_mass(model, *args)
    rounded = attention_mass(model.bfloat16(), *args)
    assert rounded[0].dtype == torch.float32
    assert (exact[0] - rounded[0]).abs().max() < 0.05
    assert (exact[1] - rounded[1]).abs().mean() < 0.02


def test_nothing_above_the_scored_layer_runs():
    model = random_model(CONFIGS["llama, grouped heads"]())
    ran = []
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(("mlp", i)))
        layer.self_attn.o_proj.register_forward_hook(lambda *_, i=i: ran.append(("o_proj", i)))
    input_ids, groups = example(10)
    attention_mass(model, input_ids, groups, torch.arange(10)[None], [1])
    assert ran == [("o_proj", 0), ("mlp", 0)]


@pytest.mark.parametrize("name", ["llama, grouped heads", "mistral, sliding window", "gemma2, soft-capped and sliding"])
def test_no_tensor_grows_with_the_square_of_the_length(name, monkeypatch):
    monkeypatch.setattr(kernel, "QUERY_BLOCK", 8)
    model, largest = random_model(CONFIGS[name]()), []
    for n_tokens in (64, 128, 256):
        input_ids, groups = example(n_tokens)
        with LargestTensor() as mode:
            attention_mass(model, input_ids, groups, torch.arange(n_tokens)[None], [3])
        largest.append(mode.seen)
    # weights dominate the shortest; doubling the length may not do more than double the largest tensor
    assert largest[2] <= 2.1 * largest[1]


def test_a_layer_the_model_lacks_names_the_range():
    model = random_model(CONFIGS["llama, grouped heads"]())
    with pytest.raises(InputError, match=r"layer_idx must be in 0–3 for this model, got 4; pass another layer"):
        attention_mass(model, *example(5), torch.zeros((1, 1), dtype=torch.long), [4])


def test_a_layer_without_softmax_attention_is_refused():
    config = tf.Qwen3NextConfig(
        **SMALL,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        mlp_only_layers=[0, 1, 2, 3],
    )
    model = random_model(config)
    assert check_against_eager(model, [1, 3]) < 1e-5
    with pytest.raises(InputError, match=r"layers \[2\] of this model have no softmax attention.*\[1, 3\]"):
        attention_mass(model, *example(5), torch.zeros((1, 1), dtype=torch.long), [2])


def test_an_architecture_outside_the_attention_interface_is_refused():
    model = tf.AutoModelForCausalLM.from_config(tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(InputError, match=r"attention interface|bias of its own|not understood|causal"):
        check_against_eager(model, [1])


def test_the_self_check_catches_attention_that_it_does_not_understand(monkeypatch):
    model = random_model(CONFIGS["llama, grouped heads"]())
    plain = tf.models.llama.modeling_llama.eager_attention_forward

    def unforeseen(module, query, *args, **kwargs):
        return plain(module, query * 2, *args, **kwargs)

    monkeypatch.setattr(tf.models.llama.modeling_llama, "eager_attention_forward", unforeseen)
    with pytest.raises(InputError, match="not understood here"):
        check_against_eager(model, [1])
