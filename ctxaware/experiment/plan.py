"""All steps of an experiment: the tuned models, what they are asked, and what is made of the answers."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ctxaware.experiment.config import SCRIPT_FOLDER, VANILLA, Data, Experiment, Model
from ctxaware.experiment.steps import Comparison, Row, Step, key_of, make_step
from ctxaware.experiment.tuning import Tuning
from ctxaware.harness.settings import content_hash, local_files

BEFORE_TUNING = "before tuning"
NEVER = "never"


class Plan(Tuning):
    """The steps of an experiment, each with its command, from the data to the reports.

    Args:
        experiment: what is asked for.

    Attributes:
        comparisons: one for each model and data set.

    Raises:
        InputError: a file that is named can't be read, or a local data set is not there.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        pairs = itertools.product(experiment.models, experiment.data)
        self.comparisons = [self._compare(model, data) for model, data in pairs]

    @cached_property
    def by_name(self) -> dict[tuple[str, str], Step]:
        """Each step by kind and name, none before what it needs."""
        ordered: dict[tuple[str, str], Step] = {}

        def add(step: Step) -> None:
            if (step.kind, step.name) not in ordered:
                for before in (*step.first, *step.inputs):
                    add(before)
                ordered[step.kind, step.name] = step

        for comparison in self.comparisons:
            for step in (*comparison.gates, comparison.report):
                add(step)
        return ordered

    @property
    def steps(self) -> list[Step]:
        """Each once, none before what it needs."""
        return list(self.by_name.values())

    def log(self, step: Step) -> Path:
        """Where a step's output goes."""
        return self.out / "logs" / step.kind / f"{step.name}.log"

    def _compare(self, model: Model, data: Data) -> Comparison:
        e = self.experiment
        vanilla, indicator = [], []
        for seed in e.seeds:
            vanilla.append(self._row(model, data, VANILLA, seed, self.vanilla(model, data, seed), (NEVER,)))
            for threshold in e.thresholds:
                title = f"β={threshold:.12g}" if len(e.thresholds) > 1 else "+ Indicator"
                trained = self.indicator(model, data, seed, threshold)
                indicator.append(self._row(model, data, title, seed, trained, e.evaluate.conditions))
        rows = [*vanilla, *self._before_tuning(model, data), *indicator]
        scores = {seed: self.score(model, data, seed) for seed in e.seeds}
        name = f"{model.name}-{data.name}"
        gates, judge = list(self._gates(rows)), self._judge(model, data, rows)
        return Comparison(name, rows, scores, gates, judge, self._report(name, rows, scores, judge))

    def _row(self, model: Model, data: Data, title: str, seed: int, trained: Step, conditions: tuple[str, ...]) -> Row:
        name = title if len(self.experiment.seeds) == 1 else f"{title}, seed {seed}"
        model_args = self._model_args(model, data, trained)
        asked = {
            condition: self._evaluate(model, data, trained, model_args | {"indicator": condition})
            for condition in conditions
        }
        return Row(title, name, seed, asked, trained, self._answer(model, data, trained, model_args))

    def _model_args(self, model: Model, data: Data, trained: Step) -> dict[str, Any]:
        """How the harness loads a tuned model: a whole one, or an adapter on its base."""
        settings, folder = self.settings(model, data), str(trained.folder)
        if not settings.get("use_peft"):
            return {"pretrained": folder}
        if trained.kind == VANILLA:
            return self._model_args_of_base(model, data) | {"peft": folder, "tokenizer": folder}
        return {"pretrained": str(self.prepared_base(model, data)), "peft": folder, "tokenizer": folder}

    def _model_args_of_base(self, model: Model, data: Data) -> dict[str, Any]:
        revision = self.settings(model, data).get("model_revision")
        return {"pretrained": self.base(model), **({"revision": revision} if revision else {})}

    def _before_tuning(self, model: Model, data: Data) -> list[Row]:
        how = self.experiment.evaluate.before_tuning
        if how == "no":
            return []
        model_args = self._model_args_of_base(model, data)
        step = self._evaluate(model, data, None, model_args, template=how == "with_template")
        return [Row(BEFORE_TUNING, BEFORE_TUNING, None, {NEVER: step})]

    def metadata(self, model: Model, data: Data) -> dict[str, Any]:
        """The tasks' settings for a model tuned on a data set."""
        script = self.script(data)
        merged = self.experiment.evaluate.metadata | model.metadata | data.metadata
        folder = str(script.folder) if script else SCRIPT_FOLDER
        return {k: v.replace(SCRIPT_FOLDER, folder) if isinstance(v, str) else v for k, v in merged.items()}

    def _evaluate(
        self, model: Model, data: Data, trained: Step | None, model_args: dict[str, Any], template: bool = True
    ) -> Step:
        """One model under one condition; all tasks in one command, so that they share what prompts share."""
        e, metadata, script = self.experiment.evaluate, self.metadata(model, data), self.script(data)
        arguments = {**e.model_args, **model_args}
        mode = arguments.get("indicator", NEVER)
        version = trained.key if trained else key_of(self._key_of_training(model, data)[0], template)
        contents = self._contents(metadata)
        key = key_of(version, e.tasks, metadata, e.model_args, mode, arguments.get("revision"), *contents)
        name = f"{short_name(trained)}-{mode}" if trained else f"{model.name}-before-tuning"
        words = ["lm_eval", "--model", "ctxaware", "--model_args", _joined(arguments), "--tasks", ",".join(e.tasks)]
        words += ["--metadata", json.dumps(metadata)] if metadata else []
        words += ["--apply_chat_template"] if template else []
        words += ["--batch_size", str(e.batch_size), *self.device(model, data), "--log_samples"]
        words = self.on_gpus([*words, "--use_cache", "{folder}/answers", "--output_path", "{folder}"])
        inputs = tuple(step for step in (trained, script) if step)
        first = tuple(self.prepared.values())
        return make_step(self.out, "evaluate", name, key, words, inputs=inputs, first=first, n_gpus=self.n_gpus)

    def _contents(self, metadata: dict[str, Any]) -> list[Any]:
        """What the files are that metadata names, but for those that a script of the experiment makes."""
        own = self.out.resolve()
        files = {key: path for key, path in local_files(metadata).items() if own not in path.resolve().parents}
        return [{key: content_hash(path) for key, path in files.items()}] if files else []

    def _answer(self, model: Model, data: Data, trained: Step, model_args: dict[str, Any]) -> Step | None:
        bench = self.experiment.mt_bench
        if bench is None:
            return None
        folder = self._mt_bench_folder(model, data)
        key, name = key_of(trained.key, bench.data_dir, bench.max_new_tokens, folder.name), short_name(trained)
        words = ["ctxaware", "mt-bench", "answer", "--model", model_args["pretrained"], "--model-id", f"{name}-{key}"]
        words += ["--peft", model_args["peft"]] if "peft" in model_args else []
        words += ["--indicator", "always"] if trained.kind != VANILLA else []
        words += ["--data-dir", bench.data_dir, "--out", str(folder)]
        words += ["--max-new-tokens", str(bench.max_new_tokens), "--batch-size", str(bench.batch_size)]
        n_gpus = min(self.n_gpus, 1)
        return make_step(self.out, "answer", name, key, words, inputs=(trained,), n_gpus=n_gpus)

    def _of_mt_bench(self, *names: str) -> list[str]:
        """Hashes of files and folders of MT-Bench's data; what is missing is found by the checks."""
        assert self.experiment.mt_bench is not None
        paths = [Path(self.experiment.mt_bench.data_dir) / name for name in names]
        return [content_hash(path) for path in paths if path.exists()]

    def _mt_bench_folder(self, model: Model, data: Data) -> Path:
        """Answers of all models in one folder, as FastChat compares them; for each state of its data and judge one."""
        assert self.experiment.mt_bench is not None
        read = self._of_mt_bench("mt_bench/question.jsonl", "mt_bench/reference_answer", "judge_prompts.jsonl")
        return self.out / "mt_bench" / f"{model.name}-{data.name}-{key_of(read, self.experiment.mt_bench.base_url)}"

    def _judge(self, model: Model, data: Data, rows: Sequence[Row]) -> Step | None:
        bench = self.experiment.mt_bench
        answers = [row.answers for row in rows if row.answers]
        if bench is None or bench.judge is None:
            return None
        key = key_of([step.key for step in answers], bench.judge)
        words = ["ctxaware", "mt-bench", "judge", "--out", str(self._mt_bench_folder(model, data))]
        words += ["--data-dir", bench.data_dir, "--judge-model", bench.judge, "--parallel", str(bench.parallel)]
        words += ["--base-url", bench.base_url] if bench.base_url else []
        words += ["--api-key-env", bench.api_key_env] if bench.api_key_env else []
        words += [word for step in answers for word in ("--model-id", step.name)]
        return make_step(self.out, "judge", f"{model.name}-{data.name}", key, words, inputs=tuple(answers))

    def _gates(self, rows: Sequence[Row]) -> Iterator[Step]:
        """Vanilla against before tuning, and each + Indicator model against the vanilla run of its seed."""
        vanilla = {row.seed: row for row in rows if row.title == VANILLA}
        base = next((row for row in rows if row.title == BEFORE_TUNING), None)
        for row in rows:
            before = base if row.title == VANILLA else vanilla.get(row.seed)
            if before is not None:
                yield from (self._gate(before.evaluations[NEVER], after) for after in row.evaluations.values())

    def _gate(self, before: Step, after: Step) -> Step:
        """What is compared is the chat template and `[IND]`, so prompts may differ."""
        max_drop = self.experiment.max_drop
        words = ["ctxaware", "gate", str(before.folder), str(after.folder), "--allow", "prompts"]
        words += ["--max-drop", f"{max_drop:.12g}", "--out", "{folder}"]
        key, name = key_of(before.key, after.key, max_drop), short_name(after)
        return make_step(self.out, "gate", name, key, words, inputs=(before, after), verdict="gate.json")

    def _report(self, name: str, rows: Sequence[Row], scores: Mapping[int, Step], judge: Step | None) -> Step:
        evaluated = [(row, step) for row in rows for step in row.evaluations.values()]
        trained = [(row, row.training) for row in rows if row.training]
        runs = [f"{row.name}={step.folder}" for row, step in (*evaluated, *trained)]
        scored = {step.name: (seed, step) for seed, step in scores.items()}.values()  # one, where a seed model is named
        for seed, step in scored:
            of_seed = f", seed {seed}" if len(scored) > 1 else ""
            runs.append(f"scores{of_seed}={step.folder / 'scores.parquet'}")
        if judge:
            runs.append(f"MT-Bench={judge.command[judge.command.index('--out') + 1]}")
        words = ["ctxaware", "report", *runs, "--title", f"{name}: vanilla against + Indicator", "--latex"]
        words += ["--max-drop", f"{self.experiment.max_drop:.12g}", "--out", "{folder}/report.html"]
        inputs = (*(step for _, step in (*evaluated, *trained)), *scores.values(), *([judge] if judge else []))
        key = key_of(words, [step.key for step in inputs])
        answers = tuple(row.answers for row in rows if row.answers)
        return make_step(self.out, "report", name, key, words, inputs=inputs, first=answers)


def short_name(step: Step) -> str:
    """A step's name without its key, and the kind where the name does not say it."""
    name = step.name.rpartition("-")[0]
    return f"{name}-{VANILLA}" if step.kind == VANILLA else name


def _joined(model_args: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in model_args.items())
