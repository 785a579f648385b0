import numpy as np
import pytest
import torch
from support.mt_bench import tiny_model

from ctxaware.errors import InputError
from ctxaware.mt_bench.calls import CallFailed
from ctxaware.mt_bench.generate import TOP_K, LocalModel, SeededSampling, parameters_sha256

TEXTS = ["Hi", "Tell me of the long sea and its many small fish.", "What?", "Ice is water that stands still."]
CONVERSATIONS = [[{"role": "user", "content": text}] for text in TEXTS]
SEEDS = [11, 12, 13, 14]


def plain(model, tokenizer, messages, temperature, seed, n_tokens):
    """One prompt, no batch, no padding, no cache, each step written out."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    n_prompt = len(ids)
    uniforms = torch.rand(n_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()
    for step in range(n_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
        order = np.argsort(-logits)[:TOP_K]
        if temperature == 0:
            token = order[0]
        else:
            p = np.exp((logits[order] - logits[order[0]]) / temperature)
            token = order[np.searchsorted(np.cumsum(p / p.sum()), uniforms[step], side="right")]
        if token == tokenizer.eos_token_id:
            break
        ids = [*ids, int(token)]
    return tokenizer.decode(ids[n_prompt:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("temperature", [0.0, 0.1, 0.7])
def test_batched_generation_equals_the_plain_loop(model, tokenizer, temperature):
    replies = LocalModel(model, tokenizer, 24).answer(CONVERSATIONS, temperature, SEEDS)
    expected = [plain(model, tokenizer, c, temperature, s, 24) for c, s in zip(CONVERSATIONS, SEEDS, strict=True)]
    assert [reply.text for reply in replies] == expected
    assert len(set(expected)) == len(expected)  # the model does listen to its prompt


def test_an_answer_does_not_depend_on_its_batch(model, tokenizer):
    local = LocalModel(model, tokenizer, 24)
    together = local.answer(CONVERSATIONS, 0.7, SEEDS)
    backwards = local.answer(CONVERSATIONS[::-1], 0.7, SEEDS[::-1])[::-1]
    alone = [local.answer([c], 0.7, [s])[0] for c, s in zip(CONVERSATIONS, SEEDS, strict=True)]
    assert together == backwards == alone
    assert local.answer(CONVERSATIONS, 0.7, [s + 100 for s in SEEDS]) != together


def test_sampled_tokens_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([2.0, 0.5, 1.0, -1.0])
    n = 20_000
    uniforms = torch.rand(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = SeededSampling(uniforms, 0.7)(None, logits.repeat(n, 1)).argmax(-1)
    seen = torch.bincount(chosen, minlength=4) / n
    assert torch.allclose(seen, torch.softmax(logits / 0.7, 0), atol=0.012)


def test_sampling_takes_none_but_the_likeliest():
    logits = torch.linspace(0, 0.001, TOP_K + 30)
    uniforms = torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = SeededSampling(uniforms, 1.0)(None, logits.repeat(4000, 1)).argmax(-1)
    assert chosen.min() == 30
    assert len(chosen.unique()) == TOP_K


def test_the_checkpoint_s_generation_config_does_not_leak_and_comes_back(model, tokenizer):
    local = LocalModel(model, tokenizer, 24)
    expected = local.answer(CONVERSATIONS, 0.0, SEEDS)
    before = model.generation_config
    try:
        model.generation_config = leaky = type(before)(
            repetition_penalty=5.0, no_repeat_ngram_size=1, max_new_tokens=3, eos_token_id=before.eos_token_id
        )
        assert local.answer(CONVERSATIONS, 0.0, SEEDS) == expected
        assert model.generation_config is leaky
    finally:
        model.generation_config = before


def test_an_answer_at_its_limit_says_so(model, tokenizer):
    reply = LocalModel(model, tokenizer, 5).answer(CONVERSATIONS[:1], 0.0, SEEDS[:1])[0]
    assert (reply.finish_reason, reply.n_tokens) == ("length", 5)


def test_an_answer_that_ends_itself_says_so(model, tokenizer):
    local = LocalModel(model, tokenizer, 24)
    whole = local.answer(CONVERSATIONS, 0.0, SEEDS)
    prompt = local._prompt(CONVERSATIONS[1])
    (ids,) = local._generate([prompt], 24, 0.0, [0])
    end = next(n for n in range(3, 24) if ids[n] not in ids[:n])
    local._ends = sorted({*local._ends, ids[end]})  # as if that token were an end of text
    reply = local.answer(CONVERSATIONS, 0.0, SEEDS)[1]
    assert (reply.finish_reason, reply.n_tokens) == ("stop", end)
    assert whole[1].text.startswith(reply.text.rstrip("\ufffd"))


def n_prompt_tokens(tokenizer, i):
    text = tokenizer.apply_chat_template(CONVERSATIONS[i], add_generation_prompt=True, tokenize=False)
    return len(tokenizer(text)["input_ids"])


def test_a_full_window_ends_one_row_and_is_recorded_and_the_others_go_on(tokenizer):
    window = n_prompt_tokens(tokenizer, 1) + 3
    small, large = (LocalModel(tiny_model(tokenizer, w), tokenizer, 6) for w in (window, 2048))
    short, whole = small.answer(CONVERSATIONS, 0.0, SEEDS), large.answer(CONVERSATIONS, 0.0, SEEDS)
    assert (short[1].finish_reason, short[1].n_tokens) == ("window", 3)
    assert whole[1].text.startswith(short[1].text.rstrip("\ufffd"))
    assert [short[i] for i in (0, 2, 3)] == [whole[i] for i in (0, 2, 3)]


def test_a_full_window_stays_within_learned_positions(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    window = n_prompt_tokens(tokenizer, 1) + 3
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=window, n_embd=32, n_layer=1, n_head=2, eos_token_id=2)
    replies = LocalModel(GPT2LMHeadModel(config).eval(), tokenizer, 6).answer(CONVERSATIONS, 0.0, SEEDS)
    assert [reply.n_tokens for reply in replies] == [6, 3, 6, 6]


def test_a_prompt_that_fills_the_window_is_a_failure_of_that_row_alone(tokenizer):
    window = n_prompt_tokens(tokenizer, 1)
    replies = LocalModel(tiny_model(tokenizer, window), tokenizer, 4).answer(CONVERSATIONS, 0.0, SEEDS)
    assert [isinstance(reply, CallFailed) for reply in replies] == [False, True, False, False]
    assert replies[1].kind == "window"
    assert f"window {window}" in str(replies[1])


def test_the_weights_hash_notices_any_parameter(tokenizer):
    model = tiny_model(tokenizer)
    before = parameters_sha256(model)
    assert parameters_sha256(model) == before
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.0001)
    assert parameters_sha256(model) != before


def test_a_token_past_the_embedding_is_told(tokenizer):
    from support import tiny

    small = tiny.tiny_llama(100)
    with pytest.raises(InputError, match="embedding has 100 rows"):
        LocalModel(small, tokenizer, 4).answer(CONVERSATIONS, 0.0, SEEDS)


def test_a_tokenizer_without_a_template_is_refused(model, tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        LocalModel(model, bare, 4)
