"""Whose output is it: a manifest that says how it was made, and a lock while a run is at work.

A run that may be interrupted writes `run.json` into its output before it starts. The same command finds it there and
goes on; a run of another configuration is refused, with the settings that differ. A lock keeps a second run away.
"""

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxaware.errors import InputError
from ctxaware.runs.files import is_text, remove_unfinished, write_json
from ctxaware.runs.processes import on_main

if TYPE_CHECKING:
    from accelerate import PartialState

RUN = "run.json"  # the manifest's usual name in an output folder
LOCK = "lock"
STATISTICS = "statistics.json"  # beside data that a run of ours has written
HIDDEN_LOCK = ".ctxaware.lock"  # in a folder of data, which has no manifest: it is written anew each time
CONFIGURATION = "configuration"  # its key for all that could change the result
_SHORT = 60  # characters shown of a value


def claim(file: Path, configuration: Mapping[str, Any], output: Path, grows: Collection[str] = ()) -> dict[str, Any]:
    """Claim an output for a run: write the manifest, or check the one that is there.

    Two processes that may claim one output must hold its lock first (`locked`).

    Args:
        file: the manifest.
        configuration: all that could change the result, as JSON can hold it.
        output: what is claimed, as the user knows it; named in errors.
        grows: keys of `configuration` that hold a dictionary to which a later run may add. An entry that only one
            side has is no difference, and is kept.

    Returns:
        The manifest as it now stands in the file: `configuration`, and what else a run has noted there.

    Raises:
        InputError: the manifest is of another configuration, or it is damaged.
    """
    stored = read_manifest(file, output)
    if stored is None:
        manifest = {CONFIGURATION: as_json(configuration)}
    else:
        if difference := describe_difference(stored[CONFIGURATION], configuration, grows):
            raise InputError(f"{output} holds a run with {difference}; choose another output, or remove this one")
        manifest = {**stored, CONFIGURATION: _merged(stored[CONFIGURATION], as_json(configuration), grows)}
    if manifest != stored:
        write_manifest(file, manifest)
    return manifest


def read_manifest(file: Path, output: Path) -> dict[str, Any] | None:
    """The manifest in `file`; None where there is no such file.

    Raises:
        InputError: it is cut off, empty, of another type, or can't be read.
    """
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(file, output, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError as well
        raise _damaged(file, output, f"it is no whole JSON: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get(CONFIGURATION), dict):
        raise _damaged(file, output, f"expected an object with {CONFIGURATION!r}, got {_short(manifest)}")
    return manifest


def _damaged(file: Path, output: Path, cause: str) -> InputError:
    return InputError(
        f"{file} says how {output} was made, and can't be read ({cause}); restore it, remove {output} to start "
        "again, or choose another output"
    )


def write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, whole or not at all; equal manifests are equal files.

    Raises:
        InputError: the place can't be written to.
    """
    write_json(file, as_json(manifest))


def describe_difference(stored: Mapping[str, Any], current: Mapping[str, Any], grows: Collection[str] = ()) -> str:
    """In words, what differs between two configurations: key, stored value and value now; "" where nothing does.

    A key that one side lacks is the same as None: a setting that an earlier version did not have was not given.

    Args:
        stored: of the earlier run.
        current: of this run.
        grows: as in `claim`.
    """
    old, new = _flat(as_json(stored)), _flat(as_json(current))
    optional = {key for key in old.keys() ^ new.keys() if "." in key and key.split(".")[0] in grows}
    differing = [key for key in {**old, **new} if key not in optional and old.get(key) != new.get(key)]
    return ", ".join(f"{key} {_short(old.get(key))} (now {_short(new.get(key))})" for key in differing)


def as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file: tuples are lists, keys are text in their order."""
    return json.loads(json.dumps(value, sort_keys=True))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return flat


def _merged(stored: dict[str, Any], current: dict[str, Any], grows: Collection[str]) -> dict[str, Any]:
    old = {key: stored[key] if isinstance(stored.get(key), dict) else {} for key in grows}
    return current | {key: {**old[key], **current.get(key, {})} for key in grows}


@contextlib.contextmanager
def data_folder(folder: Path, files: Iterable[Path], keys: Collection[str]) -> Iterator[None]:
    """Hold a folder of data while they are written anew.

    Data in it that this command has not written stay: nothing says that they can go. Its own lock alone says so where a
    killed run left no statistics, and is removed where a run fails before it has written anything.

    Args:
        folder: the output.
        files: that would be written or removed there.
        keys: of which the statistics of this command hold all, and those of no other.

    Raises:
        InputError: one of the files is there and is not this command's, or another process holds the folder.
    """
    outputs = list(files)
    if not is_text(str(folder)):
        raise InputError(f"the folder's name {str(folder)!a} is no UTF-8; choose another output")
    try:
        statistics = json.loads((folder / STATISTICS).read_bytes())
    except (OSError, ValueError, RecursionError):
        statistics = None
    known = statistics if isinstance(statistics, dict) else {}  # nothing where there are none, or damaged ones
    is_ours = known.keys() >= set(keys) or (not known and (folder / HIDDEN_LOCK).exists())
    if not is_ours and (there := [file for file in outputs if file.exists()]):
        raise InputError(f"{folder} holds {there[0].name}, which this command did not write; choose another output")
    with locked(folder / HIDDEN_LOCK, folder):
        try:
            yield
        except BaseException:
            if not any(file.exists() for file in outputs):
                (folder / HIDDEN_LOCK).unlink(missing_ok=True)
            raise


def refuse_foreign_file(file: Path, mark: str) -> None:
    """Refuse to write over a file of somebody else's.

    Args:
        file: that would be written.
        mark: what each file of that kind that we write holds.

    Raises:
        InputError: the file is there without the mark.
    """
    if file.is_file() and mark.encode() not in file.read_bytes():
        raise InputError(f"{file} is there and ctxaware did not write it; choose another output")


def refuse_foreign_folder(folder: Path, names: Iterable[str]) -> None:
    """Refuse to write over files of somebody else's in a folder that no run of ours has claimed.

    Args:
        folder: the output, whose manifest is `RUN`.
        names: of files that would be written there after the claim.

    Raises:
        InputError: one of them is there without a manifest.
    """
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not (folder / RUN).exists():
        raise InputError(f"{there[0]} is there and ctxaware did not write it; choose another output")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."


@contextlib.contextmanager
def locked(file: Path, output: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of an output: no second process can. What a killed one left half-written there is removed.

    The system frees the lock when the process ends, whatever ends it. The file stays: removing it would let two
    processes lock two files of the same name.

    Args:
        file: the lock file; made if absent, never emptied, and not followed if it is a link.
        output: what is locked, as the user knows it; named in errors.
        wait: until the other process is done with it.

    Raises:
        InputError: another process holds it, or the file can't be made.
    """
    with _acquired(file, output, wait):
        remove_unfinished(output)
        yield


@contextlib.contextmanager
def _acquired(file: Path, output: Path, wait: bool = False) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(file, blocking=wait)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            raise OSError("it is a link")
        if file.is_file() and file.stat().st_size:  # some releases of filelock would empty it
            raise OSError("it is not empty, so it is somebody else's")
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another process is writing {output}; wait for it, stop it, or choose another output"
        ) from error
    except OSError as error:
        cause = error.strerror or str(error)
        raise InputError(f"can't lock {output} with {file}: {cause}; remove that, or choose another output") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_by_all(folder: Path, output: Path, state: "PartialState") -> Iterator[None]:
    """Hold an output with every process of a run: no second run can while one process of this one lives.

    A launcher that is killed leaves its processes behind, and they go on writing.

    Args:
        folder: where each process has its lock file.
        output: as for `locked`.
        state: accelerate's `PartialState`.

    Raises:
        InputError: a process of another run holds it, or a file can't be made.
    """
    with contextlib.ExitStack() as held:

        def lock_first() -> None:
            held.enter_context(_acquired(folder / LOCK, output))
            for other in folder.glob(f"{LOCK}-*"):  # free, or of a process whose main process is gone
                with _acquired(other, output):
                    pass
            remove_unfinished(folder)
            remove_unfinished(output)

        on_main(state, lock_first)
        if not state.is_main_process:
            held.enter_context(_acquired(folder / f"{LOCK}-{state.process_index}", output))
        yield
