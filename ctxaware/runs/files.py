"""Files and folders that are there whole or not at all."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError

UNFINISHED = ".unfinished"  # ends the name of what is being written


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; flushed to disk and renamed to `path` at the end, removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(UNFINISHED, f".{path.name}.", path.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.chmod(0o666 & ~_umask())  # mkstemp's is private
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to fill; renamed to `path` at the end, removed on an error.

    Where another process was first, its folder stays and ours is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(UNFINISHED, f".{path.name}.", path.parent))
    try:
        yield unfinished
        unfinished.chmod(0o777 & ~_umask())
        try:
            unfinished.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left half-written of a file, or of a folder and below it.

    Only where no other process can be at it: `runs.claim.locked` does it for what it locks.
    """
    beside = path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}")
    below = (left for depth in range(3) for left in path.glob(f"{'*/' * depth}.*{UNFINISHED}"))  # no output is deeper
    for left in [*beside, *below]:
        shutil.rmtree(left, ignore_errors=True)  # a file is left by it
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)


def remove_parts(files: Iterable[Path], folder: Path) -> None:
    """Remove the parts that were joined, and their folder, unless it holds what is not ours.

    Args:
        files: the parts; some may be gone.
        folder: theirs.
    """
    for file in files:
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, as `whole_file`; a full disk is an `InputError`.

    Raises:
        InputError: the disk is full or the place can't be written to.
    """
    try:
        with whole_file(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}; make room or choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all.

    Raises:
        InputError: the disk is full or the place can't be written to.
    """
    with output_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace")  # half a surrogate pair becomes a question mark


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises:
        InputError: the disk is full or the place can't be written to.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if not is_text(text):  # as in a path that is no UTF-8
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def user_path(name: str | Path) -> Path:
    """The path that a user wrote, with `~` replaced.

    Raises:
        InputError: no file can have that name, or there is no such user.
    """
    try:
        path = Path(name).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, `~nosuchuser`
        raise InputError(f"{str(name)[:60]!r} is no path: {error.args[-1] if error.args else error}") from error
    return path


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: not with half a surrogate pair, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_own_input(output: Path, written: Iterable[Path], read: Iterable[Path]) -> None:
    """Refuse to write over what is read, however the paths are spelt: links are followed.

    Args:
        output: the file or folder that was asked for; named in the error.
        written: what would be written or removed.
        read: files and folders.

    Raises:
        InputError: one of `written` is one of `read`.
    """
    for source in read:
        for target in written:
            if target.exists() and source.exists() and target.samefile(source):
                raise InputError(f"writing to {output} would overwrite {source}, which is read; choose another output")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        InputError: it holds no whole object, or can't be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}); restore it") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, expected an object; restore it")
    return value


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys: the same for the same content, however a file spells it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
