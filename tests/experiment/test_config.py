"""experiment.yaml: what it may hold, and how a mistake in it reads."""

import pytest
import yaml

from ctxaware.errors import InputError
from ctxaware.experiment.config import experiment, read_experiment
from ctxaware.experiment.recipes import examples

MODEL = {"name": "a", "base": "owner/base", "config": "recipe.yaml"}
DATA = {"name": "c", "source": "hub"}
SMALLEST = {
    "out": "out",
    "models": {"name": "m", "base": "owner/base", "config": "recipe.yaml"},
    "data": {"name": "d", "source": "hub", "dataset": "sharegpt"},
    "evaluate": {"tasks": "nih_ctx"},
}


def test_one_of_a_kind_needs_no_list_and_what_is_left_out_is_the_papers():
    e = experiment(SMALLEST)
    assert (e.models[0].base, e.data[0].dataset, e.evaluate.tasks) == ("owner/base", "sharegpt", ("nih_ctx",))
    assert (e.seeds, e.thresholds, e.score_layer, e.seed_model) == ((42,), (0.6,), 15, "vanilla")
    assert (e.evaluate.conditions, e.mt_bench, e.max_drop) == (("never", "always"), None, 0.02)


@pytest.mark.parametrize("name", examples())
def test_the_experiments_that_ship_can_be_read(name):
    e = read_experiment(examples()[name])
    assert len(e.models) * len(e.data) == {"paper": 9}.get(name, 1)
    assert len(e.thresholds) == {"beta": 3}.get(name, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"beta": 0.6}, "unknown key 'beta'; it has out, models, data"),
        ({"threshold": 0.6}, "unknown key 'threshold'; did you mean thresholds?"),
        ({"zzz": 1}, "unknown key 'zzz'; it has out, models, data, evaluate, seeds,"),
        (
            {"evaluate": {"tasks": "a", "condition": "always"}},
            "evaluate: unknown key 'condition'; did you mean",
        ),
        ({"models": [{"name": "m", "base": "b"}]}, "models lacks config; `ctxaware experiment init` writes an example"),
        ({"thresholds": 1.5}, "thresholds: threshold must be in 0–1, as scores are, got 1.5"),
        ({"thresholds": [0.6, -0.1]}, "threshold must be in 0–1, as scores are, got -0.1"),
        ({"thresholds": [0.6, 0.6]}, "thresholds has 0.6 twice; name each once"),
        ({"thresholds": "0.6"}, "thresholds must be a number in 0–1, got '0.6'"),
        ({"thresholds": []}, "thresholds is empty; name at least one"),
        ({"thresholds": float("nan")}, "threshold must be in 0–1, as scores are, got nan"),
        ({"seeds": [1, 2, 1]}, "seeds has 1 twice"),
        ({"seeds": [1.5]}, "seeds must be a whole number, got 1.5"),
        ({"seeds": True}, "seeds must be a whole number, got True"),
        ({"data": {"name": "d"}}, "data d: name either source or script"),
        ({"data": {"name": "d", "source": "hub", "dataset": "vicuna"}}, "dataset must be one of sharegpt, ultrachat"),
        ({"data": [{"name": "d", "source": "a"}, {"name": "d", "source": "b"}]}, "data has the name 'd' twice"),
        ({"models": {"name": "a/b", "base": "b", "config": "c"}}, "at most 100 letters, digits and ._-, got 'a/b'"),
        ({"evaluate": {"tasks": "a", "conditions": ["sometimes"]}}, "conditions must be one of never, always"),
        ({"evaluate": {"tasks": ["squad_contain_ind"]}}, "squad_contain_ind puts [IND] on its prompts itself"),
        ({"evaluate": {"tasks": "a", "before_tuning": "yes"}}, "before_tuning must be one of no, with_template"),
        ({"evaluate": {"tasks": "a", "model_args": {"indicator": "always"}}}, "model_args: indicator follows from the"),
        ({"models": [MODEL | {"name": "a-b"}, MODEL], "data": [DATA, DATA | {"name": "b-c"}]}, "are called a-b-c"),
        ({"mt_bench": {"judge": "gpt-4"}}, "mt_bench lacks data_dir"),
        ({"models": "m"}, "models must be a mapping, key: value, got 'm'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(change, told):
    with pytest.raises(InputError) as caught:
        experiment({**SMALLEST, **change})
    assert str(caught.value).startswith("experiment.yaml: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("out: a\nout: b\n", "out comes twice, near line 1; leave one out"),
        ("data:\n  - name: d\n    source: a\n    source: b\n", "source comes twice, near line 2"),
        ("out: [", "is no YAML"),
        ("", "must be a mapping"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_or_says_a_thing_twice(tmp_path, text, told):
    file = tmp_path / "e.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        read_experiment(file)


def test_no_is_no_in_yaml_too(tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(SMALLEST).replace("tasks: nih_ctx", "tasks: nih_ctx\n  before_tuning: no"))
    assert read_experiment(file).evaluate.before_tuning == "no"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"can't read .*none\.yaml: No such file"):
        read_experiment(tmp_path / "none.yaml")
