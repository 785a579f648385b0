"""What several commands read from their options."""

import re
from typing import TYPE_CHECKING

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from ctxaware.harness.settings import NeedleSettings


def parse_grid(grid: str) -> tuple[int, int]:
    """Context lengths and depths of `20x20`.

    Raises:
        InputError: it is no such text.
    """
    if not (size := re.fullmatch(r"(\d+)x(\d+)", grid)):
        raise InputError(f"--grid must be LENGTHSxDEPTHS, such as 20x20, got {grid!r}")
    return int(size[1]), int(size[2])


def needle_settings(grid: str, max_context_length: int, needle: str, source: str) -> "NeedleSettings":
    """The needle prompts that the options name.

    Raises:
        InputError: `grid` is no grid.
    """
    from ctxaware.harness.settings import NeedleSettings

    n_lengths, n_depths = parse_grid(grid)
    return NeedleSettings(
        max_context_length=max_context_length,
        num_context_lengths=n_lengths,
        num_depths=n_depths,
        needle=needle,
        source=source,
    )
