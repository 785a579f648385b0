"""What is put around calls of a transformers model by `harness/hf.py`."""

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from ctxaware.errors import InputError


@contextlib.contextmanager
def one_line_out_of_memory(rows: torch.Tensor) -> Iterator[None]:
    """Where the device's memory runs out, an error that says with how many prompts, `[batch, n_tokens]`.

    Raises:
        InputError: memory ran out in the block.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the device's memory ran out with {rows.shape[0]} prompts of up to {rows.shape[1]} tokens at a time; "
            "lower batch_size, or max_length"
        ) from error


@contextlib.contextmanager
def no_cache_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Take back the kind of cache that a checkpoint's generation settings name: `generate` refuses ours beside it."""
    config = model.generation_config
    kind, config.cache_implementation = config.cache_implementation, None
    try:
        yield
    finally:
        config.cache_implementation = kind
