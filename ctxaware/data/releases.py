"""Instruction data sets as released → clean conversations with unique ids."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ctxaware.data.cleaning import normalise, replace_half_pairs
from ctxaware.errors import InputError


@dataclass(frozen=True)
class InstructionDataset:
    """Where a data set is and what its records look like.

    Attributes:
        messages: a record's messages, or None where the record has none.
        hub: the hub name that `hub` stands for, and its split.
        file: a glob of the file inside a folder of the release.
        remove_refusals: as the paper did for it.
    """

    messages: Callable[[dict], list | None]
    hub: str | None = None
    split: str = "train"
    file: str | None = None
    remove_refusals: bool = False


def _messages(record: dict) -> list | None:
    return record.get("messages", record.get("conversations", record.get("items")))


def _wizardlm(record: dict) -> list | None:
    if "instruction" not in record:
        return _messages(record)
    parts = [part for part in (record["instruction"], record.get("input")) if part]
    instruction = "\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": record.get("output")}]


DATASETS = {
    "sharegpt": InstructionDataset(
        _messages, "ucla-cmllab/vicuna_cleaned", file="ShareGPT*split.json", remove_refusals=True
    ),
    "ultrachat": InstructionDataset(
        _messages, "HuggingFaceH4/ultrachat_200k", split="train_sft", file="**/train_sft-*.parquet"
    ),
    "wizardlm": InstructionDataset(
        _wizardlm, "WizardLMTeam/WizardLM_evol_instruct_70k", file="alpaca_evol_instruct_70k.json", remove_refusals=True
    ),
    "messages": InstructionDataset(_messages),
}


def clean(records: Iterable[dict], dataset: str, counts: Counter) -> Iterator[dict]:
    """Clean conversations with unique ids from the records of a release.

    Args:
        records: as released.
        dataset: a key of `DATASETS`.
        counts: as in `normalise`.

    Raises:
        InputError: the first record is of another shape.
    """
    spec = DATASETS[dataset]
    seen: set[bytes] = set()
    ids: set[str] = set()
    for number, record in enumerate(records):
        messages = spec.messages(record) if isinstance(record, dict) else None
        if number == 0 and messages is None:
            shape = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise InputError(
                f"expected records of {dataset} ({_SHAPES[dataset]}), got {shape}", "pass another {dataset}"
            )
        messages = normalise(messages or [], counts, remove_refusals=spec.remove_refusals)
        if not messages:
            counts["empty_conversations"] += 1
            continue
        digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).digest()
        if digest in seen:
            counts["duplicates"] += 1
            continue
        seen.add(digest)
        yield {"id": _unique_id(record, dataset, number, ids, counts), "messages": messages}


_SHAPES = {
    "sharegpt": "id and conversations with from and value, or messages",
    "ultrachat": "messages",
    "wizardlm": "instruction and output",
    "messages": "messages with role and content",
}


def _unique_id(record: dict, dataset: str, number: int, ids: set[str], counts: Counter[str]) -> str:
    given = next((str(record[k]) for k in ("id", "prompt_id", "idx") if record.get(k) is not None), None)
    given = given and replace_half_pairs(given)
    name = given or f"{dataset}-{number}"
    copy = 1
    while name in ids:
        copy += 1
        name = f"{given or dataset}#{copy}"
    if given is not None and copy > 1:
        counts["ids_made_unique"] += 1
    ids.add(name)
    return name
