"""What is known to be wrong is said before anything is trained, a line each."""

import json

import pytest

pytest.importorskip("trl")
pytest.importorskip("snakemake")

from support import tiny
from support.experiments import content
from support.training_runs import prepared_base

from ctxaware.experiment.check import problems
from ctxaware.experiment.config import experiment
from ctxaware.experiment.plan import Plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiment")


@pytest.fixture(scope="module")
def check(folder):
    content(folder)
    return lambda **changes: problems(Plan(experiment(content(folder, **changes))))


def test_a_sound_experiment_has_no_problem(check):
    assert check() == []


@pytest.fixture(scope="module")
def bases(folder):
    """Base models with something wrong."""
    tiny.save_model(folder / "no-template", tiny.byte_level_tokenizer(None))
    prepared_base(folder / "has-ind")
    tiny.save_model(folder / "no-weights", tiny.byte_level_tokenizer())
    (folder / "no-weights" / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("owner/no-such-model", "model m: can't load model 'owner/no-such-model'"),
        ("none", "/none': "),
        ("has-ind", "has-ind has [IND] already, so it is no base; name the model that it was made from"),
        ("no-weights", "no-weights has no weights (*.safetensors); restore it"),
    ],
)
def test_a_base_that_is_none(check, folder, bases, base, told):
    base = base if "/" in base else str(folder / base)
    lines = check(models={"name": "m", "base": base, "config": str(folder / "recipe.yaml")})
    assert any(told in line for line in lines), lines
    assert not [line for line in lines if "\n" in line]


def test_templates_windows_and_layers(check, folder, bases):
    tasks = {"tasks": ["squad_contain"], "metadata": {"source": "builtin"}, "before_tuning": "with_template"}
    without = {"name": "m", "base": str(folder / "no-template"), "config": str(folder / "recipe.yaml")}
    assert check(models=without, evaluate=tasks) == [
        f"model m: {folder}/no-template has no chat template; set evaluate: before_tuning: without_template"
    ]
    (line,) = check(seed_model=str(folder / "no-template"))
    assert line.endswith("has no chat template, which says whose each token is; name a chat model")
    (line,) = check(score_layer=15)
    assert "layer_idx must be in 0–1 for this model, got 15; set score_layer 1, a middle layer" in line
    (line,) = check(score_max_length=4096)
    assert line.startswith("4096 tokens are past the window of")
    (line,) = check(evaluate={**tasks, "before_tuning": "no", "metadata": {"max_context_length": 9000}})
    assert line == "model tiny: max_context_length 9000 is past the model's window of 2048 tokens"


@pytest.mark.parametrize(
    ("evaluate", "told"),
    [
        ({"tasks": ["squad_contian"]}, "the harness has no task 'squad_contian'; did you mean squad_contain?"),
        ({"tasks": "nih_ctx", "metadata": {"max_context_lenght": 9}}, "did you mean 'max_context_length'?"),
        ({"tasks": "nih_ctx", "metadata": {"num_depths": "3"}}, "num_depths must be a whole number, got '3'"),
        ({"tasks": "nih_ctx", "metadata": {"source": "none.json"}}, "source none.json does not exist"),
        ({"tasks": "nih_ctx", "metadata": {"source": "builtin", "haystack": "none"}}, "haystack none does not exist"),
        ({"tasks": "nih_ctx", "metadata": {"source": "builtin", "needle": "pizzza"}}, "pizzza"),
        ({"tasks": "nih_ctx", "metadata": {"source": "builtin", "num_depths": 0}}, "num_depths must be at least 1"),
        (
            {"tasks": "nih_ctx", "metadata": {"source": "builtin", "max_context_length": 300}},
            "raise max_context_length",
        ),
        (
            {"tasks": "nih_ctx", "metadata": {"source": "builtin", "prompt_template": 99}},
            "prompt_template must be in 1-",
        ),
        ({"tasks": "squad_contain", "metadata": {"source": "builtin", "prompt": "no"}}, "prompt must be default or"),
    ],
)
def test_tasks_and_their_settings(check, evaluate, told):
    lines = check(evaluate=evaluate)
    assert len(lines) == 1, lines
    assert told in lines[0]


def test_data_that_is_empty_after_cleaning_or_of_another_shape(check, folder):
    empty = folder / "empty.jsonl"
    empty.write_text(json.dumps({"id": "a", "messages": [{"role": "assistant", "content": "Hello."}]}) + "\n")
    (line,) = check(data={"name": "d", "source": str(empty)})
    assert line == f"data d: no conversation of {empty} is left after cleaning; is dataset right?"
    other = folder / "other.jsonl"
    other.write_text('{"text": "a"}\n')
    (line,) = check(data={"name": "d", "source": str(other)})
    assert line.startswith("data d: expected records of messages")


def test_a_recipe_that_would_be_refused_later(check, folder):
    recipe = folder / "wrong.yaml"
    for text, told in (
        ("learning_rte: 1", "unknown key 'learning_rte' in the config; did you mean learning_rate?"),
        ("threshold: 0.5", "unknown key 'threshold' in the config"),  # of one of the two recipes only
        ("dtype: float3", "dtype must be one of auto, bfloat16, float16, float32, got 'float3'"),
        ("effective_batch_size: 5", "effective_batch_size must be a multiple of 8"),
        ("effective_batch_size: none", "effective_batch_size can't be 'none' in the config"),
        ("effective_batch_size: 0", "expected whole numbers above 0, got effective_batch_size 0"),
        ("max_length: -5", "max_length must be at least 2, got -5"),
        ("max_length: null", "max_length of m, chats is null, so training cuts nothing: set score_max_length"),
        ("max_length: 4096", "model m: max_length 4096 is past the model's window of 2048 tokens"),
        ("learning_rate: 2e-5x", "learning_rate can't be '2e-5x' in the config"),
    ):
        recipe.write_text(text)
        lines = check(models={"name": "m", "base": str(folder / "base"), "config": str(recipe)})
        assert any(told in line for line in lines), lines


def test_mt_bench_needs_its_questions_and_the_judges_key(check, folder, monkeypatch):
    pytest.importorskip("fastchat")
    from support.mt_bench import write_data

    (line,) = check(mt_bench={"data_dir": str(folder)})
    assert "has no mt_bench/question.jsonl; pass a folder laid out as fastchat/llm_judge/data" in line
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bench = {"data_dir": str(write_data(folder / "bench")), "judge": "gpt-4"}
    assert check(mt_bench={**bench, "base_url": "http://localhost:1/v1"}) == []
    (line,) = check(mt_bench=bench)
    assert line.startswith("mt_bench: the environment variable OPENAI_API_KEY is not set")
    (line,) = check(mt_bench={**bench, "base_url": "http://me:hidden@localhost:1/v1"})
    assert line.startswith("mt_bench: ")
    assert "hidden" not in line, "it would stand in the step's command"


def test_a_path_that_the_harness_would_misread(check, folder):
    for out in ("a,b", "a=b", "a b", "{a}"):
        assert any("which a path in the harness's model_args can't" in line for line in check(out=str(folder / out)))
    (folder / "file").write_text("")
    assert check(out=str(folder / "file")) == [f"out: {folder}/file is a file; name a folder"]


def test_all_problems_come_together(check):
    metadata = {"source": "none.json", "max_context_length": 9000}
    assert len(check(score_layer=9, evaluate={"tasks": "nih_ctx", "metadata": metadata})) == 3
