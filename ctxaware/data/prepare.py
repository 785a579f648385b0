"""One run of `ctxaware prepare`: find the release, clean it, write conversations and statistics."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxaware import __version__
from ctxaware.chat import n_instructions, template_errors
from ctxaware.data.cleaning import COUNTS
from ctxaware.data.conversations import (
    FORMATS,
    STEM,
    BrokenFileError,
    find_file,
    read_conversations,
    read_records,
    write_conversations,
)
from ctxaware.data.releases import DATASETS, clean
from ctxaware.data.sources import HUB, load_from_hub
from ctxaware.errors import InputError
from ctxaware.runs.claim import STATISTICS, data_folder
from ctxaware.runs.files import refuse_own_input, write_json
from ctxaware.runs.progress import Advance, progress_bar
from ctxaware.runs.shapes import check_shape

_OWN_KEYS = ("ctxaware", "records", "removed_or_repaired")  # of its statistics


@dataclass(frozen=True)
class PrepareRun:
    """What `ctxaware prepare` was asked to do; the fields are its options."""

    source: str
    dataset: str
    out: Path
    kind: str = "parquet"
    tokenizer: str | None = None
    revision: str | None = None
    salvage: bool = False


def prepare_dataset(run: PrepareRun) -> dict[str, Any]:
    """Write clean conversations and their statistics into `run.out`; nothing is written where an error ends it.

    Returns:
        The statistics, as in `statistics.json`.

    Raises:
        InputError: the source is none, of another shape, broken in the middle, or would be overwritten.
    """
    if run.dataset not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}, got {run.dataset!r}", "pass another {dataset}")
    counts: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    n_tokens = _token_counter(run.tokenizer)
    records = _Records(run)
    if records.file:
        if run.revision is not None:
            raise InputError(f"{run.source} is on this disk and has no revision", "leave out {revision}")
        refuse_own_input(run.out, [run.out, *output_files(run.out)], [Path(run.source), records.file])
    with (
        data_folder(run.out, output_files(run.out), _OWN_KEYS),
        progress_bar(f"preparing {run.dataset}", 100) as records.advance,
    ):
        conversations = clean(records, run.dataset, counts)
        write_conversations(run.out, _summed(conversations, sums, n_tokens, records), run.kind)
        statistics = {
            "dataset": run.dataset,
            "source": records.source,
            "revision": run.revision,
            "records": records.n,
            "broken_after": records.broken_after,
            "conversations": sums["conversations"],
            "instructions": sums["instructions"],
            "mean_tokens": sums["tokens"] / sums["conversations"] if n_tokens and sums["conversations"] else None,
            "tokenizer": run.tokenizer,
            "removed_or_repaired": {name: counts[name] for name in COUNTS},
            "ctxaware": __version__,
        }
        write_json(run.out / STATISTICS, statistics)
    return statistics


def read_statistics(folder: Path) -> dict[str, Any] | None:
    """The statistics of a folder that `prepare_dataset` wrote; None where it is not whole.

    The conversations are read and counted: they are checked, and are as many as were written.
    """
    try:
        statistics = json.loads((folder / STATISTICS).read_bytes())
        check_shape(statistics, {"source": str, "conversations": int, "instructions": int}, str(folder / STATISTICS))
        is_whole = sum(1 for _ in read_conversations(folder)) == statistics["conversations"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # an `InputError` is a ValueError
        return None
    return statistics if is_whole else None


def output_files(folder: Path) -> list[Path]:
    """What `prepare_dataset` writes into its folder, or removes there."""
    return [folder / f"{STEM}.{kind}" for kind in FORMATS] + [folder / STATISTICS]


class _Records:
    """The records of a release, counted; a broken file ends them where `salvage` allows it."""

    advance: Advance  # of the progress bar

    def __init__(self, run: PrepareRun):
        self.run = run
        self.n, self.share = 0, 0.0
        self.broken_after: int | None = None
        self.file: Path | None = None
        spec, path = DATASETS[run.dataset], Path(run.source)
        if path.exists():
            self.file = find_file(path, spec.file)
            self.source = str(self.file)
        elif run.source == HUB and spec.hub is None:
            raise InputError(f"data set {run.dataset!r} has no hub name of its own; pass a hub name or a path")
        elif run.source == HUB or (run.source.count("/") == 1 and not path.suffix):
            self.source = spec.hub if run.source == HUB and spec.hub else run.source
        else:
            raise InputError(f"{run.source} does not exist; expected a file, a folder, a hub name (owner/name), or hub")

    def __iter__(self) -> Iterator[dict]:
        rows = self._from_hub() if self.file is None else read_records(self.file, self._show)
        try:
            for record in rows:
                self.n += 1
                yield record
        except BrokenFileError as error:
            if not self.run.salvage:
                raise
            self.broken_after = error.n_whole

    def _from_hub(self) -> Iterable[dict]:
        remedy = "pass the path of a downloaded file or folder in place of the hub name"
        spec = DATASETS[self.run.dataset]
        return load_from_hub("source", self.source, spec.split, revision=self.run.revision, remedy=remedy)

    def _show(self, share: float) -> None:
        self.advance(100 * (share - self.share))
        self.share = share


def _summed(
    conversations: Iterable[dict], sums: Counter, n_tokens: Callable[[list[dict]], int] | None, records: "_Records"
) -> Iterator[dict]:
    for conversation in conversations:
        sums["conversations"] += 1
        sums["instructions"] += n_instructions(conversation["messages"])
        if n_tokens:
            sums["tokens"] += n_tokens(conversation["messages"])
        yield conversation
    if not sums["conversations"]:  # before a file is put in its place
        raise InputError(
            f"no conversation is left of the {records.n} records of {records.source}", "is {dataset} right?"
        )


def _token_counter(name: str | None) -> Callable[[list[dict]], int] | None:
    """A function from messages to the number of tokens, rendered with the chat template where there is one."""
    if name is None:
        return None
    from ctxaware.models import load_tokenizer

    tokenizer = load_tokenizer(name)

    def n_tokens(messages: list[dict]) -> int:
        if tokenizer.chat_template:
            with template_errors():
                text = tokenizer.apply_chat_template(messages, tokenize=False)
        else:
            text = "\n".join(message["content"] for message in messages)
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return n_tokens
