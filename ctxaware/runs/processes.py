"""Work that one of many processes does for all."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

Result = TypeVar("Result")


def process_state(cpu: bool = False) -> "PartialState":
    """accelerate's state of this process, on the CPU or on the best device there is.

    `PartialState` alone gives each of several processes on a machine without accelerator a world of its own.

    Raises:
        InputError: the environment holds a part of what a launcher sets.
    """
    import torch
    from accelerate import PartialState

    try:
        return PartialState(cpu=cpu or not torch.accelerator.is_available())
    except ValueError as error:
        raise InputError(
            f"the environment says that a launcher started this process, but it can't join the others: {error}; "
            "unset RANK, LOCAL_RANK and WORLD_SIZE, or start it with accelerate launch"
        ) from error


def is_under_launcher() -> bool:
    """Whether a launcher started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "").strip() not in ("", "0", "1")


def on_main(state: "PartialState", work: Callable[[], Result]) -> Result:
    """The result of `work`, done by the main process alone; its `InputError` ends every process.

    Args:
        state: accelerate's `PartialState`.
        work: takes nothing; what it returns must be picklable.
    """
    from accelerate.utils import broadcast_object_list

    box: list[Any] = [None, None]  # the result, and an error's message and remedy
    if state.is_main_process:
        try:
            box[0] = work()
        except InputError as error:
            box[1] = (error.message, error.remedy)
    if state.num_processes > 1:
        broadcast_object_list(box)
    if box[1] is not None:
        if not state.is_main_process:
            sys.exit(2)  # the main process says why
        raise InputError(*box[1])
    return box[0]


def is_sharded(accelerator: "Accelerator") -> bool:
    """Whether no process holds all weights of the model in training."""
    from accelerate.utils import DistributedType

    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


@contextlib.contextmanager
def whole_models(deepspeed_plugin: Any) -> Iterator[None]:
    """Models loaded in here are whole in each process that loads them.

    Under ZeRO-3 transformers would share out the weights of every model among all processes: one that the main
    process alone loads would never come, and one that scores would have no weights to score with.

    Args:
        deepspeed_plugin: of the training arguments; None without DeepSpeed.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if deepspeed_plugin:
            deepspeed_plugin.set_deepspeed_weakref()
