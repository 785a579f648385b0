"""The table of a judge's ratings: averages with what they are averages of, flags, and the paired difference."""

import contextlib
import io
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxaware import plots
from ctxaware.errors import InputError
from ctxaware.intervals import mean_interval
from ctxaware.mt_bench.answers import MAX_NEW_TOKENS
from ctxaware.mt_bench.fastchat import RELEASED_SHA256, load_fastchat
from ctxaware.mt_bench.plan import row_key
from ctxaware.mt_bench.store import Layout, manifest_path, read_json, read_rows

_DIFFERENCES = (-9.0, 9.0)  # of two ratings from 1 to 10


@dataclass(frozen=True)
class Cell:
    """An average rating and what it is an average of; `mean` is None where nothing is scored."""

    mean: float | None
    n_scored: int
    n_expected: int


@dataclass(frozen=True)
class Difference:
    """Mean of rating differences, paired by question and turn, with a 95% interval over questions.

    `low` and `high` are None with pairs of fewer than two questions, `mean` also without any pair.
    """

    mean: float | None
    low: float | None
    high: float | None
    n_pairs: int
    n_expected: int


class Results:
    """The ratings of one judge.

    Args:
        out: the folder of `answer` and `judge`.
        judge_model: its name; None where there is only one.
        model_ids: models, in the order to show; None for all that the judge was asked about.

    Attributes:
        path: the judgments.
        models: names.
        categories: names, in the questions' order.
        failures: kind of the last failure of each judgment that is missing, by (model, question id, turn).

    Raises:
        InputError: no judgments, or not of these models.
    """

    def __init__(self, out: str | Path, judge_model: str | None = None, model_ids: list[str] | None = None):
        layout = Layout(Path(out))
        self.path = layout.judgments(judge_model) if judge_model else _only_judge(layout)
        if not manifest_path(self.path).exists():
            raise InputError(f"{self.path} has no judgments yet; run ctxaware mt-bench judge")
        self.manifest = read_json(manifest_path(self.path))
        known = list(self.manifest["settings"]["answers"])
        self.models = list(dict.fromkeys(model_ids or known))
        unknown = [model for model in self.models if model not in known]
        if unknown:
            raise InputError(f"--model-id {unknown[0]!r} is not judged in {self.path}; it has {', '.join(known)}")
        self._category = {(q, t): c for q, c, n in self.manifest["questions"] for t in range(1, n + 1)}
        self.categories = list(dict.fromkeys(self._category.values()))
        rows = {row_key(row): row for row in read_rows(self.path)}
        self.rows = {(model, q, turn): row for (model, q, _, turn), row in rows.items() if model in self.models}
        self.failures = {}
        for row in read_rows(layout.failures(self.path)):
            key = row["model"], row["question_id"], row["turn"]
            if key not in self.rows and row["model"] in self.models:
                self.failures[key] = row["kind"]
        self._answer_manifests = {
            model: read_json(file) for model in self.models if (file := manifest_path(layout.answers(model))).exists()
        }

    @property
    def n_expected(self) -> int:
        return len(self.models) * len(self._category)

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.n_expected

    def _expected(self, turn: int | None, category: str | None) -> list[tuple[int, int]]:
        return [(q, t) for (q, t), c in self._category.items() if (turn or t) == t and (category or c) == c]

    def cell(self, model: str, turn: int | None = None, category: str | None = None) -> Cell:
        """The average of a model's ratings, over all or one turn (1, 2), all or one category."""
        expected = self._expected(turn, category)
        scores = [self.rows[model, q, t]["score"] for q, t in expected if (model, q, t) in self.rows]
        return Cell(float(np.mean(scores)) if scores else None, len(scores), len(expected))

    def difference(self, model: str, base: str, turn: int | None = None, category: str | None = None) -> Difference:
        """Rating of `model` minus rating of `base`, over the pairs of question and turn that both have."""
        expected = self._expected(turn, category)
        pairs = [
            (q, self.rows[model, q, t]["score"] - self.rows[base, q, t]["score"])
            for q, t in expected
            if (model, q, t) in self.rows and (base, q, t) in self.rows
        ]
        if not pairs:
            return Difference(None, None, None, 0, len(expected))
        questions, differences = zip(*pairs, strict=True)
        interval = mean_interval(differences, questions, _DIFFERENCES)
        low, high = (interval.low, interval.high) if len(set(questions)) > 1 else (None, None)
        return Difference(interval.mean, low, high, len(pairs), len(expected))

    def draw(self, path: Path) -> None:
        """Write the picture: average rating by category and over all, a bar for each model.

        Raises:
            InputError: more models than `plots` has colours.
        """
        if len(self.models) > len(plots.CATEGORICAL):
            raise InputError(
                f"a picture holds {len(plots.CATEGORICAL)} models, got {len(self.models)}; choose with --model-id"
            )
        groups = [*((category, category) for category in self.categories), ("all", None)]
        bars = {}
        for model in self.models:
            total = self.cell(model)
            label = f"{model} ({total.n_scored}/{total.n_expected} scored)"
            bars[label] = [self.cell(model, category=category).mean for _, category in groups]
        title = f"MT-Bench, judged by {self.manifest['settings']['judge_model']}"
        plots.rating_bars([name for name, _ in groups], bars, title, path)

    def flags(self) -> list[str]:
        """What a reader of the averages should know, a line each."""
        lines = []
        if self.failures:
            kinds = Counter(self.failures.values())
            lines.append(f"missing after a failure: {_listed(kinds)}; run judge again, it tries only these")
        for model in self.models:
            counts = Counter(
                flag for (m, _, _), row in self.rows.items() if m == model for flag in row.get("flags", ())
            )
            if counts:
                lines.append(f"{model}: {_listed(counts)}")
            limit = self._answer_manifests.get(model, {}).get("settings", {}).get("max_new_tokens", MAX_NEW_TOKENS)
            if limit != MAX_NEW_TOKENS:
                lines.append(f"{model}: answers limited to {limit} new tokens, FastChat's limit is {MAX_NEW_TOKENS}")
        returned = sorted({str(row.get("judge_returned_model")) for row in self.rows.values()})
        if len(returned) > 1:
            lines.append(f"the endpoint judged with several models: {', '.join(returned)}")
        data = self.manifest["settings"]["data"]
        lines += [f"{n} is not the released file" for n, h in RELEASED_SHA256.items() if data.get(n) != h]
        return lines

    def fastchat_summary(self) -> str:
        """What FastChat's own `show_result` prints for the judgment file."""
        if not self.rows:
            return "no ratings yet\n"
        fastchat = load_fastchat()
        arguments = Namespace(
            bench_name="mt_bench", input_file=str(self.path), judge_model=None, model_list=list(self.models)
        )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            fastchat.display_result_single(arguments)
        return printed.getvalue()


def _only_judge(layout: Layout) -> Path:
    found = sorted((layout.out / "model_judgment").glob("*_single.manifest.json"))
    if len(found) != 1:
        names = ", ".join(read_json(file)["settings"]["judge_model"] for file in found)
        what = f"judgments of {names}; choose one with --judge-model" if found else "no judgments; run mt-bench judge"
        raise InputError(f"{layout.out} has {what}")
    return found[0].with_name(found[0].name.replace(".manifest.json", ".jsonl"))


def _listed(counts: Counter) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())
