"""Retrieval heads against the plain formula, and choosing, ranking and comparing by hand."""

import numpy as np
import pytest
import torch
from support.architectures import CONFIGS, N_LAYERS, VOCABULARY, random_model

from ctxaware.attention.heads import (
    AnsweredPrompt,
    LayerHead,
    choose_retrieval_heads,
    half_overlap,
    head_attention,
    rank_heads,
    retrieval_heads,
    top_heads,
)
from ctxaware.attention.kernel import attention_implementation, text_decoder
from ctxaware.errors import InputError

NAMES = ["llama, grouped heads", "mistral, sliding window", "gemma2, soft-capped and sliding", "gpt2, learnt positions"]


def random_prompt(n_tokens, n_answer, seed):
    rng = np.random.default_rng(seed)
    rows = np.arange(n_tokens - n_answer - 1, n_tokens - 1)
    is_user = (np.arange(n_tokens) < rows[0]) & (rng.random(n_tokens) < 0.7)
    is_user[rows[0] - 2 : rows[0]] = True  # some of the needle is in reach of a sliding window
    is_needle = is_user & ((rng.random(n_tokens) < 0.3) | (np.arange(n_tokens) >= rows[0] - 2))
    return AnsweredPrompt(rng.integers(VOCABULARY, size=n_tokens), is_user, is_needle, rows)


@pytest.mark.parametrize("name", NAMES)
def test_one_forward_gives_what_the_matrices_give(name):
    model = random_model(CONFIGS[name]())
    prompts = [random_prompt(28, 5, seed=1), random_prompt(17, 3, seed=2)]
    user, needle = head_attention(model, prompts, range(N_LAYERS))
    decoder = text_decoder(model)
    for i, prompt in enumerate(prompts):
        with attention_implementation(decoder, "eager"), torch.no_grad():
            ids = torch.from_numpy(prompt.input_ids)[None]
            matrices = decoder(ids, use_cache=False, output_attentions=True).attentions
        weights = torch.cat(matrices).numpy()  # [n_layers, n_heads, n_query, n_keys]
        at_the_prompts_end = weights[:, :, prompt.rows[0]]
        np.testing.assert_allclose(user[i], at_the_prompts_end[..., prompt.is_user].sum(-1), atol=1e-5)
        generating = np.stack([weights[:, :, row][..., prompt.is_needle].sum(-1) for row in prompt.rows])
        np.testing.assert_allclose(needle[i], generating.mean(axis=0), atol=1e-5)
        assert user[i].std() > 0.05
        assert needle[i].std() > 0.02


def test_what_comes_after_the_prompt_changes_no_retrieval_head():
    model = random_model(CONFIGS["llama, grouped heads"]())
    long = random_prompt(28, 9, seed=3)
    end = long.rows[0] + 2  # with a single answer token, the least that has a row
    short = AnsweredPrompt(long.input_ids[:end], long.is_user[:end], long.is_needle[:end], long.rows[:1])
    user = [head_attention(model, [prompt], range(N_LAYERS)).user for prompt in (long, short)]
    np.testing.assert_allclose(*user, atol=1e-6)


def test_the_retrieval_head_has_the_most_mass_on_the_users_tokens():
    user = np.array([[[0.1, 0.7, 0.2], [0.9, 0.3, 0.5]]])
    assert retrieval_heads(user).tolist() == [[1, 0]]


def test_the_head_that_most_prompts_choose_and_how_many():
    user = np.array([[[0.1, 0.9, 0.2]], [[0.6, 0.5, 0.1]], [[0.4, 0.8, 0.7]]])
    (head,) = choose_retrieval_heads(user, [4])
    assert head == LayerHead(4, 1, pytest.approx(2 / 3), pytest.approx((0.9 + 0.5 + 0.8) / 3))
    often = np.array([[[0.5, 0.4]], [[0.5, 0.4]], [[0.0, 0.9]]])  # the other has the greater mean
    assert choose_retrieval_heads(often, [0])[0].head_idx == 0
    tie = np.array([[[0.6, 0.5]], [[0.1, 0.9]]])  # one prompt each: the greater mean decides
    assert choose_retrieval_heads(tie, [0])[0].head_idx == 1
    assert choose_retrieval_heads(tie[..., ::-1], [0])[0].head_idx == 0


def test_heads_are_ranked_by_their_mean_over_prompts():
    needle = np.array([[[0.1, 0.2], [0.9, 0.0]], [[0.1, 0.6], [0.1, 0.0]]])
    assert rank_heads(needle, [3, 7]) == [(7, 0), (3, 1), (3, 0), (7, 1)]


def test_the_top_is_a_share_of_all_heads_and_at_least_one():
    ranking = [(layer, head) for layer in range(30) for head in range(9)]
    assert top_heads(ranking, 5) == ranking[:14]  # 13.5, rounded
    assert top_heads(ranking[:3], 5) == ranking[:1]
    for percent in (0, 101):
        with pytest.raises(InputError, match="percent must be above 0"):
            top_heads(ranking, percent)


def test_halves_of_the_prompts_are_compared():
    needle = np.zeros((4, 1, 4))
    needle[::2, 0, :2] = 0.5  # even prompts: heads 0 and 1
    needle[1::2, 0, 1:3] = 0.5  # odd ones: 1 and 2
    assert half_overlap(needle, [0], 50) == 0.5
    assert half_overlap(needle[:1], [0], 50) is None
