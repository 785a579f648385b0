"""The table of a judge's ratings: averages with what they are averages of, flags, and the paired difference."""

import contextlib
import io
import json
import tempfile
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctxaware import plots
from ctxaware.errors import InputError
from ctxaware.intervals import mean_interval
from ctxaware.mt_bench.answers import answers_sha256, configuration_of
from ctxaware.mt_bench.fastchat import RELEASED_SHA256, load_fastchat, read_answers
from ctxaware.mt_bench.protocol import MAX_NEW_TOKENS
from ctxaware.mt_bench.rows import failure_key, judgment_key
from ctxaware.mt_bench.store import Layout, manifest_path, read_keyed
from ctxaware.runs.claim import CONFIGURATION, read_manifest

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
        InputError: no judgments, or not of these models, or of answers to other questions.
    """

    def __init__(self, out: str | Path, judge_model: str | None = None, model_ids: list[str] | None = None):
        layout = Layout(Path(out))
        self.path = layout.judgments(judge_model) if judge_model else _only_judge(layout)
        manifest = read_manifest(manifest_path(self.path), self.path)
        if manifest is None:
            raise InputError(f"{self.path} has no judgments yet; run ctxaware mt-bench judge")
        settings = manifest[CONFIGURATION]
        try:
            known = list(settings["answers"].keys())
            self._category = {(q, t): str(c) for q, c, n in manifest["questions"] for t in range(1, min(n, 2) + 1)}
            self._data, self.judge_model = dict(settings["data"]), str(settings["judge_model"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{manifest_path(self.path)} is no manifest of judgments ({type(error).__name__}: {error}); restore "
                f"it, or run ctxaware mt-bench judge"
            ) from error
        self.models = list(dict.fromkeys(model_ids or known))
        unknown = [model for model in self.models if model not in known]
        if unknown:
            raise InputError(f"model {unknown[0]!r} is not judged in {self.path}; it has {', '.join(known)}")
        self.categories = list(dict.fromkeys(self._category.values()))
        rows = read_keyed(self.path, judgment_key)
        self.rows = {(model, q, turn): row for (model, q, _, turn), row in rows.items() if model in self.models}
        failures = read_keyed(layout.failures(self.path), failure_key, last_counts=True)
        self.failures = {
            key: row["kind"] for key, row in failures.items() if key not in self.rows and key[0] in self.models
        }
        made = {m: configuration_of(layout.answer_dir / f"{m}.jsonl", self._data) for m in self.models}
        for model in self.models:
            path = layout.answer_dir / f"{model}.jsonl"
            if path.exists() and answers_sha256(read_answers(path)) != settings["answers"][model]:
                raise InputError(
                    f"{path} holds other answers than those that {self.path.name} rates; restore them, or answer under "
                    "another model_id and judge that"
                )
        self._answer_limits = {model: of.get("max_new_tokens", MAX_NEW_TOKENS) for model, of in made.items()}

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
                f"a picture holds {len(plots.CATEGORICAL)} models, got {len(self.models)}; choose some of them"
            )
        groups = [*((category, category) for category in self.categories), ("all", None)]
        bars = {}
        for model in self.models:
            total = self.cell(model)
            label = f"{model} ({total.n_scored}/{total.n_expected} scored)"
            bars[label] = [self.cell(model, category=category).mean for _, category in groups]
        title = f"MT-Bench, judged by {self.judge_model}"
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
            limit = self._answer_limits[model]
            if limit != MAX_NEW_TOKENS:
                lines.append(f"{model}: answers limited to {limit} new tokens, FastChat's limit is {MAX_NEW_TOKENS}")
        returned = sorted({str(row.get("judge_returned_model")) for row in self.rows.values()})
        if len(returned) > 1:
            lines.append(f"the endpoint judged with several models: {', '.join(returned)}")
        lines += [f"{n} is not the released file" for n, h in RELEASED_SHA256.items() if self._data.get(n) != h]
        return lines

    def fastchat_summary(self) -> str:
        """What FastChat's own `show_result` prints for these ratings."""
        if not self.rows:
            return "no ratings yet\n"
        fastchat = load_fastchat()
        with tempfile.TemporaryDirectory() as folder:  # it can't read past a torn last line
            whole = Path(folder) / self.path.name
            whole.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()), encoding="utf-8")
            arguments = Namespace(
                bench_name="mt_bench", input_file=str(whole), judge_model=None, model_list=list(self.models)
            )
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                fastchat.display_result_single(arguments)
        return printed.getvalue().replace(str(whole), str(self.path))


def _only_judge(layout: Layout) -> Path:
    manifests = sorted((layout.out / "model_judgment").glob("*_single.manifest.json"))
    paths = [file.with_name(file.name.replace(".manifest.json", ".jsonl")) for file in manifests]
    if not paths:
        raise InputError(f"{layout.out} has no judgments; run ctxaware mt-bench judge")
    if len(paths) > 1:
        stored = [read_manifest(file, path) or {} for file, path in zip(manifests, paths, strict=True)]
        names = ", ".join(str(manifest.get(CONFIGURATION, {}).get("judge_model")) for manifest in stored)
        raise InputError(f"{layout.out} has judgments of {names}; choose one judge")
    return paths[0]


def _listed(counts: Counter) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())
