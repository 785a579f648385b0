"""One run of `ctxaware attention`, in one process or many: plan, measure shards of prompts, join them.

A shard is a few prompts of one model in all conditions. A finished one is a Parquet file in `OUT/parts`, beside a
manifest of everything that could change a share; the shards joined in order are `OUT/attention.parquet`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxaware.devices import choose_dtype
from ctxaware.errors import InputError
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.settings import NeedleSettings
from ctxaware.indicator.token import indicator_id
from ctxaware.models import load_config, load_model, load_tokenizer, model_fingerprint, window_of
from ctxaware.report.allocation import table
from ctxaware.report.allocation.prompts import INDICATOR, PLAIN, TEMPLATE, Condition, grouped_prompt
from ctxaware.runs.claim import refuse_foreign_folder
from ctxaware.runs.files import sha256_of_json
from ctxaware.runs.processes import on_main, process_state
from ctxaware.runs.progress import progress_bar
from ctxaware.runs.versions import versions
from ctxaware.scores.run import parse_layers

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from accelerate import PartialState
    from transformers import PreTrainedTokenizerBase

SHARD_SIZE = 8  # prompts; what is lost at most by a kill, in each process


@dataclass(frozen=True)
class Model:
    """A model to measure: its name in tables and pictures, its hub name or folder, and how it is asked."""

    label: str
    name: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AllocationRun:
    """What `ctxaware attention` was asked to do.

    Attributes:
        instruct: hub names or folders of chat models.
        base: of their pretrained base, asked without template only; None for none.
        indicator: whether the chat models are also asked with `[IND]`.
        layer: `15`, `9,15` or `all`.
        settings: of the needle prompts.
        dtype: auto, float32, bfloat16 or float16.
        out: the folder to write.
    """

    instruct: tuple[str, ...]
    base: str | None
    indicator: bool
    layer: str
    settings: NeedleSettings
    dtype: str
    out: Path

    @property
    def models(self) -> list[Model]:
        """The base first. Models whose folders have one name keep their whole paths as labels."""
        names = [*([self.base] if self.base else []), *self.instruct]
        if len(set(names)) < len(names):
            raise InputError(f"each model once, got {', '.join(names)}")
        short = [Path(name).name for name in names]
        labels = short if len(set(short)) == len(short) else names
        asked = (PLAIN, TEMPLATE, INDICATOR) if self.indicator else (PLAIN, TEMPLATE)
        return [
            Model(label, name, (PLAIN,) if self.base and i == 0 else asked)
            for i, (label, name) in enumerate(zip(labels, names, strict=True))
        ]

    @property
    def shards(self) -> list[tuple[int, slice]]:
        """The number of the model and the documents of each shard."""
        n_documents = self.settings.num_context_lengths * self.settings.num_depths
        starts = range(0, n_documents, SHARD_SIZE)
        return [
            (m, slice(start, min(start + SHARD_SIZE, n_documents))) for m in range(len(self.models)) for start in starts
        ]


def measure(run: AllocationRun) -> Path:
    """Measure what is missing in `run.out`, and return the table's path once it is whole.

    Under `accelerate launch` each process does its share of the shards.

    Raises:
        InputError: an option is wrong, `run.out` belongs to another run, or the disk is full.
    """
    state = process_state()
    on_main(state, lambda: refuse_foreign_folder(run.out, ("attention.parquet", "attention.json", "attention.md")))
    configuration = on_main(state, lambda: _configuration(run, state.device))
    with table.claimed(run.out, configuration, len(run.shards), state) as (digest, todo):
        if todo:
            layers = [model["layers"] for model in configuration["models"].values()]
            _measure_shards(run, layers, todo[state.process_index :: state.num_processes], digest, state)
            state.wait_for_everyone()
        return on_main(state, lambda: table.join(run.out, len(run.shards)))


def _configuration(run: AllocationRun, device: torch.device) -> dict[str, Any]:
    """All that could change a share."""
    return {
        "models": {model.label: _describe(run, model) for model in run.models},
        "settings": dataclasses.asdict(run.settings),
        "shard_size": SHARD_SIZE,
        "dtype": str(choose_dtype(run.dtype, device)).removeprefix("torch."),
        "device": device.type,
        "versions": versions(),
    }


def _describe(run: AllocationRun, model: Model) -> dict[str, Any]:
    """A model's part of the configuration. Whatever could be wrong with it is found here, before any is loaded."""
    config, tokenizer = load_config(model.name), load_tokenizer(model.name)
    if TEMPLATE in model.conditions and not tokenizer.chat_template:
        raise InputError(f"{model.name} has no chat template", "pass it as {base}, and the chat model as {instruct}")
    if INDICATOR in model.conditions:
        indicator_id(tokenizer)
    text_config = config.get_text_config(decoder=True)
    window = window_of(config)
    documents = needle_documents(run.settings, tokenizer, window)
    _check_window(run, model, tokenizer, documents[-1], window)
    return {
        "name": model.name,
        "fingerprint": model_fingerprint(model.name),
        "conditions": [condition.name for condition in model.conditions],
        "layers": parse_layers(run.layer, text_config.num_hidden_layers),
        "documents_sha256": sha256_of_json(documents),
    }


def _check_window(
    run: AllocationRun, model: Model, tokenizer: PreTrainedTokenizerBase, longest: dict, window: int | None
) -> None:
    """Raise `InputError` where the prompt of the longest document does not fit the model's window."""
    n_tokens = max(len(grouped_prompt(tokenizer, longest, c, run.settings).input_ids) for c in model.conditions)
    if window and n_tokens > window:
        raise InputError(
            f"the longest prompt has {n_tokens} tokens, and the window of {model.name} {window}",
            f"pass a lower {{max_context_length}} (now {run.settings.max_context_length})",
        )


def _measure_shards(
    run: AllocationRun, layers: list[list[int]], mine: list[int], digest: str, state: PartialState
) -> None:
    name = "attention" if state.num_processes == 1 else f"attention (process 1 of {state.num_processes})"
    shards = [(k, *run.shards[k]) for k in mine]
    total = sum((docs.stop - docs.start) * len(run.models[m].conditions) for _, m, docs in shards)
    with progress_bar(name, total, "tokens", shown=state.is_main_process) as advance:
        for m, model in enumerate(run.models):
            of_model = [(k, docs) for k, of, docs in shards if of == m]
            if of_model:
                for k, shard in _measure_model(run, model, layers[m], of_model, state.device, advance):
                    table.write_shard(run.out, k, shard, digest)


def _measure_model(
    run: AllocationRun,
    model: Model,
    layers: list[int],
    shards: Sequence[tuple[int, slice]],
    device: torch.device,
    advance: Callable[[float, int], None],
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the table of each of one model's shards."""
    import numpy as np

    from ctxaware.attention.check import check_against_eager
    from ctxaware.attention.roles import allocate

    tokenizer = load_tokenizer(model.name)
    weights = load_model(model.name, None, choose_dtype(run.dtype, device), device)
    check_against_eager(weights, layers)
    documents = needle_documents(run.settings, tokenizer)
    for k, docs in shards:
        shares = [
            allocate(
                weights,
                [grouped_prompt(tokenizer, doc, condition, run.settings) for doc in documents[docs]],
                layers,
                advance,
            )
            for condition in model.conditions
        ]
        yield k, table.shard_table(model.label, model.conditions, documents[docs], docs.start, layers, np.stack(shares))
