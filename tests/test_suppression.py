"""The experiment that leaves heads out: a hook that does what zeroed weights do, and is gone afterwards."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from support.chats import sharp_llama

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_suppressed_head_is_one_whose_output_weights_are_zero():
    suppressed, model = load("suppression").suppressed, sharp_llama(n_layers=3, vocab_size=100)
    ids = torch.randint(100, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        with suppressed(model, [(0, 1), (2, 0), (2, 3)]):
            ours = model(ids).logits
        torch.testing.assert_close(model(ids).logits, whole, atol=0, rtol=0)
        for layer_idx, head_idx in [(0, 1), (2, 0), (2, 3)]:
            model.model.layers[layer_idx].self_attn.o_proj.weight[:, head_idx * 8 : (head_idx + 1) * 8] = 0
        torch.testing.assert_close(ours, model(ids).logits, atol=1e-5, rtol=0)
        assert (ours - whole).abs().max() > 0.1


def test_a_control_set_is_as_large_as_the_top_and_has_none_of_it():
    ranking = [(layer, head) for head in range(4) for layer in (5, 2, 9)]
    top, draw = ranking[:4], load("suppression").draw  # layers 5, 2, 9, and 5 again
    for same_layers in (False, True):
        drawn = draw(ranking, top, same_layers, np.random.default_rng(0))
        assert len(set(drawn)) == 4
        assert not set(drawn) & set(top)
    assert sorted(layer for layer, _ in drawn) == [2, 5, 5, 9]
