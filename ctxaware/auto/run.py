"""One run of `ctxaware auto fit`: load the model, read its prompts, fit."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.auto.fit import fit, labelled_turns
from ctxaware.auto.indicator import FILE, WEIGHTS, AutoIndicator
from ctxaware.auto.kept import kept_beside
from ctxaware.auto.methods import PROBE, SLOT, usual_layer
from ctxaware.auto.quality import Quality
from ctxaware.auto.weights import weights_fingerprint
from ctxaware.devices import choose_device, choose_dtype
from ctxaware.errors import InputError
from ctxaware.indicator.token import indicator_id
from ctxaware.models import load_config, load_model, load_tokenizer, window_of
from ctxaware.runs.claim import refuse_foreign_file
from ctxaware.runs.progress import progress_bar
from ctxaware.runs.versions import versions

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class FitRun:
    """What `ctxaware auto fit` was asked to do; the fields are its options."""

    model: str
    out: Path
    method: str
    beta: float
    layer: str | None = None
    max_length: int = 2048
    dtype: str = "auto"
    device: str | None = None
    revision: str | None = None


def fit_model(
    run: FitRun, scored: Iterable[tuple[dict, np.ndarray]], provenance: dict[str, Any]
) -> tuple[AutoIndicator, Quality, Counter]:
    """Fit the automatic indicator of a model by its name, and write it into `run.out`; an interrupted fit goes on.

    Args:
        run: the options.
        scored: conversations, and of each float `[n_turns]` scores, NaN without one.
        provenance: what is noted beside the figures.

    Returns:
        The automatic indicator; how good it is on turns that it was not fitted on; how many turns were left out, by
        reason.

    Raises:
        InputError: an option is wrong, there is no such model, there are too few turns of one kind, or a file of
            somebody else's is in the way.
    """
    if not 0 <= run.beta <= 1:
        raise InputError(f"beta must be in 0–1, as scores are, got {run.beta:g}")
    refuse_foreign_file(run.out / FILE, '"calibration"')
    refuse_foreign_file(run.out / WEIGHTS, '"bias"')
    tokenizer = load_tokenizer(run.model, run.revision)
    if run.method == SLOT:
        indicator_id(tokenizer)
        if run.layer is not None:
            raise InputError("a layer goes with the probe; the slot looks at the model's own predictions")
    layers = parse_probe_layers(run.layer, load_config(run.model, run.revision)) if run.method == PROBE else []
    window = window_of(load_config(run.model, run.revision)) or run.max_length
    turns = labelled_turns(tokenizer, scored, run.method, run.beta, min(run.max_length, window))
    if turns.left_out and not turns.forks:
        ((reason, n),) = turns.left_out.most_common(1)
        raise InputError(f"no turn can be read; {n:,} are left out: {reason}")
    device = choose_device(run.device)
    dtype, fingerprint = choose_dtype(run.dtype, device), weights_fingerprint(run.model, run.revision)
    model = load_model(run.model, run.revision, dtype, device)
    read_by = {"layers": layers, "dtype": str(dtype), "device": device.type, "fingerprint": fingerprint}
    read_by["prompts"] = turns.sha256()  # by tokenizer and chat template, which are no part of the weights
    configuration = {**asdict(run), "out": None, **read_by, **provenance, "versions": versions()}
    with (
        kept_beside(run.out, configuration) as keep,
        progress_bar("reading", len(turns.forks), "tokens") as advance,
    ):
        indicator, quality = fit(
            model,
            tokenizer,
            turns,
            method=run.method,
            layers=layers,
            beta=run.beta,
            fingerprint=fingerprint,
            provenance=provenance,
            advance=advance,
            keep=keep,
        )
        indicator.save(run.out)
    return indicator, quality, turns.left_out


def parse_probe_layers(text: str | None, config: "PretrainedConfig") -> list[int]:
    """Layers from `12` or `8,12`, as given; the usual one where none is.

    Raises:
        InputError: it is none of these, or the model lacks one of them.
    """
    n_layers = config.get_text_config(decoder=True).num_hidden_layers
    if text is None:
        return [usual_layer(n_layers)]
    try:
        layers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise InputError(f"layer must be a number, or numbers with commas, got {text!r}", "pass {layer} 8") from error
    for layer_idx in layers:
        if not 0 <= layer_idx < n_layers:
            raise InputError(
                f"layer_idx must be in 0–{n_layers - 1} for this model, got {layer_idx}", "pass another {layer}"
            )
    return layers
