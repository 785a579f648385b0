"""One run of `ctxaware score`, in one process or many: plan, load, score shards, join them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctxaware.data.conversations import find_file
from ctxaware.devices import choose_device, choose_dtype
from ctxaware.errors import InputError
from ctxaware.models import load_config, load_model, load_tokenizer, model_fingerprint, window_of
from ctxaware.runs.processes import on_main, process_state
from ctxaware.runs.progress import progress_bar
from ctxaware.runs.versions import versions
from ctxaware.scores import shards
from ctxaware.scores.formula import score_conversations

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


@dataclass(frozen=True)
class ScoreRun:
    """What `ctxaware score` was asked to do; the fields are its options."""

    data: Path
    model: str
    out: Path
    layer: str
    max_length: int
    batch_tokens: int
    dtype: str = "auto"
    device: str | None = None
    limit: int | None = None
    revision: str | None = None


def score_file(run: ScoreRun) -> dict[str, str]:
    """Score a file of conversations into `run.out`, taking up an interrupted run where it stopped.

    Under `accelerate launch` each process does its share of the shards.

    Returns:
        The reason by conversation id where no score was possible (in the main process).

    Raises:
        InputError: an option or the data are wrong, `run.out` belongs to another run, or the disk is full.
    """
    state = process_state(run.device == "cpu")
    # of many processes each has its own
    device = state.device if run.device is None or state.num_processes > 1 else choose_device(run.device)
    manifest = on_main(state, lambda: _manifest(run, device))
    with shards.claimed(run.out, manifest, state) as todo:
        if todo is None:
            return shards.read_metadata(run.out)["rejected"]
        mine = todo[state.process_index :: state.num_processes]
        if mine:
            _score_mine(run, manifest, mine, device, state)
        state.wait_for_everyone()
        return on_main(state, lambda: shards.join_shards(run.out, manifest))


def _manifest(run: ScoreRun, device: "torch.device") -> shards.Manifest:
    for name in ("max_length", "batch_tokens", "limit"):
        if (value := getattr(run, name)) is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}", f"pass another {{{name}}}")
    config = load_config(run.model, run.revision)
    template = load_tokenizer(run.model, run.revision).chat_template
    if not template:
        raise InputError(
            f"the tokenizer of {run.model!r} has no chat template, which says whose each token is; use a chat model"
        )
    text_config = config.get_text_config(decoder=True)
    window = window_of(config)
    if window and run.max_length > window:
        raise InputError(
            f"max_length {run.max_length} is longer than this model's window of {window} tokens",
            f"pass {{max_length}} {window} or less",
        )
    sha256, n_conversations = shards.scan(run.data, run.limit)
    return shards.Manifest(
        data=find_file(run.data).name,
        data_sha256=sha256,
        n_conversations=n_conversations,
        model=run.model,
        revision=model_fingerprint(run.model, run.revision),
        chat_template_sha256=hashlib.sha256(str(template).encode()).hexdigest(),
        layers=parse_layers(run.layer, text_config.num_hidden_layers),
        max_length=run.max_length,
        batch_tokens=run.batch_tokens,
        dtype=str(choose_dtype(run.dtype, device)).removeprefix("torch."),
        device=device.type,
        versions=versions(),
    )


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Layers from `15`, `9,15` or `all`, ascending.

    Raises:
        InputError: it is none of these, or the model lacks one of them.
    """
    if text == "all":
        return list(range(n_layers))
    try:
        layers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(
            f"layer must be a number, numbers with commas, or all, got {text!r}", "pass {layer} 15"
        ) from error
    for layer_idx in layers:
        if not 0 <= layer_idx < n_layers:
            raise InputError(
                f"layer_idx must be in 0–{n_layers - 1} for this model, got {layer_idx}",
                f"pass {{layer}} {n_layers // 2}, a middle layer of this model",
            )
    return layers


def _score_mine(
    run: ScoreRun, manifest: shards.Manifest, mine: list[int], device: "torch.device", state: "PartialState"
) -> None:
    import functools

    from ctxaware.attention.check import check_against_eager

    tokenizer = load_tokenizer(run.model, run.revision)
    model = load_model(run.model, run.revision, choose_dtype(run.dtype, device), device)
    check_against_eager(model, manifest.layers)
    last = min(manifest.n_conversations - k * shards.SHARD_SIZE for k in mine)  # the last shard may be shorter
    total = (len(mine) - 1) * shards.SHARD_SIZE + min(shards.SHARD_SIZE, last)
    name = "scoring" if state.num_processes == 1 else f"scoring (process 1 of {state.num_processes})"
    with progress_bar(name, total, "tokens", shown=state.is_main_process) as advance:
        score = functools.partial(
            score_conversations,
            model,
            tokenizer,
            layers=manifest.layers,
            max_length=manifest.max_length,
            batch_tokens=manifest.batch_tokens,
            on_batch=advance,
        )
        shards.write_shards(run.out, run.data, manifest, mine, score)
