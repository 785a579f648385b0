"""`ctxaware attention` as a user starts it: its prompts are the harness's, its table is whole or goes on, its sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import tiny
from support.chats import sharp_llama

from ctxaware.attention.roles import GROUPS, allocate
from ctxaware.errors import InputError
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.paths import tasks_folder
from ctxaware.harness.settings import NeedleSettings
from ctxaware.indicator.token import add_indicator
from ctxaware.intervals import t_interval
from ctxaware.models import load_model, load_tokenizer
from ctxaware.report.allocation import pictures, run, summary, table
from ctxaware.report.allocation.prompts import CONDITIONS, grouped_prompt
from ctxaware.report.allocation.run import AllocationRun, measure
from ctxaware.report.allocation.table import ModelShares
from ctxaware.report.head_search import find_heads

SETTINGS = NeedleSettings(max_context_length=420, num_context_lengths=3, num_depths=3, needle="pizza", source="builtin")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny chat model with sharp attention and the indicator."""
    folder = tmp_path_factory.mktemp("allocation") / "chat"
    tokenizer = tiny.byte_level_tokenizer()
    add_indicator(tokenizer)
    sharp_llama(n_layers=3, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def a_run(folder, out, **changes):
    fields = {"instruct": (str(folder),), "base": None, "indicator": False, "layer": "all", "settings": SETTINGS}
    return AllocationRun(**{**fields, "dtype": "float32", "out": out, **changes})


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    return measure(a_run(folder, tmp_path_factory.mktemp("out") / "a", indicator=True))


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", ["CHATML", "ZEPHYR", "GEMMA"])
def test_the_prompts_are_token_by_token_those_of_the_harness(template, adds_bos, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.sentencepiece_like_tokenizer(getattr(tiny, template))
    add_indicator(tokenizer)
    if adds_bos:
        special = [("<s>", tokenizer.bos_token_id)]
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    path = tiny.save_model(tmp_path / "model", tokenizer)
    lm = HFLM(pretrained=str(path), device="cpu")
    metadata = {"max_context_length": 420, "num_context_lengths": 3, "num_depths": 3, "needle": "pizza"}
    manager = TaskManager(
        include_path=str(tasks_folder()),
        include_defaults=False,
        metadata={"pretrained": str(path), "source": "builtin", **metadata},
    )
    loaded = load_tokenizer(str(path))
    for condition in CONDITIONS:
        name = "nih_ctx_prefix_ind" if condition.indicator else "nih_ctx_prefix"
        task = manager.load([name])["tasks"][name]
        chat = {"apply_chat_template": True, "chat_template": lm.apply_chat_template} if condition.template else {}
        task.build_all_requests(limit=None, **chat)
        assert len(task.instances) == 9
        for instance, doc in zip(task.instances, needle_documents(SETTINGS, loaded), strict=True):
            ids, _ = lm.tok_batch_encode([instance.args[0]])
            ours = grouped_prompt(loaded, doc, condition, SETTINGS)
            assert ours.input_ids.tolist() == ids[0].tolist()
            said = {name: loaded.decode(ours.input_ids[ours.groups == i]) for i, name in enumerate(GROUPS)}
            assert said["assistant"].strip() == "The secret ingredients needed to build the perfect"
            assert doc["question"] in said["user"]
            assert doc["needle"] in said["user"]
            assert said["indicator"] == ("[IND]" if condition.indicator else "")
            assert (said["bos"] or said["first"]) == loaded.decode(ids[0][:1])


def test_special_tokens_typed_in_a_needle_stay_text(folder):
    tokenizer = load_tokenizer(str(folder))
    doc = {"context": "A <|im_start|> b [IND] c.", "question": "Where is </s>?"}
    prompt = grouped_prompt(tokenizer, doc, CONDITIONS[2], SETTINGS)
    of_user = prompt.input_ids[prompt.groups == GROUPS.index("user")]
    assert not set(of_user.tolist()) & set(tokenizer.all_special_ids)
    assert (prompt.groups == GROUPS.index("indicator")).sum() == 1


def test_the_table_holds_what_the_model_gives_and_nothing_else(folder, finished):
    rows = pq.read_table(finished)
    assert rows.column_names == [
        *("model", "condition", "prompt", "context_length", "depth_percent", "layer", "head", "group", "share")
    ]
    assert len(rows) == 3 * 9 * 3 * 4 * len(GROUPS)
    (model,) = table.read(finished)
    assert model.layers == [0, 1, 2]
    assert model.context_lengths.tolist() == [200] * 3 + [210] * 3 + [220] * 3
    assert model.depths.tolist() == [0, 50, 100] * 3
    tokenizer, weights = load_tokenizer(str(folder)), load_model(str(folder), None, "float32", "cpu")
    documents = needle_documents(SETTINGS, tokenizer)
    for condition in CONDITIONS:
        prompts = [grouped_prompt(tokenizer, doc, condition, SETTINGS) for doc in documents]
        shares = allocate(weights, prompts[:1] + prompts[8:], [0, 1, 2])  # of both shards
        np.testing.assert_allclose(model.shares[condition.name][[0, 8]], shares, atol=1e-6)
        np.testing.assert_allclose(model.shares[condition.name].sum(axis=-1), 1, atol=1e-5)
    assert not (finished.parent / "parts").exists()


def test_an_interrupted_run_goes_on_where_it_was(folder, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    kept, write_shard = [], table.write_shard

    def killed(out, k, shard, digest):
        if kept:
            raise KeyboardInterrupt
        kept.append(k)
        write_shard(out, k, shard, digest)

    monkeypatch.setattr(table, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(a_run(folder, out, indicator=True))
    monkeypatch.setattr(table, "write_shard", lambda out, k, *rest: (kept.append(k), write_shard(out, k, *rest)))
    path = measure(a_run(folder, out, indicator=True))
    assert kept == [0, 1], "no shard is measured twice"
    assert path.read_bytes() == finished.read_bytes()
    monkeypatch.setattr(run, "load_model", lambda *_: pytest.fail("a finished run loads no model"))
    measure(a_run(folder, out, indicator=True))
    with pytest.raises(InputError, match=r"(?s)another|holds"):
        measure(a_run(folder, out))
    assert path.read_bytes() == finished.read_bytes()


def test_a_damaged_shard_is_measured_again_and_a_damaged_table_refused(folder, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(table, "join", lambda *_: None)
        measure(a_run(folder, out, indicator=True))
    first, second = sorted((out / "parts").iterdir())
    flipped = bytearray(first.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    first.write_bytes(flipped)
    second.write_bytes(second.read_bytes()[:-9])
    path = measure(a_run(folder, out, indicator=True))
    assert path.read_bytes() == finished.read_bytes()
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(InputError, match="damaged or another run's; remove it"):
        measure(a_run(folder, out, indicator=True))


def test_other_weights_in_the_same_folder_are_another_run(folder, tmp_path):
    copy = tmp_path / "chat"
    for file in folder.iterdir():
        copy.mkdir(exist_ok=True)
        (copy / file.name).write_bytes(file.read_bytes())
    settings = NeedleSettings(max_context_length=420, num_context_lengths=1, num_depths=1, source="builtin")
    measure(a_run(copy, tmp_path / "out", settings=settings))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="models"):
        measure(a_run(copy, tmp_path / "out", settings=settings))


@pytest.mark.slow
def test_two_processes_write_the_same_file(folder, finished, tmp_path):
    code = "import sys; from ctxaware.commands.app import main; sys.argv[0] = 'ctxaware'; main()"
    script = tmp_path / "main.py"
    script.write_text(code)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_two.yaml"]
    options = ["--instruct", folder, "--indicator", "--layer", "all", "--source", "builtin", "--needle", "pizza"]
    options += ["--grid", "3x3", "--max-context-length", "420", "--dtype", "float32", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, [*launch, script, "attention", *options])], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("chat: attention of layer") == 1, "only one process says what was found"
    assert (tmp_path / "out" / "lock-1").exists(), "accelerate started another number of processes"
    assert (tmp_path / "out" / "attention.parquet").read_bytes() == finished.read_bytes()


def by_hand():
    """Two prompts, two heads, at layer 7: without template the first head reads the user, with it the second."""
    groups = {"user": 0.0, "indicator": 0.0, "assistant": 0.0, "bos": 0.0, "first": 0.0, "template": 0.0}

    def row(**shares):
        return [(groups | shares)[name] for name in GROUPS]

    plain = [row(user=0.6, assistant=0.1, first=0.3), row(user=0.2, assistant=0.2, first=0.6)]
    template = [
        row(user=0.2, assistant=0.1, bos=0.2, template=0.5),
        row(user=0.4, assistant=0.2, bos=0.2, template=0.2),
    ]
    other_layer = [row(user=1)] * 2
    shares = {"plain": np.array([[other_layer, plain]] * 2), "template": np.array([[other_layer, template]] * 2)}
    return ModelShares("m", [2, 7], np.array([200, 300]), np.array([50.0, 50.0]), shares)


def test_the_head_without_template_serves_both_and_the_template_is_left_out():
    told = summary.summarise([by_hand()])["m"]
    assert (told["layer"], told["n_prompts"]) == (7, 2)
    shares = {name: {share: v.mean for share, v in of.items()} for name, of in told["allocation"].items()}
    assert shares["plain"] == pytest.approx({"user": 0.6, "indicator": 0, "assistant": 0.1, "bos": 0.3})
    assert shares["template"] == pytest.approx({"user": 0.4, "indicator": 0, "assistant": 0.2, "bos": 0.4})
    change = told["changes"]["template - plain"]
    assert {share: v.mean for share, v in change.items()} == pytest.approx(
        {"user": -0.2, "indicator": 0, "assistant": 0.1, "bos": 0.1}
    )
    assert told["left_out"]["template"].mean == pytest.approx(0.5)
    others = {choice: of["template - plain"].mean for choice, of in told["other_heads"].items()}
    assert others == pytest.approx(
        {
            summary.TEMPLATE_HEAD: 0.5 - 0.2,  # the second head in both
            summary.OWN_HEAD: 0.5 - 0.6,
            summary.ALL_HEADS: 0.3 / 0.65 - 0.4,
            summary.FIRST_TOKEN: 0.4 - 0.9,
        }
    )
    assert told["by_layer"][7]["user"] == pytest.approx({"plain": 0.6, "template": 0.4})
    assert told["first_token"] == pytest.approx({"plain": 0.45, "template": 0})
    assert list(told["by_context_length"]["plain"]) == [200, 300]
    assert told["by_depth_percent"]["template"][50].n == 2


def test_differences_are_paired_by_prompt():
    model = by_hand()
    spread = np.linspace(0.1, 0.5, 30)
    plain = np.zeros((30, 1, 1, len(GROUPS)))
    plain[..., GROUPS.index("user")] = spread[:, None, None]
    plain[..., GROUPS.index("bos")] = 1 - spread[:, None, None]
    template = plain.copy()
    template[..., GROUPS.index("user")] -= 0.05
    template[..., GROUPS.index("bos")] += 0.05
    model = ModelShares("m", [7], np.arange(30), np.zeros(30), {"plain": plain, "template": template})
    change = summary.summarise([model])["m"]["changes"]["template - plain"]["user"]
    assert change.high - change.low < 1e-9, "the prompts' own spread is no part of the difference"


def test_shares_have_students_interval_and_a_single_one_has_none():
    from scipy import stats

    values = np.random.default_rng(1).random(12)
    interval = t_interval(values)
    assert (interval.low, interval.high) == pytest.approx(
        stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    )
    assert (interval.mean, interval.n) == (pytest.approx(values.mean()), 12)
    assert summary.as_json({"a": {5: t_interval([0.3])}}) == {
        "a": {5: {"mean": 0.3, "low": None, "high": None, "n": 1}}
    }
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_table_and_pictures_are_there_for_every_mix_of_models(finished, folder, tmp_path):
    (chat,) = table.read(finished)
    base = ModelShares("base", chat.layers, chat.context_lengths, chat.depths, {"plain": chat.shares["plain"]})
    told = summary.summarise([base, chat])
    text = summary.markdown(told)
    assert "base: attention of layer 1's retrieval head" in text  # of three layers, 15 not among them, the middle one
    assert "with template and [IND], less with template" in text
    assert json.loads(json.dumps(summary.as_json(told)))["chat"]["changes"]["indicator - plain"]["user"]["n"] == 9
    files = pictures.draw([base, chat], told, tmp_path)
    assert [f.name for f in files] == [
        *("allocation.png", "change.png", "lengths-depths-chat.png", "layers-heads-chat.png")
    ]
    assert [f.name for f in pictures.draw([base], summary.summarise([base]), tmp_path)] == ["allocation.png"]


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "ctxaware", "attention", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_writes_all_its_files(folder, tmp_path):
    out = tmp_path / "out"
    options = ["--grid", "2x1", "--max-context-length", "450", "--source", "builtin", "--layer", "1"]
    code, stdout, stderr = command("--instruct", folder, *options, "--out", out)
    assert code == 0, stderr
    assert "| user |" in stdout
    told = json.loads((out / "attention.json").read_text())["chat"]
    assert told["allocation"]["plain"]["user"]["n"] == 2
    for name in ("attention.parquet", "attention.md", "allocation.png", "change.png", "lengths-depths-chat.png"):
        assert (out / name).stat().st_size > 0


def test_attention_that_is_not_understood_is_not_measured(folder, tmp_path, monkeypatch):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    plain = llama.eager_attention_forward
    monkeypatch.setattr(llama, "eager_attention_forward", lambda m, query, *a, **k: plain(m, query * 2, *a, **k))
    with pytest.raises(InputError, match="not understood here"):
        measure(a_run(folder, tmp_path / "out"))
    with pytest.raises(InputError, match="not understood here"):
        find_heads(str(folder), SETTINGS, "float32", tmp_path / "heads.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "3"}, r"layer_idx must be in 0–2 for this model, got 3"),
        ({"settings": NeedleSettings(max_context_length=9000, source="builtin")}, "past the window of 4,096 tokens"),
        ({"settings": NeedleSettings(num_depths=0, source="builtin")}, "num_depths must be at least 1"),
        ({"settings": NeedleSettings(source="/nowhere")}, "does not exist"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"instruct": ("/nowhere",)}, "can't load model '/nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        measure(a_run(folder, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_model_without_template_or_indicator_is_refused(folder, tmp_path):
    plain = tiny.save_model(tmp_path / "plain", tiny.byte_level_tokenizer(None))
    with pytest.raises(InputError, match="has no chat template; pass it as base"):
        measure(a_run(plain, tmp_path / "out"))
    chat = tiny.save_model(tmp_path / "chat", tiny.byte_level_tokenizer())
    with pytest.raises(InputError, match=r"has no single \[IND\] token"):
        measure(a_run(chat, tmp_path / "out", indicator=True))
    with pytest.raises(InputError, match="each model once"):
        measure(a_run(folder, tmp_path / "out", base=str(folder)))
    assert not (tmp_path / "out").exists()
    code, _, stderr = command("--instruct", folder, "--grid", "6", "--out", tmp_path / "out")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "--grid must be LENGTHSxDEPTHS" in stderr
