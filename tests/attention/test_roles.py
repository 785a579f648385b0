"""Shares by group against materialised attention, on many architectures; and which token belongs to which group."""

import numpy as np
import pytest
import torch
from support import chats, tiny
from support.architectures import CONFIGS, N_LAYERS, VOCABULARY, random_model

from ctxaware.attention import roles
from ctxaware.attention.kernel import attention_implementation, text_decoder
from ctxaware.attention.roles import GROUPS, SHARES, GroupedPrompt, allocate, group_tokens, renormalised, user_mass
from ctxaware.errors import InputError
from ctxaware.harness.prompts import render_prompt, tokenize_prompt
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import add_indicator


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys(), scope="module")
def model(request):
    return random_model(request.param())


def random_prompt(n_tokens, seed=0):
    rng = np.random.default_rng(seed)
    return GroupedPrompt(rng.integers(VOCABULARY, size=n_tokens), rng.integers(len(GROUPS), size=n_tokens).astype("i1"))


def plain_shares(model, prompt):
    """`[n_layers, n_heads, n_groups]` from the matrices that the model itself gives."""
    decoder = text_decoder(model)
    with attention_implementation(decoder, "eager"), torch.no_grad():
        out = decoder(torch.from_numpy(prompt.input_ids)[None], use_cache=False, output_attentions=True)
    last = torch.stack([matrix[0, :, -1] for matrix in out.attentions]).numpy()
    return np.stack([last[..., prompt.groups == g].sum(axis=-1) for g in range(len(GROUPS))], axis=-1)


def test_every_share_of_every_head_equals_the_materialised_attention(model):
    prompts = [random_prompt(n, seed=n) for n in (31, 9, 20)]
    shares = allocate(model, prompts, range(N_LAYERS))
    for ours, prompt in zip(shares, prompts, strict=True):
        plain = plain_shares(model, prompt)
        np.testing.assert_allclose(ours, plain, atol=1e-5, rtol=0)
        assert plain.std() > 0.05, "the example must tell groups apart"
    if "gpt_oss" not in model.config.model_type:  # its sinks are no tokens
        np.testing.assert_allclose(shares.sum(axis=-1), 1, atol=1e-5)


def test_batches_hold_at_most_their_tokens_and_change_nothing(monkeypatch):
    model, prompts, sizes = random_model(CONFIGS["llama, grouped heads"]()), [], []
    prompts = [random_prompt(n, seed=n) for n in (5, 12, 30, 7, 7)]
    together = allocate(model, prompts, [1])
    monkeypatch.setattr(roles, "BATCH_TOKENS", 24)
    apart = allocate(model, prompts, [1], lambda *done: sizes.append(done))
    assert sizes == [(2, 17), (1, 30), (2, 14)]
    np.testing.assert_allclose(apart, together, atol=1e-6)


def test_a_share_that_is_not_finite_is_refused():
    model = random_model(CONFIGS["llama, grouped heads"]())
    torch.nn.init.constant_(model.model.embed_tokens.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        allocate(model, [random_prompt(8)], [1])


def grouped(tokenizer, text, template, prefix="The answer is"):
    return group_tokens(tokenizer, tokenize_prompt(tokenizer, render_prompt(tokenizer, text, template, prefix)))


def texts(tokenizer, prompt):
    """What each group's tokens say, white space at the ends left off."""
    return {
        name: tokenizer.decode(prompt.input_ids[prompt.groups == i]).strip()
        for i, name in enumerate(GROUPS)
        if (prompt.groups == i).any()
    }


def test_with_a_template_that_opens_with_a_marker():
    tokenizer = chats.make_tokenizer(chats.CHATML)
    assert texts(tokenizer, grouped(tokenizer, "Where is it? <|im_start|", True)) == {
        "first": "<|im_start|>",  # the template's own, and no BOS of this tokenizer
        "template": "system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant",
        "user": "Where is it? <|im_start|",
        "assistant": "The answer is",
    }


def test_with_bos_from_template_or_tokenizer():
    tokenizer = tiny.byte_level_tokenizer(tiny.GEMMA)  # its template refuses a system message
    told = texts(tokenizer, grouped(tokenizer, "Where is it?", True))
    assert told["bos"] == "<s>"
    assert told["user"] == "Where is it?"
    assert told["template"] == "<start_of_turn>user\n<end_of_turn>\n<start_of_turn>model"
    add_bos(tokenizer)
    prompt = grouped(tokenizer, "Where is it?", True)
    assert (prompt.input_ids == tokenizer.bos_token_id).sum() == 1, "BOS is not doubled"
    told = texts(tokenizer, grouped(tokenizer, "Where is it?", False))
    assert told == {"bos": "<s>", "user": "Where is it?", "template": "", "assistant": "The answer is"}


def test_without_bos_the_first_word_is_the_sink_and_no_user_token():
    tokenizer = tiny.byte_level_tokenizer()
    prompt = grouped(tokenizer, "Where is it?", False)
    assert [GROUPS[g] for g in prompt.groups].count("first") == 1
    assert prompt.groups[0] == GROUPS.index("first")
    told = texts(tokenizer, prompt)
    assert told["first"] + " " + told["user"] in ("Where is it?", "W here is it?", "Wh ere is it?")


def test_the_indicator_is_a_group_of_its_own_and_typed_text_is_none():
    tokenizer = tiny.sentencepiece_like_tokenizer(tiny.ZEPHYR)
    ids = grouped(tokenizer, "Where is it?", True).input_ids
    token_id = add_indicator(tokenizer)
    assert "indicator" not in texts(tokenizer, grouped(tokenizer, "Where is it?", True))
    prompt = grouped(tokenizer, append_indicator("Where is it?"), True)
    assert texts(tokenizer, prompt)["indicator"] == "[IND]"
    assert [i for i in prompt.input_ids if i != token_id] == list(ids)


def add_bos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )


def test_renormalising_leaves_the_template_out_and_takes_any_first_token_as_bos():
    assert GROUPS == ("user", "indicator", "assistant", "bos", "first", "template")
    assert SHARES == ("user", "indicator", "assistant", "bos")
    shares = np.array([[0.3, 0.1, 0.04, 0.06, 0.0, 0.5], [0.2, 0.0, 0.2, 0.0, 0.4, 0.2]])
    np.testing.assert_allclose(renormalised(shares), [[0.6, 0.2, 0.08, 0.12], [0.25, 0, 0.25, 0.5]])
    np.testing.assert_allclose(user_mass(shares), [0.4, 0.2])
