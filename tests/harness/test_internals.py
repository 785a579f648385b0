"""Each private part of lm-eval that the project touches is still what it takes it for."""

import contextlib
import inspect
import json
import pickle
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.api import model as model_module
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import Registry, model_registry
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


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_model_generate", ["self", "context", "max_length", "stop", "generation_kwargs"]),
        ("_model_call", ["self", "inps", "attn_mask", "labels"]),
        ("_loglikelihood_tokens", ["self", "requests", "disable_tqdm", "override_bs"]),
        ("tok_batch_encode", ["self", "strings", "padding_side", "left_truncate_len", "truncation"]),
        ("apply_chat_template", ["self", "chat_history", "add_generation_prompt"]),
    ],
)
def test_what_our_model_overrides_or_calls_takes_what_it_is_given(method, parameters):
    assert list(inspect.signature(getattr(HFLM, method)).parameters) == parameters


def test_a_batch_of_answers_is_one_call_of_generate_with_its_mask(model_folder, monkeypatch):
    """`_model_generate` gets the left-padded batch and `attention_mask`, and returns it with the answers behind."""
    lm, calls = HFLM(pretrained=str(model_folder), device="cpu", batch_size=2), []
    generate = lm._model_generate
    monkeypatch.setattr(lm, "_model_generate", lambda **given: calls.append(given) or generate(**given))
    settings = {"until": [], "max_gen_toks": 3}
    texts = ("one two three", "one")
    lm.generate_until([Instance("generate_until", {}, (text, settings), 0) for text in texts], disable_tqdm=True)
    (given,) = calls
    assert set(given) >= {"context", "max_length", "stop", "attention_mask"}
    assert given["attention_mask"].tolist()[1][0] == 0
    assert given["max_length"] == given["context"].shape[1] + 3


def test_positions_of_logits_are_counted_from_the_end(model_folder, monkeypatch):
    """What `_model_call` returns may leave out positions at the start, as it would with virtual tokens."""
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    requests = [(("one two", " three four"), [10, 11, 12], [13, 14])]
    whole = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    call = lm._model_call
    monkeypatch.setattr(lm, "_model_call", lambda inps: call(inps)[:, -2:])
    assert lm._loglikelihood_tokens(requests, disable_tqdm=True) == whole


def test_batch_sizes_are_read_fixed_and_tried_out(model_folder):
    lm = HFLM(pretrained=str(model_folder), device="cpu", batch_size="auto", max_batch_size=2, max_length=64)
    assert internals.detect_batch_size(lm) == 2
    assert internals.detect_batch_size(lm, [(("a", "b"), [10] * 20, [11])]) == 2
    with internals.fixed_batch_size(lm, 3):
        assert lm.batch_size == 3
        assert internals.detect_batch_size(lm) == 3
    assert lm.batch_size == "auto"


@pytest.mark.parametrize("template", [True, False])
def test_whether_the_chat_template_is_applied_is_found(model_folder, monkeypatch, template):
    lm, seen = HFLM(pretrained=str(model_folder), device="cpu"), []
    monkeypatch.setattr(
        lm, "generate_until", lambda requests: seen.append(internals.uses_chat_template()) or [""] * len(requests)
    )
    metadata = {"source": "builtin", "num_context_lengths": 1, "num_depths": 1, "max_context_length": 600}
    simple_evaluate(
        lm,
        tasks=["nih_ctx"],
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata),
        apply_chat_template=template,
        bootstrap_iters=0,
    )
    assert seen == [template]
    assert internals.uses_chat_template() is None


def test_models_are_registered_by_name_and_loaded_when_asked_for():
    registry = Registry("model")
    registry.register("ours", target="ctxaware.harness.model:ContextLM")
    assert "ours" in registry
    assert registry.get("ours").__name__ == "ContextLM"
    assert "ctxaware" in model_registry  # by the discovery hook, or an entry point


class Planted:
    """What a pickle from somebody else does when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def evaluate_cached(lm, cache):
    metadata = {"source": "builtin", "num_context_lengths": 1, "num_depths": 2, "max_context_length": 600}
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    with internals.answers_cached_as_json():
        results = simple_evaluate(
            lm, tasks=["nih_ctx"], task_manager=manager, use_cache=str(cache), log_samples=True, bootstrap_iters=0
        )
    return [sample["resps"] for sample in results["samples"]["nih_ctx"]]


def test_cached_answers_are_json_and_are_not_generated_again(model_folder, tmp_path, monkeypatch):
    lm, harness_own = HFLM(pretrained=str(model_folder), device="cpu"), model_module.CachingLM
    answers = evaluate_cached(lm, tmp_path / "cache")
    assert model_module.CachingLM is harness_own
    with contextlib.closing(sqlite3.connect(tmp_path / "cache_rank0.db")) as database:
        stored = [json.loads(value) for (value,) in database.execute("select value from unnamed")]
    assert sorted(stored) == sorted(answer for ((answer,),) in answers)
    monkeypatch.setattr(lm, "generate_until", lambda *_: pytest.fail("generated again"))
    assert evaluate_cached(lm, tmp_path / "cache") == answers


def test_a_planted_pickle_is_refused_and_never_run(model_folder, tmp_path):
    lm, trace = HFLM(pretrained=str(model_folder), device="cpu"), tmp_path / "ran"
    evaluate_cached(lm, tmp_path / "cache")
    with contextlib.closing(sqlite3.connect(tmp_path / "cache_rank0.db")) as database:
        database.execute("update unnamed set value = ?", (sqlite3.Binary(pickle.dumps(Planted(trace))),))
        database.commit()
    with pytest.raises(InputError, match=r"cache_rank0.db does not hold JSON; remove it"):
        evaluate_cached(lm, tmp_path / "cache")
    assert not trace.exists()


def test_log_likelihoods_come_back_as_pairs():
    assert internals._read_answer("cache", "[-1.5, true]") == (-1.5, True)


def test_nothing_in_the_package_reads_pickles():
    source = "".join(path.read_text() for path in Path(internals.__file__).parents[1].rglob("*.py"))
    reads = r"pickle\.loads?\(|pickle\.Unpickler|torch\.load\(|import joblib|allow_pickle=True|weights_only=False"
    assert not re.findall(reads, source)
