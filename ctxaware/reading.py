"""SQuAD, QuAC and DROP as one kind of document: `id`, `context`, `question`, `answers` (protocol section 2).

Each data set has two readers, one for the rows of its hub form and one for its official release file
(the built-in samples are in release form too); everything after the readers is shared.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxaware.errors import InputError
from ctxaware.sources import BUILTIN, CORPORA, HUB, load_from_hub

PASSAGE_QUESTION = "{context}\nAnswer the question according to the above passage: {question}"
PASSAGE_PIECES = "{context}\nAnswer the question with pieces from the the above passage: {question}"  # "the the": sic
ULTRACHAT = "{context} {question}"


class Node:
    """A place in a parsed JSON file, which names itself where what it should hold is missing."""

    def __init__(self, value: Any, where: str):
        self.value, self.where = value, where

    def __getitem__(self, key: str) -> "Node":
        if not isinstance(self.value, dict) or key not in self.value:
            raise InputError(f"{self.where}: expected an object with {key!r}, got {_short(self.value)}")
        return Node(self.value[key], f"{self.where}.{key}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.value.get(key, default)

    def items(self) -> Iterator["Node"]:
        if isinstance(self.value, dict):
            yield from (Node(value, f"{self.where}.{key}") for key, value in self.value.items())
        elif isinstance(self.value, list):
            yield from (Node(value, f"{self.where}[{n}]") for n, value in enumerate(self.value))
        else:
            raise InputError(f"{self.where}: expected a list, got {_short(self.value)}")

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise InputError(f"{self.where}: expected text, got {_short(self.value)}")
        return self.value


def _short(value: Any) -> str:
    text = f"keys {list(value)[:5]}" if isinstance(value, dict) else repr(value)
    return text if len(text) < 80 else text[:77] + "…"


def _doc(idx: Any, context: str, question: str, answers: list[str]) -> dict:
    return {"id": str(idx), "context": context, "question": question, "answers": list(dict.fromkeys(answers))}


def _squad_hub(row: Node) -> dict:
    return _doc(row["id"].value, row["context"].text(), row["question"].text(), row["answers"]["text"].value)


def _squad_release(root: Node) -> Iterator[dict]:
    for article in root["data"].items():
        for paragraph in article["paragraphs"].items():
            for qa in paragraph["qas"].items():
                if qa.get("is_impossible"):
                    continue
                answers = [answer["text"].text() for answer in qa["answers"].items()]
                yield _doc(qa["id"].value, paragraph["context"].text(), qa["question"].text(), answers)


def _quac_passage(title: str, background: str | None, context: str) -> str:
    context = context.removesuffix("CANNOTANSWER").rstrip()
    return f"Title: {title}\n" + " ".join(filter(None, [background, context]))


def _quac_hub(row: Node) -> dict:
    passage = _quac_passage(row["wikipedia_page_title"].text(), row.get("background"), row["context"].text())
    answers = row["answers"].value  # a dict of lists, or a list of dicts: both forms of a sequence are about
    golds = answers["texts"][0] if isinstance(answers, dict) else answers[0]["texts"]
    return _doc(row["dialogue_id"].value, passage, row["questions"].value[0], golds)


def _quac_release(root: Node) -> Iterator[dict]:
    for article in root["data"].items():
        for dialog in article["paragraphs"].items():
            passage = _quac_passage(article["title"].text(), article.get("background"), dialog["context"].text())
            first = next(dialog["qas"].items(), None)
            if first is None:
                raise InputError(f"{dialog.where}.qas: expected at least one question, got none")
            answers = [answer["text"].text() for answer in first["answers"].items()]
            yield _doc(dialog.get("id") or first["id"].value, passage, first["question"].text(), answers)


def _drop_golds(answer: Node) -> list[str]:
    """The spans, else the number, else the date: exactly one of them is filled in a sound answer."""
    spans = [str(span) for span in answer.get("spans") or []]
    if spans:
        return spans
    if answer.get("number") not in (None, ""):
        return [str(answer["number"].value)]
    date = answer.get("date") or {}
    return [" ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))]


def _drop_hub(row: Node) -> dict:
    golds = _drop_golds(row["answer"]) if row.get("answer") else row["answers_spans"]["spans"].value
    return _doc(row["query_id"].value, row["passage"].text(), row["question"].text(), golds)


def _drop_release(root: Node) -> Iterator[dict]:
    for passage in root.items():
        for qa in passage["qa_pairs"].items():
            yield _doc(
                qa["query_id"].value, passage["passage"].text(), qa["question"].text(), _drop_golds(qa["answer"])
            )


@dataclass(frozen=True)
class ReadingDataset:
    """Where a data set is, how its two forms are read, and its default prompt."""

    hub: dict[str, str]
    from_hub: Callable[[Node], dict]
    from_release: Callable[[Node], Iterator[dict]]
    release_name: str
    prompt: str


DATASETS = {
    "squad": ReadingDataset(
        {"path": "rajpurkar/squad", "name": "plain_text", "split": "validation"},
        _squad_hub,
        _squad_release,
        "SQuAD's dev-v1.1.json or dev-v2.0.json",
        PASSAGE_QUESTION,
    ),
    "quac": ReadingDataset(  # main holds a loading script; this reference is the hub's own conversion of it
        {"path": "allenai/quac", "split": "validation", "revision": "refs/convert/parquet"},
        _quac_hub,
        _quac_release,
        "QuAC's val_v0.2.json",
        PASSAGE_PIECES,
    ),
    "drop": ReadingDataset(
        {"path": "EleutherAI/drop", "split": "validation"},
        _drop_hub,
        _drop_release,
        "DROP's drop_dataset_dev.json",
        PASSAGE_QUESTION,
    ),
}


def prompt_template(name: str, prompt: str) -> str:
    """The prompt of data set `name` in the form `prompt`: `default` or `ultrachat`.

    Raises:
        InputError: another form.
    """
    forms = {"default": DATASETS[name].prompt, "ultrachat": ULTRACHAT}
    if prompt not in forms:
        raise InputError(f"prompt must be default or ultrachat, got {prompt!r}")
    return forms[prompt]


def load_reading(name: str, source: str = HUB, data_revision: str | None = None) -> list[dict]:
    """The questions of a data set that can be answered from their passages.

    Args:
        name: `squad`, `quac` (the first question of each dialog) or `drop`.
        source: `hub`, `builtin`, or a path: a release file (`.json`) or the hub's rows as `.jsonl`.
        data_revision: of the hub data set; None for the reference named in `DATASETS`, else main.

    Returns:
        Dicts with `id`, `context`, `question`, `answers` (golds).

    Raises:
        InputError: the source can't be read, is of another format, or has no question; says where.
    """
    dataset = DATASETS[name]
    if source == HUB:
        rows = load_from_hub("source", **{**dataset.hub, **({"revision": data_revision} if data_revision else {})})
        docs = [dataset.from_hub(Node(row, f"{dataset.hub['path']}[{n}]")) for n, row in enumerate(rows)]
    else:
        path = CORPORA / f"{name}_sample.json" if source == BUILTIN else Path(source).expanduser()
        docs = list(_read(dataset, path))
    if not docs:
        raise InputError(f"{source} holds no answerable question; expected {dataset.release_name} or its like")
    return docs


def _read(dataset: ReadingDataset, path: Path) -> Iterator[dict]:
    if not path.is_file():
        raise InputError(f"source {str(path)!r} is no file; pass hub, builtin, or the path of {dataset.release_name}")
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise InputError(f"{path} is empty; expected {dataset.release_name}")
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            yield dataset.from_hub(Node(_parse(line, path, number), f"{path}, line {number}"))
        return
    root = _parse(text, path)
    try:
        yield from dataset.from_release(Node(root, path.name))
    except InputError as error:
        raise InputError(f"{path} is not in the form of {dataset.release_name}: {error}") from error


def _parse(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line or error.lineno}, column {error.colno}"
        raise InputError(
            f"{path} is not whole JSON: it breaks at {where} ({error.msg}); fetch the file again"
        ) from error
