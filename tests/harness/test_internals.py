"""Each private part of lm-eval that the project touches is still what it takes it for."""

import sys

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager, _index

from ctxaware.errors import InputError
from ctxaware.harness import internals
from ctxaware.harness.paths import tasks_folder


@pytest.mark.parametrize("use_cache", [False, True], ids=["plain", "cached"])
def test_the_model_is_found_while_tasks_are_loaded_and_requests_are_built(
    model_folder, tmp_path, monkeypatch, use_cache
):
    from ctxaware.harness import tasks

    lm, seen = HFLM(pretrained=str(model_folder), device="cpu"), []
    for name in ("make_docs", "user_text"):
        method = getattr(tasks.NeedleTask, name)

        def spy(*args, method=method):
            seen.append(internals.running_model())
            return method(*args)

        monkeypatch.setattr(tasks.NeedleTask, name, spy)
    metadata = {"source": "builtin", "num_context_lengths": 1, "num_depths": 1, "max_context_length": 600}
    simple_evaluate(
        lm,
        tasks=["nih_ctx"],
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata),
        use_cache=str(tmp_path / "cache") if use_cache else None,
        bootstrap_iters=0,
    )
    assert len(seen) >= 2
    assert all(model is lm for model in seen)
    assert internals.running_model() is None, "and only there"


def test_a_caching_model_keeps_its_model_as_lm(model_folder, tmp_path):
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    assert CachingLM(lm, str(tmp_path / "cache.db")).__dict__["lm"] is lm


def test_chat_endpoints_are_told_by_their_class():
    assert internals.is_chat_endpoint(object.__new__(LocalChatCompletion))
    assert not internals.is_chat_endpoint(object.__new__(LocalCompletionsAPI))
    assert not internals.is_chat_endpoint(None)


def test_the_task_index_is_built_by_the_function_that_discovery_extends():
    assert callable(_index.TaskIndex.build)
    assert sys.modules["lm_eval.tasks._index"] is _index


def test_an_error_that_ends_the_command_becomes_one_line(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", object())
    with pytest.raises(InputError), internals.one_line_in_lm_eval():
        raise InputError("what came")
    with pytest.raises(SystemExit) as left:
        sys.excepthook(InputError, InputError("what came"), None)
    assert left.value.code == 2


def test_the_command_s_module_is_where_the_error_is_looked_for():
    import importlib.util

    assert importlib.util.find_spec("lm_eval.__main__") is not None
