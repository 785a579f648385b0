"""Conversations in files: read one at a time from JSON, JSONL, Parquet or a folder, written whole or not at all.

A conversation is a dict with `id` and `messages`, each message a dict with `role` and `content`.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError
from ctxaware.runs.files import is_text, output_file, sha256_of_file

STEM = "conversations"  # of the file that `prepare` and `select` write into their folder
FORMATS = ("parquet", "jsonl")
OnShare = Callable[[float], None]  # takes the share of a file that has been read, 0–1
MAX_DEPTH = 100  # brackets within brackets of a record; a conversation has four
_ROW_GROUP = 1000  # conversations of one Parquet row group: what is in memory at once


class BrokenFileError(InputError):
    """A file ends or breaks in the middle; `n_whole` records stand before the break."""

    def __init__(self, path: Path, n_whole: int, cause: str):
        super().__init__(
            f"{path} is broken after {n_whole} whole conversations ({cause})",
            "get the whole file, or take these: pass {salvage} to ctxaware prepare",
        )
        self.n_whole = n_whole


def find_file(path: str | Path, preferred: str | None = None) -> Path:
    """The data file that `path` names: itself, or the one in a folder.

    Args:
        path: a file, a folder that `prepare` or `select` wrote, or one with a single data file.
        preferred: a glob of the file in a folder of a data set's release.

    Raises:
        InputError: there is no such path, or no single data file in it.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        state = "is a pipe or a device" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}; expected a JSON, JSONL or Parquet file or a folder with one")
    written = [path / f"{STEM}.{kind}" for kind in FORMATS if (path / f"{STEM}.{kind}").is_file()]
    files = written or (sorted(path.glob(preferred)) if preferred else [])
    if not files:
        kinds = ("*.parquet", "*.jsonl", "*.json")
        files = sorted(p for kind in kinds for p in path.glob(kind) if p.name != "statistics.json")
    if len(files) != 1:
        names = ", ".join(str(p.relative_to(path)) for p in files[:5]) or "none"
        raise InputError(f"expected one data file in {path}, found {names}; pass the file itself")
    return files[0]


def read_records(path: Path, on_share: OnShare | None = None) -> Iterator[dict]:
    """The records of a JSON list, JSONL or Parquet file, one at a time: memory does not grow with the file.

    Args:
        path: of the file.
        on_share: called now and then with the share of the file that has been read, 0–1.

    Raises:
        BrokenFileError: the file ends or breaks in the middle, after its whole records were yielded.
        InputError: the file is none of the three.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path, on_share)
        return
    with open(path, "rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"[":
        yield from _read_json_list(path, on_share)
    elif start == b"{":
        yield from _read_jsonl(path, on_share)
    else:
        raise InputError(f"{path} is neither a JSON list, JSON lines nor Parquet (it starts with {start!r})")


def _read_parquet(path: Path, on_share: OnShare | None) -> Iterator[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            n_read = 0
            for batch in file.iter_batches(batch_size=_ROW_GROUP):
                yield from batch.to_pylist()
                n_read += batch.num_rows
                _report(on_share, n_read, file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a whole Parquet file: {error}", "get or make it again") from error
    except (OverflowError, ValueError, KeyError) as error:  # a date past the year 9999, a time zone that is none
        raise InputError(f"{path} has a column that can't be read ({error})", "leave that column out") from error


def _read_json_list(path: Path, on_share: OnShare | None) -> Iterator[dict]:
    import ijson

    n_whole = 0
    with open(path, "rb") as file:
        for is_last, parser in ((False, ijson), (True, ijson.get_backend("python"))):
            file.seek(0)
            if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
                file.seek(0)
            try:
                for record in itertools.islice(_items(parser.basic_parse(file, use_float=True)), n_whole, None):
                    yield record
                    n_whole += 1
                    if n_whole % _ROW_GROUP == 0:
                        _report(on_share, file.tell(), path.stat().st_size)
                return
            except (ijson.JSONError, ValueError) as error:
                if is_last or "integer overflow" not in str(error):  # the fast parser's integers have 64 bits
                    raise BrokenFileError(path, n_whole, " ".join(str(error).split())[:80]) from error


def _items(events: Iterable[tuple[str, Any]]) -> Iterator[Any]:
    """The items of a JSON list from its events; `ijson.items` has no bound on brackets within brackets.

    Raises:
        ValueError: an item is nested deeper than `MAX_DEPTH`.
    """
    around: list[tuple[Any, str]] = []  # the list, then the open brackets of an item, each with its current key
    for event, value in events:
        if event == "map_key":
            around[-1] = around[-1][0], value
            continue
        if event in ("start_map", "start_array"):
            if len(around) > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} brackets")
            around.append(({} if event == "start_map" else [], ""))
            continue
        if event in ("end_map", "end_array"):
            value, _ = around.pop()
        if len(around) == 1:
            yield value
        elif around:
            container, key = around[-1]
            if isinstance(container, dict):
                container[key] = value
            else:
                container.append(value)


def _read_jsonl(path: Path, on_share: OnShare | None) -> Iterator[dict]:
    n_whole = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets within brackets
                raise BrokenFileError(path, n_whole, f"line {number}: {error}") from error
            n_brackets = line.count(b"[") + line.count(b"{")
            if n_brackets > MAX_DEPTH and _is_deep(record):
                raise BrokenFileError(path, n_whole, f"line {number}: nested deeper than {MAX_DEPTH} brackets")
            yield record
            n_whole += 1
            if n_whole % _ROW_GROUP == 0:
                _report(on_share, file.tell(), path.stat().st_size)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            entry
            for each in level
            for entry in (each.values() if isinstance(each, dict) else each)
            if isinstance(entry, dict | list)
        ]
    return bool(level)


def _report(on_share: OnShare | None, done: int, total: int) -> None:
    if on_share and total:
        on_share(done / total)


def read_conversations(path: str | Path) -> Iterator[dict]:
    """Conversations of a file or folder, checked.

    Raises:
        InputError: a record is no conversation (says which, and what it lacks), or an `id` comes twice.
    """
    file, seen = find_file(path), set()
    for number, record in enumerate(read_records(file)):
        where = f"{file}, record {number}"
        if not isinstance(record, dict) or not isinstance(record.get("messages"), (list, tuple)):
            shape = f"keys {sorted(record)[:5]}" if isinstance(record, dict) else type(record).__name__
            raise InputError(f"{where}: expected an object with id and messages, got {shape}; run ctxaware prepare")
        if not isinstance(record.get("id"), str) or not is_text(record["id"]):
            raise InputError(f"{where}: expected id to be text, got {record.get('id')!r}; run ctxaware prepare")
        if record["id"] in seen:
            raise InputError(f"{where}: id {record['id']!r} comes twice; ids must be unique: run ctxaware prepare")
        seen.add(record["id"])
        for message in record["messages"]:
            if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
                raise InputError(
                    f"{where} ({record['id']}): expected messages with role and content as text, got "
                    f"{str(message)[:60]!r}; run ctxaware prepare"
                )
        yield record


def fingerprint(path: str | Path) -> str:
    """SHA-256 of the data file, in hexadecimal."""
    return sha256_of_file(find_file(path))


def fingerprint_messages(messages: Sequence[dict]) -> str:
    """The start (16 hexadecimal digits) of the SHA-256 of roles and contents: messages that differ have others."""
    content = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_conversations(
    folder: Path, conversations: Iterable[dict], kind: str = "parquet", extra_columns: Sequence[tuple] = ()
) -> Path:
    """Write conversations into `folder`, one row group at a time, whole or not at all.

    Args:
        folder: made if need be; a file of the other format in it is removed at the end.
        conversations: dicts with `id`, `messages` and what `extra_columns` names.
        kind: "parquet" or "jsonl".
        extra_columns: further `(name, pyarrow type)` pairs.

    Returns:
        The file's path.
    """
    if kind not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
    path = Path(folder) / f"{STEM}.{kind}"
    try:
        with output_file(path) as beside:
            if kind == "jsonl":
                with open(beside, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps(c, ensure_ascii=False) + "\n" for c in conversations)
            else:
                _write_parquet(beside, conversations, extra_columns)
    except UnicodeEncodeError as error:
        raise InputError(
            "a message holds half a surrogate pair, which is no text; ctxaware prepare replaces it"
        ) from error
    for other in FORMATS:
        if other != kind:
            (path.parent / f"{STEM}.{other}").unlink(missing_ok=True)
    return path


def _write_parquet(path: Path, conversations: Iterable[dict], extra: Sequence[tuple]) -> None:
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(message)), *extra])
    rows = iter(conversations)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
