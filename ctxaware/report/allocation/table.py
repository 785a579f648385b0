"""`attention.parquet`: one row a prompt, condition, layer, head and group of tokens; its shards, and reading it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.attention.roles import GROUPS
from ctxaware.errors import InputError
from ctxaware.report.allocation.prompts import Condition
from ctxaware.runs.claim import RUN, as_json, claim, locked_by_all
from ctxaware.runs.files import output_file, remove_parts, sha256_of_json
from ctxaware.runs.processes import on_main

if TYPE_CHECKING:
    import pyarrow as pa
    from accelerate import PartialState

NAME = "attention.parquet"
_RUN = b"ctxaware_run"  # key of the metadata: the hash of the configuration


@contextlib.contextmanager
def claimed(
    out: Path, configuration: dict[str, Any], n_shards: int, state: PartialState
) -> Iterator[tuple[str, list[int]]]:
    """Claim the folder `out` for this run, in all its processes.

    Yields:
        The configuration's hash, which shards carry, and the numbers of the shards that are still to do: none where the
        joined table is there.

    Raises:
        InputError: the folder holds another run's results, or one is at work there.
    """
    with locked_by_all(out, out, state):
        yield on_main(state, lambda: _claim(out, configuration, n_shards))


def _claim(out: Path, configuration: dict[str, Any], n_shards: int) -> tuple[str, list[int]]:
    claim(out / RUN, configuration, out)
    digest = sha256_of_json(as_json(configuration))
    if not (out / NAME).exists():
        return digest, [k for k in range(n_shards) if not _is_whole(_shard_file(out, k), digest)]
    if not _is_whole(out / NAME, digest):
        raise InputError(
            f"{out / NAME} is damaged or another run's", "remove it to measure again, or pass another {out}"
        )
    return digest, []


def _is_whole(file: Path, digest: str) -> bool:
    """Whether a table is there, undamaged and of the run with this hash."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, page_checksum_verification=True).schema.metadata.get(_RUN) == digest.encode()
    except (pa.ArrowException, OSError, AttributeError):  # absent, damaged, without metadata
        return False


def _shard_file(out: Path, k: int) -> Path:
    return out / "parts" / f"shard-{k:06d}.parquet"


def write_shard(out: Path, k: int, shard: pa.Table, digest: str) -> None:
    """Put shard `k` of the run with this hash in its place once it is whole."""
    import pyarrow.parquet as pq

    with output_file(_shard_file(out, k)) as beside:
        pq.write_table(shard.replace_schema_metadata({_RUN: digest}), beside, write_page_checksum=True)


def join(out: Path, n_shards: int) -> Path:
    """Join all shards into one table and remove them; does nothing where that is done."""
    import pyarrow.parquet as pq

    path, files = out / NAME, [_shard_file(out, k) for k in range(n_shards)]
    if not path.exists():
        schema = pq.read_schema(files[0])
        with output_file(path) as beside, pq.ParquetWriter(beside, schema, write_page_checksum=True) as writer:
            for file in files:
                writer.write_table(pq.read_table(file))
    remove_parts(files, out / "parts")
    return path


def shard_table(
    label: str,
    conditions: Sequence[Condition],
    documents: Sequence[dict],
    first_prompt: int,
    layers: Sequence[int],
    shares: np.ndarray,
) -> pa.Table:
    """A pyarrow table of one model's shares.

    Args:
        label: the model's.
        conditions: `[n_conditions]`.
        documents: `[n_prompts]`.
        first_prompt: number of the first document in the grid.
        layers: `[n_layers]`.
        shares: float32 `[n_conditions, n_prompts, n_layers, n_heads, n_groups]`.
    """
    import pyarrow as pa

    at = [index.ravel() for index in np.indices(shares.shape, dtype=np.int32)]
    return pa.table(
        {
            "model": pa.repeat(label, shares.size),
            "condition": pa.array([condition.name for condition in conditions]).take(pa.array(at[0])),
            "prompt": pa.array(at[1] + first_prompt, pa.int32()),
            "context_length": pa.array(_taken([doc["context_length"] for doc in documents], at[1]), pa.int32()),
            "depth_percent": pa.array(_taken([doc["depth_percent"] for doc in documents], at[1]), pa.float32()),
            "layer": pa.array(_taken(layers, at[2]), pa.int16()),
            "head": pa.array(at[3], pa.int16()),
            "group": pa.array(GROUPS).take(pa.array(at[4])),
            "share": pa.array(shares.ravel(), pa.float32()),
        }
    )


def _taken(values: Sequence, index: np.ndarray) -> np.ndarray:
    return np.asarray(values)[index]


@dataclass(frozen=True)
class ModelShares:
    """One model's part of the table.

    Attributes:
        label: the model's.
        layers: `[n_layers]`, 0-based.
        context_lengths: `[n_prompts]`, tokens.
        depths: `[n_prompts]`, percent.
        shares: by condition's name, float32 `[n_prompts, n_layers, n_heads, n_groups]`, in the order of `GROUPS`.
    """

    label: str
    layers: list[int]
    context_lengths: np.ndarray
    depths: np.ndarray
    shares: dict[str, np.ndarray]


def read(path: Path) -> list[ModelShares]:
    """The table's models, in its order.

    Raises:
        InputError: the file is damaged, or rows are missing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and run again") from error
    models = []
    for label in rows["model"].unique().to_pylist():
        of_model, shares = rows.filter(pc.field("model") == label), {}
        for condition in of_model["condition"].unique().to_pylist():
            part = of_model.filter(pc.field("condition") == condition)
            sizes = [len(part[name].unique()) for name in ("prompt", "layer", "head", "group")]
            if part["group"][: len(GROUPS)].to_pylist() != list(GROUPS) or len(part) != np.prod(sizes):
                raise InputError(f"{path} is not whole; remove it and run again")
            shares[condition] = part["share"].to_numpy().reshape(sizes)
        each = slice(None, None, int(np.prod(sizes[1:])))  # the first row of each prompt
        lengths, depths = (part[name].to_numpy()[each] for name in ("context_length", "depth_percent"))
        models.append(ModelShares(label, of_model["layer"].unique().to_pylist(), lengths, depths, shares))
    return models
