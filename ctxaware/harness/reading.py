"""SQuAD, QuAC and DROP as one kind of document: `id`, `context`, `question`, `answers` (protocol section 2).

Each data set has two readers, one for the rows of its hub form and one for its official release file
(the built-in samples are in release form too); everything after the readers is shared.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxaware.data.sources import BUILTIN, HUB, load_from_hub
from ctxaware.errors import InputError
from ctxaware.harness.paths import CORPORA
from ctxaware.harness.prompts import PASSAGE_PIECES, PASSAGE_QUESTION, ULTRACHAT
from ctxaware.runs.files import is_text, user_path


class Node:
    """A place in a parsed JSON file, which names itself where what it should hold is missing."""

    def __init__(self, value: Any, where: str):
        self.value, self.where = value, where

    def __getitem__(self, key: str) -> "Node":
        if not isinstance(self.value, dict) or key not in self.value:
            raise InputError(f"{self.where}: expected an object with {key!r}, got {_short(self.value)}")
        return Node(self.value[key], f"{self.where}.{key}")

    def get(self, key: str) -> Any:
        """The value under `key`, None where there is none."""
        return self[key].value if isinstance(self.value, dict) and self.value.get(key) is not None else None

    def check_object(self, keys: str) -> None:
        """Raise `InputError` where the place holds no JSON object."""
        if not isinstance(self.value, dict):
            raise InputError(f"{self.where}: expected an object with {keys}, got {_short(self.value)}")

    def items(self) -> Iterator["Node"]:
        if isinstance(self.value, dict):
            yield from (Node(value, f"{self.where}.{key}") for key, value in self.value.items())
        elif isinstance(self.value, list):
            yield from (Node(value, f"{self.where}[{n}]") for n, value in enumerate(self.value))
        else:
            raise InputError(f"{self.where}: expected a list, got {_short(self.value)}")

    def text(self) -> str:
        if not isinstance(self.value, str) or not is_text(self.value):
            raise InputError(f"{self.where}: expected text, got {_short(self.value)}")
        return self.value

    def word(self) -> str:
        """A text, or a number as text."""
        return str(self.value) if isinstance(self.value, int | float) else self.text()

    def texts(self) -> list[str]:
        """A list of texts (numbers count as text)."""
        return [node.word() for node in self.items()]


def _short(value: Any) -> str:
    try:
        text = f"keys {list(value)[:5]}" if isinstance(value, dict) else ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested thousands deep"
    return text if len(text) < 80 else text[:77] + "…"


def _doc(idx: Node, context: str, question: str, answers: list[str]) -> dict:
    return {"id": idx.word(), "context": context, "question": question, "answers": list(dict.fromkeys(answers))}


def _squad_hub(row: Node) -> dict:
    return _doc(row["id"], row["context"].text(), row["question"].text(), row["answers"]["text"].texts())


def _squad_release(root: Node) -> Iterator[dict]:
    for article in root["data"].items():
        for paragraph in article["paragraphs"].items():
            for qa in paragraph["qas"].items():
                answers = [answer["text"].text() for answer in qa["answers"].items()]
                if qa.get("followup"):
                    raise InputError(f"{qa.where} has followup: this is a release of QuAC, expected SQuAD's")
                if qa.get("is_impossible"):
                    continue
                yield _doc(qa["id"], paragraph["context"].text(), qa["question"].text(), answers)


def _quac_passage(title: Node, background: Node | None, context: Node) -> str:
    kept = context.text().removesuffix("CANNOTANSWER").rstrip()
    return f"Title: {title.text()}\n" + " ".join(filter(None, [background.text() if background else "", kept]))


def _optional(node: Node, key: str) -> Node | None:
    return node[key] if node.get(key) is not None else None


def _quac_hub(row: Node) -> dict:
    passage = _quac_passage(row["wikipedia_page_title"], _optional(row, "background"), row["context"])
    answers = row["answers"]  # a dict of lists, or a list of dicts: both forms of a sequence are about
    golds = _first(answers["texts"]) if isinstance(answers.value, dict) else _first(answers)["texts"]
    return _doc(row["dialogue_id"], passage, _first(row["questions"]).text(), golds.texts())


def _first(node: Node) -> Node:
    first = next(node.items(), None)
    if first is None:
        raise InputError(f"{node.where}: expected at least one entry, got none")
    return first


def _quac_release(root: Node) -> Iterator[dict]:
    for article in root["data"].items():
        for dialog in article["paragraphs"].items():
            passage = _quac_passage(article["title"], _optional(article, "background"), dialog["context"])
            first = _first(dialog["qas"])
            if first.get("followup") is None:
                raise InputError(f"{first.where} has no followup: this is no release of QuAC")
            answers = [answer["text"].text() for answer in first["answers"].items()]
            yield _doc(_optional(dialog, "id") or first["id"], passage, first["question"].text(), answers)


def _drop_golds(answer: Node) -> list[str]:
    """The spans, else the number, else the date: exactly one of them is filled in a sound answer."""
    answer.check_object("spans, number or date")
    if answer.get("spans"):
        return answer["spans"].texts()
    if answer.get("number") not in (None, ""):
        return [answer["number"].word()]
    date = _optional(answer, "date") or Node({}, answer.where)
    date.check_object("day, month or year")
    return [" ".join(date[part].word() for part in ("day", "month", "year") if date.get(part))]


def _drop_hub(row: Node) -> dict:
    golds = _drop_golds(row["answer"]) if row.get("answer") else row["answers_spans"]["spans"].texts()
    return _doc(row["query_id"], row["passage"].text(), row["question"].text(), golds)


def _drop_release(root: Node) -> Iterator[dict]:
    for passage in root.items():
        for qa in passage["qa_pairs"].items():
            yield _doc(qa["query_id"], passage["passage"].text(), qa["question"].text(), _drop_golds(qa["answer"]))


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
        path = CORPORA / f"{name}_sample.json" if source == BUILTIN else user_path(source)
        docs = list(_read(dataset, path))
    docs = [doc for doc in docs if any(answer.strip() for answer in doc["answers"])]  # no gold: not answerable
    if not docs:
        raise InputError(f"{source} holds no answerable question; expected {dataset.release_name} or its like")
    return docs


def _read(dataset: ReadingDataset, path: Path) -> Iterator[dict]:
    if not path.is_file():
        raise InputError(f"source {str(path)!r} is no file; pass hub, builtin, or the path of {dataset.release_name}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; fetch it again or convert it") from error
    if not text.strip():
        raise InputError(f"{path} is empty; expected {dataset.release_name}")
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
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
    except RecursionError as error:
        raise InputError(f"{path} is nested thousands deep; fetch the file again") from error
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # a number of thousands of digits
            raise InputError(f"{path} can't be read: {error}; fetch the file again") from error
        where = f"line {line or error.lineno}, column {error.colno}"
        raise InputError(
            f"{path} is not whole JSON: it breaks at {where} ({error.msg}); fetch the file again"
        ) from error
