"""Whatever a file that a user passes holds, its reader gives a value or an `InputError`: never another exception.

`CTXAWARE_EXAMPLES` sets the number of damaged files that a reader is shown.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import mt_bench as mt_bench_files
from support import runs as result_folders
from support import scores as score_files
from support import tiny
from support.mutations import for_each_damaged

from ctxaware import chat
from ctxaware.errors import InputError
from ctxaware.models import load_model, load_tokenizer

EXAMPLES = int(os.environ.get("CTXAWARE_EXAMPLES", "2000"))
SAMPLES = Path(__file__).parents[2] / "ctxaware" / "harness" / "corpora"


@dataclass(frozen=True)
class Reader:
    """A reader and a whole file that it reads.

    Attributes:
        name: of the file, whose ending may decide how it is read.
        content: what it says as JSON: one value, or with `lines` a list of lines.
        read: takes the file's path and reads it to the end.
        lines: whether it is one JSON value a line.
        raw: its bytes, where it is no JSON.
        beside: other files of the folder.
        cost: how many cheap readings one takes; it is shown so many files fewer.
    """

    name: str
    content: Any
    read: Callable[[Path], Any]
    lines: bool = False
    raw: bytes | None = None
    beside: dict[str, Any] = field(default_factory=dict)
    cost: int = 1

    def whole(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.lines:
            return "".join(json.dumps(row) + "\n" for row in self.content).encode()
        return json.dumps(self.content).encode()


CHATS = [
    {"id": f"c{i}", "messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]}
    for i in range(2)
]


def conversations(path):
    from ctxaware.data.conversations import read_conversations

    list(read_conversations(path))


def released(dataset):
    def read(path):
        from collections import Counter

        from ctxaware.data.conversations import read_records
        from ctxaware.data.releases import clean

        for conversation in clean(read_records(path), dataset, Counter()):
            json.dumps(conversation, ensure_ascii=False).encode()  # as it is written

    return read


SHAREGPT = [{"id": "a", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "<p>Yes.</p>"}]}]
WIZARD = [{"idx": 1, "instruction": "Say it.", "input": "", "output": "It."}]


def manifest(path):
    from ctxaware.runs.claim import claim

    claim(path, {"seed": 1, "model": {"name": "m"}}, path.parent)


def json_object(path):
    from ctxaware.runs.files import read_json

    read_json(path)


def mt_bench_rows(key):
    def read(path):
        from ctxaware.mt_bench import rows, store

        store.read_keyed(path, getattr(rows, key))

    return read


ANSWER = {"question_id": 1, "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]}
JUDGMENT = {
    **{"question_id": 1, "model": "m", "judge": ["gpt-4", "single-v1"], "user_prompt": "p", "judgment": "[[5]]"},
    **{"score": 5, "turn": 1, "flags": ["answer_cut"]},
}
FAILURE = {"model": "m", "question_id": 1, "prompt": "single-v1", "turn": 1, "kind": "timeout"}


def needle(path):
    from ctxaware.harness.needles import load_needle

    load_needle(str(path))


NEEDLE = {"needle": "The key is under the red stone.", "question": "Where is the key?", "keywords": ["red", "stone"]}


def haystack(path):
    from ctxaware.harness.haystack import load_haystack

    load_haystack(str(path)).encode()


def reading(dataset):
    def read(path):
        from ctxaware.harness.reading import load_reading

        for doc in load_reading(dataset, str(path)):
            json.dumps(doc, ensure_ascii=False).encode()

    return read


def first(content, n=1):
    """The first entries of a released file: enough of it, and quickly read."""
    if isinstance(content, dict) and "data" in content:
        article = content["data"][0]
        paragraph = {**article["paragraphs"][0], "qas": article["paragraphs"][0]["qas"][:n]}
        return {"data": [{**article, "paragraphs": [paragraph]}]}
    name = next(iter(content))
    return {name: {**content[name], "qa_pairs": content[name]["qa_pairs"][:n]}}


def released_questions(dataset):
    return first(json.loads((SAMPLES / f"{dataset}_sample.json").read_text()))


def samples(path):
    from ctxaware.report.samples import cluster, find_samples, read_task

    for file in find_samples(path.parent):
        run = read_task(file)
        run.scores()
        [cluster(row) for row in run.of_metric()]
        [run.of_task(key) for key in ("versions", "n-shot", "configs", "n-samples")]


ROWS = result_folders.cells([1.0, 0.0, 0.5])


def results(rows=ROWS):
    return {
        "model_name": "m",
        "chat_template": None,
        **{key: {"nih_ctx": value} for key, value in (("versions", 1.0), ("n-shot", 0), ("configs", {}))},
        "higher_is_better": {"nih_ctx": {"score": True}},
        "n-samples": {"nih_ctx": {"original": 3, "effective": 3}},
        "task_hashes": {"nih_ctx": result_folders.hash_of(rows)},
    }


SAMPLE_FILE, RESULTS_FILE = (f"{kind}_{result_folders.DATE}.json" for kind in ("samples_nih_ctx", "results"))
SAMPLE_FILE += "l"


def config(path):
    from ctxaware.training.arguments import read_configs

    read_configs(["--config", str(path)])


CONFIG = b"learning_rate: 2.0e-5\nmax_length: 2048\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\n"


def checkpoint(path):
    from ctxaware.training.checkpoints import newest_complete

    (path.parent / "checkpoint-1").mkdir(exist_ok=True)
    path.replace(path.parent / "checkpoint-1" / "complete.json")
    newest_complete(path.parent)


def heads(path):
    from types import SimpleNamespace

    from ctxaware.attention.head_selection import heads_by_layer

    text = SimpleNamespace(num_hidden_layers=2, num_attention_heads=4)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: text), name_or_path="")
    heads_by_layer(model, str(path), "")


HEADS = {
    **{"model": "m", "fingerprint": None, "n_layers": 2, "n_heads": 4, "n_prompts": 4},
    "retrieval_heads": [{"layer_idx": i, "head_idx": 1, "agreement": 1.0, "user": 0.5} for i in range(2)],
    "ranking": [{"layer_idx": 1, "head_idx": 3, "needle": 0.9}],
}


def report(path):
    from ctxaware.report.collect import collect
    from ctxaware.report.content import make_report

    make_report(collect([("run", path.parent)]), "title", 0.02, 0.95, 5)


QUESTIONS = [{"task": task, "cluster": f"{i}"} for task in ("nih_ctx", "squad_contain") for i in range(2)]
WATCH = {
    "questions": QUESTIONS,
    "probes": [{"step": step, "scores": [1.0, 0.0, 1.0, 0.5]} for step in (0, 100)],
    "stopped": {"step": 100, "task": "nih_ctx", "change": -1.0, "max_drop": 0.02},
}
INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4}
STEER = {
    "plan": {"model": "m", "tasks": ["nih_ctx"], "alphas": [0.1], "heads": "all", "settings": {}},
    "alpha": 0.1,
    "curve": {"0.1": INTERVAL, "1": INTERVAL},
    "scores": {"baseline": {"nih_ctx": INTERVAL}, "+ attention steering (α = 0.1)": {"nih_ctx": INTERVAL}},
    "differences": {"nih_ctx": {"+ attention steering (α = 0.1)": INTERVAL}},
    "restored": None,
}
STATISTICS = {
    **{"instructions": 4, "without_score": 0, "selected": 1, "selected_share": 0.25, "threshold": 0.6},
    **{"top_percent": None, "layer": 15, "share_above": {"0.5": 0.5, "0.6": 0.25, "0.7": 0.2, "0.8": 0.0}},
    "scores": {"model": "m", "layers": [15]},
}


def experiment(path):
    from ctxaware.experiment.config import read_experiment

    read_experiment(path)


EXPERIMENT = {
    **{"out": "out", "models": [{"name": "m", "base": "b", "config": "c.yaml"}], "seeds": [1], "thresholds": [0.6]},
    **{"data": [{"name": "d", "source": "chats.jsonl"}], "evaluate": {"tasks": ["nih_ctx"], "metadata": {"a": 1}}},
}


def bench(path):
    from ctxaware.mt_bench.fastchat import load_bench, load_fastchat
    from ctxaware.mt_bench.plan import make_plan
    from ctxaware.mt_bench.store import Layout

    root = next(folder for folder in path.parents if (folder / "mt_bench").is_dir())
    fastchat = load_fastchat()
    make_plan(fastchat, load_bench(fastchat, root, for_judge=True), Layout(root), "judge", None)


def judgments_of(path):
    from ctxaware.mt_bench.summary import Results

    results = Results(path.parent.parent)
    [results.cell(model) for model in results.models]
    results.flags()


def auto_indicator(path):
    from ctxaware.auto.indicator import _read

    assert 0 <= _read(path, None).probability(0.1) <= 1


def auto_answers(path):
    from ctxaware.harness.auto_prompts import READING, AutoPrompt
    from ctxaware.report.auto import _read

    _read(path, [AutoPrompt(READING, "a", "text", 5, score=lambda answer: float("b" in answer))])


def auto_questions(path):
    from ctxaware.harness.auto_prompts import _mt_bench

    [(str(question["question_id"]), question["category"], question["turns"][0]) for question in _mt_bench(path)]


JUDGE_PROMPTS = [
    {"name": name, "type": "single", "system_prompt": "s", "prompt_template": text, "output_format": "[[rating]]"}
    for name, text in mt_bench_files.PROMPTS.items()
]
JUDGED = {
    "configuration": {"answers": {"m": "0"}, "data": {"judge_prompts.jsonl": "0"}, "judge_model": "judge"},
    "questions": [[1, "writing", 2]],
}
AUTO_INDICATOR = {
    **{"method": "slot", "layers": [], "beta": 0.6, "threshold": 0.5, "model": "sha256:0", "chat_template_sha256": "0"},
    "calibration": {"kind": "isotonic", "log_odds": [-1.0, 1.0], "probability": [0.1, 0.9]},
    "fitted": {"held_out": {"auroc_interval": [0.6, 0.9]}},
}
AUTO_EVALUATION = {
    "configuration": {"model": "m", "auto_indicator": {"method": "slot", "threshold": 0.5, "beta": 0.6}},
    "kinds": [
        {"kind": "needles", "n": 4, "marked": INTERVAL, "identical_to_never": INTERVAL, "gain_of_auto": INTERVAL}
    ],
    "tokens": {mode: {"asked": 9, "computed": 9} for mode in ("never", "auto")},
}
AUTO_ANSWER = {"cluster": "a", "category": "", "answer": "b", "score": 1.0}

READERS = {
    "conversations, JSON list": Reader("chats.json", CHATS, conversations),
    "conversations, JSON lines": Reader("chats.jsonl", CHATS, conversations, lines=True),
    "ShareGPT": Reader("sharegpt.json", SHAREGPT, released("sharegpt")),
    "UltraChat": Reader("ultrachat.jsonl", CHATS, released("ultrachat"), lines=True),
    "WizardLM": Reader("wizardlm.json", WIZARD, released("wizardlm")),
    "manifest": Reader("run.json", {"configuration": {"seed": 1, "model": {"name": "m"}}}, manifest, cost=2),
    "JSON object": Reader("any.json", {"a": [1, {"b": None}]}, json_object),
    "answers": Reader("m.jsonl", [ANSWER, {**ANSWER, "question_id": 2}], mt_bench_rows("answer_key"), lines=True),
    "judgments": Reader("j.jsonl", [JUDGMENT, {**JUDGMENT, "turn": 2}], mt_bench_rows("judgment_key"), lines=True),
    "failures": Reader("f.jsonl", [FAILURE], mt_bench_rows("failure_key"), lines=True),
    "needle, JSON": Reader("needle.json", NEEDLE, needle),
    "needle, YAML": Reader("needle.yaml", NEEDLE, needle, cost=10),
    "haystack, text": Reader("a.txt", None, haystack, raw="Ein Satz über Äpfel.\n".encode()),
    "haystack, JSON lines": Reader("a.jsonl", [{"text": "One."}, {"text": "Two."}], haystack, lines=True),
    "SQuAD": Reader("squad.json", released_questions("squad"), reading("squad")),
    "QuAC": Reader("quac.json", released_questions("quac"), reading("quac")),
    "DROP": Reader("drop.json", released_questions("drop"), reading("drop")),
    "samples": Reader(SAMPLE_FILE, ROWS, samples, lines=True, beside={RESULTS_FILE: results()}),
    "results": Reader(RESULTS_FILE, results(), samples, beside={SAMPLE_FILE: ROWS}),
    "config": Reader("config.yaml", None, config, raw=CONFIG, cost=10),
    "checkpoint": Reader("complete.json", {"model.safetensors": "0" * 64}, checkpoint, cost=2),
    "heads": Reader("heads.json", HEADS, heads),
    "report: probes": Reader("watch.json", WATCH, report, cost=40),
    "report: steering": Reader("steer.json", STEER, report, cost=40),
    "report: selection": Reader("statistics.json", STATISTICS, report, cost=5),
    "report: heads": Reader("heads.json", HEADS, report, cost=5),
    "experiment": Reader("experiment.yaml", EXPERIMENT, experiment, cost=20),
    "MT-Bench: questions": Reader("mt_bench/question.jsonl", mt_bench_files.QUESTIONS, bench, lines=True, cost=5),
    "MT-Bench: prompts": Reader("judge_prompts.jsonl", JUDGE_PROMPTS, bench, lines=True, cost=5),
    "MT-Bench: references": Reader(
        "mt_bench/reference_answer/gpt-4.jsonl", mt_bench_files.REFERENCES, bench, lines=True, cost=5
    ),
    "MT-Bench: manifest": Reader("model_judgment/judge_single.manifest.json", JUDGED, judgments_of),
    "automatic indicator": Reader("auto_indicator.json", AUTO_INDICATOR, auto_indicator),
    "automatic indicator: answers": Reader(
        "a.jsonl", [AUTO_ANSWER, {"tokens": {"asked": 1, "computed": 1}}], auto_answers, lines=True
    ),
    "automatic indicator: questions": Reader("question.jsonl", mt_bench_files.QUESTIONS, auto_questions, lines=True),
    "report: automatic indicator": Reader("auto_evaluation.json", AUTO_EVALUATION, report, cost=10),
    "report: samples": Reader(SAMPLE_FILE, ROWS, report, lines=True, beside={RESULTS_FILE: results()}, cost=40),
    "report: results": Reader(RESULTS_FILE, results(), report, beside={SAMPLE_FILE: ROWS}, cost=40),
}


MT_BENCH = pytest.mark.skipif(find_spec("fastchat") is None, reason="needs the extra mt-bench")
KINDS = [pytest.param(kind, marks=MT_BENCH if kind.startswith("MT-Bench") else ()) for kind in READERS]


def write_beside(folder, reader):
    beside = reader.beside
    (folder / reader.name).parent.mkdir(parents=True, exist_ok=True)
    if reader.read is bench:
        mt_bench_files.write_data(folder)
        mt_bench_files.write_answers(folder)
    for name, content in beside.items():
        lines = content if isinstance(content, list) else [content]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read(tmp_path, kind):
    reader = READERS[kind]
    write_beside(tmp_path, reader)
    (tmp_path / reader.name).write_bytes(reader.whole())
    of_another_model = pytest.raises(InputError, match="not known to be this model")  # none has this fingerprint
    with of_another_model if kind == "heads" else contextlib.nullcontext():
        reader.read(tmp_path / reader.name)


@pytest.fixture
def in_memory(tmp_path):
    """A folder in memory where there is one: a disk takes longer to write a file than a reader to read it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_a_value_or_an_input_error(in_memory, kind):
    reader = READERS[kind]
    write_beside(in_memory, reader)
    path = in_memory / reader.name

    @for_each_damaged(max(EXAMPLES // reader.cost, 5), reader.whole(), reader.content, reader.lines)
    def read(content):
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            reader.read(path)

    read()


MODEL_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("model.safetensors", "adapter_config.json", "adapter_model.safetensors"),
)


@pytest.fixture(scope="module")
def model_and_adapter(tmp_path_factory):
    """A folder with a model, its tokenizer, and an adapter on it in a folder below."""
    peft = pytest.importorskip("peft")
    folder = tiny.save_model(tmp_path_factory.mktemp("model"), tiny.byte_level_tokenizer())
    model = load_model(str(folder), None, "float32", "cpu")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    return folder


def use_model(folder):
    tokenizer = load_tokenizer(str(folder))
    load_model(str(folder), None, "float32", "cpu")
    chat.render(tokenizer, CHATS[0]["messages"])


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_damaged_file_of_a_model_gives_a_model_or_an_input_error(in_memory, model_and_adapter, monkeypatch, name):
    monkeypatch.setattr(chat, "RENDERING_SECONDS", 2.0)
    folder = in_memory / "model"
    shutil.copytree(model_and_adapter, folder)
    is_adapter = name.startswith("adapter")
    if is_adapter:
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(folder)
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    path = folder / "adapter" / name if is_adapter else folder / name
    content = path.read_bytes()
    value = json.loads(content) if name.endswith("config.json") else None  # a tokenizer's is large, and slow to change

    def use():
        if is_adapter:
            load_model(str(folder / "adapter"), None, "float32", "cpu")
        else:
            use_model(folder)

    use()

    @for_each_damaged(max(EXAMPLES // 100, 5), content, value)
    def read(changed):
        path.write_bytes(changed)
        with contextlib.suppress(InputError):
            use()

    read()


def scores(path):
    from ctxaware.data.conversations import write_conversations
    from ctxaware.scores.table import aligned, read_one_layer

    data = path.parent / "data"
    if not data.is_dir():
        write_conversations(data, score_files.CONVERSATIONS)
    list(aligned(data, read_one_layer(path)[1]))


def selection(path):
    from ctxaware.training.callback import read_selection

    read_selection(path)


PARQUET = {"conversations": conversations, "scores": scores, "report: scores": report, "selection": selection}


@pytest.mark.parametrize("kind", PARQUET)
def test_a_damaged_parquet_file_gives_a_value_or_an_input_error(in_memory, kind):
    if kind == "selection":
        pytest.importorskip("trl")
    path = in_memory / "file.parquet"
    if kind == "conversations":
        from ctxaware.data.conversations import write_conversations

        path = write_conversations(in_memory, CHATS)
    else:
        score_files.write_scores(path)
    content = path.read_bytes()
    PARQUET[kind](path)

    @for_each_damaged(max(EXAMPLES // (40 if kind.startswith("report") else 10), 5), content)
    def read(changed):
        path.write_bytes(changed)
        with contextlib.suppress(InputError):
            PARQUET[kind](path)

    read()


@settings(max_examples=EXAMPLES, database=None)
@given(st.one_of(st.text(max_size=20), st.sampled_from(["~nosuchuser/x.json", "x" * 300 + ".yaml", "a\0b.txt", "."])))
def test_a_name_that_is_no_file_is_an_input_error(name):
    from ctxaware.harness.haystack import load_haystack
    from ctxaware.harness.needles import load_needle
    from ctxaware.harness.reading import load_reading

    if name in ("hub", "builtin", "sf", "pizza") or set(name) == {"/"}:  # a name, or all that the machine holds
        return
    for load in (load_needle, load_haystack, lambda name: load_reading("squad", name)):
        try:
            load(name)
        except InputError:
            continue
        assert Path(name).expanduser().exists()
