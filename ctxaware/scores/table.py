"""Reading a file of scores, and finding the turns of a data set in it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.chat import n_instructions
from ctxaware.data.conversations import fingerprint_messages, read_conversations
from ctxaware.errors import InputError
from ctxaware.scores.shards import FINGERPRINT, read_metadata, schema

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Scores:
    """Scores of one layer, in the order of the file.

    Attributes:
        ids: conversation of each turn.
        values: float64 `[n_turns]`, NaN without a score.
        fingerprints: of the messages of each turn's conversation.
        instruction_tokens: int64 `[n_turns]`: tokens of each instruction, within the length limit.
        is_scored: bool `[n_turns]`: the turn has a score.
        manifest: how they were made.
    """

    ids: list[str]
    fingerprints: list[str]
    values: np.ndarray
    instruction_tokens: np.ndarray
    manifest: dict[str, Any]

    @property
    def is_scored(self) -> np.ndarray:
        return ~np.isnan(self.values)


def read_scores(path: Path, layer: int | None = None) -> dict[int, Scores]:
    """Scores of a file by layer; of one layer only where `layer` is given.

    Raises:
        InputError: the file is none that `ctxaware score` wrote, or lacks the layer.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; make it with ctxaware score")
    manifest = read_metadata(path)["manifest"]
    if layer is not None and layer not in manifest["layers"]:
        raise InputError(
            f"{path} has scores of layers {manifest['layers']}, not of {layer}", "pass {layer} with one of them"
        )
    try:
        table, by_layer = pq.read_table(path, page_checksum_verification=True), {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and score again") from error
    if FINGERPRINT not in table.column_names:
        raise InputError(f"{path} has no column {FINGERPRINT}: an earlier version wrote it; remove it and score again")
    _check_table(path, table, len(manifest["layers"]) > 1)
    for one in manifest["layers"] if layer is None else [layer]:
        rows = table.filter(pc.field("layer") == one) if "layer" in table.column_names else table
        turns, user_tokens = rows["turn"].to_numpy(), rows["user_tokens"].to_numpy().astype(np.int64)
        ids = rows["conversation_id"].to_pylist()
        if (turns != _expected_turns(ids)).any():
            raise InputError(f"{path} has turns out of their order: another program wrote it; score again")
        before = np.where(turns == 0, 0, np.roll(user_tokens, 1))  # user_tokens count all turns up to this one
        by_layer[one] = Scores(
            ids,
            rows[FINGERPRINT].to_pylist(),
            rows["score"].to_numpy(zero_copy_only=False).astype(np.float64),
            user_tokens - before,
            manifest,
        )
    return by_layer


def _expected_turns(ids: list[str]) -> np.ndarray:
    """int64 `[n_turns]`: 0, 1, 2, … in each conversation."""
    numbers = [number for _, same in itertools.groupby(ids) for number, _ in enumerate(same)]
    return np.array(numbers, dtype=np.int64)


def _check_table(path: Path, table: "pa.Table", has_layers: bool) -> None:
    """Raise `InputError` for columns that are not those of `ctxaware score`, or scores that are none."""
    import pyarrow.compute as pc

    kinds = {field.name: _kind(field.type) for field in schema(has_layers)}
    wrong = [name for name, kind in kinds.items() if name not in table.column_names or _kind(table[name].type) != kind]
    wrong = wrong or [name for name in kinds if name != "score" and table[name].null_count]
    if not wrong and len(table) and table["score"].null_count < len(table):
        span = pc.min_max(table["score"]).as_py()
        if not 0 <= span["min"] <= span["max"] <= 1.01 or pc.any(pc.is_nan(table["score"])).as_py():
            wrong = ["score"]
    if wrong:
        raise InputError(f"{path} has no scores as ctxaware score writes them: column {wrong[0]}; score again")


def _kind(of: "pa.DataType") -> str:
    import pyarrow as pa

    of_kind = {"whole": pa.types.is_integer, "number": pa.types.is_floating, "text": pa.types.is_string}
    return next((name for name, is_one in of_kind.items() if is_one(of)), str(of))


def read_one_layer(path: Path, layer: int | None = None) -> tuple[int, Scores]:
    """The layer and its scores, of a file that has one layer or of the one asked for.

    Raises:
        InputError: the file has several and none was asked for, or no score at all.
    """
    by_layer = read_scores(path, layer)
    if len(by_layer) > 1:
        raise InputError(f"{path} has scores of layers {list(by_layer)}", "pass {layer} with one of them")
    ((layer, scores),) = by_layer.items()
    if not scores.is_scored.any():
        raise InputError(f"{path} has no score that is not null; nothing can be selected")
    return layer, scores


def aligned(data: Path, scores: Scores) -> Iterator[tuple[dict, slice]]:
    """Each conversation of `data`, and where its turns are among the scores.

    Raises:
        InputError: the scores are not of these very turns.
    """
    first: dict[str, int] = {}
    for position, name in enumerate(scores.ids):
        first.setdefault(name, position)
    n_used = 0
    for conversation in read_conversations(data):
        name, n_turns = conversation["id"], n_instructions(conversation["messages"])
        start = first.get(name, len(scores.ids))
        if scores.ids[start : start + n_turns] != [name] * n_turns or scores.ids[start + n_turns :][:1] == [name]:
            raise InputError(
                f"the scores have not the {n_turns} turns of conversation {name!r}; they are of other data, or of a "
                f"part of it: score all of {data}"
            )
        if n_turns and scores.fingerprints[start] != fingerprint_messages(conversation["messages"]):
            raise InputError(
                f"the messages of conversation {name!r} are not those that were scored; score {data} as it is now"
            )
        n_used += n_turns
        yield conversation, slice(start, start + n_turns)
    if n_used != len(scores.ids):
        raise InputError(
            f"the scores are of {len(scores.ids)} turns, {data} has {n_used}; pass the data that was scored (recipes "
            "clean data as ctxaware prepare does: score what it wrote)"
        )
