"""Whether the cache of a text, cut short, is that of the shorter text: by the configuration, then by a trial."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ctxaware.prefix_cache import PrefixCache, Prompt, read_whole, unchanged


def why_not_exact(model: PreTrainedModel) -> str | None:
    """Why the cache of a text, cut short, may not be the cache of the shorter text; None where it is.

    First what the configuration says, then a trial: a few tokens with and without reuse must give the same logits.
    """
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    if getattr(model, "_is_stateful", False):
        return "the model is recurrent"
    if kinds := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"the model has layers of kind {', '.join(sorted(kinds))}"
    if kinds := {kind for kind in _rope_types(config) if kind in ("dynamic", "longrope")}:
        return f"position embeddings of kind {', '.join(sorted(kinds))} depend on the length of the text"
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and (adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None)):
        return "the adapter adds tokens of its own, or waits for some"
    return _trial(model)


def _rope_types(config: Any) -> Iterator[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        yield from filter(None, [each.get("rope_type")])


def _trial(model: PreTrainedModel) -> str | None:
    """A few tokens with and without reuse: logits may differ by little of what leaving out the beginning changes."""
    n = min(model.get_input_embeddings().weight.shape[0], 997)
    text = [(i * i * 7 + 3 * i + 1) % n for i in range(40)]
    trials = [Prompt(tuple(text[:12] + text[20:29])), Prompt(tuple(text[:12] + text[29:40]))]
    trials += [Prompt(tuple(text[:8] + text[24:38]), n_scored=2)]
    cache = PrefixCache(model, unchanged)
    cache._launch = 1  # so that the trunk is grown and cut for each
    try:
        order = cache.plan(trials)
        reused = cache.score([trials[i] for i in order])
        plain = read_whole(model, [trials[i] for i in order])
        beheaded = read_whole(model, [replace(trials[i], input_ids=trials[i].input_ids[8:]) for i in order])
    except Exception as error:  # whatever a model raises here, it goes without
        return f"it takes no cache of ours ({type(error).__name__}: {error})"
    tolerance = 1e-3 if reused[0].dtype == torch.float32 else 0.25  # in 16 bits, padding alone changes a tenth
    for ours, theirs, without in zip(reused, plain, beheaded, strict=True):
        ours, theirs, without = ours.float(), theirs.float(), without.float()
        if not (ours - theirs).abs().mean() <= tolerance * (without - theirs).abs().mean():
            return "a trial gave other logits with reuse than without"
    return None
