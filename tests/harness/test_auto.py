"""`indicator=auto`: prompts as never or always would send them, each computed once, with decisions in the samples."""

import itertools
import json

import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from support.auto import make_indicator, model_for, random_probe, save_indicator, save_model, tokenizer_with_indicator

from ctxaware import ContextLM
from ctxaware.auto.methods import Slot
from ctxaware.errors import InputError
from ctxaware.harness import auto as harness_auto
from ctxaware.harness.indicator import IndicatorMixin
from ctxaware.harness.paths import tasks_folder
from ctxaware.indicator.token import indicator_id

TASKS = tasks_folder()
SMALL = {"source": "builtin", "max_context_length": 500, "num_context_lengths": 2, "num_depths": 2}
ARCHITECTURES = ["llama, grouped heads", "qwen2", "mistral, sliding window", "gemma3, sliding"]
METHODS = {"slot": Slot(), "probe": random_probe((1, 2))}
# through its short windows the last token of Mistral's prompt sees no message
PAIRS = [(name, method) for name in ARCHITECTURES for method in METHODS if (name[:7], method) != ("mistral", "probe")]


@pytest.fixture(autouse=True)
def _without_versions(monkeypatch):
    """The harness asks the machine for all its versions after each evaluation, which takes seconds."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with_indicator()


@pytest.fixture(scope="module")
def make(tokenizer):
    """`(indicator, architecture, method, arguments) -> the harness's model`; about half of the prompts get the mark."""
    models = {}

    def make(indicator="auto", name="llama, grouped heads", method="slot", intercept=0.0, cls=ContextLM, **arguments):
        if name not in models:
            models[name] = model_for(tokenizer, name)
        of = make_indicator(tokenizer, method=METHODS[method], intercept=intercept)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(harness_auto, "beside", lambda *_: of)
            return cls(pretrained=models[name], tokenizer=tokenizer, indicator=indicator, **arguments)

    return make


def evaluate(lm, tasks, folder=TASKS, template=True, **arguments):
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=SMALL)
    return evaluator.simple_evaluate(
        lm, tasks=tasks, task_manager=manager, apply_chat_template=template, bootstrap_iters=0, **arguments
    )


WORDS = ("the river", "best", "thing", "to do in a", "sandwich", "park", "sunny", "day", "essay", "work", "people")
HAYSTACK = [WORDS[(7 * i * i + i) % len(WORDS)] for i in range(90)]
ENDS = ("What was it?", "Tell me what", "And 7", "Say it, then!")


def conversations():
    """Prompts that share beginnings of several lengths, with and without a full stop to add."""
    asked = [f"{' '.join(HAYSTACK[:n])} {end}" for n in (1, 12, 40, 90) for end in ENDS[: 2 + n % 3]]
    return [[{"role": "user", "content": text}] for text in [*asked, asked[3]]]


def requests(lm, prefix=""):
    settings = {"until": [], "do_sample": False, "max_gen_toks": 4}
    texts = [lm.apply_chat_template(messages) + prefix for messages in conversations()]
    return [Instance("generate_until", {}, (text, dict(settings)), i) for i, text in enumerate(texts)]


def half(make, **arguments):
    """The intercept at which some of the prompts get the mark, and clearly so, and some don't."""
    lm = make(**arguments)
    lm.generate_until(requests(lm)[:-1], disable_tqdm=True)
    return intercept_of(lm)


def intercept_of(lm):
    log_odds = sorted(float(torch.logit(torch.tensor(p, dtype=torch.float64))) for p, _ in lm.decisions.values())
    gap, middle = max((b - a, (a + b) / 2) for a, b in itertools.pairwise(log_odds))
    assert gap > 1e-3
    return -middle


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """A multiple-choice task, with and without a full stop to add."""
    where = tmp_path_factory.mktemp("choices")
    docs = [
        {
            "q": f"{'Some words come first. ' * (i % 3)}Is {i} even{'?' * (i % 2)}",
            "a": ["yes", "no, not at all"],
            "label": i % 2,
        }
        for i in range(6)
    ]
    (where / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (where / "evens.yaml").write_text(
        f"""task: evens
dataset_path: json
dataset_kwargs: {{data_files: {{test: {where}/docs.jsonl, train: {where}/docs.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
num_fewshot: 0
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{a}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
    )
    return where


def answers(results, task):
    return {sample["doc_id"]: sample["resps"] for sample in results["samples"][task]}


@pytest.mark.parametrize("n_batch", [1, 4])
@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_each_prompt_is_answered_as_never_or_as_always_answers_it(make, name, method, n_batch):
    prefix = "It was" if n_batch == 4 else ""  # an answer that is begun
    of = {"name": name, "method": method, "batch_size": n_batch}
    auto = make(intercept=half(make, **of), **of)
    asked = requests(auto, prefix)
    found = auto.generate_until(asked, disable_tqdm=True)
    expected = {}
    for mode in ("never", "always"):
        lm = make(mode, name, batch_size=n_batch)
        expected[mode] = lm.generate_until(requests(lm, prefix), disable_tqdm=True)
    assert expected["always"] != expected["never"]
    decisions = [auto.decision(request.args[0]) for request in asked]
    assert all(is_marked == (p > 0.5) for p, is_marked in decisions)
    assert 0 < sum(is_marked for _, is_marked in decisions) < len(asked)
    modes = ["always" if is_marked else "never" for _, is_marked in decisions]
    assert found == [expected[mode][i] for i, mode in enumerate(modes)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_batch", [1, 3])
def test_choices_are_scored_as_never_or_as_always_scores_them(make, choices, method, n_batch):
    of = {"method": method, "batch_size": n_batch}
    auto = make(**of)
    evaluate(auto, ["evens"], choices)
    auto = make(intercept=intercept_of(auto), **of)
    found = evaluate(auto, ["evens"], choices)
    expected = {mode: evaluate(make(mode, batch_size=n_batch), ["evens"], choices) for mode in ("never", "always")}
    marked = []
    for sample in found["samples"]["evens"]:
        _, is_marked = auto.decision(sample["arguments"][0][0])
        marked.append(is_marked)
        of_mode = answers(expected["always" if is_marked else "never"], "evens")[sample["doc_id"]]
        values = [[float(x) for ((x, _),) in resps] for resps in (sample["resps"], of_mode)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert set(marked) == {True, False}


class Watching(ContextLM):
    """Keeps the prompts that were generated from."""

    def _model_generate(self, context, max_length, stop, **kwargs):
        rows = zip(context, kwargs["attention_mask"].bool(), strict=True)
        self.sent = [*getattr(self, "sent", []), *(ids[kept].tolist() for ids, kept in rows)]
        return super()._model_generate(context, max_length, stop, **kwargs)


@pytest.mark.parametrize("method", METHODS)
def test_the_tokens_sent_are_those_that_never_or_always_send(make, method):
    sent = {}
    intercept = half(make, method=method)
    for mode in ("auto", "never", "always"):
        lm = make(mode, method=method, intercept=intercept, cls=Watching, batch_size=4)
        lm.generate_until(requests(lm), disable_tqdm=True)
        sent[mode] = sorted(map(tuple, lm.sent))
    mark = indicator_id(lm.tokenizer)
    is_marked = [mark in ids for ids in sent["auto"]]
    assert 0 < sum(is_marked) < len(is_marked)
    assert {ids for ids in sent["auto"] if mark in ids} < set(sent["always"])
    assert {ids for ids in sent["auto"] if mark not in ids} < set(sent["never"])
    assert len(sent["auto"]) == len(sent["never"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_batch", [1, 4])
def test_deciding_computes_no_more_again_than_what_follows_the_user_s_message(make, method, n_batch):
    computed, asked = {}, {}
    intercept = half(make, method=method)
    for mode in ("auto", "never"):
        lm = make(mode, method=method, intercept=intercept, batch_size=n_batch)
        lm.generate_until(requests(lm), disable_tqdm=True)
        computed[mode], asked[mode] = (lm.n_prompt_tokens[key] for key in ("computed", "asked"))
    after = lm.tok_encode("<|im_end|>\n<|im_start|>assistant\n")
    n_prompts = len(conversations())
    assert computed["auto"] - computed["never"] <= n_prompts * (len(after) + 2)  # and the mark with its full stop
    assert asked["auto"] - asked["never"] <= 2 * n_prompts
    assert computed["never"] < 0.6 * asked["never"]


def test_without_a_cache_that_can_be_cut_decisions_are_the_same(make):
    found, intercept = [], half(make)
    for reuse in (True, False):
        lm = make(prefix_cache=reuse, batch_size=2, intercept=intercept)
        asked = requests(lm)
        texts = lm.generate_until(asked, disable_tqdm=True)
        found.append((texts, [lm.decision(request.args[0]) for request in asked]))
    assert found[0][0] == found[1][0]
    p = [[p for p, _ in decisions] for _, decisions in found]
    assert p[0] == pytest.approx(p[1], abs=1e-4)
    assert lm.n_prompt_tokens["computed"] > 1.8 * lm.n_prompt_tokens["asked"]  # and the results file says so


def test_a_task_that_marks_its_own_messages_is_left_as_it_is(make):
    lm = make("auto", cls=Watching)
    results = evaluate(lm, ["nih_ctx_ind"], limit=2)
    always = make("always", cls=Watching)
    assert answers(results, "nih_ctx_ind") == answers(evaluate(always, ["nih_ctx"], limit=2), "nih_ctx")
    assert not lm.decisions


def test_the_threshold_overrides_and_is_told(make):
    all_marked = make(indicator_threshold=0.0)
    none = make(indicator_threshold=1)
    for lm, share in ((all_marked, 1), (none, 0)):
        config = evaluate(lm, ["squad_contain"], limit=3)["config"]
        assert config["indicator"] == "auto"
        assert config["auto_indicator"] == {
            **{"method": "slot", "threshold": float(lm._auto.threshold), "beta": 0.6, "of": "none"},
            **{"decided": 3, "marked": 3 * share},
        }


def test_what_auto_can_not_do_is_one_line_each(make, tokenizer):
    for arguments, reason in [
        ({"steer_alpha": 0.3}, "indicator=auto and steer_alpha don't go together"),
        ({"indicator_threshold": 2}, "indicator_threshold must be in 0–1"),
        ({"indicator": "never", "indicator_threshold": 0.5}, "indicator_threshold goes with indicator=auto"),
        ({"indicator_treshold": 0.5}, "did you mean 'indicator_threshold'"),
    ]:
        with pytest.raises(InputError, match=reason):
            make(**arguments)
    with pytest.raises(InputError, match="did not go through the chat template"):
        evaluate(make(), ["nih_ctx"], template=False)
    with pytest.raises(InputError, match="did not go through the chat template"):
        make().loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("A text.",), 0)])
    user, system = ({"role": role, "content": "Well"} for role in ("user", "system"))
    with pytest.raises(InputError, match="expected at most one system message"):
        make().apply_chat_template([system, system, user])
    with pytest.raises(InputError, match="messages that end in assistant"):
        make().apply_chat_template([user, {"role": "assistant", "content": "Yes"}])

    class MarkingHF(IndicatorMixin, HFLM):
        pass

    with pytest.raises(InputError, match="which only the harness's model ctxaware does"):
        MarkingHF(pretrained=model_for(tokenizer), tokenizer=tokenizer, indicator="auto")


@pytest.fixture
def folder(tmp_path, tokenizer):
    return save_model(tmp_path / "model", tokenizer)


def test_a_file_of_other_weights_is_refused_before_the_model_is_loaded(folder, tokenizer, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no auto_indicator.json"):
        ContextLM(pretrained=str(folder), device="cpu", indicator="auto")
    save_indicator(folder, tokenizer)
    assert ContextLM(pretrained=str(folder), device="cpu", indicator="auto")._auto.threshold == 0.5
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0}))
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match="is of other weights"):
        ContextLM(pretrained=str(folder), device="cpu", indicator="auto")


def test_samples_say_what_was_decided_and_kept_answers_belong_to_one_way_of_marking(make, tmp_path):
    lm, kept = make(batch_size=2), str(tmp_path / "kept")

    def run(lm, name, **arguments):
        tracker = EvaluationTracker(output_path=str(tmp_path / name))
        results = evaluate(lm, ["nih_ctx"], evaluation_tracker=tracker, log_samples=True, use_cache=kept, **arguments)
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples("nih_ctx", samples["nih_ctx"])
        (file,) = (tmp_path / name).rglob("samples_*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    rows = run(lm, "first")
    for row in rows:
        p, is_marked = lm.decision(row["arguments"]["gen_args_0"]["arg_0"])
        assert (row["indicator_probability"], row["indicator"]) == (p, is_marked)
    again = run(make(batch_size=2), "again")  # every answer was kept, and what was decided with it
    assert [(r["resps"], r["indicator_probability"], r["indicator"]) for r in again] == [
        (r["resps"], r["indicator_probability"], r["indicator"]) for r in rows
    ]
    for other in (make("never"), make(indicator_threshold=0.7)):
        with pytest.raises(
            InputError,
            match=r"kept answers .* are of another indicator or steering: indicator=auto none 0.5, in this run",
        ):
            run(other, "other")


def test_an_interrupted_run_repeats_nothing(make, tmp_path, monkeypatch):
    whole = answers(evaluate(make(indicator_threshold=0.0), ["nih_ctx"]), "nih_ctx")
    n_calls, generate = [], HFLM._model_generate

    def killed(*arguments, **settings):
        n_calls.append(1)
        if len(n_calls) > 2:
            raise KeyboardInterrupt
        return generate(*arguments, **settings)

    monkeypatch.setattr(HFLM, "_model_generate", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make(indicator_threshold=0.0), ["nih_ctx"], use_cache=str(tmp_path / "kept"))
    monkeypatch.setattr(HFLM, "_model_generate", lambda *a, **k: n_calls.append(1) or generate(*a, **k))
    again = evaluate(make(indicator_threshold=0.0), ["nih_ctx"], use_cache=str(tmp_path / "kept"))
    assert len(n_calls) == 3 + 2  # four prompts, two kept
    assert answers(again, "nih_ctx") == whole
