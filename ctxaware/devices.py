"""Which dtype and which device a model is put on, by the names that users give them."""

from typing import TYPE_CHECKING

from ctxaware.errors import InputError, first_line

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The torch dtype that `name` stands for; "auto" is bfloat16 on a CUDA device that has it, else float32.

    Raises:
        InputError: `name` is none of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, name)


def choose_device(name: str | None) -> "torch.device":
    """The torch device of that name; None for the GPU where there is one, else the CPU.

    Raises:
        InputError: it is no device, or there is none of its kind here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be one like cpu, cuda or cuda:1, got {name!r}") from error
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # not there, not built for it, a back end of its own, or meta
        cause = first_line(error).partition(". ")[0]
        raise InputError(f"device {name!r} can't be used here: {cause}", "pass {device} cpu") from error
    return device
