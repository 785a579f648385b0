"""The probe in training: it changes nothing, logs what it measures, goes on after a kill, and stops what fails."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import dataclasses
import json

import torch
from datasets import Dataset
from support.training_runs import arguments, prepared_base, write_data
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from ctxaware.errors import InputError
from ctxaware.harness.probe import probe_questions
from ctxaware.intervals import mean_interval
from ctxaware.training.base import vanilla_base
from ctxaware.training.encoding import encode_dataset, make_encoder
from ctxaware.training.run import claimed_run, load_conversations, train_and_save
from ctxaware.training.trainer import build_trainer
from ctxaware.training.watch import ContextAwarenessCallback, answer

LORA = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--lora_dropout", "0.3")
QLORA = (*LORA, "--load_in_4bit", "true")
CHECKPOINTED = ("--gradient_checkpointing", "true", "--per_device_train_batch_size", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepared_base(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def questions(base):
    asked = probe_questions(AutoTokenizer.from_pretrained(base), max_context_length=500)
    few = [q for q in asked if q.task.startswith("nih")][::3] + [q for q in asked if q.task.startswith("squad")][::6]
    return [dataclasses.replace(q, generation={**q.generation, "max_new_tokens": 12}) for q in few]


def scored_against(model_folder, questions):
    """The questions, whose score is now 1 where the model in the folder would have said the same."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    said = answer(model.eval(), tokenizer, questions)
    return [dataclasses.replace(q, score=lambda r, s=s: float(r == s)) for q, s in zip(questions, said, strict=True)]


def run(base, data, out, *more, watch=None):
    """The trained trainer, by the steps of the recipes."""
    args = arguments(base, data, out, *more)
    with claimed_run(args) as to_do:
        assert to_do
        rows = load_conversations(args)
        name, tokenizer = vanilla_base(args)
        trainer = build_trainer(args, name, tokenizer, encode_dataset(rows, make_encoder(args, tokenizer)))
        if watch:
            watch.attach(trainer)
        train_and_save(trainer, args)
    return trainer


def losses(trainer):
    return [
        {k: v for k, v in row.items() if "second" not in k and "runtime" not in k}
        for row in trainer.state.log_history
        if "loss" in row
    ]


@pytest.mark.parametrize("more", [(), LORA, QLORA, CHECKPOINTED], ids=["full", "lora", "qlora", "checkpointed"])
def test_the_weights_and_the_logged_losses_are_those_of_a_run_without_it(base, data, questions, tmp_path, more):
    plain = run(base, data, tmp_path / "plain", *more)
    watched = run(base, data, tmp_path / "watched", *more, watch=ContextAwarenessCallback(questions, 1))
    weights = dict(plain.model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in watched.model.named_parameters())
    assert losses(watched) == losses(plain)
    assert len(losses(plain)) == plain.state.global_step == 3


def test_what_is_logged_is_what_the_saved_model_scores(base, data, questions, tmp_path):
    questions = scored_against(base, questions)
    trainer = run(
        base, data, tmp_path / "run", "--gradient_checkpointing", "true", watch=ContextAwarenessCallback(questions, 2)
    )
    stored = json.loads((tmp_path / "run" / "watch.json").read_text())
    assert [probe["step"] for probe in stored["probes"]] == [0, 2, 3]
    assert stored["probes"][0]["scores"] == [1.0] * len(questions), "the first probe asks the model as it was"
    model, tokenizer = (auto.from_pretrained(tmp_path / "run") for auto in (AutoModelForCausalLM, AutoTokenizer))
    said = answer(model.eval(), tokenizer, questions)
    scores = [q.score(text) for q, text in zip(questions, said, strict=True)]
    assert stored["probes"][-1]["scores"] == scores
    assert 0 < sum(scores) < len(scores) or sum(scores) == 0
    logged = [row for row in trainer.state.log_history if "context/nih_ctx" in row]
    assert [row["step"] for row in logged] == [0, 2, 3]
    for task in ("nih_ctx", "nih_ctx_ind", "squad_contain", "squad_contain_ind"):
        rows = [i for i, q in enumerate(questions) if q.task == task]
        interval = mean_interval([scores[i] for i in rows], [questions[i].cluster for i in rows])
        told = tuple(logged[-1][f"context/{task}{end}"] for end in ("", "_low", "_high"))
        assert told == (interval.mean, interval.low, interval.high)
    assert 0 < logged[-1]["context/share_of_time"] < 1


def test_a_drop_that_is_shown_stops_the_run_and_one_that_is_not_does_not(base, data, questions, tmp_path):
    forgetting = ("--learning_rate", "0.1")
    needles = scored_against(base, [question for question in questions if question.task == "nih_ctx"])
    many = [dataclasses.replace(q, cluster=f"{q.cluster}, copy {i}") for i in range(6) for q in needles]
    few = many[:5]  # shown at 5% by itself, and not with three probes to look at
    for name, asked, allowed, stop in (
        ("none", many, 0.02, False),
        ("few", few, 0.02, True),
        ("loose", many, 0.999, True),
    ):
        trainer = run(base, data, tmp_path / name, *forgetting, watch=ContextAwarenessCallback(asked, 1, stop, allowed))
        assert trainer.state.global_step == 3
        assert json.loads((tmp_path / name / "watch.json").read_text())["stopped"] is None
    watch = ContextAwarenessCallback(many, 1, stop_when_fails=True)
    trainer = run(base, data, tmp_path / "stopped", *forgetting, watch=watch)
    stopped = json.loads((tmp_path / "stopped" / "watch.json").read_text())["stopped"]
    assert trainer.state.global_step == stopped["step"] < 3
    assert stopped["change"] < -0.5
    assert (
        f"| stopped early | at step {stopped['step']}: nih_ctx changed by -"
        in (tmp_path / "stopped" / "README.md").read_text()
    )


def test_a_run_that_is_taken_up_continues_its_probes(base, data, questions, tmp_path):
    more = ("--num_train_epochs", "2", "--save_strategy", "steps", "--save_steps", "2")
    out, whole = tmp_path / "killed", tmp_path / "whole"

    class Killed(Exception):
        pass

    class Dies(ContextAwarenessCallback):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3:
                raise Killed

    run(base, data, whole, *more, watch=ContextAwarenessCallback(questions, 1))
    with pytest.raises(Killed):
        run(base, data, out, *more, watch=Dies(questions, 1))
    assert [p["step"] for p in json.loads((out / "watch.json").read_text())["probes"]] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="answers to other questions"):
        run(base, data, out, *more, watch=ContextAwarenessCallback(questions[1:], 1))
    run(base, data, out, *more, watch=ContextAwarenessCallback(questions, 1))
    assert (out / "watch.json").read_text() == (whole / "watch.json").read_text()


def test_a_plain_trainer_of_transformers_takes_it(base, questions, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4)
    args = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    watch = ContextAwarenessCallback(questions, every_n_steps=1)
    with pytest.raises(InputError, match=r"watch\.attach"):
        Trainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[watch]).train()
    watch.attach(trainer)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "context/squad_contain" in row] == [0, 1, 2]


def test_mistakes_are_named(base, data, questions, tmp_path):
    for kwargs, told in (
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"max_drop": 2}, "max_drop must be in 0–1"),
        ({"confidence": 1}, "confidence in 0.5–1"),
        ({"questions": []}, "the probe has no questions"),
    ):
        with pytest.raises(InputError, match=told):
            ContextAwarenessCallback(**{"questions": questions, **kwargs})
    short = prepared_base(tmp_path / "short", max_position_embeddings=256)
    with pytest.raises(InputError, match="the model's window 256"):
        run(short, data, tmp_path / "run", watch=ContextAwarenessCallback(questions))
    for more in (("--stop_when_fails", "true"), ("--watch_every", "-1")):
        with pytest.raises(InputError, match="watch_every must be the steps between two probes"):
            arguments(base, data, tmp_path / "other", *more)


def test_how_often_it_asks_may_change_in_a_run_that_is_taken_up(base, data, tmp_path):
    from ctxaware.training.run import configuration

    both = [configuration(arguments(base, data, tmp_path, "--watch_every", n)) for n in ("0", "7")]
    assert both[0] == both[1]
