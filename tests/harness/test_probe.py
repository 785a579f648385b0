"""The probe asks what the tasks ask, and a model answers it as it answers the harness."""

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from support import tiny

from ctxaware.errors import InputError
from ctxaware.harness import probe
from ctxaware.harness.paths import tasks_folder
from ctxaware.indicator.token import add_indicator
from ctxaware.training.watch import answer

GRID = {
    "source": "builtin",
    "needle": "pizza",
    "max_context_length": 500,
    "num_context_lengths": probe.NUM_CONTEXT_LENGTHS,
    "num_depths": probe.NUM_DEPTHS,
}


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = tiny.sentencepiece_like_tokenizer()  # adds a BOS token where the template writes none
    add_indicator(tokenizer)
    model = tiny.tiny_llama(len(tokenizer))
    model.generation_config.repetition_penalty = 1.5  # a checkpoint's own settings must not leak in
    model.generation_config.min_new_tokens = 7
    return model, tokenizer


@pytest.mark.parametrize("tasks", [("nih_ctx", "nih_ctx_ind"), ("squad_contain", "squad_contain_ind")], ids="/".join)
def test_prompts_answers_and_scores_are_the_harnesss(model_and_tokenizer, tasks):
    model, tokenizer = model_and_tokenizer
    questions = [q for q in probe.probe_questions(tokenizer, max_context_length=500) if q.task in tasks]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=2048)
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=GRID)
    results = simple_evaluate(
        model=lm, tasks=list(tasks), task_manager=manager, apply_chat_template=True, bootstrap_iters=0
    )
    harness = {
        (task, row["arguments"][0][0]): (row["resps"][0][0], row["score"])
        for task in tasks
        for row in results["samples"][task]
    }
    counts = {task: sum(q.task == task for q in questions) for task in tasks}
    assert set(counts.values()) == {12 if tasks[0] == "nih_ctx" else 24}
    assert len({q.cluster for q in questions}) == counts[tasks[0]], "with and without [IND] share their cluster"
    for question, text in zip(questions, answer(model, tokenizer, questions), strict=True):
        response, score = harness[question.task, question.prompt]
        assert text.split(". ")[0] == response.split(". ")[0]
        assert question.score(text) == score


def test_a_right_answer_scores(model_and_tokenizer):
    questions = probe.probe_questions(model_and_tokenizer[1])
    needles = [q for q in questions if q.task == "nih_ctx"]
    assert {q.score("Figs, and lemon! Nothing else.") for q in needles} == {2 / 19}
    assert {q.score(q.prompt) for q in needles} == {1.0}
    assert 0 < sum(q.score(q.prompt.replace(". ", " ")) for q in questions if q.task == "squad_contain") <= 24


def test_without_the_token_nothing_is_asked_with_it():
    assert {q.task for q in probe.probe_questions(tiny.byte_level_tokenizer())} == {"nih_ctx", "squad_contain"}


def test_mistakes_are_named():
    with pytest.raises(InputError, match="no chat template"):
        probe.probe_questions(tiny.byte_level_tokenizer(None))
    with pytest.raises(InputError, match="max_context_length 300 less reserve 200"):
        probe.probe_questions(tiny.byte_level_tokenizer(), max_context_length=300)
