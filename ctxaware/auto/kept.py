"""What `ctxaware auto fit` has read of a model so far: killed, the same command reads the rest."""

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctxaware.auto.indicator import FILE
from ctxaware.runs.claim import LOCK, RUN, claim, locked
from ctxaware.runs.files import output_file

_NAME = "prompts-{:06d}.npz"


@dataclass(frozen=True)
class Kept:
    """A folder of what was read, by number of the chunk.

    Attributes:
        folder: where.
    """

    folder: Path

    def __call__(self, number: int, read: Callable[[], np.ndarray]) -> np.ndarray:
        """A chunk: as it is kept, or else read and kept. A damaged file is read again.

        Raises:
            InputError: the place can't be written to.
        """
        file = self.folder / _NAME.format(number)
        damaged = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # the last one by its checksum
        with contextlib.suppress(*damaged), np.load(file, allow_pickle=False) as stored:
            return stored["values"]
        values = read()
        with output_file(file) as beside, beside.open("wb") as stream:
            np.savez(stream, values=values)
        return values

    def holds_any(self) -> bool:
        """Whether a chunk is kept."""
        return (self.folder / _NAME.format(0)).exists()


@contextlib.contextmanager
def kept_beside(out: Path, configuration: Mapping[str, Any]) -> Iterator[Kept]:
    """Where a fit that writes into `out` keeps what it has read; removed when the block ends without an error, or
    with one before anything was read.

    Args:
        out: the folder for `auto_indicator.json`.
        configuration: all that could change what is read.

    Raises:
        InputError: another fit is at work there, or was begun there with another configuration.
    """
    folder = out / f"{FILE}.parts"
    with locked(folder / LOCK, folder):
        claim(folder / RUN, configuration, folder)
        kept = Kept(folder)
        try:
            yield kept
        except BaseException:
            if not kept.holds_any():
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
