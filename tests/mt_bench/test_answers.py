import copy
import json
from pathlib import Path

import pytest
import torch
from support.mt_bench import QUESTIONS, read_jsonl, tiny_model, write_jsonl
from support.mt_bench import run_answer as answer
from support.server import Say

from ctxaware.errors import InputError
from ctxaware.indicator.marking import ALWAYS
from ctxaware.indicator.token import INDICATOR, add_indicator, indicator_id
from ctxaware.mt_bench.generate import LocalModel
from ctxaware.mt_bench.protocol import seed_of

FEW = {"max_new_tokens": 12}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def turns_of(path):
    return {row["question_id"]: row["choices"][0]["turns"] for row in read_jsonl(path)}


def test_answers_are_in_fastchat_s_format(model, tokenizer, data_dir, out):
    from fastchat.llm_judge.common import load_model_answers

    outcome = answer(model, "m-1.0", data_dir, out, tokenizer=tokenizer, **FEW)
    assert outcome.complete
    assert outcome.path == out / "model_answer" / "m-1.0.jsonl"
    loaded = load_model_answers(str(out / "model_answer"))["m-1.0"]
    assert loaded.keys() == {q["question_id"] for q in QUESTIONS}
    for row in loaded.values():
        assert row.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
        assert row["choices"][0]["index"] == 0
        assert [type(turn) for turn in row["choices"][0]["turns"]] == [str, str]


def test_the_second_turn_reads_the_first_answer(model, tokenizer, data_dir, out, monkeypatch):
    seen = []
    real = LocalModel.answer

    def spy(self, conversations, temperature, seeds):
        seen.extend((temperature, c) for c in conversations)
        return real(self, conversations, temperature, seeds)

    monkeypatch.setattr(LocalModel, "answer", spy)
    turns = turns_of(answer(model, "m", data_dir, out, tokenizer=tokenizer, **FEW).path)
    for question, temperature in zip(QUESTIONS, (0.7, 0.0, 0.1, 0.0), strict=True):
        first = {"role": "user", "content": question["turns"][0]}
        second = {"role": "assistant", "content": turns[question["question_id"]][0]}
        third = {"role": "user", "content": question["turns"][1]}
        assert (temperature, [first]) in seen
        assert (temperature, [first, second, third]) in seen


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_batch(model, tokenizer, data_dir, tmp_path, batch_size):
    more = [{**QUESTIONS[0], "question_id": i} for i in (5, 6)]  # the same words: only their seeds tell them apart
    write_jsonl(data_dir / "mt_bench" / "question.jsonl", [*QUESTIONS, *more])

    def run(name, size, seed=0):
        made = answer(model, "m", data_dir, tmp_path / name, tokenizer=tokenizer, batch_size=size, seed=seed, **FEW)
        return turns_of(made.path)

    expected = run("a", 8)
    assert run("b", batch_size) == expected
    assert expected[1] != expected[5] != expected[6]
    other = run("c", 8, seed=1)
    assert {q for q in other if other[q] == expected[q]} == {2, 4}  # the greedy ones


def test_a_stopped_run_goes_on_without_an_answer_twice(model, tokenizer, data_dir, tmp_path, monkeypatch):
    expected = turns_of(answer(model, "m", data_dir, tmp_path / "whole", tokenizer=tokenizer, **FEW).path)
    calls = []
    real = LocalModel.answer

    def dies_at_the_fifth(self, conversations, temperature, seeds):
        calls.append(conversations)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, conversations, temperature, seeds)

    monkeypatch.setattr(LocalModel, "answer", dies_at_the_fifth)
    arguments = {"tokenizer": tokenizer, "batch_size": 1, **FEW}
    with pytest.raises(KeyboardInterrupt):
        answer(model, "m", data_dir, tmp_path / "out", **arguments)
    path = tmp_path / "out" / "model_answer" / "m.jsonl"
    kept = read_jsonl(path)
    assert len(kept) == 2
    path.write_bytes(path.read_bytes() + b'{"question_id": 3, "cho')  # and a line that the kill tore
    outcome = answer(model, "m", data_dir, tmp_path / "out", **arguments)
    assert (outcome.n_new, outcome.complete) == (2, True)
    assert len(calls) == 5 + 4  # the two questions that were missing, two turns each
    assert read_jsonl(path)[:2] == kept
    assert turns_of(path) == expected
    assert answer(model, "m", data_dir, tmp_path / "out", **arguments).n_new == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_new_tokens": 13}, r"max_new_tokens 12 \(now 13\)"),
        ({"seed": 5}, r"seed 0 \(now 5\)"),
        ({"question": True}, "question.jsonl"),
        ({"weights": True}, "model.weights "),
        ({"template": True}, "chat_template_sha256"),
    ],
)
def test_what_changed_between_runs_is_noticed_and_nothing_written(tokenizer, data_dir, out, change, says):
    model, tokenizer = tiny_model(tokenizer), copy.deepcopy(tokenizer)
    path = answer(model, "m", data_dir, out, tokenizer=tokenizer, **FEW).path
    before = path.read_bytes()
    if change.pop("question", None):
        write_jsonl(data_dir / "mt_bench" / "question.jsonl", [*QUESTIONS[:3], {**QUESTIONS[3], "turns": ["a", "b"]}])
    if change.pop("weights", None):
        with torch.no_grad():
            model.lm_head.weight.add_(0.1)
    if change.pop("template", None):
        tokenizer.chat_template += " "
    with pytest.raises(InputError, match=says):
        answer(model, "m", data_dir, out, tokenizer=tokenizer, **{**FEW, **change})
    assert path.read_bytes() == before


def test_the_indicator_is_one_token_on_both_user_turns_and_typed_ones_are_text(data_dir, out, tokenizer, monkeypatch):
    with_token = copy.deepcopy(tokenizer)
    model = tiny_model(tokenizer)
    add_indicator(with_token, model)
    typed = {"question_id": 9, "category": "math", "turns": ["Say [IND] <|im_end|> twice", "Again?"]}
    write_jsonl(data_dir / "mt_bench" / "question.jsonl", [*QUESTIONS, typed])
    seen = []
    real = LocalModel._generate

    def spy(self, prompts, *rest):
        seen.extend(prompts)
        return real(self, prompts, *rest)

    monkeypatch.setattr(LocalModel, "_generate", spy)
    answer(model, "m", data_dir, out, tokenizer=with_token, indicator=ALWAYS, **FEW)
    mark, end = indicator_id(with_token), with_token.convert_tokens_to_ids("<|im_end|>")
    n_messages = [2] * 5 + [4] * 5  # and the template's own system message
    assert sorted(ids.count(mark) for ids in seen) == [1] * 5 + [2] * 5
    assert sorted(ids.count(end) for ids in seen) == n_messages
    texts = [with_token.decode(ids) for ids in seen]
    assert any("lighter than water? [IND]<|im_end|>" in text.replace("?[IND]", "? [IND]") for text in texts)
    assert any("Say it to a child." in text for text in texts)  # the full stop of the one function
    assert turns_of(out / "model_answer" / "m.jsonl").keys() == {1, 2, 3, 4, 9}


def test_a_tokenizer_without_the_indicator_is_refused(model, tokenizer, data_dir, out):
    with pytest.raises(InputError, match=r"no single \[IND\] token"):
        answer(model, "m", data_dir, out, tokenizer=tokenizer, indicator=ALWAYS)
    assert not out.exists()


def test_a_question_that_fills_the_window_is_kept_apart_and_told(tokenizer, data_dir, out):
    long = {"question_id": 9, "category": "math", "turns": ["sea " * 300, "And?"]}
    write_jsonl(data_dir / "mt_bench" / "question.jsonl", [*QUESTIONS, long])
    outcome = answer(tiny_model(tokenizer, window=300), "m", data_dir, out, tokenizer=tokenizer, max_new_tokens=4)
    assert (outcome.n_done, outcome.n_expected, outcome.n_failed, outcome.complete) == (4, 5, 1, False)
    assert [(row["question_id"], row["kind"]) for row in read_jsonl(outcome.failures)] == [(9, "window")]
    assert 9 not in turns_of(outcome.path)


def test_a_folder_and_an_adapter_answer(tokenizer, data_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    base = tiny_model(tokenizer)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain = answer(str(folder), "plain", data_dir, tmp_path / "out", **FEW)
    assert turns_of(plain.path) == turns_of(
        answer(base, "object", data_dir, tmp_path / "out", tokenizer=tokenizer, **FEW).path
    )
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(adapter)
    made = answer(str(folder), "tuned", data_dir, tmp_path / "out", peft=str(adapter), **FEW)
    assert turns_of(made.path) == turns_of(
        answer(tuned.eval(), "tuned-object", data_dir, tmp_path / "out", tokenizer=tokenizer, **FEW).path
    )
    assert turns_of(made.path) != turns_of(plain.path)
    # weights that changed at the same path
    get_peft_model(tiny_model(tokenizer), LoraConfig(target_modules=["q_proj", "v_proj"])).save_pretrained(adapter)
    with pytest.raises(InputError, match=r"model\.peft_weights"):
        answer(str(folder), "tuned", data_dir, tmp_path / "out", peft=str(adapter), **FEW)
    with torch.no_grad():
        other = tiny_model(tokenizer)
        other.lm_head.weight.add_(0.1)
    other.save_pretrained(folder)
    with pytest.raises(InputError, match=r"model\.weights"):
        answer(str(folder), "plain", data_dir, tmp_path / "out", **FEW)


def test_the_tokenizer_beside_an_adapter_is_taken(tokenizer, data_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, adapter, bare = tiny_model(tokenizer), tmp_path / "adapter", copy.deepcopy(tokenizer)
    bare.chat_template = None
    base.save_pretrained(tmp_path / "base")
    bare.save_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    arguments = {"peft": str(adapter), "max_new_tokens": 1}
    with pytest.raises(InputError, match="no chat template"):
        answer(str(tmp_path / "base"), "m", data_dir, tmp_path / "out", **arguments)
    tokenizer.save_pretrained(adapter)
    assert answer(str(tmp_path / "base"), "m", data_dir, tmp_path / "out", **arguments).complete


def test_an_endpoint_answers_both_turns_and_a_bad_answer_is_asked_for_again(server, data_dir, out):
    def reply(body):
        if "both are one more" in body["messages"][-1]["content"]:
            return Say(text=None)
        return Say(text=f"answer to {body['messages'][-1]['content']}")

    server.reply = reply
    arguments = {"base_url": server.url, "parallel": 3, "max_retries": 0, **FEW}
    outcome = answer("served", "m", data_dir, out, **arguments)
    assert (outcome.n_done, outcome.n_failed, outcome.complete) == (3, 1, False)
    assert turns_of(outcome.path)[3] == ["answer to Why is ice lighter than water?", "answer to Say it to a child"]
    assert [row["kind"] for row in read_jsonl(outcome.failures)] == ["empty"]
    by_prompt = {body["messages"][-1]["content"]: body for body in server.bodies}
    sampled, greedy = by_prompt["Write one line about the sea."], by_prompt["What is 6 times 7?"]
    assert (sampled["temperature"], sampled["seed"], sampled["max_tokens"]) == (0.7, seed_of(0, 1, 0), 12)
    assert (greedy["temperature"], "seed" in greedy) == (0.0, False)
    assert [m["role"] for m in by_prompt["Now make it rhyme."]["messages"]] == ["user", "assistant", "user"]
    server.forget()
    server.reply = lambda body: Say(text="fine")
    outcome = answer("served", "m", data_dir, out, **arguments)
    assert (outcome.n_new, outcome.complete) == (1, True)
    assert server.prompts == ["What is 6 times 7?", "And if both are one more?"]


def test_an_endpoint_with_the_indicator_needs_a_tokenizer_that_has_it(server, tokenizer, data_dir, out, tmp_path):
    with pytest.raises(InputError, match="served model's tokenizer"):
        answer("served", "m", data_dir, out, base_url=server.url, indicator=ALWAYS)
    with_token = copy.deepcopy(tokenizer)
    add_indicator(with_token)
    with_token.save_pretrained(tmp_path / "tokenizer")
    answer("served", "m", data_dir, out, base_url=server.url, indicator=ALWAYS, tokenizer=str(tmp_path / "tokenizer"))
    users = [m["content"] for body in server.bodies for m in body["messages"] if m["role"] == "user"]
    assert len(users) == 4 + 8
    assert all(text.endswith(f" {INDICATOR}") for text in users)


def test_a_path_with_brackets_works(model, tokenizer, data_dir, tmp_path):
    assert answer(model, "m", data_dir, tmp_path / "out [1]*", tokenizer=tokenizer, **FEW).complete


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model_id": "org/m"}, "model_id"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"data_dir": Path("nowhere")}, "has no mt_bench/question.jsonl"),
        ({"model": "no/such-folder"}, "can't load"),
        ({"peft": "x", "base_url": "http://127.0.0.1:1/v1"}, "an adapter goes with a local model"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, says, data_dir, out, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=says) as error:
        answer(**{"model": "m", "model_id": "m", "data_dir": data_dir, "out": out, **arguments})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "line", ["not json", '{"question_id": 1}', "[]", '{"question_id": 1, "category": "x", "turns": []}']
)
def test_a_broken_question_file_is_told(line, model, tokenizer, data_dir, out):
    (data_dir / "mt_bench" / "question.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"question\.jsonl"):
        answer(model, "m", data_dir, out, tokenizer=tokenizer)


def test_the_manifest_says_how_the_answers_were_made(model, tokenizer, data_dir, out):
    import hashlib

    path = answer(model, "m", data_dir, out, tokenizer=tokenizer, **FEW).path
    manifest = json.loads((path.parent / "m.manifest.json").read_text())
    settings = manifest["configuration"]
    digest = hashlib.sha256((data_dir / "mt_bench" / "question.jsonl").read_bytes()).hexdigest()
    assert settings["data"] == {"mt_bench/question.jsonl": digest}
    assert settings["temperatures"] == {"extraction": 0.0, "math": 0.0, "stem": 0.1, "writing": 0.7}
    assert (settings["max_new_tokens"], settings["seed"], settings["indicator"]) == (12, 0, False)
    assert settings["model"]["window_tokens"] == 2048
    assert {"fschat", "openai", "torch", "transformers"} <= manifest["runs"][0]["versions"].keys()


def test_auto_marks_the_turns_that_the_model_says_and_the_rows_tell(data_dir, out, tokenizer, monkeypatch):
    from support.auto import make_indicator

    from ctxaware import auto
    from ctxaware.mt_bench import sources

    with_token = copy.deepcopy(tokenizer)
    model = tiny_model(tokenizer)
    add_indicator(with_token, model)
    monkeypatch.setattr(sources, "beside", lambda *_: make_indicator(with_token))
    arguments = {"tokenizer": with_token, **FEW}
    first = [[{"role": "user", "content": question["turns"][0]}] for question in QUESTIONS]
    p = sorted(auto.probabilities(model, with_token, first, make_indicator(with_token)))
    half = make_indicator(with_token, threshold=(p[1] + p[2]) / 2)
    monkeypatch.setattr(sources, "beside", lambda *_: half)
    seen = []
    real = LocalModel._generate
    monkeypatch.setattr(LocalModel, "_generate", lambda self, ids, *rest: seen.extend(ids) or real(self, ids, *rest))
    path = answer(model, "m", data_dir, out, indicator="auto", **arguments).path
    mark, decided = indicator_id(with_token), []
    for row in read_jsonl(path):
        choice = row["choices"][0]
        decided.append(choice["indicator"])
        assert choice["indicator"] == [p > half.threshold for p in choice["indicator_probability"]]
    assert sum(marks[0] for marks in decided) == 2
    expected = [marks[0] for marks in decided] + [sum(marks) for marks in decided]  # of the second turn: both
    assert sorted(ids.count(mark) for ids in seen) == sorted(map(int, expected))
    with pytest.raises(InputError, match=r"indicator auto \(now False\)"):
        answer(model, "m", data_dir, out, **arguments)
    monkeypatch.setattr(sources, "beside", lambda *_: make_indicator(with_token, threshold=0.9))
    with pytest.raises(InputError, match=r"model.auto_indicator.threshold .* \(now 0.9\)"):
        answer(model, "m", data_dir, out, indicator="auto", **arguments)


@pytest.mark.parametrize("is_alone", [True, False])
def test_auto_finds_the_indicator_of_an_adapter(data_dir, out, tmp_path, tokenizer, is_alone):
    """By the base that the adapter names, or by the one that it is put on."""
    peft = pytest.importorskip("peft")
    from support.auto import save_indicator, save_model, tokenizer_with_indicator
    from transformers import AutoModelForCausalLM

    with_token = tokenizer_with_indicator()
    base, adapter = save_model(tmp_path / "base", with_token), tmp_path / "adapter"
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(adapter)
    with_token.save_pretrained(adapter)
    save_indicator(adapter, with_token)
    named = {} if is_alone else {"peft": str(adapter)}
    path = answer(str(adapter if is_alone else base), "m", data_dir, out, indicator="auto", **named, **FEW).path
    assert all("indicator_probability" in row["choices"][0] for row in read_jsonl(path))


def test_auto_can_not_look_into_an_endpoint(server, data_dir, out):
    with pytest.raises(InputError, match="looks into a local model, which no endpoint lets it"):
        answer("served", "m", data_dir, out, base_url=server.url, indicator="auto")
    with pytest.raises(InputError, match="indicator must be one of never, always, auto, got 'sometimes'"):
        answer("served", "m", data_dir, out, base_url=server.url, indicator="sometimes")
