"""Files that survive kill -9: append-only JSONL rows, manifests that a resume must match, and their places."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ctxaware.errors import InputError
from ctxaware.runs.files import write_text

_FILE_NAME = re.compile(r"\w[\w.+@=-]*")  # what neither a path, a glob nor a shell reads as more than a name


def check_model_id(model_id: str) -> str:
    """`model_id` itself: it is a file's name, and FastChat finds it by globbing.

    Raises:
        InputError: it is more than letters, digits and `._+@=-`.
    """
    if not _FILE_NAME.fullmatch(model_id):
        raise InputError(
            f"--model-id {model_id!r} becomes a file's name: letters, digits and ._+@=- only; "
            f"pass for example --model-id {re.sub(r'[^a-zA-Z0-9._+@=-]+', '-', model_id).strip('-.') or 'my-model'}"
        )
    return model_id


@dataclass(frozen=True)
class Layout:
    """Where the files of one run lie: FastChat's folders, and `failures` beside them."""

    out: Path

    def __post_init__(self):
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file; pass a folder")

    @property
    def answer_dir(self) -> Path:
        return self.out / "model_answer"

    def answers(self, model_id: str) -> Path:
        return self.answer_dir / f"{check_model_id(model_id)}.jsonl"

    def judgments(self, judge_model: str) -> Path:
        """A judge's name may hold a `/`, as endpoints spell names; the file's name has `__` for it."""
        name = re.sub(r"[^\w.+@=-]", "_", judge_model.replace("/", "__"))
        return self.out / "model_judgment" / f"{name}_single.jsonl"

    def failures(self, path: Path) -> Path:
        """The failures of the rows of `path`. Not beside them: FastChat takes each file there for a model."""
        return self.out / "failures" / path.parent.name / path.name


def manifest_path(path: Path) -> Path:
    """The manifest beside a JSONL file."""
    return path.with_name(path.name.removesuffix(".jsonl") + ".manifest.json")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256_of_json(value) -> str:
    """SHA-256 of a value's JSON with sorted keys: the same for the same content, however a file spells it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value) -> None:
    """Write `value`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """A JSON file's object.

    Raises:
        InputError: it isn't one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} can't be read as JSON ({error}); restore it, or move it away with its rows"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, expected an object; restore it")
    return value


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSONL file; a last line without its end, which a kill leaves, is not a row.

    Raises:
        InputError: another line is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is not a JSON object; restore the file, or delete that line")
        rows.append(row)
    return rows


class RowLog:
    """An append-only JSONL file of rows with a key each, which one process may hold at a time.

    Opening it cuts a torn last line off; `append` returns when the row is on the disk.

    Args:
        path: the file; made when the first row comes.
        key: the key of a row.
    """

    def __init__(self, path: Path, key: Callable[[dict], tuple]):
        self.path, self._key, self._file = path, key, None
        self.rows: dict[tuple, dict] = {}

    def __enter__(self) -> "RowLog":
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{self.path}.lock", blocking=False)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"another process is writing {self.path}; wait for it, or stop it") from error
        except OSError as error:
            raise InputError(f"can't write {self.path}: {error.strerror}; pass another --out") from error
        try:
            self._cut_torn_line()
            for row in read_rows(self.path):
                try:
                    key = self._key(row)
                except (KeyError, TypeError, IndexError) as error:
                    raise InputError(f"{self.path} has a row without {error}: not a file of ours; move it") from error
                if key in self.rows:
                    raise InputError(f"{self.path} has two rows for {key}; keep one of them")
                self.rows[key] = row
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    def _cut_torn_line(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                file.truncate(end)
                os.fsync(file.fileno())

    def append(self, row: dict) -> None:
        """Write one row; on return it would survive a power cut."""
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[self._key(row)] = row


def append_failure(path: Path, row: dict) -> None:
    """Append one failure; a line that a kill tore is ended first, so that what it says is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def _flatten(value, prefix="") -> dict:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, part in value.items() for k, v in _flatten(part, f"{prefix}.{name}".strip(".")).items()}


def match_manifest(path: Path, settings: dict, has_rows: bool) -> dict:
    """The manifest of `path`'s rows, which must have been made with `settings`; a new one where there are no rows.

    Args:
        path: the JSONL file.
        settings: JSON values, nested as the manifest shows them. A key of `settings["answers"]` that only one side
            has is a model that came or went, no change.
        has_rows: whether there are rows already.

    Raises:
        InputError: a setting differs, or there are rows and no manifest.
    """
    file = manifest_path(path)
    if not file.exists():
        if has_rows:
            raise InputError(f"{path} has rows but no {file.name}, so nobody knows how they were made; move the file")
        return {"settings": settings, "runs": []}
    manifest = read_json(file)
    if not has_rows:
        return {**manifest, "settings": settings}
    old, new = _flatten(manifest.get("settings", {})), _flatten(settings)
    ignored = {k for k in old.keys() ^ new.keys() if k.startswith("answers.")}
    for name in sorted((old.keys() | new.keys()) - ignored):
        if old.get(name) != new.get(name):
            raise InputError(
                f"{path} was made with {name} = {old.get(name)!r}, now it is {new.get(name)!r}; "
                f"go on with the former, or pass another --out"
            )
    merged = dict(settings)
    if "answers" in settings:
        merged["answers"] = {**manifest["settings"].get("answers", {}), **settings["answers"]}
    return {**manifest, "settings": merged}


def versions() -> dict[str, str]:
    """The installed versions of what decides results."""
    from importlib import metadata

    found = {}
    for name in ("ctxaware", "fschat", "openai", "transformers", "tokenizers", "torch", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
