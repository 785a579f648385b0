"""What is read of a prompt: the plain formula's odds, the model's own hidden states; and what is decided by it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support import tiny
from support.auto import (
    PROMPTS,
    full_logits,
    make_indicator,
    model_for,
    random_probe,
    save_indicator,
    save_model,
    tokenizer_with_indicator,
)

from ctxaware import auto, load_auto_indicator, with_indicator
from ctxaware.auto.fork import fork_messages, make_fork
from ctxaware.auto.indicator import FILE, WEIGHTS, read_log_odds, read_states
from ctxaware.auto.methods import Slot
from ctxaware.errors import InputError
from ctxaware.indicator.marking import append_indicator, mark_messages
from ctxaware.indicator.token import indicator_id
from ctxaware.models import load_adapter, load_model, load_tokenizer

ARCHITECTURES = [
    "llama, grouped heads",
    "mistral, sliding window",
    "qwen2",
    "gemma3, sliding",
    "gpt2, learnt positions",
]
TOKENIZERS = {
    "byte level": lambda: tokenizer_with_indicator("byte_level"),
    "sentencepiece": lambda: tokenizer_with_indicator("sentencepiece_like"),
    "no token between": lambda: tokenizer_with_indicator("byte_level", chat_template=tiny.NO_CLOSING_ASSISTANT),
}


def rendered(tokenizer, messages, is_marked):
    """Text of a prompt, by the template alone."""
    messages = [{**m, "content": m["content"].replace("[IND]", "[ IND]")} for m in messages]
    if is_marked:
        messages[-1] = {**messages[-1], "content": append_indicator(messages[-1]["content"])}
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def plain_formula(model, tokenizer, messages):
    """log p(marked continuation) - log p(plain continuation), from full forwards of both renderings."""
    texts = [rendered(tokenizer, messages, is_marked) for is_marked in (False, True)]
    plain, marked = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    start = next(i for i, (a, b) in enumerate(zip(plain, marked, strict=False)) if a != b)
    n_marked = len(marked) - marked[::-1].index(indicator_id(tokenizer))
    # the plain continuation ends with the first token that reaches beyond the message
    end = texts[0].rindex(messages[-1]["content"].replace("[IND]", "[ IND]")) + len(
        messages[-1]["content"].replace("[IND]", "[ IND]")
    )
    offsets = tokenizer(texts[0], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    n_plain = next(i for i, (_, stop) in enumerate(offsets) if stop > end) + 1
    log_p = [torch.log_softmax(full_logits(model, ids), dim=-1) for ids in (plain, marked)]
    of_plain = sum(log_p[0][i - 1, plain[i]] for i in range(start, n_plain))
    return float(sum(log_p[1][i - 1, marked[i]] for i in range(start, n_marked)) - of_plain)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_slot_s_odds_are_those_of_full_forwards_of_both_renderings(name):
    tokenizer = TOKENIZERS["byte level"]()
    model = model_for(tokenizer, name)
    forks = [fork_messages(tokenizer, messages) for messages in PROMPTS]
    expected = [plain_formula(model, tokenizer, messages) for messages in PROMPTS]
    assert read_log_odds(model, Slot(), forks) == pytest.approx(expected, abs=1e-3)
    indicator = make_indicator(tokenizer)
    p = auto.probability(model, tokenizer, PROMPTS[1], indicator)
    assert p == pytest.approx(1 / (1 + np.exp(-expected[1])), abs=1e-4)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_slot_s_odds_with_other_tokenizers_and_templates(kind):
    tokenizer = TOKENIZERS[kind]()
    model = model_for(tokenizer)
    expected = [plain_formula(model, tokenizer, messages) for messages in PROMPTS]
    found = read_log_odds(model, Slot(), [fork_messages(tokenizer, messages) for messages in PROMPTS])
    assert found == pytest.approx(expected, abs=1e-3)
    assert len(set(np.round(expected, 3))) == len(PROMPTS)


def test_a_message_whose_last_token_takes_the_full_stop_in_is_compared_whole():
    """Marked: a, b., [IND]; plain: a, b, end. They part before b, so b counts on both sides."""
    a, b, b_stop, mark, end, answer = range(10, 16)
    fork = make_fork([a, b, end, answer], [a, b_stop, mark, end, answer], mark)
    (marked, plain) = Slot().heads(fork)
    assert (marked.prompt.input_ids, marked.marked, marked.plain) == ((a, b_stop), (b_stop, mark), ())
    assert (plain.prompt.input_ids, plain.marked, plain.plain) == ((a, b), (), (b, end))
    counted = []
    model = model_for(TOKENIZERS["byte level"]())
    read_log_odds(model, Slot(), [fork, fork, fork], lambda n_prompts, n_tokens=0: counted.append(n_prompts))
    assert sum(counted) == pytest.approx(3), "a prompt is counted once, however many of its beginnings are read"
    joined = make_fork([a, b, answer], [a, mark, end, answer], mark)  # the message's end is joined to what follows
    assert [(head.marked, head.plain) for head in Slot().heads(joined)] == [((mark,), (b,))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_probe_looks_at_the_model_s_own_hidden_states(name):
    tokenizer = TOKENIZERS["byte level"]()
    model = model_for(tokenizer, name)
    forks = [fork_messages(tokenizer, messages) for messages in PROMPTS]
    states = read_states(model, (2, 0), forks)  # [n_prompts, 2, hidden_size]
    for fork, of_prompt in zip(forks, states, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([fork.plain]), output_hidden_states=True).hidden_states
        expected = torch.stack([hidden[layer_idx + 1][0, -1] for layer_idx in (2, 0)])
        torch.testing.assert_close(torch.from_numpy(of_prompt), expected, atol=1e-4, rtol=1e-4)
    probe = random_probe((2, 0))
    expected = states.reshape(len(forks), -1) @ probe.weights + probe.bias
    assert read_log_odds(model, probe, forks) == pytest.approx(expected.tolist(), abs=1e-3)


def test_messages_come_back_marked_where_the_probability_is_above_the_threshold():
    tokenizer = TOKENIZERS["byte level"]()
    model = model_for(tokenizer)
    indicator = make_indicator(tokenizer)
    p = auto.probabilities(model, tokenizer, PROMPTS, indicator)
    assert p == pytest.approx([auto.probability(model, tokenizer, each, indicator) for each in PROMPTS], abs=1e-5)
    for messages, each in zip(PROMPTS, p, strict=True):
        n_turns = sum(m["role"] == "user" for m in messages)
        for shift, is_marked in ((-1e-3, True), (1e-3, False)):
            decided = with_indicator(model, tokenizer, messages, indicator.with_threshold(min(1, max(0, each + shift))))
            assert decided.messages == mark_messages(messages, [False] * (n_turns - 1) + [is_marked])
            assert (decided.is_marked, decided.probability) == (is_marked, pytest.approx(each, abs=1e-5))


def test_a_conversation_goes_on_with_the_marks_that_it_has():
    tokenizer = TOKENIZERS["byte level"]()
    model, indicator = model_for(tokenizer), make_indicator(tokenizer)
    first = with_indicator(model, tokenizer, PROMPTS[0], indicator.with_threshold(0))
    assert first.messages[0]["content"].endswith("? [IND]")
    messages = [*first.messages, {"role": "assistant", "content": "The keeper."}, {"role": "user", "content": "Why"}]
    second = with_indicator(model, tokenizer, messages, indicator.with_threshold(0))
    assert second.messages == [*messages[:2], {"role": "user", "content": "Why. [IND]"}]
    plain = [*PROMPTS[0], *messages[1:]]
    assert second.probability != auto.probability(model, tokenizer, plain, indicator)


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", TOKENIZERS["byte level"]())


@pytest.mark.parametrize("method", [None, random_probe((1, 3))], ids=["slot", "probe"])
def test_what_is_saved_beside_a_model_is_found_again(folder, method):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    save_indicator(folder, tokenizer, method=method, threshold=0.25)
    loaded = load_auto_indicator(str(folder))
    assert (loaded.threshold, loaded.beta, loaded.method.name) == (0.25, 0.6, "probe" if method else "slot")
    assert loaded.method.layers == ((1, 3) if method else ())
    expected = auto.probabilities(model, tokenizer, PROMPTS, make_indicator(tokenizer, method=method))
    assert auto.probabilities(model, tokenizer, PROMPTS) == pytest.approx(expected, abs=1e-6)
    assert (folder / WEIGHTS).exists() == bool(method)
    assert not list(folder.glob("*.pkl")) + list(folder.glob("*.joblib"))


def change(folder, **fields):
    import json

    value = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**value, **fields}))


def test_a_file_of_other_weights_or_a_damaged_one_is_one_line(folder, tmp_path):
    tokenizer = TOKENIZERS["byte level"]()
    with pytest.raises(InputError, match=r"has no auto_indicator.json; make it with ctxaware auto fit"):
        load_auto_indicator(str(folder))
    save_indicator(folder, tokenizer, method=random_probe((1,)))
    other = save_model(tmp_path / "other", tokenizer, "qwen2")
    for name in (FILE, WEIGHTS):
        (other / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="is of other weights"):
        load_auto_indicator(str(other))
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1] + bytes([255 - whole[-1]]))
    with pytest.raises(InputError, match=r"is damaged .*is not the one it was written with"):
        load_auto_indicator(str(folder))
    (folder / WEIGHTS).write_bytes(whole)
    for fields in ({"calibration": {"kind": "isotonic", "log_odds": [1, 0], "probability": [0, 1]}}, {"method": "x"}):
        change(folder, **fields)
        with pytest.raises(InputError, match="is damaged"):
            load_auto_indicator(str(folder))
    (folder / FILE).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_auto_indicator(str(folder))


@pytest.mark.parametrize(("low", "said"), [(0.4, True), (0.5, True), (0.6, False), (None, False)])
def test_one_that_tells_nothing_apart_is_said_to(folder, caplog, low, said):
    save_indicator(folder, TOKENIZERS["byte level"]())
    change(folder, fitted={} if low is None else {"held_out": {"auroc_interval": [low, 0.9]}})
    load_auto_indicator(str(folder))
    assert ("does not tell prompts that need their context from others" in caplog.text) == said


def test_prompts_and_tokenizers_that_can_not_be_decided_are_one_line_each():
    tokenizer = TOKENIZERS["byte level"]()
    model, indicator = model_for(tokenizer), make_indicator(tokenizer)
    user, system, assistant = ({"role": role, "content": "Well"} for role in ("user", "system", "assistant"))
    for messages, reason in [
        ([user, assistant], "got messages that end in assistant"),
        ([], "got messages that end in nothing"),
        ([system, system, user], "expected at most one system message, got 2"),
    ]:
        with pytest.raises(InputError, match=reason):
            auto.probability(model, tokenizer, messages, indicator)
    with pytest.raises(InputError, match="fitted with another chat template"):
        auto.probability(model, tokenizer_with_indicator("sentencepiece_like"), [user], indicator)
    with pytest.raises(InputError, match=r"has no single \[IND\] token"):
        auto.probability(model, tiny.byte_level_tokenizer(), [user], indicator)
    with pytest.raises(InputError, match=r"no auto_indicator.json beside this model"):
        auto.probability(model, tokenizer, [user])
    with pytest.raises(InputError, match="indicator_threshold must be in 0–1"):
        indicator.with_threshold(1.5)
    with pytest.raises(InputError, match="the probe has 32 weights and this model shows 64"):
        auto.probability(model, tokenizer, [user], make_indicator(tokenizer, method=random_probe((0, 1), 16)))


def test_a_probe_needs_no_indicator_in_the_tokenizer_to_see_but_to_mark():
    tokenizer = tiny.byte_level_tokenizer()
    model, indicator = model_for(tokenizer), make_indicator(tokenizer, method=random_probe((1,)))
    assert 0 < auto.probability(model, tokenizer, PROMPTS[0], indicator.with_threshold(1)) < 1
    with pytest.raises(InputError, match=r"has no single \[IND\] token"):
        with_indicator(model, tokenizer, PROMPTS[0], indicator.with_threshold(0))


def decided(model, tokenizer):
    return auto.probability(model, tokenizer, PROMPTS[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_memory_has_to_be_the_one_of_the_files(tmp_path, dtype, tied):
    tokenizer = tokenizer_with_indicator()
    folder = tmp_path / "model"
    model = model_for(tokenizer)
    model.config.tie_word_embeddings = tied
    type(model)(model.config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_indicator(folder, tokenizer)
    tokenizer = load_tokenizer(str(folder))
    own = load_model(str(folder), None, dtype, "cpu")
    assert 0 <= decided(own, tokenizer) <= 1
    assert 0 <= decided(own.float(), tokenizer) <= 1
    model.config.num_hidden_layers -= 1
    for other in (model, type(model)(model.config)):  # of other weights, and of fewer layers
        with pytest.raises(InputError, match=r"is not that of .*model, .* has other weights, as ") as refused:
            decided(other.eval(), tokenizer)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_s_indicator_belongs_to_base_and_adapter_together(tmp_path, dtype):
    peft = pytest.importorskip("peft")
    tokenizer = tokenizer_with_indicator()
    base, folder = save_model(tmp_path / "base", tokenizer), str(tmp_path / "adapter")
    settings = peft.LoraConfig(
        target_modules=["q_proj"],
        init_lora_weights=False,
        trainable_token_indices={"embed_tokens": [indicator_id(tokenizer)]},
    )
    peft.get_peft_model(load_model(str(base), None, "float32", "cpu"), settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_indicator(tmp_path / "adapter", tokenizer)
    tokenizer = load_tokenizer(folder)
    bare = load_model(str(base), None, dtype, "cpu")
    with pytest.raises(InputError, match="it is without its adapter"):
        decided(bare, tokenizer)
    assert 0 <= decided(load_model(folder, None, dtype, "cpu"), tokenizer) <= 1
    other = peft.get_peft_model(load_model(str(base), None, dtype, "cpu"), settings)
    with pytest.raises(InputError, match="the adapter on it is another one"):
        decided(other.eval(), tokenizer)
    merged = other.merge_and_unload().eval()
    merged.name_or_path = ""
    with pytest.raises(InputError, match="another adapter is merged into it"):
        decided(merged, tokenizer)
    own = load_adapter(load_model(str(base), None, dtype, "cpu"), folder).merge_and_unload().eval()
    assert 0 <= decided(own, tokenizer) <= 1
    assert 0 <= decided(load_adapter(bare, folder), tokenizer) <= 1
    elsewhere = model_for(tokenizer)
    with torch.no_grad():
        for weight in elsewhere.parameters():
            weight += 0.1
    with pytest.raises(InputError, match="it has other weights"):
        decided(load_adapter(elsewhere, folder), tokenizer)


def test_the_package_is_there_after_a_plain_import():
    code = "import ctxaware, sys; print('torch' in sys.modules, callable(ctxaware.auto.probability))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "True"]
