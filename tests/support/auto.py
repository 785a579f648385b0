"""What the tests of the automatic indicator share: tiny models with `[IND]`, prompts, indicators of our choice."""

import numpy as np
import torch

from ctxaware.auto.calibration import PLATT, Calibration
from ctxaware.auto.indicator import AutoIndicator, read_log_odds, template_sha256
from ctxaware.auto.methods import Probe, Slot
from ctxaware.auto.weights import weights_fingerprint
from ctxaware.indicator.token import add_indicator
from support import tiny
from support.architectures import CONFIGS, random_model

PASSAGE = "The lamp in the tower is lit at dusk by its keeper, who carries oil up the stairs."
PROMPTS = [
    [{"role": "user", "content": f"{PASSAGE}\nWho lights the lamp?"}],
    [{"role": "user", "content": f"{PASSAGE}\nTell me who lights the lamp"}],  # gets a full stop before the mark
    [
        {"role": "user", "content": "Name a number below 10"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "And one above 77"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello!"}],
    [{"role": "user", "content": 'She said "go away" …'}],
    [{"role": "user", "content": "Is [IND] a word? It ends in [IND]"}],  # typed: ordinary text
]


def tokenizer_with_indicator(kind="byte_level", **kwargs):
    tokenizer = getattr(tiny, f"{kind}_tokenizer")(**kwargs)
    add_indicator(tokenizer)
    return tokenizer


def model_for(tokenizer, name="llama, grouped heads"):
    config = CONFIGS[name]()
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 2048
    model = random_model(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def make_indicator(tokenizer, fingerprint="none", method=None, threshold=0.5, slope=1.0, intercept=0.0):
    calibration = Calibration(PLATT, (slope,), (intercept,))
    return AutoIndicator(method or Slot(), calibration, threshold, 0.6, fingerprint, template_sha256(tokenizer))


def random_probe(layers, hidden_size=32):
    weights = np.random.default_rng(0).normal(size=len(layers) * hidden_size).astype(np.float32)
    return Probe(tuple(layers), weights, 0.1)


def save_model(folder, tokenizer, name="llama, grouped heads"):
    model = model_for(tokenizer, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_indicator(folder, tokenizer, **settings):
    """An automatic indicator beside a saved model."""
    make_indicator(tokenizer, weights_fingerprint(str(folder)), **settings).save(folder)


def median_log_odds(model, method, forks):
    """By which about half of the prompts get the mark."""
    return float(np.median(read_log_odds(model, method, forks)))


def full_logits(model, ids):
    """Of all positions `[n_tokens, vocab]`, by one forward over the whole."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()
