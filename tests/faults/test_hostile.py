"""What hostile readers of the package tried: each was a traceback, a wrong result, or something lost."""

import importlib
import json
import math
import os
import random
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import scores as score_files
from support import tiny
from support.runs import cells, sample, write_run
from typer.testing import CliRunner

from ctxaware import chat, plots
from ctxaware.commands.app import app
from ctxaware.data.conversations import read_records
from ctxaware.errors import InputError
from ctxaware.harness.paths import CORPORA
from ctxaware.harness.reading import load_reading
from ctxaware.models import check_checkpoint, load_model


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words) -> str:
    """The one line of a refused command."""
    done = command(*words)
    assert isinstance(done.exception, InputError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.fixture
def model(tmp_path):
    return tiny.save_model(tmp_path / "model", tiny.byte_level_tokenizer())


def reconfigure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_nan(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


# -- models that are broken, for everyone who loads one


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "abc"},
        {"num_hidden_layers": None},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
)
def test_a_configuration_that_no_model_can_have_is_one_line(model, changes):
    reconfigure(model, **changes)
    with pytest.raises(InputError, match="can't load model") as error:
        load_model(str(model), None, "float32", "cpu")
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused(model):
    put_nan(model)
    with pytest.raises(InputError, match=r"no numbers .*in model\.norm\.weight"):
        load_model(str(model), None, "float32", "cpu")


def test_weights_that_only_add_up_to_too_much_are_taken(model):
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][:] = 3e38
    save_file(weights, path, metadata={"format": "pt"})
    load_model(str(model), None, "float32", "cpu")


def harness_model(folder, **arguments):
    return importlib.import_module("ctxaware.harness.model").ContextLM(str(folder), batch_size=1, **arguments)


def five_layers(folder):
    reconfigure(folder, num_hidden_layers=5)


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:4000])


@pytest.mark.parametrize(
    ("damage", "says"), [(five_layers, "no weights for 27"), (cut_weights, "can't load model"), (put_nan, "no numbers")]
)
def test_the_harness_s_model_refuses_what_it_would_measure_nothing_with(model, damage, says):
    damage(model)
    with pytest.raises(InputError, match=says):
        harness_model(model, device="cpu")


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99"])
def test_the_harness_s_model_refuses_a_device_that_it_would_pass_over(model, device):
    with pytest.raises(InputError, match="device"):
        harness_model(model, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_device_that_lm_eval_passes_where_none_was_named_is_no_mistake(model):
    assert harness_model(model, device="cuda:0").device.type == "cpu"


def test_a_device_that_the_harness_does_not_know_is_not_replaced_by_another(model, monkeypatch):
    monkeypatch.setattr("ctxaware.harness.model.choose_device", torch.device)  # as if there were one
    with pytest.raises(InputError, match="the harness knows no device 'xla' and would run on cpu"):
        harness_model(model, device="xla")


def test_a_template_that_divides_by_zero_is_one_line_in_the_harness_and_in_a_fork(model):
    lm = harness_model(model, device="cpu")
    lm.tokenizer.chat_template = "{{ 1 / 0 }}"
    messages = [{"role": "user", "content": "Hi?"}]
    with pytest.raises(InputError, match="division by zero"):
        lm.apply_chat_template(messages)
    fork = importlib.import_module("ctxaware.auto.fork")
    with pytest.raises(InputError, match="division by zero"):
        fork.fork_messages(lm.tokenizer, messages, needs_mark=False)


class Planted:
    """A pickle that runs code when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return self.marker.touch, ()


def test_kept_answers_of_the_harness_s_model_are_json_and_a_planted_pickle_does_not_run(model, tmp_path):
    from lm_eval.api.model import CachingLM, hash_args
    from sqlitedict import SqliteDict

    lm, request = harness_model(model, device="cpu"), ("a prompt", {"until": [], "max_gen_toks": 1})
    marker, evil, own = tmp_path / "it ran", tmp_path / "evil.db", tmp_path / "own.db"
    with SqliteDict(str(evil), autocommit=True) as pickles:
        pickles[hash_args("generate_until", request)] = Planted(marker)
    instance = importlib.import_module("lm_eval.api.instance").Instance("generate_until", {}, request, 0)
    with pytest.raises(InputError, match="are of another model: none"):
        CachingLM(lm, str(evil))
    CachingLM(lm, str(own)).generate_until([instance])
    with SqliteDict(str(own), encode=json.dumps, decode=json.loads) as kept:
        assert [type(answer) for answer in kept.values()] == [str, str]  # of whom, and the answer
    with SqliteDict(str(own), autocommit=True) as pickles:
        pickles[hash_args("generate_until", request)] = Planted(marker)
    with pytest.raises(InputError, match="does not hold JSON"):
        CachingLM(lm, str(own)).generate_until([instance])
    assert not marker.exists()


def test_a_base_whose_files_lack_layers_is_not_trained(model):
    five_layers(model)
    with pytest.raises(InputError, match="no weights for 27"):
        check_checkpoint(str(model))


# -- nothing of a user's is lost


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in score_files.CONVERSATIONS))
    return path


def test_prepare_and_select_leave_somebody_s_data_alone(tmp_path, chats):
    mine = tmp_path / "mine" / "conversations.jsonl"
    mine.parent.mkdir()
    mine.write_text("my own\n")
    scores = score_files.write_scores(tmp_path / "scores.parquet")
    for words in (("prepare", chats, "--dataset", "messages"), ("select", chats, "--scores", scores)):
        assert "holds conversations.jsonl, which this command did not write" in refusal(*words, "--out", mine.parent)
        assert mine.read_text() == "my own\n"
        assert [path.name for path in mine.parent.iterdir()] == [mine.name]


def test_prepare_writes_again_over_what_it_wrote(tmp_path, chats):
    words = ("prepare", chats, "--dataset", "messages", "--out", tmp_path / "out")
    assert command(*words, "--format", "jsonl").exit_code == 0
    assert command(*words).exit_code == 0
    assert not (tmp_path / "out" / "conversations.jsonl").exists()


def test_prepare_and_select_leave_one_another_s_data_alone(tmp_path, chats):
    scores = score_files.write_scores(tmp_path / "scores.parquet")
    prepare = ("prepare", chats, "--dataset", "messages", "--out")
    select = ("select", chats, "--scores", scores, "--out")
    for first, second in ((prepare, select), (select, prepare)):
        out = tmp_path / first[0]
        assert command(*first, out).exit_code == 0
        files = {path.name: path.read_bytes() for path in out.iterdir()}
        assert "holds conversations.parquet, which this command did not write" in refusal(*second, out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == files
        assert command(*first, out).exit_code == 0


def test_a_folder_of_parts_that_holds_something_else_stays(model, tmp_path, chats):
    notes = tmp_path / "s.parquet.parts" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    done = command(
        *("score", chats, "--model", model, "--layer", "1", "--device", "cpu", "--max-length", "64"),
        *("--out", tmp_path / "s.parquet"),
    )
    assert done.exit_code == 0, done.output
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["heads.png", "folder"])
def test_heads_are_not_written_where_their_picture_or_a_folder_is(model, tmp_path, name):
    (tmp_path / "folder").mkdir()
    assert "pass a JSON file" in refusal("heads", model, "--source", "builtin", "--out", tmp_path / name)


@pytest.mark.parametrize("size", [10**9, 10**18, 10**30])
def test_a_needle_prompt_past_the_window_is_refused_before_it_is_made(model, tmp_path, size):
    words = ("--grid", "2x1", "--max-context-length", size, "--source", "builtin")
    assert "past the window of 2,048" in refusal("heads", model, *words, "--out", tmp_path / "h.json")
    asked = ("attention", "--instruct", model, "--layer", "1", *words, "--out", tmp_path / "a")
    assert "past the window of 2,048" in refusal(*asked)


# -- silent or late


@pytest.mark.parametrize(
    ("column", "values"),
    [("turn", None), ("turn", "null"), ("turn", "text"), ("score", 5.0), ("score", -0.5), ("score", float("nan"))],
)
def test_scores_that_are_none_are_refused(tmp_path, chats, column, values):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = score_files.write_scores(tmp_path / "scores.parquet")
    table = pq.read_table(path)
    at = table.column_names.index(column)
    if values is None:
        table = table.drop_columns([column])
    else:
        kind = pa.string() if values == "text" else table[column].type
        value = None if values == "null" else values
        table = table.set_column(at, column, pa.array([value] * len(table), kind))
    pq.write_table(table, path)
    said = refusal("select", chats, "--scores", path, "--out", tmp_path / "out")
    assert f"no scores as ctxaware score writes them: column {column}" in said


def plain_lengths(text, position, content):
    """What `chat._lengths` gives, by trying all ways to take white space from the ends."""
    core = content.strip()
    head = content[: content.index(core)]
    tail = content[len(head) + len(core) :]
    for i in range(len(head) + 1):
        if text.startswith(head[i:] + core, position):
            forms = [head[i:] + core + tail[:n] for n in range(len(tail), -1, -1)]
            return [len(form) for form in forms if text.startswith(form, position)]
    return []


def test_content_is_found_as_by_trying_all_ways():
    rng = random.Random(0)
    n_found = 0
    for _ in range(5000):
        content = "".join(rng.choices(" \n\ta", k=rng.randrange(7)))
        cut = content[rng.randrange(len(content) + 1) :] if rng.random() < 0.5 else content
        text = "<" + cut[: rng.randrange(len(cut) + 1)] + "".join(rng.choices(" \na>", k=rng.randrange(4)))
        expected = plain_lengths(text, 1, content)
        assert list(chat._lengths(text, 1, content)) == expected, (text, content)
        n_found += bool(expected)
    assert n_found > 1000


def test_a_million_spaces_are_no_trouble():
    tokenizer = tiny.byte_level_tokenizer(tiny.GEMMA)
    content = "\n" * 1_000_000 + "Hi?" + " " * 1_000_000
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    rendered = chat.render(tokenizer, messages)
    assert [rendered.text[span.start : span.end] for span in rendered.spans] == ["Hi?", "Yes."]


def test_a_results_file_that_counts_more_than_memory_holds(tmp_path):
    from support import runs

    folder = runs.write_run(tmp_path / "run", {"nih_ctx": [1.0, 0.0]})
    (path,) = folder.rglob("results_*.json")
    content = json.loads(path.read_text())
    content["n-samples"]["nih_ctx"]["effective"] = 10**15
    path.write_text(json.dumps(content))
    assert "has 2 documents, without 2, 3, 4, 5, 6 …" in refusal("gate", folder, folder)


def test_a_secret_among_a_model_s_arguments_is_written_nowhere(model, tmp_path):
    secret, out = "hf_plantedplantedplantedplanted", tmp_path / "gap"
    done = command(
        *("gap", "--instruct", model, "--tasks", "nih_ctx", "--grid", "1x1", "--max-context-length", "450"),
        *("--source", "builtin", "--device", "cpu", "--model-args", f"token={secret}", "--out", out),
    )
    assert done.exit_code == 0, done.output
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"run.json", "gap.json"} <= {path.name for path in files}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


# -- MT-Bench's data


@pytest.mark.parametrize(
    "change", [{"output_format": "[[A]]"}, {"system_prompt": None}, {"prompt_template": 5}, {"type": None}]
)
def test_a_judge_s_prompt_that_fastchat_would_fail_on_after_the_call_is_refused(tmp_path, change):
    pytest.importorskip("fastchat")
    from support.mt_bench import read_jsonl, write_data, write_jsonl

    from ctxaware.mt_bench.fastchat import load_bench, load_fastchat

    data = write_data(tmp_path / "bench")
    path = data / "judge_prompts.jsonl"
    rows = read_jsonl(path)
    write_jsonl(path, [rows[0] | change, *rows[1:]])
    with pytest.raises(InputError, match="prompt single-v1: expected"):
        load_bench(load_fastchat(), data, for_judge=True)
    write_jsonl(path, [*rows, rows[0] | change | {"name": "pair-v2"}])  # not used
    load_bench(load_fastchat(), data, for_judge=True)


# -- answers of `auto evaluate`


def test_answers_that_are_cut_off_are_made_again(tmp_path):
    from ctxaware.harness.auto_prompts import MT_BENCH, AutoPrompt
    from ctxaware.report.auto import _read

    path, prompt = tmp_path / "a.jsonl", AutoPrompt(MT_BENCH, "a", "text", 5)
    row = {"cluster": "a", "category": "", "answer": "b", "score": None}
    path.write_text(f"{json.dumps(row)}\n{json.dumps({'tokens': {'asked': 1, 'computed': 1}})}\n")
    assert len(_read(path, [prompt])) == 2
    assert _read(path, [prompt] * 2) is None
    path.write_bytes(path.read_bytes()[:-10])
    assert _read(path, [prompt]) is None


def test_a_run_that_is_taken_over_leaves_nothing_of_the_one_before(tmp_path):
    pytest.importorskip("trl")
    from ctxaware.training.checkpoints import claim_output

    out = tmp_path / "out"
    assert claim_output(out, {"seed": 1}) is False
    (out / "merged").mkdir()
    (out / "merged" / "config.json").write_text("{}")
    (out / "auto_indicator.json").write_text("{}")
    assert claim_output(out, {"seed": 2}) is False
    assert sorted(path.name for path in out.iterdir()) == ["run.json"]
    shutil.rmtree(out)


# -- arguments of the recipes, and experiments


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--learning_rate", "abc"), "invalid float value: 'abc'"),
        (("--learning_rate", "-1"), "learning_rate must be 0 or more"),
        (("--max_length", "0"), "max_length must be at least 2"),
        (("--max_length", "-5"), "max_length must be at least 2"),
        (("--save_steps", "0"), "save_steps must be above 0"),
        (("--num_train_epochs", "nan"), "num_train_epochs must be a number"),
        (("--dataloader_num_workers", "-1"), "dataloader_num_workers must be 0 or more"),
        (("--adam_beta2", "5"), "adam_beta2 must be at least 0 and below 1"),
        (("--model_init_kwargs", "[]"), "model_init_kwargs must be a mapping in JSON"),
        (("--eval_on_start", "true"), "eval_on_start can't be set here"),
        (("--optim", "foo"), "invalid choice: 'foo'"),
    ],
)
def test_an_impossible_argument_of_a_recipe_is_one_line(tmp_path, capsys, words, says):
    pytest.importorskip("trl")
    from support.training_runs import arguments

    with pytest.raises(InputError, match=r"argument|must|can't") as error:
        arguments(tmp_path / "base", tmp_path / "data", tmp_path / "out", *words)
    assert says in str(error.value)
    assert "usage:" not in capsys.readouterr().err


@pytest.mark.parametrize("n_rows", [100, 5000])
def test_token_ids_past_the_embedding_are_seen_before_training(n_rows):
    pytest.importorskip("trl")
    from datasets import Dataset

    from ctxaware.models import check_rows
    from ctxaware.training.trainer import _largest_id

    dataset = Dataset.from_dict({"input_ids": [[1, 2], [], [1500, 3]], "row": [0, 1, 2]})
    assert _largest_id(dataset) == 1500
    if n_rows == 5000:
        check_rows(n_rows, _largest_id(dataset))
        return
    with pytest.raises(InputError, match="makes token 1500 and the model's embedding has 100 rows"):
        check_rows(n_rows, _largest_id(dataset))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"model_args": {"dtype": "float32,indicator=always"}}, "one plain value without , and ="),
        ({"model_args": {"a": [1]}}, "one plain value"),
    ],
)
def test_an_experiment_that_would_fail_after_training_is_refused(change, says):
    from ctxaware.experiment.config import experiment

    content = {
        **{"out": "out", "models": [{"name": "m", "base": "b", "config": "c.yaml"}]},
        **{"data": [{"name": "d", "source": "x.jsonl"}], "evaluate": {"tasks": ["nih_ctx"], **change}},
    }
    with pytest.raises(InputError, match=says):
        experiment(content)


@pytest.mark.parametrize("n", [0, -1, True, "2"])
def test_an_experiment_with_an_impossible_number_of_processes_is_refused(tmp_path, n):
    import yaml
    from support import experiments

    from ctxaware.experiment.config import read_experiment
    from ctxaware.experiment.plan import Plan

    launch = tmp_path / "odd.yaml"
    launch.write_text(yaml.safe_dump({**experiments.LAUNCH, "num_processes": n}))
    with pytest.raises(InputError, match="names no num_processes"):
        Plan(read_experiment(experiments.write(tmp_path, launch=str(launch))))


def test_a_folder_whose_statistics_or_lock_are_not_ours_stays(tmp_path, chats):
    words = ("prepare", chats, "--dataset", "messages", "--out")
    for statistics in ('["mine"]', "{}", '{"records": 1}'):
        folder = tmp_path / f"s{len(statistics)}"
        folder.mkdir()
        (folder / "statistics.json").write_text(statistics)
        (folder / "conversations.jsonl").write_text("mine")
        assert "which this command did not write" in refusal(*words, folder)
        assert (folder / "conversations.jsonl").read_text() == "mine"
    failed, empty = tmp_path / "failed", tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"messages": [{"role": "user", "content": ""}]}))
    refusal("prepare", empty, "--dataset", "messages", "--out", failed)
    (failed / "conversations.jsonl").write_text("mine")
    assert "which this command did not write" in refusal(*words, failed)
    assert (failed / "conversations.jsonl").read_text() == "mine"


RUNS = [
    ("gap --instruct", "gap.md", ""),
    ("steer --instruct", "steer.json", ""),
    ("attention --instruct", "attention.md", ""),
    ("auto evaluate --model", "auto_evaluation.md", ""),
    ("heads", "notes.json", "notes.json"),
    ("heads", "notes.png", "notes.json"),
]


@pytest.mark.parametrize(("words", "name", "out"), RUNS)
def test_a_run_does_not_write_over_somebody_s_file(tmp_path, model, words, name, out):
    mine = tmp_path / "docs" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    settings = ("--grid", "2x2", "--max-context-length", "500", "--source", "builtin")
    said = refusal(*words.split(), model, "--out", mine.parent / out, *settings)
    assert f"{name} is there and ctxaware did not write it" in said
    assert [path.name for path in mine.parent.iterdir()] == [name]
    assert mine.read_text() == "mine"


def test_a_picture_is_not_drawn_over_somebody_s(tmp_path):
    path = tmp_path / "a.png"
    for _ in range(2):
        plots.save(plots.new_figure(2, 2)[0], path)
    path.write_bytes(b"\x89PNG of mine")
    with pytest.raises(InputError, match=r"a\.png is there and ctxaware did not write it"):
        plots.save(plots.new_figure(2, 2)[0], path)


def test_a_verdict_is_not_written_over_somebody_s_file(tmp_path):
    run = write_run(tmp_path / "run", {"squad_contain": [sample(n, 1.0) for n in range(5)]})
    mine = tmp_path / "docs" / "gate.md"
    mine.parent.mkdir()
    mine.write_text("# The gate")
    assert "ctxaware did not write it" in refusal("gate", run, run, "--out", mine.parent)
    assert mine.read_text() == "# The gate"
    for _ in range(2):  # a verdict of ours is
        assert command("gate", run, run, "--out", tmp_path / "verdict").exit_code == 3


def test_scores_that_were_changed_in_a_sample_file_are_refused(tmp_path):
    rows = [sample(n, float(n % 2)) for n in range(6)]
    config = {"metric_list": [{"metric": "score", "aggregation": "mean"}]}
    kept = {"configs": {"squad_contain": config}, "results": {"squad_contain": {"score,none": 0.5}}}
    run = write_run(tmp_path / "run", {"squad_contain": rows}, results=kept)
    assert command("gate", run, run).exit_code == 3
    (file,) = run.rglob("samples_*.jsonl")
    changed = [json.loads(line) | {"score": 1.0} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert "a score was changed" in refusal("gate", run, run)


def test_a_score_that_differs_by_its_last_bit_is_no_loss(tmp_path):
    rows = [sample(n, 0.5) for n in range(6)]
    before = write_run(tmp_path / "before", {"squad_contain": rows})
    lower = [sample(n, math.nextafter(0.5, 0) if n == 3 else 0.5) for n in range(6)]
    after = write_run(tmp_path / "after", {"squad_contain": lower})
    assert command("gate", before, after).exit_code == 3


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    path = plots.recall_heatmap([100, 200], [0.0, 50.0], [0.5, 1.0], "a/$x_{$", tmp_path / "a.png")
    assert path.stat().st_size > 1000


def test_an_integer_of_more_than_64_bits_breaks_no_file(tmp_path):
    path = tmp_path / "chats.json"
    records = [chat | {"hash": 2**64 - 1 if n == 4 else n} for n, chat in enumerate(score_files.CONVERSATIONS)]
    path.write_text(json.dumps(records))
    assert [record["id"] for record in read_records(path)] == [chat["id"] for chat in score_files.CONVERSATIONS]


def test_a_column_that_no_date_can_hold_is_one_line(tmp_path):
    messages = [chat["messages"] for chat in score_files.CONVERSATIONS]
    table = pa.table({"messages": messages, "at": pa.array([10**15] * len(messages), pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "dates.parquet")
    line = refusal("prepare", tmp_path / "dates.parquet", "--dataset", "messages", "--out", tmp_path / "out")
    assert "has a column that can't be read" in line


def test_two_grids_are_not_drawn_in_one_picture(tmp_path):
    rows = [{**row, "recall": row["score"]} for row in cells([1.0, 0.5, 0.0, 1.0])]
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, {"nih_ctx": rows})
    assert "would both be drawn in" in refusal("heatmap", tmp_path / "runs", "--out", tmp_path / "pictures")
    assert command("heatmap", tmp_path / "runs").exit_code == 0


def test_a_drawing_backend_that_does_not_exist_stops_no_picture(tmp_path):
    write_run(tmp_path / "run", {"nih_ctx": [{**row, "recall": row["score"]} for row in cells([1.0, 0.5, 0.0, 1.0])]})
    words = [sys.executable, "-m", "ctxaware", "heatmap", str(tmp_path / "run"), "--out", str(tmp_path / "pictures")]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "none"})
    assert (done.returncode, done.stderr) == (0, "")
    assert [*(tmp_path / "pictures").glob("*.png")]


def test_a_pipe_in_place_of_a_file_is_named_as_one(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    line = refusal("prepare", tmp_path / "pipe.jsonl", "--dataset", "messages", "--out", tmp_path / "out")
    assert "is a pipe or a device; expected a JSON" in line


def test_a_release_of_another_data_set_is_refused():
    squad = CORPORA / "squad_sample.json"
    with pytest.raises(InputError, match="no release of QuAC"):
        load_reading("quac", str(squad))
    with pytest.raises(InputError, match="expected SQuAD's"):
        load_reading("squad", str(CORPORA / "quac_sample.json"))
