"""Which steps an experiment has, and which of them a changed setting changes."""

import json

import pytest
import yaml
from support.experiments import content
from typer.main import get_command

from ctxaware.commands.app import app
from ctxaware.errors import InputError
from ctxaware.experiment.config import experiment
from ctxaware.experiment.plan import Plan


@pytest.fixture
def plan(tmp_path):
    return lambda **changes: Plan(experiment(content(tmp_path, **changes)))


def folders(plan):
    return {(step.kind, str(step.folder)) for step in plan.steps}


def names(plan):
    return {(step.kind, step.name) for step in plan.steps}


def kinds(steps):
    return {kind for kind, _ in steps}


def count(plan):
    counts = {}
    for step in plan.steps:
        counts[step.kind] = counts.get(step.kind, 0) + 1
    return counts


def test_two_thresholds_and_two_seeds_share_data_vanilla_runs_and_scores(plan):
    made = plan(thresholds=[0.3, 0.35], seeds=[1, 2])
    assert count(made) == {
        **{"prepare": 1, "vanilla": 2, "score": 2, "indicator": 4},
        **{"evaluate": 6, "gate": 4, "report": 1},
    }
    assert made.steps[0].kind == "prepare"
    assert made.steps[-1].kind == "report"
    for number, step in enumerate(made.steps):
        assert {*step.inputs, *step.first} <= set(made.steps[:number])


def test_conditions_and_the_model_before_tuning_are_evaluations(plan):
    evaluate = {"tasks": ["a", "b"], "conditions": ["never", "always"], "before_tuning": "without_template"}
    made = plan(evaluate=evaluate)
    assert count(made)["evaluate"] == 4
    assert count(made)["gate"] == 3
    lines = {step.name.rpartition("-")[0]: step.command for step in made.steps if step.kind == "evaluate"}
    assert set(lines) == {
        *("tiny-chats-seed-42-vanilla-never", "tiny-before-tuning"),
        *("tiny-chats-beta-0.3-seed-42-never", "tiny-chats-beta-0.3-seed-42-always"),
    }
    assert "--apply_chat_template" not in lines["tiny-before-tuning"]
    assert "--apply_chat_template" in lines["tiny-chats-seed-42-vanilla-never"]
    always = lines["tiny-chats-beta-0.3-seed-42-always"]
    assert always[always.index("--model_args") + 1].endswith(",indicator=always")
    assert always[always.index("--tasks") + 1] == "a,b"


def change(tmp_path, name, **more):
    file = tmp_path / name
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | more))


AFTER_TRAINING = {"evaluate", "gate", "report"}
EVERY = {*AFTER_TRAINING, "indicator", "prepare", "score", "vanilla"}


@pytest.mark.parametrize(
    ("changes", "made_again"),
    [
        ({}, set()),
        ({"thresholds": [0.3, 0.4]}, {*AFTER_TRAINING, "indicator"}),  # no scores, no vanilla run
        ({"seeds": [42, 43]}, {*AFTER_TRAINING, "indicator", "score", "vanilla"}),
        ({"score_layer": 0}, {*AFTER_TRAINING, "indicator", "score"}),
        ({"max_drop": 0.1}, {"gate", "report"}),
    ],
)
def test_a_changed_setting_makes_new_folders_for_what_depends_on_it_alone(plan, changes, made_again):
    before, after = folders(plan()), folders(plan(**changes))
    assert kinds(after - before) == made_again
    if "thresholds" in changes or "seeds" in changes:
        assert kinds(before - after) == {"report"}, "what was there serves on"


def test_what_is_asked_changes_no_model(plan, tmp_path):
    before = plan()
    tasks = {**content(tmp_path)["evaluate"], "tasks": ["squad_contain", "nih_ctx"]}
    assert kinds(folders(plan(evaluate=tasks)) - folders(before)) == AFTER_TRAINING
    faster = {**content(tmp_path)["evaluate"], "batch_size": 2}
    assert folders(plan(evaluate=faster)) == folders(before)


@pytest.mark.parametrize(
    ("file", "more", "made_again"),
    [
        ("recipe.yaml", {"learning_rate": 1e-3}, {*AFTER_TRAINING, "indicator", "score", "vanilla"}),
        ("recipe.yaml", {"logging_steps": 7, "save_steps": 5, "watch_every": 3}, set()),
        ("recipe.yaml", {"max_length": 32}, {*AFTER_TRAINING, "indicator", "score", "vanilla"}),
        ("launch.yaml", {"num_processes": 2}, {*AFTER_TRAINING, "indicator", "score", "vanilla"}),
        ("launch.yaml", {"mixed_precision": "bf16"}, {*AFTER_TRAINING, "indicator", "score", "vanilla"}),
        ("launch.yaml", {"main_process_port": 0}, set()),
    ],
)
def test_the_recipe_counts_by_what_changes_the_weights(plan, tmp_path, file, more, made_again):
    before = folders(plan())
    change(tmp_path, file, **more)
    assert kinds(folders(plan()) - before) == made_again


def test_data_and_base_count_by_their_content_and_not_by_their_date(plan, tmp_path):
    before = folders(plan())
    chats = tmp_path / "chats.jsonl"
    chats.touch()
    assert folders(plan()) == before
    chats.write_text(chats.read_text().replace("Both.", "Neither."))
    assert kinds(folders(plan()) - before) == EVERY
    before = folders(plan())
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-5}))
    assert kinds(folders(plan()) - before) == {*AFTER_TRAINING, "indicator", "score", "vanilla"}


def test_what_is_asked_counts_by_the_content_of_its_files(plan, tmp_path):
    before = folders(plan())
    questions = tmp_path / "questions.json"
    questions.touch()
    assert folders(plan()) == before
    questions.write_text(questions.read_text().replace("winter", "summer"))
    assert kinds(folders(plan()) - before) == AFTER_TRAINING

    bench = tmp_path / "bench"
    (bench / "mt_bench" / "reference_answer").mkdir(parents=True)
    for name in ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"):
        (bench / name).write_text("a\n")
    asked = {"mt_bench": {"data_dir": str(bench), "judge": "gpt-4"}}
    before = names(plan(**asked))
    (bench / "judge_prompts.jsonl").write_text("b\n")
    assert kinds(names(plan(**asked)) - before) == {"answer", "judge", "report"}, "in a folder of its own"
    before = names(plan(**asked))
    (bench / "mt_bench" / "question.jsonl").write_text("b\n")
    assert kinds(names(plan(**asked)) - before) == {"answer", "judge", "report"}


def test_a_seed_model_of_its_own_scores_once_for_all_seeds_and_models(plan, tmp_path):
    made = plan(seed_model=str(tmp_path / "base"), seeds=[1, 2])
    assert count(made)["score"] == 1
    two = content(tmp_path)["models"] + [{**content(tmp_path)["models"][0], "name": "other"}]
    made = plan(models=two, seed_model="tiny-chats")
    assert count(made) | {"vanilla": 2, "score": 1, "indicator": 2} == count(made)
    (score,) = [step for step in made.steps if step.kind == "score"]
    assert "vanilla/tiny-chats-seed-42" in score.command[score.command.index("--model") + 1]


def test_all_data_are_prepared_before_any_training_but_new_data_retrain_nothing(plan, tmp_path):
    data = content(tmp_path)["data"]
    two = plan(data=[*data, {**data[0], "name": "more", "dataset": "sharegpt"}])
    trained = [step for step in two.steps if step.kind in ("vanilla", "indicator")]
    for step in trained:
        prepared = [before for before in (*step.first, *step.inputs) if before.kind == "prepare"]
        assert sorted(before.name.rpartition("-")[0] for before in prepared) == ["chats", "more"]
        assert len(step.first) == 1, "what it does not read may be made anew without it"
    assert folders(plan()) - folders(two) == set()


def test_an_adapter_goes_on_its_base_and_runs_share_the_prepared_one(plan, tmp_path):
    change(tmp_path if (tmp_path / "recipe.yaml").exists() else made(plan, tmp_path), "recipe.yaml", use_peft=True)
    by_kind = {}
    for step in plan(thresholds=[0.3, 0.4]).steps:
        by_kind.setdefault(step.kind, []).append(step)
    bases = {step.command[step.command.index("--prepared_base") + 1] for step in by_kind["indicator"]}
    assert len(bases) == 1
    for step in by_kind["evaluate"]:
        model_args = dict(part.split("=", 1) for part in step.command[4].split(","))
        assert model_args["peft"] == model_args["tokenizer"]
        expected = str(tmp_path / "base") if model_args["indicator"] == "never" else bases.copy().pop()
        assert model_args["pretrained"] == expected


def test_a_recipe_s_numbers_and_switches_may_be_text(plan, tmp_path):
    """The recipes read them so; scores would be of other tokens, and an adapter be taken for a whole model."""
    plain = folders(plan())
    change(tmp_path, "recipe.yaml", max_length="64", use_cpu="True", use_peft="false")
    steps = {step.kind: step.command for step in plan().steps}
    assert steps["score"][steps["score"].index("--max-length") + 1] == "64"
    assert "peft=" not in " ".join(steps["evaluate"])
    assert {kind for kind, _ in folders(plan()) - plain} <= {"vanilla", "score", "indicator", *AFTER_TRAINING}
    change(tmp_path, "recipe.yaml", use_peft="yes")
    assert all("peft=" in " ".join(step.command) for step in plan().steps if step.kind == "evaluate")


def test_a_base_on_the_hub_counts_by_its_commit(plan, tmp_path, monkeypatch):
    from ctxaware.experiment import tuning

    commits = {"owner/base": "a" * 40}
    monkeypatch.setattr(tuning, "files_fingerprint", lambda name, revision=None: commits[name])
    models = [{**content(tmp_path)["models"][0], "base": "owner/base"}]
    before = folders(plan(models=models))
    assert folders(plan(models=models)) == before
    commits["owner/base"] = "b" * 40
    changed = kinds(folders(plan(models=models)) - before)
    assert changed == {*AFTER_TRAINING, "indicator", "score", "vanilla"}


def made(plan, tmp_path):
    plan()
    return tmp_path


def test_many_gpus_train_score_and_evaluate_together(plan, tmp_path):
    made(plan, tmp_path)
    change(tmp_path, "launch.yaml", num_processes=4, use_cpu=False, distributed_type="MULTI_GPU")
    steps = {step.kind: step for step in plan().steps}
    assert {kind: step.n_gpus for kind, step in steps.items()} == {
        **{"prepare": 0, "vanilla": 4, "score": 4, "indicator": 4},
        **{"evaluate": 4, "gate": 0, "report": 0},
    }
    start = ("accelerate", "launch", "--multi_gpu", "--num_processes", "4", "--main_process_port", "0", "-m")
    assert steps["evaluate"].command[:9] == (*start, "lm_eval")
    assert steps["score"].command[:10] == (*start, "ctxaware", "score")
    assert steps["vanilla"].command[4:6] == ("--main_process_port", "0"), "jobs may share a machine"
    change(tmp_path, "launch.yaml", main_process_port=29501)
    assert "--main_process_port" not in {step.kind: step for step in plan().steps}["vanilla"].command


def test_mt_bench_answers_of_all_models_lie_together_and_are_judged_once(plan, tmp_path):
    made = plan(seeds=[1, 2], mt_bench={"data_dir": "bench", "judge": "gpt-4"})
    answers = [step for step in made.steps if step.kind == "answer"]
    assert len(answers) == 4
    assert sum("--indicator" in step.command for step in answers) == 2
    (judge,) = [step for step in made.steps if step.kind == "judge"]
    assert set(judge.inputs) == set(answers)
    asked = [judge.command[i + 1] for i, word in enumerate(judge.command) if word == "--model-id"]
    assert asked == [step.command[step.command.index("--model-id") + 1] for step in answers]
    assert not [step for step in plan(mt_bench={"data_dir": "bench"}).steps if step.kind == "judge"]


def test_what_is_not_there_is_said_at_once(plan):
    for changes, told in (
        ({"launch": "none.yaml"}, "can't read none.yaml: No such file"),
        ({"data": {"name": "d", "source": "none.jsonl"}}, "none.jsonl does not exist"),
        ({"data": {"name": "d", "script": "none.py"}}, "script none.py is no file"),
        ({"models": {"name": "m", "base": "b", "config": "none.yaml"}}, "can't read none.yaml"),
    ):
        with pytest.raises(InputError, match=told):
            plan(**changes)


@pytest.mark.parametrize(
    ("more", "told"),
    [({"num_machines": 2}, "num_machines 2; a step is of one machine"), ({"num_processes": None}, "no num_processes")],
)
def test_a_launch_config_that_can_not_be_followed(plan, tmp_path, more, told):
    change(made(plan, tmp_path), "launch.yaml", **more)
    with pytest.raises(InputError, match=told):
        plan()


def parse(words):
    """Let the command line read a command, and run nothing."""
    command, arguments, context = get_command(app), list(words[1:]), None
    while hasattr(command, "resolve_command"):
        context = command.make_context(words[0], [*arguments], parent=context, allow_extra_args=True)
        _, command, arguments = command.resolve_command(context, arguments)
    return command.make_context(words[0], arguments, parent=context).params


def test_every_command_of_ours_is_one_that_the_command_line_takes(plan):
    bench = {"data_dir": "bench", "judge": "j", "base_url": "http://localhost:1/v1", "api_key_env": "KEY"}
    steps = [step for step in plan(seeds=[1, 2], mt_bench=bench).steps if step.command[0] == "ctxaware"]
    assert {step.kind for step in steps} == {"prepare", "score", "answer", "judge", "gate", "report"}
    for step in steps:
        assert str(parse(step.command)["out"]).startswith(str(step.folder.parents[1]))
    with pytest.raises(Exception, match="No such option"):
        parse((*steps[0].command, "--no-such"))
