"""Scoring a file of conversations: many processes, interrupted at any moment, taken up again.

The conversations are cut into shards of fixed size, whatever the number of processes. A finished shard is a
Parquet file in `OUT.parts/`, beside a manifest of everything that could change a score; the shards joined in
order are OUT. Batches never cross shards, so the file is the same however the work was done.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ctxaware import __version__
from ctxaware.data.conversations import find_file, fingerprint, read_conversations
from ctxaware.errors import InputError
from ctxaware.runs.files import output_file, write_json
from ctxaware.scores.formula import Scored, TurnScore

SHARD_SIZE = 64  # conversations; what is lost at most by a kill, in each process
METADATA_KEY = b"ctxaware"  # of the Parquet file's metadata: a manifest, and what was rejected


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

    def difference(self, other: dict) -> str:
        """In words, what differs from a stored manifest; "" where nothing does."""
        mine = dataclasses.asdict(self)
        keys = [key for key in mine if mine[key] != other.get(key)]
        return ", ".join(f"{key} {_short(other.get(key))} (now {_short(mine[key])})" for key in keys)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Versions of the packages that take part in a score."""
    from importlib.metadata import version

    return {"ctxaware": __version__} | {name: version(name) for name in ("torch", "transformers", "tokenizers")}


def is_complete(out: Path, manifest: Manifest) -> bool:
    """Whether `out` holds the result of this very run.

    Raises:
        InputError: it holds something else.
    """
    if not out.exists():
        return False
    stored = read_metadata(out).get("manifest", {})
    if difference := manifest.difference(stored):
        raise InputError(f"{out} was made with {difference}; choose another --out or remove it")
    return True


def read_metadata(path: Path) -> dict:
    """What a score file says about itself: `manifest` and `rejected`.

    Raises:
        InputError: it is no score file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no score file of ctxaware score ({error})") from error
    if METADATA_KEY not in metadata:
        raise InputError(f"{path} is no score file of ctxaware score (its metadata lack {METADATA_KEY.decode()!r})")
    return json.loads(metadata[METADATA_KEY])


def parts_folder(out: Path) -> Path:
    """Where the finished shards of an unfinished `out` are."""
    return out.with_name(f"{out.name}.parts")


@contextlib.contextmanager
def claimed(out: Path, manifest: Manifest) -> Iterator[list[int]]:
    """Claim `out` for this run; yields the numbers of the shards that are still to do.

    Raises:
        InputError: an unfinished run with other arguments is there, or one is at work.
    """
    parts = parts_folder(out)
    try:
        parts.mkdir(parents=True, exist_ok=True)
        lock = open(parts / "lock", "w")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise InputError(f"can't write {parts}: {error.strerror}; choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system, even after kill -9
        except OSError as error:
            raise InputError(f"another run is writing {out}; wait for it or choose another --out") from error
        stored = parts / "manifest.json"
        if not stored.exists():
            write_json(stored, dataclasses.asdict(manifest))
        elif difference := manifest.difference(json.loads(stored.read_text())):
            raise InputError(
                f"an unfinished run of {out} was started with {difference}; "
                f"finish it with those, remove {parts}, or choose another --out"
            )
        yield [k for k in range(n_shards(manifest)) if not _shard_file(out, k).exists()]


def n_shards(manifest: Manifest) -> int:
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

    Raises:
        InputError: the disk is full, or scoring failed.
    """
    wanted = set(todo)
    conversations = itertools.islice(read_conversations(data), manifest.n_conversations)
    for k in range(n_shards(manifest)):
        if not wanted:
            return
        shard = list(itertools.islice(conversations, SHARD_SIZE))
        if k not in wanted:
            continue
        scored = score(shard)
        _write_tables(_shard_file(out, k), [_table(scored.turns, manifest)], scored.rejected, manifest)
        wanted.discard(k)
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
    shutil.rmtree(parts_folder(out))
    return rejected


def _write_tables(path: Path, tables: Iterable, rejected: dict[str, str], manifest: Manifest) -> None:
    """Write tables as one Parquet file; the same input gives the same bytes."""
    import pyarrow.parquet as pq

    told = json.dumps({"manifest": dataclasses.asdict(manifest), "rejected": rejected}, sort_keys=True)
    schema = _schema(manifest).with_metadata({METADATA_KEY: told})
    with output_file(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _table(turns: list[TurnScore], manifest: Manifest):
    import pyarrow as pa

    schema = _schema(manifest)
    return pa.table({name: [getattr(turn, name) for turn in turns] for name in schema.names}, schema=schema)


def _schema(manifest: Manifest):
    import pyarrow as pa

    types = {
        "conversation_id": pa.string(),
        "turn": pa.int32(),
        "layer": pa.int32(),
        "score": pa.float32(),
        "response_tokens": pa.int32(),
        "user_tokens": pa.int32(),
    }
    return pa.schema([(name, kind) for name, kind in types.items() if len(manifest.layers) > 1 or name != "layer"])


def scan(data: Path, limit: int | None) -> tuple[str, int]:
    """SHA-256 of the data and the number of conversations to score; every one of them is checked on the way.

    Raises:
        InputError: the data are broken, hold a record that is no conversation, or none at all.
    """
    n = sum(1 for _ in itertools.islice(read_conversations(data), limit))
    if n == 0:
        raise InputError(f"{find_file(data)} holds no conversation")
    return fingerprint(data), n
