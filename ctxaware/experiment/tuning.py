"""The steps up to the tuned models: data, vanilla runs, scores, + Indicator runs."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

from ctxaware.data.conversations import find_file, fingerprint
from ctxaware.data.releases import DATASETS
from ctxaware.errors import InputError
from ctxaware.experiment.config import DEMO_MODEL, VANILLA, Data, Experiment, Model
from ctxaware.experiment.recipes import located
from ctxaware.experiment.steps import Step, key_of, make_step
from ctxaware.models import files_fingerprint
from ctxaware.runs.yamls import read_yaml
from ctxaware.scores.formula import DEFAULT_MAX_LENGTH
from ctxaware.training.free import changes_weights


class Tuning:
    """Steps that make the tuned models of an experiment.

    Args:
        experiment: what is asked for.

    Attributes:
        n_processes: of training, as the launch config says.
        mixed_precision: of training where the recipe leaves it open, as the launch config says.
        n_gpus: that training uses: all that a step ever asks for.
        prepared: the last step of each data set, by its name.

    Raises:
        InputError: a file that is named can't be read or says what can't be done, or a local data set is not there.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.out = Path(experiment.out)
        self.launch = located(experiment.launch)
        launch = read_yaml(Path(self.launch))
        n_processes = launch.get("num_processes") if isinstance(launch, dict) else None
        if not isinstance(n_processes, int) or isinstance(n_processes, bool) or n_processes < 1:
            raise InputError(f"launch: {self.launch} names no num_processes; expected a config of accelerate")
        if launch.get("num_machines", 1) != 1:
            raise InputError(
                f"launch: {self.launch} has num_machines {launch['num_machines']}; a step is of one machine"
            )
        self.n_processes = int(launch["num_processes"])
        self.mixed_precision = launch.get("mixed_precision") or "no"
        self.n_gpus = 0 if launch.get("use_cpu") else self.n_processes
        is_free = self.n_processes > 1 and "main_process_port" not in launch
        self._port = ["--main_process_port", "0"] if is_free else []  # any free one: jobs may share a machine
        self._read: dict[str, dict[str, Any]] = {}
        self._versions: dict[tuple[str, str | None], str] = {}
        self.prepared = {data.name: self._prepare(data) for data in experiment.data}

    def settings(self, model: Model, data: Data) -> dict[str, Any]:
        """The recipe's keys in all its files; the recipe itself refuses one that comes twice."""
        merged: dict[str, Any] = {}
        for path in map(located, (*model.config, *data.config)):
            if path not in self._read:
                content = read_yaml(Path(path))
                if not isinstance(content, dict):
                    raise InputError(f"{path} must hold a mapping, key: value")
                self._read[path] = content
            merged |= self._read[path]
        return {name: _as_recipes_read(name, value) for name, value in merged.items()}

    def base(self, model: Model) -> str:
        """Hub name or folder of the base."""
        return _model_name(model.base)

    def script(self, data: Data) -> Step | None:
        """What makes the data, where a script does."""
        if not data.script:
            return None
        path = located(data.script)
        if not Path(path).is_file():
            raise InputError(f"data {data.name}: script {data.script} is no file")
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return make_step(self.out, "script", data.name, key_of(content), ["python", path, "{folder}"])

    def _prepare(self, data: Data) -> Step:
        script = self.script(data)
        source = str(script.folder) if script else located(str(data.source))
        words = ["ctxaware", "prepare", source, "--dataset", data.dataset, "--out", "{folder}"]
        words += ["--revision", data.revision] if data.revision else []
        words += ["--salvage"] if data.salvage else []
        version = script.key if script else _version_of_data(source, data.dataset)
        key = key_of(version, data.dataset, data.revision, data.salvage)
        return make_step(self.out, "prepare", data.name, key, words, inputs=(script,) if script else ())

    def _trains(self, kind: str, recipe: str, name: str, key: str, model: Model, data: Data, **more: Any) -> Step:
        """A training run; `words` and `reads` are what it takes besides the data."""
        configs = [word for path in (*model.config, *data.config) for word in ("--config", located(path))]
        words = [
            *(
                "accelerate",
                "launch",
                "--config_file",
                self.launch,
                *self._port,
                located(f"recipes/{recipe}"),
                *configs,
            ),
            *("--model_name_or_path", self.base(model), "--data", str(self.prepared[data.name].folder)),
            *("--dataset", "messages", "--output_dir", "{folder}", *more["words"]),
        ]
        inputs = (self.prepared[data.name], *more.get("reads", ()))
        # all data before any training, so that an empty data set is seen at once
        first = tuple(step for step in self.prepared.values() if step not in inputs)
        return make_step(self.out, kind, name, key, words, inputs=inputs, first=first, n_gpus=self.n_gpus)

    def _key_of_training(self, model: Model, data: Data) -> list[Any]:
        """What a training run depends on, but for its seed and its scores."""
        settings = {name: value for name, value in self.settings(model, data).items() if changes_weights(name)}
        precision = [] if self.mixed_precision == "no" else [self.mixed_precision]
        prepared = self.prepared[data.name].key
        return [self._version_of_base(model, data), settings, self.n_processes, prepared, *precision]

    def vanilla(self, model: Model, data: Data, seed: int) -> Step:
        """Instruction tuning as usual."""
        key = key_of(self._key_of_training(model, data), seed)
        name, words = f"{model.name}-{data.name}-seed-{seed}", ("--seed", str(seed))
        return self._trains(VANILLA, "sft_vanilla.py", name, key, model, data, words=words)

    def score(self, model: Model, data: Data, seed: int) -> Step:
        """The scores of the training turns, whatever the threshold."""
        e, prepared = self.experiment, self.prepared[data.name]
        seed_model, trained = self.seed_model(model, data, seed)
        length = self.score_max_length(model, data)
        version = trained.key if trained else self._version_of_model(seed_model)
        key = key_of(prepared.key, version, e.score_layer, length)
        name = f"{data.name}-by-{trained.name.rpartition('-')[0]}" if trained else data.name
        words = [
            *("ctxaware", "score", str(prepared.folder), "--model", seed_model, "--layer", str(e.score_layer)),
            *("--max-length", str(length), *self.device(model, data), "--out", "{folder}/scores.parquet"),
        ]
        inputs = (prepared, *([trained] if trained else []))
        return make_step(self.out, "score", name, key, self.on_gpus(words), inputs=inputs, n_gpus=self.n_gpus)

    def seed_model(self, model: Model, data: Data, seed: int) -> tuple[str, Step | None]:
        """The model that scores, and the step that makes it where it is a vanilla run of this experiment."""
        e = self.experiment
        pairs = {f"{m.name}-{d.name}": (m, d) for m, d in itertools.product(e.models, e.data)}
        chosen = (model, data) if e.seed_model == VANILLA else pairs.get(e.seed_model)
        if chosen is None:
            return _model_name(e.seed_model), None
        trained = self.vanilla(*chosen, seed)
        return str(trained.folder), trained

    def score_max_length(self, model: Model, data: Data) -> int:
        """Tokens kept of a conversation that is scored."""
        length = self.experiment.score_max_length or self.settings(model, data).get("max_length")
        return length if isinstance(length, int) and length > 0 else DEFAULT_MAX_LENGTH  # else the check says so

    def prepared_base(self, model: Model, data: Data) -> Path:
        """The base with `[IND]`, which runs of several seeds and thresholds share."""
        settings = self.settings(model, data)
        of_base = [settings.get(name) for name in ("chat_template", "use_peft", "model_revision")]
        return self.out / "base" / f"{model.name}-{key_of(self._version_of_base(model, data), of_base)}"

    def indicator(self, model: Model, data: Data, seed: int, threshold: float) -> Step:
        """The same with `[IND]` on the instructions that score above the threshold."""
        scores = self.score(model, data, seed)
        key = key_of(self._key_of_training(model, data), seed, scores.key, threshold)
        words = (
            *(
                "--seed",
                str(seed),
                "--scores",
                str(scores.folder / "scores.parquet"),
                "--threshold",
                f"{threshold:.12g}",
            ),
            *("--prepared_base", str(self.prepared_base(model, data))),
        )
        name = f"{model.name}-{data.name}-beta-{threshold:.12g}-seed-{seed}"
        return self._trains("indicator", "sft_indicator.py", name, key, model, data, words=words, reads=(scores,))

    def _version_of_model(self, name: str, revision: str | None = None) -> str:
        """A folder's files, or the hub's commit; the hub name where that can't be asked."""
        if (name, revision) not in self._versions:
            try:
                self._versions[name, revision] = files_fingerprint(name, revision)
            except InputError:  # the check says so
                self._versions[name, revision] = name
        return self._versions[name, revision]

    def _version_of_base(self, model: Model, data: Data) -> str:
        return self._version_of_model(self.base(model), self.settings(model, data).get("model_revision"))

    def device(self, model: Model, data: Data) -> list[str]:
        """Where scoring and evaluation run, if the recipe says so."""
        return ["--device", "cpu"] if self.settings(model, data).get("use_cpu") else []

    def on_gpus(self, words: list[str]) -> list[str]:
        """A command over as many GPUs as training takes."""
        if self.n_gpus < 2:
            return words
        launch = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(self.n_gpus)]
        return [*launch, "--main_process_port", "0", "-m", *words]


def _as_recipes_read(name: str, value: Any) -> Any:
    """A recipe's setting that was written as text ("64", "false") as the recipe takes it, where it matters here."""
    if name in ("use_peft", "use_cpu") and isinstance(value, str):
        return value.strip().lower() in ("yes", "true", "t", "y", "1")  # as transformers reads it
    if name == "max_length" and isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value


def _model_name(name: str) -> str:
    if name != DEMO_MODEL:
        return name
    from ctxaware.demo import demo_model

    return str(demo_model())


def _version_of_data(source: str, dataset: str) -> str:
    """A local file's content, or the hub name."""
    if source == "hub" or (not Path(source).exists() and source.count("/") == 1 and not Path(source).suffix):
        return source
    return fingerprint(find_file(source, DATASETS[dataset].file))
