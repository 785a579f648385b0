"""The questions that a run lost: prompt with what the answer hangs on highlighted, golds, both answers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctxaware.report.compare import Pairs

AROUND = 300  # characters of a prompt shown around what is highlighted, and at its ends
LONGEST = 1500  # characters of an answer or a gold


@dataclass(frozen=True)
class Flip:
    """One question that was answered better before.

    Attributes:
        task: its task.
        runs: names of the two runs.
        scores: 0–1, of both.
        prompt: pieces of the second run's prompt, and whether each is highlighted.
        golds: right answers.
        answers: of both.
        is_same_prompt: whether the first run was asked the same to the character.
    """

    task: str
    runs: tuple[str, str]
    scores: tuple[float, float]
    prompt: list[tuple[str, bool]]
    golds: list[str]
    answers: tuple[str, str]
    is_same_prompt: bool


def worst_flips(first: str, second: str, pairs: Pairs, n: int) -> list[Flip]:
    """The `n` largest losses of a comparison; of equal ones the earlier question goes first.

    Args:
        first, second: names of the runs.
        pairs: one task in both.
        n: at most so many.
    """
    order = [int(i) for i in np.argsort(pairs.differences, kind="stable")[:n] if pairs.differences[i] < 0]
    flips = []
    for i in order:
        before, after = pairs.rows[i]
        flips.append(
            Flip(
                task=pairs.name,
                runs=(first, second),
                scores=(float(pairs.before[i]), float(pairs.after[i])),
                prompt=excerpt(_prompt(after), _needles(after)),
                golds=[_cut(gold) for gold in _golds(after)],
                answers=(_cut(_answer(before)), _cut(_answer(after))),
                is_same_prompt=_prompt(before) == _prompt(after),
            )
        )
    return flips


def _prompt(row: dict) -> str:
    """The prompt of a sample, as the harness logs it."""
    arguments = row.get("arguments")
    node = arguments.get("gen_args_0", {}).get("arg_0", "") if isinstance(arguments, dict) else arguments
    while isinstance(node, list) and node:
        node = node[0]
    return node if isinstance(node, str) else str(node)


def _answer(row: dict) -> str:
    node = row.get("resps", "")
    while isinstance(node, list) and node:
        node = node[0]
    return str(node)


def _golds(row: dict) -> list[str]:
    answers = row["doc"].get("answers") if isinstance(row.get("doc"), dict) else None
    texts = answers if isinstance(answers, list) else [row.get("target")]
    return [str(text) for text in texts]


def _needles(row: dict) -> list[str]:
    """What a prompt holds that the answer hangs on: the needle, or the golds."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    return [doc["needle"]] if isinstance(doc.get("needle"), str) else _golds(row)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST:,} characters more)"


def excerpt(prompt: str, marks: list[str]) -> list[tuple[str, bool]]:
    """Both ends of a prompt and what stands around each highlighted text; what is left out is counted.

    Args:
        prompt: the whole.
        marks: texts whose first occurrence is highlighted, where they occur.

    Returns:
        Pieces of text, and whether each is highlighted.
    """
    places = sorted((at, at + len(mark)) for mark in marks if mark and (at := prompt.find(mark)) >= 0)
    shown = [(0, AROUND), (len(prompt) - AROUND, len(prompt)), *((a - AROUND, b + AROUND) for a, b in places)]
    shown = [(max(0, a), min(len(prompt), b)) for a, b in shown]
    return list(_pieces(prompt, _united(places), _united(shown)))


def _united(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch as one."""
    united: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united


def _pieces(prompt: str, marked: list[tuple[int, int]], shown: list[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    end = 0
    for start, stop in shown:
        if start > end:
            yield f"\n[… {start - end:,} characters …]\n", False
        at = start
        for a, b in marked:
            if start <= a and b <= stop:
                if a > at:
                    yield prompt[at:a], False
                yield prompt[a:b], True
                at = b
        if stop > at:
            yield prompt[at:stop], False
        end = stop
