"""Scoring a file of conversations: many processes, interrupted at any moment, taken up again.

The conversations are cut into shards of fixed size, whatever the number of processes. A finished shard is a
Parquet file in `OUT.parts/`, beside a manifest of everything that could change a score; the shards joined in
order are OUT. Batches never cross shards, so the file is the same however the work was done.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxaware.data.conversations import find_file, fingerprint, fingerprint_messages, read_conversations
from ctxaware.errors import InputError
from ctxaware.runs.claim import LOCK, RUN, as_json, claim, describe_difference, locked_by_all
from ctxaware.runs.files import output_file, remove_parts
from ctxaware.runs.processes import on_main
from ctxaware.scores.formula import Scored, TurnScore

if TYPE_CHECKING:
    import pyarrow as pa
    from accelerate import PartialState

SHARD_SIZE = 64  # conversations; what is lost at most by a kill, in each process
METADATA_KEY = b"ctxaware"  # of the Parquet file's metadata: a manifest, and what was rejected
FINGERPRINT = "messages_sha256"  # column: of the conversation's messages, so that other data are noticed


@dataclass(frozen=True)
class Manifest:
    """All that could change a score: two runs with equal manifests write the same file."""

    data: str
    data_sha256: str
    n_conversations: int
    model: str
    revision: str | None
    chat_template_sha256: str
    layers: list[int]
    max_length: int
    batch_tokens: int
    dtype: str
    device: str
    versions: dict[str, str]


def is_complete(out: Path, manifest: Manifest) -> bool:
    """Whether `out` holds the result of this very run.

    Raises:
        InputError: it holds something else.
    """
    if not out.exists():
        return False
    if difference := describe_difference(read_metadata(out)["manifest"], dataclasses.asdict(manifest)):
        raise InputError(f"{out} was made with {difference}; choose another output or remove this one")
    return True


def read_metadata(path: Path) -> dict[str, Any]:
    """What a score file says about itself: `manifest` and `rejected`.

    Raises:
        InputError: it is no score file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = json.loads((pq.read_metadata(path).metadata or {})[METADATA_KEY])
        manifest, rejected = stored["manifest"], stored["rejected"]
        if not all(
            isinstance(value, kind)
            for value, kind in ((rejected, dict), (manifest["layers"], list), (manifest["data"], str))
        ):
            raise TypeError("its metadata are of another type")
    except KeyError as error:
        raise InputError(f"{path} is no score file of ctxaware score: its metadata lack {error}") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is no score file of ctxaware score, or it is damaged ({error})", "remove it and score again"
        ) from error
    return {"manifest": manifest, "rejected": rejected}


def parts_folder(out: Path) -> Path:
    """Where the finished shards of an unfinished `out` are."""
    return out.with_name(f"{out.name}.parts")


@contextlib.contextmanager
def claimed(out: Path, manifest: Manifest, state: "PartialState") -> Iterator[list[int] | None]:
    """Claim `out` for this run, in all its processes.

    Yields:
        The numbers of the shards that are still to do; None where `out` is complete.

    Raises:
        InputError: `out` is of other arguments, an unfinished run of others is there, or one is at work.
    """
    parts = parts_folder(out)
    if on_main(state, lambda: is_complete(out, manifest)):
        yield None
        return
    with locked_by_all(parts, out, state):
        yield on_main(state, lambda: _claim(out, manifest))


def _claim(out: Path, manifest: Manifest) -> list[int] | None:
    if is_complete(out, manifest):  # another process was at work when we looked first
        _remove_parts(out, manifest)
        return None
    claim(parts_folder(out) / RUN, dataclasses.asdict(manifest), parts_folder(out))
    return [k for k in range(n_shards(manifest)) if not _is_whole(_shard_file(out, k), manifest)]


def _is_whole(shard: Path, manifest: Manifest) -> bool:
    """Whether a shard is there, undamaged and of this run; another is scored again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not shard.exists():
        return False
    try:
        columns = pq.read_table(shard, page_checksum_verification=True).column_names
        return columns == _schema(manifest).names and read_metadata(shard)["manifest"] == as_json(
            dataclasses.asdict(manifest)
        )
    except (InputError, pa.ArrowException, OSError):
        return False


def n_shards(manifest: Manifest) -> int:
    """Number of shards of the whole run."""
    return -(-manifest.n_conversations // SHARD_SIZE)


def _shard_file(out: Path, k: int) -> Path:
    return parts_folder(out) / f"shard-{k:06d}.parquet"


def write_shards(
    out: Path,
    data: Path,
    manifest: Manifest,
    todo: list[int],
    score: Callable[[list[dict]], Scored],
    on_shard: Callable[[Scored], None] | None = None,
) -> None:
    """Score the shards `todo`, and put each in its place once it is whole.

    Args:
        out: the file that the run makes.
        data: file or folder of conversations.
        manifest: of the run.
        todo: numbers of shards.
        score: the scores of a shard's conversations.
        on_shard: called with what a shard gave, when it is on the disk.

    Raises:
        InputError: the disk is full, or scoring failed.
    """
    missing = set(todo)
    conversations = itertools.islice(read_conversations(data), manifest.n_conversations)
    for k in range(n_shards(manifest)):
        if not missing:
            return
        shard = list(itertools.islice(conversations, SHARD_SIZE))
        if k not in missing:
            continue
        scored = score(shard)
        fingerprints = {c["id"]: fingerprint_messages(c["messages"]) for c in shard}
        _write_tables(_shard_file(out, k), [_table(scored.turns, fingerprints, manifest)], scored.rejected, manifest)
        missing.discard(k)
        if on_shard:
            on_shard(scored)


def join_shards(out: Path, manifest: Manifest) -> dict[str, str]:
    """Join all shards into `out` and remove them.

    Returns:
        The reason by conversation id where no score was possible.
    """
    import pyarrow.parquet as pq

    rejected: dict[str, str] = {}
    for k in range(n_shards(manifest)):
        rejected |= read_metadata(_shard_file(out, k))["rejected"]
    if rejected and len(rejected) == manifest.n_conversations:
        raise InputError(f"no conversation could be scored; the first: {next(iter(rejected.values()))}")
    _write_tables(out, (pq.read_table(_shard_file(out, k)) for k in range(n_shards(manifest))), rejected, manifest)
    _remove_parts(out, manifest)
    return rejected


def _remove_parts(out: Path, manifest: Manifest) -> None:
    folder = parts_folder(out)
    locks = folder.glob(f"{LOCK}*")
    remove_parts([*(_shard_file(out, k) for k in range(n_shards(manifest))), folder / RUN, *locks], folder)


def _write_tables(path: Path, tables: "Iterable[pa.Table]", rejected: dict[str, str], manifest: Manifest) -> None:
    """Write tables as one Parquet file; the same input gives the same bytes."""
    import pyarrow.parquet as pq

    metadata = json.dumps({"manifest": dataclasses.asdict(manifest), "rejected": rejected}, sort_keys=True)
    kinds = _schema(manifest).with_metadata({METADATA_KEY: metadata})
    with output_file(path) as beside, pq.ParquetWriter(beside, kinds, write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table.cast(kinds))


def _table(turns: list[TurnScore], fingerprints: dict[str, str], manifest: Manifest) -> "pa.Table":
    """Scores as a table; `fingerprints` are of the conversations' messages, by id."""
    import pyarrow as pa

    kinds = _schema(manifest)
    columns = {name: [getattr(turn, name) for turn in turns] for name in kinds.names if name != FINGERPRINT}
    return pa.table(columns | {FINGERPRINT: [fingerprints[turn.conversation_id] for turn in turns]}, schema=kinds)


def _schema(manifest: Manifest) -> "pa.Schema":
    return schema(len(manifest.layers) > 1)


def schema(has_layers: bool) -> "pa.Schema":
    """Columns of a score file; one of several layers says which."""
    import pyarrow as pa

    types = {
        "conversation_id": pa.string(),
        "turn": pa.int32(),
        "layer": pa.int32(),
        "score": pa.float32(),
        "response_tokens": pa.int32(),
        "user_tokens": pa.int32(),
        FINGERPRINT: pa.string(),
    }
    return pa.schema([(name, kind) for name, kind in types.items() if has_layers or name != "layer"])


def scan(data: Path, limit: int | None) -> tuple[str, int]:
    """SHA-256 of the data and the number of conversations to score; every one of them is checked on the way.

    Raises:
        InputError: the data are broken, hold a record that is no conversation, or none at all.
    """
    stop = None if limit is None else min(limit, sys.maxsize)
    n = sum(1 for _ in itertools.islice(read_conversations(data), stop))
    if n == 0:
        raise InputError(f"{find_file(data)} holds no conversation")
    return fingerprint(data), n
