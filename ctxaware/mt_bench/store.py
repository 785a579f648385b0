"""Where a run's files lie, and files of rows that survive kill -9 and belong to one run."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ctxaware.errors import InputError
from ctxaware.runs.claim import CONFIGURATION, as_json, claim, locked, read_manifest, write_manifest

_FILE_NAME = re.compile(r"\w[\w.+@=-]*")  # what neither a path, a glob nor a shell reads as more than a name
_MAX_NAME_BYTES = 200  # systems allow 255, and `.manifest.json` and a lock's name come after it

Row = dict[str, Any]
RowKey = Callable[[Row], tuple]


@dataclass(frozen=True)
class Outcome:
    """What a run has done.

    Attributes:
        n_done: rows there are now.
        n_expected: rows there should be.
        n_new: rows of this run.
        n_failed: calls of this run without a result.
        stopped: why it ended early, or None.
        path: the rows.
        failures: what failed.
    """

    n_done: int
    n_expected: int
    n_new: int
    n_failed: int
    stopped: str | None
    path: Path
    failures: Path

    @property
    def complete(self) -> bool:
        return self.n_done == self.n_expected


def check_model_id(model_id: str) -> str:
    """`model_id` itself: it is a file's name, and FastChat finds it by globbing.

    Raises:
        InputError: it is more than letters, digits and `._+@=-`, or too long.
    """
    if not _FILE_NAME.fullmatch(model_id):
        raise InputError(
            f"model_id {model_id!r} becomes a file's name: letters, digits and ._+@=- only; "
            f"pass for example {re.sub(r'[^a-zA-Z0-9._+@=-]+', '-', model_id).strip('-.')[:60] or 'my-model'}"
        )
    return _bounded(model_id, "model_id")


def _bounded(name: str, what: str) -> str:
    if not 0 < len(name.encode(errors="replace")) <= _MAX_NAME_BYTES:
        raise InputError(f"{what} {name[:60]!r} becomes a file's name: 1 to {_MAX_NAME_BYTES} bytes; pass another")
    return name


@dataclass(frozen=True)
class Layout:
    """Where the files of one run lie: FastChat's folders, and `failures` beside them."""

    out: Path

    def __post_init__(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file; pass a folder for answers and judgments")

    @property
    def answer_dir(self) -> Path:
        return self.out / "model_answer"

    def answers(self, model_id: str) -> Path:
        return self.answer_dir / f"{check_model_id(model_id)}.jsonl"

    def judgments(self, judge_model: str) -> Path:
        """A judge's name may hold a `/`, as endpoints spell names; the file's name has `__` for it."""
        name = re.sub(r"[^\w.+@=-]", "_", judge_model.replace("/", "__"))
        return self.out / "model_judgment" / f"{_bounded(name, 'judge_model')}_single.jsonl"

    def failures(self, path: Path) -> Path:
        """The failures of the rows of `path`. Not beside them: FastChat takes each file there for a model."""
        return self.out / "failures" / path.parent.name / path.name


def manifest_path(path: Path) -> Path:
    """The manifest beside a JSONL file."""
    return path.with_suffix(".manifest.json")


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file. The last line counts with or without its newline; a torn one, which a kill leaves, not.

    Raises:
        InputError: another line is not a JSON object, or the file can't be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}; move it away") from error
    parsed = [_parse(line) for line in lines]
    if parsed[-1] is None and lines[-1].strip(b"\0")[:1] in (
        b"",
        b"{",
    ):  # nothing, or what a kill or a power cut leaves
        del parsed[-1]
    rows = [row for row in parsed if row is not None]
    if len(rows) < len(parsed):
        number = parsed.index(None) + 1
        raise InputError(f"{path} line {number} is not a JSON object; restore the file, or delete that line")
    return rows


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_keyed(path: Path, key: RowKey, last_counts: bool = False) -> dict[tuple, Row]:
    """The rows of a JSONL file by key.

    Args:
        path: the file; one that is absent has no rows.
        key: of a row; raises a ValueError that says what is wrong with it.
        last_counts: of rows with one key take the last one.

    Raises:
        InputError: a row is damaged, or two have one key.
    """
    rows: dict[tuple, Row] = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            row_key = key(row)
        except ValueError as error:
            raise InputError(f"{path} line {number} is damaged, {error}; delete that line and run again") from error
        if row_key in rows and not last_counts:
            raise InputError(f"{path} has two rows for {row_key}, the second in line {number}; keep one of them")
        rows[row_key] = row
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append one row to a JSONL file; on return it would survive a power cut. A torn last line makes room for it.

    Raises:
        InputError: the disk is full, or the place can't be written to; the file is as it was.
    """
    line = json.dumps(row).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            size = _end_last_line(file)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise InputError(
            f"can't write {path}: {error.strerror or error}; make room, then run the same command again"
        ) from error


def _end_last_line(file: BinaryIO) -> int:
    """Give a whole last line its newline, cut a torn one off; the size of the file then."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() in (b"", b"\n"):
        return size
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _parse(content[start:]) is None:
        file.truncate(start)
    else:
        file.write(b"\n")
        file.flush()
    return file.seek(0, os.SEEK_END)


class RowLog:
    """The rows of one run, which this process alone may append to; `claimed_rows` makes it."""

    def __init__(self, path: Path, key: RowKey, rows: dict[tuple, Row], manifest: dict[str, Any]):
        self.path, self.rows, self._key, self._manifest = path, rows, key, manifest

    def append(self, row: Row) -> None:
        """Write one row; on return it would survive a power cut."""
        append_row(self.path, row)
        self.rows[self._key(row)] = row

    def note(self, **entries: Any) -> None:
        """Write entries into the manifest, beside the configuration."""
        self._manifest |= entries
        write_manifest(manifest_path(self.path), self._manifest)

    def note_run(self, **run: Any) -> None:
        """Add this run to the manifest's list of them."""
        earlier = self._manifest.get("runs")
        self.note(runs=[*(earlier if isinstance(earlier, list) else []), run])


@contextlib.contextmanager
def claimed_rows(
    path: Path, key: RowKey, configuration: Mapping[str, Any], grows: Collection[str] = ()
) -> Iterator[RowLog]:
    """The rows in `path`, which must have been made with `configuration`, while no other process can append to them.

    What is in `path` is looked at before anything is written, and a file that is refused stays as it is.

    Args:
        path: the JSONL file.
        key: of a row, as in `read_keyed`.
        configuration: all that could change a row; it may change while there are none.
        grows: as in `claim`.

    Raises:
        InputError: another process is at it, a setting differs, a row is damaged, or nobody knows how rows were made.
    """
    file = manifest_path(path)
    with locked(path.with_name(f"{path.name}.lock"), path):
        manifest = read_manifest(file, path)
        if manifest is None and path.exists() and (path.is_dir() or path.stat().st_size):
            raise InputError(f"{path} is there but no {file.name}, so nobody knows how it was made; move it away")
        rows = read_keyed(path, key)
        if manifest is not None and not rows:
            write_manifest(file, {**manifest, CONFIGURATION: as_json(configuration)})
        yield RowLog(path, key, rows, claim(file, configuration, path, grows))
