"""Keys and values that prompts share: the logits of the plain forward, and no shared token computed twice."""

import contextlib
import itertools

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import CONFIGS, random_model

from ctxaware import prefix_cache
from ctxaware.cache_trial import why_not_exact
from ctxaware.demo import demo_model
from ctxaware.errors import InputError
from ctxaware.prefix_cache import PrefixCache, Prompt, common_prefix

RNG = torch.Generator().manual_seed(0)
HAYSTACK = torch.randint(3, 60, (60,), generator=RNG).tolist()
NEEDLE = [61, 62, 63]


def plain_call(call):
    return contextlib.nullcontext()


def grid(lengths=(12, 40, 60), depths=(0, 0.5, 1)):
    """Haystacks of several lengths with a needle at several depths, and one of them twice."""
    cells = [(n, int(n * depth)) for n in lengths for depth in depths]
    prompts = [HAYSTACK[:depth] + NEEDLE + HAYSTACK[depth:n] + [1, 2] for n, depth in cells]
    return [*prompts, prompts[4], prompts[4][:-1]]


def plain_logits(model, prompt):
    with torch.no_grad():
        return model(torch.tensor([prompt.input_ids])).logits[0, -prompt.n_scored :]


def reused_logits(model, prompts, n_batch, cache=None):
    cache = cache or PrefixCache(model, plain_call)
    order = cache.plan(prompts)
    found = {}
    for start in range(0, len(order), n_batch):
        batch = order[start : start + n_batch]
        found.update(zip(batch, cache.score([prompts[i] for i in batch]), strict=True))
    return [found[i] for i in range(len(prompts))], cache


@pytest.fixture(scope="module")
def llama():
    return random_model(CONFIGS["llama, grouped heads"]())


@pytest.mark.parametrize(("n_batch", "piece"), [(1, 1024), (4, 1024), (1, 7)])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_plain_forward(name, n_batch, piece, monkeypatch):
    monkeypatch.setattr(prefix_cache, "PIECE_TOKENS", piece)
    model = random_model(CONFIGS[name]())  # windows of 5 to 7 tokens: nearly all prompts are longer
    assert why_not_exact(model) is None
    prompts = [Prompt(tuple(ids), n_scored=1 + i % 3) for i, ids in enumerate(grid())]
    found, cache = reused_logits(model, prompts, n_batch)
    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, plain_logits(model, prompt), atol=2e-4, rtol=1e-4)
    assert cache.n_computed < 0.7 * sum(len(prompt.input_ids) for prompt in prompts)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 3)), min_size=1, max_size=9
    ),
    st.integers(1, 4),
    st.sampled_from([1, 16]),
)
def test_any_prompts_in_any_batches(llama, drawn, n_batch, launch):
    prompts = [Prompt(tuple(ids), n_scored=min(n, len(ids))) for ids, n in drawn]
    cache = PrefixCache(llama, plain_call)
    cache._launch = launch
    found, _ = reused_logits(llama, prompts, n_batch, cache)
    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, plain_logits(llama, prompt), atol=2e-4, rtol=1e-4)


def test_one_by_one_no_shared_token_is_computed_twice(llama):
    prompts = [Prompt(tuple(ids)) for ids in grid()[:-2]]
    _, cache = reused_logits(llama, prompts, 1)
    beginnings = {prompt.input_ids[:n] for prompt in prompts for n in range(1, len(prompt.input_ids) + 1)}
    assert cache.n_computed == len(beginnings)


def test_what_two_batches_share_is_computed_once(llama):
    ends = [Prompt((*HAYSTACK, 1, i)) for i in range(6)]
    _, cache = reused_logits(llama, ends, 2)
    assert cache.n_computed == len(HAYSTACK) + 1 + 6


def test_behind_a_cache_no_piece_is_longer_than_the_limit(llama, monkeypatch):
    monkeypatch.setattr(prefix_cache, "PIECE_TOKENS", 10)
    fed = []
    cache = PrefixCache(llama, lambda call: fed.append(call.input_ids.shape[1]) or contextlib.nullcontext())
    prompts = [Prompt((*HAYSTACK[:20], i, *HAYSTACK[20:55])) for i in (1, 2)]
    reused_logits(llama, prompts, 1, cache)
    # keys of each call: the first prompt from nothing up to its last ten, the second behind the 20 that are shared
    assert fed == [46, 56, 30, 40, 46, 56]


def test_entries_that_differ_are_not_shared(llama):
    """Equal tokens under another key: steering's, for one, where the tokens are another speaker's."""
    prompts = [Prompt((*HAYSTACK, 1), cache_key=tuple((i, who) for i in (*HAYSTACK, 1))) for who in ("a", "b")]
    _, cache = reused_logits(llama, prompts, 1)
    assert cache.n_computed == 2 * (len(HAYSTACK) + 1)


@given(st.lists(st.integers(0, 1), max_size=8), st.lists(st.integers(0, 1), max_size=8))
def test_common_prefix_is_the_longest(a, b):
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n in (len(a), len(b)) or a[n] != b[n]


def test_the_tail_costs_least(llama):
    cache = PrefixCache(llama, plain_call)
    for launch, own in itertools.product((1, 16, 256), ([3, 3, 3], [40, 3, 3], [40, 39, 41, 2], [1, 500])):
        cache._launch = launch

        def cost(n_tail, own=own, launch=launch):
            return max(n_tail * len(own), launch) + sum(max(n - n_tail, launch) for n in own if n > n_tail)

        for most in (2, max(own)):
            assert cost(cache._tail(own, 1, most)) == min(cost(n) for n in range(1, most + 1))


def test_an_error_half_way_leaves_nothing_that_is_used_later(llama, monkeypatch):
    prompts = [Prompt(tuple(ids)) for ids in grid()]
    cache = PrefixCache(llama, plain_call)
    last = llama.model.layers[-1]
    order = cache.plan(prompts)
    cache.fill([prompts[order[0]], prompts[order[1]]])
    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError))
        with pytest.raises(torch.OutOfMemoryError):
            cache.fill([prompts[order[2]], prompts[order[3]]])
    found, _ = reused_logits(llama, prompts, 2, cache)
    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, plain_logits(llama, prompt), atol=2e-4, rtol=1e-4)


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
LLAMA = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tf.MambaForCausalLM(tf.MambaConfig(**SMALL)), "recurrent"),
        (lambda: tf.Lfm2ForCausalLM(tf.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"])), "conv"),
        (lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)), "encoder-decoder"),
        (
            lambda: tf.LlamaForCausalLM(
                tf.LlamaConfig(**LLAMA, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
            ),
            "dynamic depend on the length",
        ),
        (
            lambda: tf.Phi3ForCausalLM(
                tf.Phi3Config(**LLAMA, pad_token_id=0, rope_parameters=LONGROPE, original_max_position_embeddings=64)
            ),
            "longrope depend on the length",
        ),
    ],
)
def test_architectures_whose_cache_can_not_be_cut_are_named(make, reason):
    assert reason in why_not_exact(make().eval())


def test_prompt_tuning_is_named(llama):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    assert "adapter" in why_not_exact(peft.get_peft_model(random_model(llama.config), config).eval())


def test_a_model_that_passes_over_the_cache_is_found_by_the_trial(llama, monkeypatch):
    model = random_model(llama.config)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, past_key_values=None, **kw: forward(*a, **kw))
    assert "trial" in why_not_exact(model) or "takes no cache" in why_not_exact(model)


@pytest.mark.slow
def test_rounding_in_16_bits_is_no_reason():
    try:
        folder = demo_model()
    except InputError as error:
        pytest.skip(str(error))
    assert why_not_exact(tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)) is None
