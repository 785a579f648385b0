"""The tasks through the real harness: prompts to the character, windows, settings, scores."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from support import tiny

from ctxaware.errors import InputError
from ctxaware.harness.metrics import mean_by_key
from ctxaware.harness.paths import tasks_folder
from ctxaware.harness.prompts import PROMPT_TEMPLATES
from ctxaware.harness.settings import NeedleSettings, ReadingSettings
from ctxaware.indicator.token import add_indicator

TASKS = tasks_folder()
SMALL = {"source": "builtin", "max_context_length": 600, "num_context_lengths": 2, "num_depths": 2}


def load(name, **metadata):
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata).load([name])["tasks"][name]


def prompts(task, lm, template, **kwargs):
    task.build_all_requests(
        limit=2, apply_chat_template=template, chat_template=lm.apply_chat_template if template else None, **kwargs
    )
    return [instance.args[0] for instance in task.instances]


@pytest.fixture(scope="module")
def harness_model(tmp_path_factory):
    """`(template) -> (folder, HFLM)`: a tiny model with that chat template and the indicator token."""
    made = {}

    def make(template):
        if template not in made:
            tokenizer = tiny.sentencepiece_like_tokenizer(getattr(tiny, template))
            add_indicator(tokenizer)
            folder = tiny.save_model(tmp_path_factory.mktemp(template), tokenizer)
            made[template] = folder, HFLM(pretrained=str(folder), device="cpu")
        return made[template]

    return make


PREFIX = "The best thing to do in San Francisco is"
AROUND = {  # what each template writes around the user's message: an empty system message is really sent
    "CHATML": ("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "ZEPHYR": ("<|system|>\n</s>\n<|user|>\n", "</s>\n<|assistant|>\n"),
    "GEMMA": ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    "NO_CLOSING_ASSISTANT": ("[system][/system][user]", "[/user][assistant]"),
}


@pytest.mark.parametrize("template", AROUND)
def test_prompts_in_the_four_combinations_of_template_and_prefix(harness_model, template):
    folder, lm = harness_model(template)
    before, after = AROUND[template]
    gap = "" if after.endswith("\n") else " "
    for name, prefix, mark in [
        ("nih_ctx", "", ""),
        ("nih_ctx_prefix", PREFIX, ""),
        ("nih_ctx_ind", "", " [IND]"),
        ("nih_ctx_prefix_ind", PREFIX, " [IND]"),
    ]:
        task = load(name, **SMALL, pretrained=str(folder))
        doc = task.dataset["test"][0]
        message = (
            "You are a helpful AI assistant that answers a question using only the provided document:\n"
            f"{doc['context']}\nQuestion: What is the best thing to do in San Francisco?{mark}"
        )
        assert prompts(task, lm, False)[0] == (f"{message}\n\n{prefix}" if prefix else message)
        assert prompts(task, lm, True)[0] == before + message + after + (gap + prefix if prefix else "")


def test_a_system_instruction_of_the_users_replaces_the_empty_one(harness_model):
    folder, lm = harness_model("CHATML")
    task = load("squad_contain", source="builtin", pretrained=str(folder))
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert prompts(task, lm, True, system_instruction="Be brief.")[0].startswith(start)
    assert prompts(task, lm, False, system_instruction="Be brief.")[0].startswith("Be brief.\n\n")


def test_reading_prompts(harness_model):
    folder, lm = harness_model("CHATML")
    for name, metadata, ending in [
        ("squad_contain", {}, "\nAnswer the question according to the above passage: {}"),
        ("squad_contain_ind", {}, "\nAnswer the question according to the above passage: {} [IND]"),
        ("squad_contain", {"prompt": "ultrachat"}, " {}"),
    ]:
        task = load(name, source="builtin", pretrained=str(folder), **metadata)
        doc = task.dataset["test"][0]
        assert prompts(task, lm, False)[0] == doc["context"] + ending.format(doc["question"])


def test_special_tokens_typed_in_a_haystack_stay_text(harness_model, tmp_path):
    folder, lm = harness_model("CHATML")
    (tmp_path / "a.txt").write_text("They wrote <|im_end|> and [IND] and </s> here. It went on. " * 40)
    task = load("nih_ctx_ind", **SMALL, haystack=str(tmp_path), pretrained=str(folder))
    text = prompts(task, lm, True)[0]
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(lm.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # the template's own
    assert ids.count(lm.tokenizer.convert_tokens_to_ids("[IND]")) == 1
    assert "< |im_end|>" in text


def test_special_tokens_typed_in_a_passage_stay_text(harness_model, tmp_path):
    folder, lm = harness_model("CHATML")
    qa = {"id": "1", "question": "Who wrote [IND] and </s>?", "answers": [{"text": "Ann"}]}
    paragraph = {"context": "Ann wrote <|im_end|> there.", "qas": [qa]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    task = load("squad_contain_ind", source=str(tmp_path / "dev.json"), pretrained=str(folder))
    ids = lm.tokenizer(prompts(task, lm, True)[0], add_special_tokens=False)["input_ids"]
    for token, expected in [("<|im_end|>", 2), ("[IND]", 1), ("</s>", 0)]:  # the template's two, the task's one
        assert ids.count(lm.tokenizer.convert_tokens_to_ids(token)) == expected


def test_yaml_defaults_are_the_settings_defaults():
    for task, cls in [("nih_ctx/nih_ctx", NeedleSettings), ("squad_contain/squad_contain", ReadingSettings)]:
        metadata = load_yaml(TASKS / f"{task}.yaml", resolve_func=False)["metadata"]
        assert metadata.pop("version") >= 1
        assert metadata == dataclasses.asdict(cls())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"max_context_lenght": 100}, "unknown setting 'max_context_lenght'.*did you mean 'max_context_length'"),
        ({"num_depth": 3}, "did you mean 'num_depths'"),
        ({"depths": 3}, "did you mean 'num_depths'"),
        ({"template": 3}, "did you mean 'prompt_template'"),
        ({"num_depths": "three"}, "num_depths must be a whole number, got 'three'"),
        ({"num_depths": 0}, "zero cells"),
        ({"prompt_template": 5}, "prompt_template must be in 1-4, got 5"),
        ({"needle": "moon"}, "needle 'moon'"),
        ({"max_context_length": 5000}, "max_context_length 5000 is past the model's window of 2048"),
        ({"source": "hub"}, "haystack=builtin"),
        ({"source": 3}, "source must be text, got 3"),
        ({"pretrained": "/no/such/model"}, "can't load tokenizer '/no/such/model'"),
    ],
)
def test_bad_settings_are_one_line_errors(model_folder, metadata, message):
    with pytest.raises(InputError, match=message) as error:
        load("nih_ctx", **{**SMALL, "pretrained": str(model_folder), **metadata})
    assert "\n" not in str(error.value)


def test_the_models_own_arguments_are_no_misspelt_settings(model_folder):
    arguments = {
        "pretrained": str(model_folder),
        "max_length": 2000,
        "max_batch_size": 4,
        "dtype": "float32",
        "peft": None,
    }
    assert load("nih_ctx", **SMALL, **arguments).settings.num_depths == 2


def test_settings_used_are_said(model_folder, caplog):
    import logging

    with caplog.at_level(logging.INFO, logger="lm_eval.ctxaware"):
        load("nih_ctx", **SMALL, pretrained=str(model_folder), dtype="float32")
    (line,) = [r.message for r in caplog.records if "settings used" in r.message]
    assert "max_context_length=600" in line
    assert "left to the model: dtype, pretrained" in line


def test_an_indicator_task_needs_the_token(model_folder):
    for name in ("nih_ctx_ind", "squad_contain_ind"):
        with pytest.raises(InputError, match=r"no single \[IND\] token"):
            load(name, **SMALL, pretrained=str(model_folder))


def run(lm, name, limit=4, template=False, **metadata):
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    return simple_evaluate(
        lm,
        tasks=[name],
        task_manager=manager,
        limit=limit,
        apply_chat_template=template,
        log_samples=True,
        bootstrap_iters=0,
    )


ONE = {"source": "builtin", "num_context_lengths": 1, "num_depths": 1}


@pytest.mark.parametrize("template", [False, True])
def test_a_prompt_past_the_window_is_refused_before_anything_is_generated(model_folder, template, monkeypatch):
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    monkeypatch.setattr(lm, "generate_until", lambda *_: pytest.fail("something was generated"))
    with pytest.raises(InputError, match=r"1 of 1 prompts do not fit the model's window of 2048.*raise reserve"):
        run(lm, "nih_ctx", template=template, **ONE, max_context_length=2048, reserve=20)
    with pytest.raises(InputError, match="max_context_length 4000 is past the model's window of 2048"):
        # what metadata says of the window does not count where the model itself can be asked
        run(lm, "nih_ctx", template=template, **ONE, max_context_length=4000, max_length=8000)
    lm._max_length = 300
    with pytest.raises(InputError, match="do not fit the model's window of 300"):
        run(lm, "squad_contain", template=template, source="builtin", pretrained=str(model_folder))
    lm._max_length, lm.truncation = None, True
    monkeypatch.setattr(lm.tokenizer, "model_max_length", 200)  # the tokenizer cuts there
    with pytest.raises(InputError, match="do not fit the model's window of 200"):
        run(lm, "squad_contain", template=template, source="builtin")


def test_without_a_running_model_its_arguments_tell_the_window(model_folder):
    task = load("nih_ctx", **ONE, max_context_length=2048, reserve=20, pretrained=str(model_folder))
    with pytest.raises(InputError, match="window of 2048"):
        task.build_all_requests(limit=1)
    task = load("nih_ctx", **ONE, max_context_length=2048, tokenizer=str(model_folder))
    with pytest.raises(InputError, match="add max_length=TOKENS"):
        task.build_all_requests(limit=1)


@pytest.mark.parametrize("bos", [None, True])
def test_a_window_is_filled_to_the_last_token_and_no_further(model_folder, bos):
    lm = HFLM(pretrained=str(model_folder), device="cpu", add_bos_token=bos)
    results = run(lm, "nih_ctx", template=True, **ONE, max_context_length=600)
    overhead = len(lm.tok_encode(results["samples"]["nih_ctx"][0]["arguments"][0][0])) - 400
    reserve = 50 + overhead  # nothing is left over
    samples = run(lm, "nih_ctx", template=True, **ONE, max_context_length=2048, reserve=reserve)["samples"]["nih_ctx"]
    assert len(lm.tok_encode(samples[0]["arguments"][0][0])) + 50 == 2048
    with pytest.raises(InputError, match="do not fit"):
        run(lm, "nih_ctx", template=True, **ONE, max_context_length=2048, reserve=reserve - 1)


def test_a_model_object_needs_nothing_more(model_folder):
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    assert 0 <= run(lm, "nih_ctx", **SMALL)["results"]["nih_ctx"]["recall,none"] <= 1


def test_the_harness_s_request_cache_is_refused(model_folder):
    task = load("nih_ctx", **SMALL, pretrained=str(model_folder))
    with pytest.raises(InputError, match="leave out cache_requests"):
        task.build_all_requests(cache_requests=True)


def test_a_template_that_drops_a_system_instruction_is_an_error(harness_model):
    folder, lm = harness_model("GEMMA")
    task = load("squad_contain", source="builtin", pretrained=str(folder))
    with pytest.raises(InputError, match="takes no system message"):
        prompts(task, lm, True, system_instruction="Be brief.")


def test_a_checkpoints_generation_settings_do_not_leak(tmp_path):
    folder = tiny.save_model(tmp_path / "model", tiny.byte_level_tokenizer())

    def answer(settings):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 2, **settings}))
        lm = HFLM(pretrained=str(folder), device="cpu")
        return run(lm, "nih_ctx", **ONE, max_context_length=600)["samples"]["nih_ctx"][0]["resps"][0][0]

    plain = answer({})
    assert answer({"repetition_penalty": 1.9, "no_repeat_ngram_size": 2}) == plain
    assert answer({"max_new_tokens": 70}).startswith(plain)
    with pytest.raises(InputError, match="stops after 10 tokens and 50 are needed"):
        answer({"max_new_tokens": 10})
    with pytest.raises(InputError, match="sets suppress_tokens, which changes greedy decoding"):
        answer({"suppress_tokens": [5, 6]})


def test_an_answer_made_longer_by_the_checkpoint_is_cut_before_scoring(tmp_path, monkeypatch):
    folder = tiny.save_model(tmp_path / "model", tiny.byte_level_tokenizer())
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 200}))
    lm = HFLM(pretrained=str(folder), device="cpu")
    for n_words, recall in [(10, 1 / 7), (200, 0)]:
        monkeypatch.setattr(lm, "generate_until", lambda requests, n=n_words: ["x " * n + "sandwich"] * len(requests))
        results = run(lm, "nih_ctx", **ONE, max_context_length=600)["results"]["nih_ctx"]
        assert results["recall,none"] == pytest.approx(recall)


def test_scores_of_a_needle_task(model_folder):
    task = load("nih_ctx", **SMALL, pretrained=str(model_folder))
    doc = task.dataset["test"][3]
    scores = task.process_results(doc, ["Eat a sandwich in Dolores Park on a sunny day, and sit."])
    assert scores["score"] == scores["recall"] == 1.0
    assert scores["recall_error"] == 0.0
    assert scores["recall_by_context_length"] == (400, 1.0)
    assert scores["recall_by_depth_percent"] == (100.0, 1.0)


def test_scores_of_a_reading_task_count_the_first_sentence_only(model_folder):
    task = load("squad_contain", source="builtin", pretrained=str(model_folder))
    doc = {"answers": ["rope works", "5"]}
    assert task.process_results(doc, ["The Rope-works? rope works. "])["contain"] == 1.0
    assert task.process_results(doc, ["No. The rope works."])["score"] == 0.0
    assert task.process_results(doc, ["15"]) == {"score": 0.0, "contain": 0.0, "contain_substring": 1.0}


def test_means_by_key_are_sorted_and_plain():
    assert mean_by_key([(800, 1.0), (200, 0.5), (200, 0.0)]) == {"200": 0.25, "800": 1.0}
    assert mean_by_key([(1000100, 1.0), (1000101, 0.0), (5.3, 1.0)]) == {"5.3": 1.0, "1000100": 1.0, "1000101": 0.0}


def test_a_group_of_the_users_own_with_our_task_in_it(model_folder, tmp_path, monkeypatch):
    (tmp_path / "suite.yaml").write_text(
        yaml.safe_dump(
            {
                "group": "my_suite",
                "task": ["nih_ctx", {"task": "squad_contain", "metadata": {"version": 1, "source": "builtin"}}],
                "aggregate_metric_list": [{"metric": "score", "weight_by_size": False}],
            }
        )
    )
    manager = TaskManager(
        include_path=[str(TASKS), str(tmp_path)],
        include_defaults=False,
        metadata={**SMALL, "pretrained": str(model_folder)},
    )
    lm = HFLM(pretrained=str(model_folder), device="cpu", batch_size=4)
    monkeypatch.setattr(lm, "generate_until", lambda requests: ["eat a sandwich"] * len(requests))
    results = simple_evaluate(model=lm, tasks=["my_suite"], task_manager=manager, limit=2, bootstrap_iters=0)
    assert results["results"]["nih_ctx"]["score,none"] == pytest.approx(2 / 7)
    assert set(results["results"]) == {"my_suite", "nih_ctx", "squad_contain"}
    assert results["groups"]["my_suite"]["score,none"] == pytest.approx(
        (results["results"]["nih_ctx"]["score,none"] + results["results"]["squad_contain"]["score,none"]) / 2
    )


def test_the_four_prompt_templates_to_the_character():
    filled = {n: template.format(context="<C>", question="<Q>") for n, template in PROMPT_TEMPLATES.items()}
    helpful = "You are a helpful AI assistant that answers a question using only the provided"
    assert filled == {
        1: f"{helpful} document:\n<C>\nQuestion: <Q>",
        2: f"{helpful} context:\n<C>\nQuestion: <Q>",
        3: "Document:\n<C>\nAnswer the question according to the provided document: <Q>",
        4: "Context:\n<C>\nAnswer the question according to the provided context: <Q>",
    }


def test_all_prompt_templates_in_one_task_with_their_spread(model_folder):
    task = load("nih_ctx_prompts_prefix", **SMALL, pretrained=str(model_folder))
    docs = list(task.dataset["test"])
    assert [doc["prompt_template"] for doc in docs] == [n for n in (1, 2, 3, 4) for _ in range(4)]
    assert task.doc_to_text(docs[-1]).startswith("Context:\n")
    answers = {1: "eat a sandwich", 2: "", 3: "", 4: "eat"}
    scores = [task.process_results(doc, [answers[doc["prompt_template"]]]) for doc in docs]
    pairs = [score["recall_sd_over_prompts"] for score in scores]
    means = [2 / 7, 0, 0, 1 / 7]
    by_prompt = task.aggregation()["recall_by_prompt_template"](pairs)
    assert by_prompt == {"1": 0.2857, "2": 0.0, "3": 0.0, "4": 0.1429}
    assert task.aggregation()["recall_sd_over_prompts"](pairs) == pytest.approx(np.std(means, ddof=1))


def test_the_groups_are_the_four_tasks_and_the_mean_of_their_scores(harness_model, monkeypatch):
    _, lm = harness_model("ZEPHYR")
    monkeypatch.setattr(lm, "generate_until", lambda requests: ["eat a sandwich"] * len(requests))
    for group, suffix in [("ctxaware", ""), ("ctxaware_ind", "_ind")]:
        found = run(lm, group, limit=8, template=True, **SMALL)["results"]
        assert found[group]["score,none"] == pytest.approx(2 / 7 / 4)  # the needles' 4 documents weigh as the others' 8
        tasks = [f"{task}{suffix}" for task in ("nih_ctx", "squad_contain", "quac_contain", "drop_contain")]
        assert set(found) == {group, *tasks}
        assert found[group]["score,none"] == pytest.approx(np.mean([found[task]["score,none"] for task in tasks]))


def test_drop_also_asks_for_every_span(model_folder):
    task = load("drop_contain", source="builtin", pretrained=str(model_folder))
    scores = task.process_results({"answers": ["Paris", "Rome"]}, ["Only Rome"])
    assert (scores["contain"], scores["contain_all"]) == (1.0, 0.0)
    assert task.process_results({"answers": ["Paris", "Rome"]}, ["Rome, Paris"])["contain_all"] == 1.0


def test_a_tokenizer_in_the_metadata_wins_over_the_back_ends_own(model_folder, tmp_path):
    """The harness's dummy model names a hub tokenizer of its own, which can't be loaded here."""
    from lm_eval.models.dummy import DummyLM

    results = run(DummyLM(), "nih_ctx", **ONE, tokenizer=str(model_folder), max_length=5000)
    assert results["results"]["nih_ctx"]["recall,none"] == 0
    with pytest.raises(InputError, match=r"can't load the tokenizer of this back end.*metadata: tokenizer"):
        run(DummyLM(), "nih_ctx", **ONE, max_length=5000)
    (sample,) = run(DummyLM(), "nih_ctx", **ONE, tokenizer=str(model_folder), max_length=5000)["samples"]["nih_ctx"]
    tokenizer = tiny.byte_level_tokenizer()
    assert len(tokenizer(sample["doc"]["context"])["input_ids"]) == sample["doc"]["context_length"]


@pytest.mark.parametrize(("answers", "warns"), [([" ", "\n", "eat"], True), (["", "", "eat", "sit"], False)])
def test_a_run_whose_answers_are_mostly_empty_says_so_once(model_folder, monkeypatch, caplog, answers, warns):
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    monkeypatch.setattr(lm, "generate_until", lambda requests: answers)
    with caplog.at_level(logging.WARNING, logger="lm_eval.ctxaware"):
        run(lm, "squad_contain", limit=len(answers), source="builtin")
    said = [record.message for record in caplog.records if "answers are empty" in record.message]
    assert len(said) == warns
    for line in said:
        assert "squad_contain: 2 of 3" in line
        assert "needs apply_chat_template" in line
        assert "_prefix" in line


def test_a_named_tokenizer_counts_also_where_the_model_has_one_of_its_own(model_folder, tmp_path):
    named = tiny.byte_level_tokenizer()
    named.add_tokens(["e"])  # cuts words wherever an e stands: many more tokens
    named.save_pretrained(tmp_path)
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    settings = {**ONE, "max_context_length": 600, "tokenizer": str(tmp_path)}
    (sample,) = run(lm, "nih_ctx", **settings)["samples"]["nih_ctx"]
    context, counted = sample["doc"]["context"], sample["doc"]["context_length"]
    assert len(named(context, add_special_tokens=False)["input_ids"]) == counted
    assert len(lm.tokenizer(context, add_special_tokens=False)["input_ids"]) < counted


def test_examples_that_the_prompt_would_not_have_are_refused(model_folder):
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={**ONE, "max_context_length": 600})
    with pytest.raises(InputError, match="prompts of this task have no examples, and num_fewshot asks for 3"):
        simple_evaluate(lm, tasks=["nih_ctx"], task_manager=manager, num_fewshot=3, bootstrap_iters=0)


@pytest.mark.parametrize("is_grouped", [True, False])
@pytest.mark.parametrize(
    "setting",
    [
        {"num_fewshot": 2},
        {"description": "Answer in one word.\n"},
        {"doc_to_text": "{{question}}"},
        {"gen_prefix": "Answer:"},
        {"dataset_path": "mine"},
        {"dataset_kwargs": {"dataset": "squad", "data_files": "mine.json"}},
    ],
)
def test_settings_of_a_user_s_yaml_that_the_prompt_would_not_have_are_refused(
    model_folder, tmp_path, setting, is_grouped
):
    lm = HFLM(pretrained=str(model_folder), device="cpu")
    included = {"include": str(TASKS / "squad_contain" / "squad_contain.yaml"), "task": "mine", **setting}
    grouped = {"group": "mine", "task": [{"task": "squad_contain", **setting}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(grouped if is_grouped else included))
    manager = TaskManager(
        include_path=[str(TASKS), str(tmp_path)], include_defaults=False, metadata={"source": "builtin"}
    )
    (key,) = setting
    with pytest.raises(InputError, match=f"would not use {key}") as refused:
        simple_evaluate(lm, tasks=["mine"], task_manager=manager, limit=1, bootstrap_iters=0)
    assert "\n" not in str(refused.value)
