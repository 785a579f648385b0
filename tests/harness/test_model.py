"""`--model ctxaware` against `--model hf`: the same answers, the indicator on any task, and what its errors say."""

import contextlib
import json
import logging

import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from support import chats, tiny
from support.architectures import CONFIGS, random_model
from transformers import AutoModelForCausalLM

from ctxaware import ContextLM
from ctxaware.errors import InputError
from ctxaware.harness.indicator import IndicatorMixin
from ctxaware.harness.paths import tasks_folder
from ctxaware.indicator.token import add_indicator, indicator_id
from ctxaware.prefix_cache import PrefixCache

TASKS = tasks_folder()
SMALL = {"source": "builtin", "max_context_length": 600, "num_context_lengths": 2, "num_depths": 3}
WORDS = ("the river", "best", "thing", "to do in a", "sandwich", "park", "sunny", "day", "essay", "work", "people")
HAYSTACK = [WORDS[(7 * i * i + i) % len(WORDS)] for i in range(90)]


def prompts():
    cells = [(n, int(n * depth)) for n in (10, 40, 90) for depth in (0, 0.5, 1)]
    texts = [" ".join([*HAYSTACK[:d], "Needle!", *HAYSTACK[d:n], "What was it?"]) for n, d in cells]
    return [*texts, texts[4], texts[4][:-5], "Short"]


def to_generate(**settings):
    settings = {"until": [], "do_sample": False, "max_gen_toks": 8, **settings}
    return [Instance("generate_until", {}, (text, dict(settings)), i) for i, text in enumerate(prompts())]


def to_score():
    choices = (" yes", " no", " a sandwich in the park")
    pairs = [(text, choice) for text in prompts() for choice in choices] + [("", "people work")]
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny.byte_level_tokenizer()
    add_indicator(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def make(tokenizer):
    """`(class, architecture, arguments) -> the harness's model` on a tiny model, each made once."""
    made = {}

    def make(cls=ContextLM, name="llama, grouped heads", **arguments):
        if name not in made:
            config = CONFIGS[name]()
            config.vocab_size, config.max_position_embeddings = len(tokenizer), 2048
            made[name] = random_model(config)
            made[name].generation_config.eos_token_id = tokenizer.eos_token_id
        return cls(pretrained=made[name], tokenizer=tokenizer, **arguments)

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return tiny.save_model(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(autouse=True)
def _without_versions(monkeypatch):
    """The harness asks the machine for all its versions after each evaluation, which takes seconds."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


def evaluate(lm, tasks, template=True, folder=TASKS, **arguments):
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=SMALL)
    return evaluator.simple_evaluate(
        lm, tasks=tasks, task_manager=manager, apply_chat_template=template, bootstrap_iters=0, **arguments
    )


def sent(lm, results, task):
    """Token ids of each prompt of a task, as the model gets them."""
    arguments = [sample["arguments"] for sample in results["samples"][task]]
    texts = [each[0][0] if isinstance(each, (list, tuple)) else each["gen_args_0"]["arg_0"] for each in arguments]
    return [lm.tok_batch_encode([text])[0][0].tolist() for text in texts]


# the same answers as --model hf


@pytest.mark.parametrize("n_batch", [1, 4])
@pytest.mark.parametrize(
    "name",
    ["llama, grouped heads", "qwen2", "mistral, sliding window", "gemma3, sliding", "gpt2, learnt positions"],
)
def test_answers_are_those_of_hf(make, name, n_batch):
    theirs, ours = (make(cls, name, batch_size=n_batch) for cls in (HFLM, ContextLM))
    assert ours.why_no_reuse() is None
    answers = theirs.generate_until(to_generate(), disable_tqdm=True)
    assert len(set(answers)) > 2
    assert ours.generate_until(to_generate(), disable_tqdm=True) == answers
    assert ours.n_prompt_tokens["computed"] < 0.7 * ours.n_prompt_tokens["asked"]
    expected = theirs.loglikelihood(to_score(), disable_tqdm=True)
    found = ours.loglikelihood(to_score(), disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["e", " the"]},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"num_beams": 2},
        {"cache_implementation": "offloaded_static"} if torch.cuda.is_available() else {"max_gen_toks": 3},
    ],
    ids=str,
)
def test_answers_are_those_of_hf_whatever_the_generation_settings(make, settings):
    answers = []
    for cls in (HFLM, ContextLM):
        torch.manual_seed(3)
        lm = make(cls, batch_size=4)
        answers.append(lm.generate_until(to_generate(**settings), disable_tqdm=True))
    assert answers[0] == answers[1]


def test_several_generation_settings_in_one_call(make):
    mixed = [b if i % 2 else a for i, (a, b) in enumerate(zip(to_generate(), to_generate(max_gen_toks=3), strict=True))]
    theirs, ours = make(HFLM, batch_size=3), make(batch_size=3)
    assert ours.generate_until(mixed, disable_tqdm=True) == theirs.generate_until(mixed, disable_tqdm=True)


def test_prompts_cut_on_the_left_and_long_continuations(make):
    long = [Instance("loglikelihood", {}, (text, " " + " ".join(HAYSTACK[:12])), 0) for text in prompts()[:4]]
    theirs, ours = (make(cls, batch_size=2, max_length=64) for cls in (HFLM, ContextLM))
    assert ours.generate_until(to_generate(), disable_tqdm=True) == theirs.generate_until(
        to_generate(), disable_tqdm=True
    )
    expected = theirs.loglikelihood(long, disable_tqdm=True)
    assert [x for x, _ in ours.loglikelihood(long, disable_tqdm=True)] == pytest.approx(
        [x for x, _ in expected], abs=1e-4
    )


def test_one_input_a_request_where_the_harness_shares_no_logits(make):
    theirs, ours = (make(cls, batch_size=2, logits_cache=False) for cls in (HFLM, ContextLM))
    expected = theirs.loglikelihood(to_score(), disable_tqdm=True)
    assert [x for x, _ in ours.loglikelihood(to_score(), disable_tqdm=True)] == pytest.approx(
        [x for x, _ in expected], abs=1e-4
    )


def test_rolling_windows_are_the_harness_own(make):
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in prompts()]
    theirs, ours = (make(cls, batch_size=2, max_length=50) for cls in (HFLM, ContextLM))
    expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts, disable_tqdm=True) == expected


def test_a_batch_size_that_is_tried_out_is_tried_once(make, monkeypatch):
    ours = make(batch_size="auto", max_batch_size=4, max_length=256)
    tried = []
    monkeypatch.setattr(ours, "_detect_batch_size", lambda *_: tried.append(1) or 4)
    answers = ours.generate_until(to_generate(), disable_tqdm=True)
    assert answers == make(HFLM, batch_size=4).generate_until(to_generate(), disable_tqdm=True)
    assert len(tried) == 1
    assert ours.batch_size == "auto"


def test_a_checkpoint_that_names_its_own_kind_of_cache(make):
    ours = make(batch_size=2)
    answers = ours.generate_until(to_generate(), disable_tqdm=True)
    ours.model.generation_config.cache_implementation = "static"
    try:
        assert ours.generate_until(to_generate(), disable_tqdm=True) == answers
        assert ours.model.generation_config.cache_implementation == "static"
    finally:
        ours.model.generation_config.cache_implementation = None


def test_an_adapter_reuses_prefixes_too(make):
    peft = pytest.importorskip("peft")
    base = make().model
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(1)
    model = peft.get_peft_model(random_model(base.config), config).eval()
    theirs, ours = (cls(pretrained=model, tokenizer=make().tokenizer, batch_size=4) for cls in (HFLM, ContextLM))
    assert ours.generate_until(to_generate(), disable_tqdm=True) == theirs.generate_until(
        to_generate(), disable_tqdm=True
    )
    assert ours.why_no_reuse() is None


# when prefixes are not reused


def test_without_reuse_nothing_is_shared_and_the_answers_are_the_same(make):
    ours = make(prefix_cache=False, batch_size=4)
    assert ours.generate_until(to_generate(), disable_tqdm=True) == make(HFLM).generate_until(
        to_generate(), disable_tqdm=True
    )
    assert ours.n_prompt_tokens["computed"] == ours.n_prompt_tokens["asked"] > 0


def test_a_bound_that_is_too_small_for_a_prompt_is_said_once(make, caplog):
    ours = make(batch_size=2, prefix_cache_tokens=60)
    with caplog.at_level(logging.WARNING, logger="lm_eval.ctxaware"):
        answers = ours.generate_until(to_generate(), disable_tqdm=True)
        ours.loglikelihood(to_score(), disable_tqdm=True)
    assert answers == make(HFLM).generate_until(to_generate(), disable_tqdm=True)
    said = [record.message for record in caplog.records if "prefix_cache" in record.message]
    assert len(said) == 1
    assert said[0].startswith("prefix_cache_tokens=60: longer prompts, such as one of ")
    assert ours.n_prompt_tokens["computed"] < ours.n_prompt_tokens["asked"]


@pytest.mark.parametrize("method", ["fill", "score"])
def test_out_of_memory_the_cache_goes_first(make, method, monkeypatch, caplog):
    whole, n_calls = getattr(PrefixCache, method), []

    def runs_out_later(*arguments):
        n_calls.append(1)
        if len(n_calls) > 1:
            raise torch.OutOfMemoryError
        return whole(*arguments)

    theirs, ours = make(HFLM, batch_size=4), make(batch_size=4)
    assert ours.why_no_reuse() is None
    monkeypatch.setattr(PrefixCache, method, runs_out_later)
    with caplog.at_level(logging.WARNING, logger="lm_eval.ctxaware"):
        if method == "fill":
            assert ours.generate_until(to_generate(), True) == theirs.generate_until(to_generate(), True)
        else:
            found, expected = (lm.loglikelihood(to_score(), True) for lm in (ours, theirs))
            assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert len(n_calls) == 2
    assert [r.message for r in caplog.records if "memory" in r.message] == [
        "prefix_cache: prompts are computed whole, because the device's memory ran out"
    ]


def test_out_of_memory_without_a_cache_is_one_line(make, monkeypatch):
    ours = make(batch_size=4, prefix_cache=False)
    monkeypatch.setattr(ours.model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(
        InputError, match=r"memory ran out with 4 prompts of up to \d+ tokens at a time; lower batch_size"
    ):
        ours.generate_until(to_generate(), disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix_cach": True}, "unknown model argument 'prefix_cach'; did you mean 'prefix_cache'"),
        ({"indicators": "always"}, "unknown model argument 'indicators'; did you mean 'indicator'"),
        ({"prefix_cache_token": 5}, "did you mean 'prefix_cache_tokens'"),
        ({"indicator": "sometimes"}, "indicator must be one of never, always, auto, got 'sometimes'"),
        ({"prefix_cache": "yes"}, "prefix_cache must be true or false, got 'yes'"),
        ({"prefix_cache_tokens": 0}, "prefix_cache_tokens must be a whole number over 0, got 0"),
    ],
)
def test_arguments_that_can_not_be_meant(make, arguments, message):
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_results_say_what_was_asked_and_what_was_computed(make):
    lm = make(batch_size=2)
    config = evaluate(lm, ["nih_ctx", "nih_ctx_prefix"])["config"]
    assert config["prefix_cache"] == "on"
    assert config["indicator"] == "never"
    asked, computed = (config["prompt_tokens"][key] for key in ("asked", "computed"))
    assert asked > 12 * 100
    assert 0.2 < computed / asked < 0.5


def test_an_interrupted_run_asks_only_what_is_left(make, tmp_path, monkeypatch):
    whole = evaluate(make(), ["nih_ctx"])["samples"]["nih_ctx"]
    lm, n_calls = make(), []
    generate = HFLM._model_generate

    def killed(*arguments, **settings):
        n_calls.append(1)
        if len(n_calls) > 4:
            raise KeyboardInterrupt
        return generate(*arguments, **settings)

    monkeypatch.setattr(HFLM, "_model_generate", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, ["nih_ctx"], use_cache=str(tmp_path / "cache"))
    monkeypatch.setattr(HFLM, "_model_generate", lambda *a, **k: n_calls.append(1) or generate(*a, **k))
    again = evaluate(make(), ["nih_ctx"], use_cache=str(tmp_path / "cache"))["samples"]["nih_ctx"]
    assert len(n_calls) == 5 + 2  # six prompts, four kept
    assert [s["resps"] for s in again] == [s["resps"] for s in whole]


@pytest.mark.parametrize("device", [{}, {"device": None}, {"device": "cuda:0"}])
def test_without_a_gpu_the_device_that_nobody_named_is_the_cpu(model_folder, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ContextLM(pretrained=str(model_folder), **device).device.type == "cpu"


@pytest.mark.parametrize("other", ["weights", "dtype", "adapter", "tokenizer", "add_bos_token"])
def test_kept_answers_belong_to_one_model(model_folder, tmp_path, other):
    """The harness's file of kept answers does not say whose they are."""
    kept, arguments = str(tmp_path / "kept"), {"pretrained": str(model_folder), "device": "cpu"}
    run = evaluate(ContextLM(**arguments), ["nih_ctx"], use_cache=kept)
    if other == "weights":
        arguments["pretrained"] = str(
            tiny.save_model(tmp_path / "other", tiny.byte_level_tokenizer(), initializer_range=0.1)
        )
    elif other == "dtype":
        arguments["dtype"] = "bfloat16"
    elif other == "tokenizer":
        chats.make_tokenizer(chats.CHATML).save_pretrained(tmp_path / "tokenizer")
        arguments["tokenizer"] = str(tmp_path / "tokenizer")
    elif other == "add_bos_token":
        arguments["add_bos_token"] = True
    else:
        peft = pytest.importorskip("peft")
        settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), settings)
        adapted.save_pretrained(tmp_path / "adapter")
        arguments["peft"] = str(tmp_path / "adapter")
    with pytest.raises(
        InputError, match=r"kept answers \(use_cache\) are of another model: sha256:.*, in this run sha"
    ):
        evaluate(ContextLM(**arguments), ["nih_ctx"], use_cache=kept)
    again = evaluate(ContextLM(pretrained=str(model_folder), device="cpu"), ["nih_ctx"], use_cache=kept)
    assert [s["resps"] for s in again["samples"]["nih_ctx"]] == [s["resps"] for s in run["samples"]["nih_ctx"]]


# what steering builds on


class Watching(ContextLM):
    """Keeps what `around_call` was given, and what the transformers model was really called with."""

    keeps_messages = True

    def __init__(self, *arguments, **settings):
        self.calls, self.open = [], 0
        super().__init__(*arguments, **settings)

    @contextlib.contextmanager
    def around_call(self, call):
        self.calls.append(call)
        self.open += 1
        yield
        self.open -= 1


@pytest.mark.parametrize("reuse", [True, False])
def test_every_call_of_the_model_is_inside_around_call_which_knows_its_keys(make, reuse):
    lm = make(Watching, batch_size=3, prefix_cache=reuse, max_length=100)  # some prompts are cut on the left
    assert (lm.why_no_reuse() is None) is reuse
    n_keys = []

    def seen(module, arguments, kwargs):
        assert lm.open == 1
        cache = kwargs.get("past_key_values")
        ids = arguments[0] if arguments else kwargs["input_ids"]
        n_keys.append(ids.shape[1] + (cache.get_seq_length() if cache is not None else 0))

    handle = lm.model.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        lm.loglikelihood(to_score(), disable_tqdm=True)
        assert n_keys == [call.input_ids.shape[1] for call in lm.calls]
        assert all(prompt.text in [*prompts(), ""] for call in lm.calls for prompt in call.prompts)
        n_scored = len(lm.calls)
        lm.generate_until(to_generate(), disable_tqdm=True)
    finally:
        handle.remove()
    assert all(prompt.text in prompts() for call in lm.calls[n_scored:] for prompt in call.prompts)
    for call in lm.calls:
        for ids, mask, prompt in zip(call.input_ids, call.attention_mask, call.prompts, strict=True):
            row = tuple(ids[mask.bool()].tolist())
            assert row == prompt.input_ids[: len(row)]


def test_prompts_share_as_far_as_a_sub_class_says(make):
    class KeepsApart(ContextLM):
        def cache_key(self, input_ids, text):
            return tuple((i, text) for i in input_ids)

    lm = make(KeepsApart)
    lm.generate_until(to_generate(), disable_tqdm=True)
    assert lm.n_prompt_tokens["asked"] - lm.n_prompt_tokens["computed"] < len(
        lm.tok_encode(prompts()[4])
    )  # it is twice


def test_messages_behind_a_prompt(make):
    lm = make(Watching, indicator="always")
    results = evaluate(lm, ["nih_ctx_prefix"], limit=1)
    text = results["samples"]["nih_ctx_prefix"][0]["arguments"][0][0]
    messages = lm.messages_of(text)
    assert messages[-1]["role"] == "user"
    assert messages[-1]["content"].endswith("San Francisco? [IND]")
    assert messages[-1]["content"] in text
    assert lm.messages_of("something else") is None


# the indicator


def test_always_sends_what_the_ind_task_sends_under_hf(folder):
    theirs = HFLM(pretrained=str(folder), device="cpu")
    ours = ContextLM(pretrained=str(folder), device="cpu", indicator="always")
    mark = indicator_id(ours.tokenizer)
    for plain, marked in [("nih_ctx", "nih_ctx_ind"), ("nih_ctx_prefix", "nih_ctx_prefix_ind")]:
        expected = sent(theirs, evaluate(theirs, [marked], limit=2), marked)
        assert all(ids.count(mark) == 1 for ids in expected)
        assert sent(ours, evaluate(ours, [plain], limit=2), plain) == expected
        assert sent(ours, evaluate(ours, [marked], limit=2), marked) == expected  # it does not get two


def test_never_sends_what_hf_sends(folder):
    theirs, ours = (cls(pretrained=str(folder), device="cpu") for cls in (HFLM, ContextLM))
    for task in ("nih_ctx", "nih_ctx_ind"):
        assert sent(ours, evaluate(ours, [task], limit=2), task) == sent(
            theirs, evaluate(theirs, [task], limit=2), task
        )


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """A multiple-choice task with few-shot examples, as the harness's own are written."""
    where = tmp_path_factory.mktemp("choices")
    docs = [{"question": f"Is {i} even? [IND] or not", "choices": ["yes", "no"], "label": i % 2} for i in range(6)]
    (where / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (where / "evens.yaml").write_text(
        f"""task: evens
dataset_path: json
dataset_kwargs: {{data_files: {{test: {where}/docs.jsonl, train: {where}/docs.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
num_fewshot: 2
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
    )
    return where


@pytest.mark.parametrize("multiturn", [True, False])
def test_every_user_message_of_a_stock_task_is_marked(make, choices, multiturn):
    lm = make(indicator="always", batch_size=3)
    results = evaluate(lm, ["evens"], folder=choices, fewshot_as_multiturn=multiturn)
    mark, user = indicator_id(lm.tokenizer), "<|im_start|>user\n"
    for sample in results["samples"]["evens"]:
        text = sample["arguments"][0][0]
        turns = text.split(user)[1:]
        assert len(turns) == (3 if multiturn else 1)
        assert all(turn.split("<|im_end|>")[0].endswith(" [IND]") for turn in turns)
        assert lm.tok_encode(text).count(mark) == len(turns)  # what was typed in the data is no mark


def test_prompts_that_can_not_be_marked_are_refused(make, choices, folder):
    lm = make(indicator="always")
    with pytest.raises(InputError, match=r"did not go through the chat template; set apply_chat_template"):
        evaluate(lm, ["nih_ctx"], template=False)
    with pytest.raises(InputError, match="did not go through the chat template"):
        evaluate(lm, ["nih_ctx_ind"], template=False)  # marked, and by nobody that knows a user message
    with pytest.raises(InputError, match="did not go through the chat template"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("A text.",), 0)])
    with pytest.raises(InputError, match=r"1 of 2 prompts carry no \[IND\]"):
        lm.generate_until([Instance("generate_until", {}, (text, {}), 0) for text in ("a [IND]", "b")])


def test_a_tokenizer_without_the_indicator_is_refused(tmp_path):
    where = tiny.save_model(tmp_path, tiny.byte_level_tokenizer())
    with pytest.raises(InputError, match=r"has no single \[IND\] token"):
        ContextLM(pretrained=str(where), device="cpu", indicator="always")


def test_kept_prompts_of_marked_and_plain_runs_are_apart(folder):
    names = {
        ContextLM(pretrained=str(folder), device="cpu", indicator=indicator).tokenizer_name
        for indicator in ("never", "always")
    }
    assert len(names) == 2


def test_the_indicator_is_a_mix_in_for_any_back_end(folder):
    class MarkingHF(IndicatorMixin, HFLM):
        pass

    lm = MarkingHF(pretrained=str(folder), device="cpu", indicator="always")
    (ids,) = sent(lm, evaluate(lm, ["squad_contain"], limit=1), "squad_contain")
    assert ids.count(indicator_id(lm.tokenizer)) == 1
    assert lm.get_model_info()["indicator"] == "always"


def test_the_vllm_model_is_the_harness_s_with_the_mix_in():
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    from lm_eval.models.vllm_causallms import VLLM

    from ctxaware.harness.vllm import ContextVLLM

    assert ContextVLLM.__mro__[1:3] == (IndicatorMixin, VLLM)
