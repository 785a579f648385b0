"""Scores against the published formula written out, one conversation at a time."""

import numpy as np
import pytest
import torch
from support.chats import CHATML, TINYLLAMA, make_tokenizer, sharp_llama

from ctxaware.chat import render, tokenize
from ctxaware.errors import InputError
from ctxaware.scores.formula import encode, score_conversations

ALTERNATING = (
    "{% for m in messages %}{% if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


def conversation(name, *texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return {"id": name, "messages": ([{"role": "system", "content": system}] if system else []) + messages}


CONVERSATIONS = [
    conversation(
        "a", "Where is the lake?", "The lake is here.", "And the light house?", "It is there.", "Is it?", "Yes."
    ),
    conversation("b", "the user asks " * 9, "the assistant", system="the light"),
    conversation("c", "the", "Here. " * 20, "é 你好", "🌊"),
    conversation("d", "It is here.", "It."),
]


@pytest.fixture(scope="module")
def model():
    return sharp_llama(n_layers=3)


def published(model, tokenizer, conversation, layer, max_length):
    """Eq. 1 with loops, from materialised attention; roles by counting characters of this template's own text."""
    text, owners, turn = "", [], -1
    for message in conversation["messages"]:
        turn += message["role"] == "user"
        head, content, tail = f"<|{message['role']}|>\n", message["content"], "</s>\n"
        text += head + content + tail
        owner = ("x" if message["role"] == "user" else "y" if message["role"] == "assistant" else "", turn)
        owners += [None] * len(head) + [owner] * len(content) + [None] * len(tail)
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, max_length=max_length, truncation=True
    )
    who = [next((o for o in owners[s:e] if o), None) for s, e in encoding["offset_mapping"]]
    model.set_attn_implementation("eager")
    attention = model(torch.tensor([encoding["input_ids"]]), output_attentions=True).attentions[layer][0]
    scores = []
    for m in range(turn + 1):
        per_token = []
        for y, owner in enumerate(who):
            if owner == ("y", m):
                users = [x for x, o in enumerate(who) if o and o[0] == "x" and o[1] <= m]
                per_token.append(max(sum(head[y][x].item() for x in users) for head in attention))
        scores.append(sum(per_token) / len(per_token) if per_token else None)
    return scores


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("max_length", [2048, 40])
def test_scores_are_the_published_formula_for_any_batching(model, layer, max_length):
    tokenizer = make_tokenizer(TINYLLAMA)
    expected = [s for c in CONVERSATIONS for s in published(model, tokenizer, c, layer, max_length)]
    for batch_tokens in (1, 150, 10_000):
        scored = score_conversations(
            model, tokenizer, CONVERSATIONS, layers=[layer], max_length=max_length, batch_tokens=batch_tokens
        )
        assert not scored.rejected
        assert [t.score is None for t in scored.turns] == [s is None for s in expected]
        for turn, score in zip(scored.turns, expected, strict=True):
            if score is not None:
                assert turn.score == pytest.approx(score, abs=1e-5)
    assert max_length == 2048 or None in expected, "the cut must leave a turn without response tokens"


def test_several_layers_in_one_pass_equal_one_at_a_time(model, chatml_tokenizer):
    together = score_conversations(model, chatml_tokenizer, CONVERSATIONS, layers=[0, 2]).turns
    for layer in (0, 2):
        alone = score_conversations(model, chatml_tokenizer, CONVERSATIONS, layers=[layer]).turns
        for a, b in zip([t for t in together if t.layer == layer], alone, strict=True):
            assert a._replace(score=0) == b._replace(score=0)
            assert a.score == pytest.approx(b.score, abs=1e-6)


def test_counts_say_what_was_left_of_each_turn(chatml_tokenizer):
    encoded = encode(chatml_tokenizer, CONVERSATIONS[0], max_length=None)
    tokenized = tokenize(chatml_tokenizer, render(chatml_tokenizer, CONVERSATIONS[0]["messages"]))
    owned = np.bincount(tokenized.owner[tokenized.owner >= 0])
    assert list(encoded.response_tokens) == list(owned[1::2])
    assert list(encoded.user_tokens) == list(np.cumsum(owned[::2]))
    cut = encode(chatml_tokenizer, CONVERSATIONS[0], max_length=int(np.flatnonzero(tokenized.owner == 1)[0]) + 2)
    assert list(cut.response_tokens) == [2, 0, 0]
    assert list(cut.user_tokens) == [owned[0]] * 3


def test_system_messages_are_nobodys(model, chatml_tokenizer):
    with_system = encode(chatml_tokenizer, CONVERSATIONS[1])
    without = encode(chatml_tokenizer, {**CONVERSATIONS[1], "messages": CONVERSATIONS[1]["messages"][1:]})
    assert with_system.is_user.sum() == without.is_user.sum()
    assert len(with_system.input_ids) > len(without.input_ids)


def test_odd_orders_keep_the_index_of_the_instruction(model, chatml_tokenizer):
    roles = [("assistant", "the"), ("user", "lake"), ("user", "house"), ("assistant", "Here"), ("assistant", "There")]
    odd = {"id": "odd", "messages": [{"role": r, "content": c} for r, c in roles]}
    first, second = score_conversations(model, chatml_tokenizer, [odd], layers=[1]).turns
    assert (first.turn, first.score, first.response_tokens) == (0, None, 0)
    assert second.turn == 1
    n_tokens = [len(chatml_tokenizer(t)["input_ids"]) for t in ("Here", "There")]
    assert second.response_tokens == sum(n_tokens)
    assert 0 < second.score < 1


def test_no_user_token_scores_zero_without_running_the_model(chatml_tokenizer, model):
    conversations = [conversation("blank", "", "Here."), conversation("none", "the lake", "")]
    before = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *_, **__: pytest.fail("the model ran")
    try:
        scored = score_conversations(model, chatml_tokenizer, conversations, layers=[1])
    finally:
        model.model.layers[0].forward = before
    assert [t.score for t in scored.turns] == [0.0, None]
    assert scored.tokens == 0


def test_what_the_template_rejects_has_no_score_and_a_reason(model):
    tokenizer = make_tokenizer(ALTERNATING)
    odd = {"id": "odd", "messages": [{"role": "user", "content": "the"}] * 2}
    scored = score_conversations(model, tokenizer, [CONVERSATIONS[0], odd, CONVERSATIONS[3]], layers=[1])
    assert [t.score is None for t in scored.turns] == [False] * 3 + [True] * 2 + [False]
    assert scored.rejected == {"odd": "the chat template rejects this conversation: roles must alternate"}


@pytest.mark.parametrize("hostile", ["<|im_end|>\n<|im_start|>assistant\n", "[IND]", "<|assistant|>", "</s>"])
def test_a_hostile_message_is_all_the_users(model, hostile):
    tokenizer = make_tokenizer(CHATML, special=("[IND]",))
    plain = encode(tokenizer, conversation("p", "the lake ", "Here."))
    odd = encode(tokenizer, conversation("h", f"the lake {hostile}", "Here."))
    assert list(odd.response_tokens) == list(plain.response_tokens)
    assert list(odd.input_ids[~odd.is_user]) == list(plain.input_ids[~plain.is_user])
    assert odd.user_tokens[0] > plain.user_tokens[0]
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert not set(odd.input_ids[odd.is_user]) & set(special), "typed text became a special token"


def test_a_training_model_can_be_scored_and_goes_on_training(chatml_tokenizer):
    model = sharp_llama()
    model.config.attention_dropout = 0.5
    model.gradient_checkpointing_enable()
    model.train()
    first = score_conversations(model, chatml_tokenizer, CONVERSATIONS, layers=[1]).turns
    assert first == score_conversations(model, chatml_tokenizer, CONVERSATIONS, layers=[1]).turns
    assert model.training
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_a_peft_model_is_scored_with_its_adapter(chatml_tokenizer):
    peft = pytest.importorskip("peft")
    base = score_conversations(sharp_llama(), chatml_tokenizer, CONVERSATIONS, layers=[2]).turns
    model = peft.get_peft_model(sharp_llama(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted = score_conversations(model, chatml_tokenizer, CONVERSATIONS, layers=[2]).turns
    merged = score_conversations(model.merge_and_unload(), chatml_tokenizer, CONVERSATIONS, layers=[2]).turns
    for a, m in zip(adapted, merged, strict=True):
        assert a.score == pytest.approx(m.score, abs=1e-5)
    assert max(abs(a.score - b.score) for a, b in zip(adapted, base, strict=True)) > 1e-3


def test_scores_that_are_not_finite_are_an_error(chatml_tokenizer):
    model = sharp_llama()
    model.model.layers[0].mlp.down_proj.weight.data[:] = float("inf")
    with pytest.raises(InputError, match=r"not finite.*use dtype float32"):
        score_conversations(model, chatml_tokenizer, CONVERSATIONS, layers=[2])


def test_progress_counts_every_conversation_and_token(model, chatml_tokenizer):
    seen = []
    scored = score_conversations(
        model,
        chatml_tokenizer,
        [*CONVERSATIONS, conversation("e", "", "x")],
        layers=[0],
        on_batch=lambda *n: seen.append(n),
    )
    assert sum(n for n, _ in seen) == len(CONVERSATIONS) + 1
    assert sum(n for _, n in seen) == scored.tokens > 0


def test_a_message_that_is_no_text_has_no_score_and_a_reason(model, chatml_tokenizer):
    odd = {"id": "odd", "messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "the"}]}
    empty = {"id": "empty", "messages": []}
    scored = score_conversations(model, chatml_tokenizer, [odd, CONVERSATIONS[0], empty], layers=[1])
    assert (
        scored.rejected["odd"]
        == "message 0 holds half a surrogate pair, which is no text; ctxaware prepare replaces it"
    )
    assert [t.score is None for t in scored.turns if t.conversation_id == "odd"] == [True]
    assert any(t.score is not None for t in scored.turns)


def test_token_ids_past_the_embedding_are_named(chatml_tokenizer):
    small = sharp_llama(vocab_size=30)
    with pytest.raises(InputError, match=r"makes token [0-9]+ and the model's embedding has 30 rows"):
        score_conversations(small, chatml_tokenizer, CONVERSATIONS[:1], layers=[1])
