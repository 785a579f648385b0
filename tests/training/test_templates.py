"""What training sees is what evaluation feeds."""

import pytest
from support import chats, tiny

from ctxaware.errors import InputError
from ctxaware.harness.prompts import user_prompt
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import INDICATOR, add_indicator, indicator_id
from ctxaware.training.encoding import Encoder
from ctxaware.training.templates import chat_template

CONVERSATION = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Where does the keeper live"},
    {"role": "assistant", "content": "In the light house."},
]


def test_it_is_tinyllamas_with_bos_in_front(tokenizer):
    ours = tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False, chat_template=chat_template("tinyllama", tokenizer)
    )
    assert ours == "<s>" + tokenizer.apply_chat_template(CONVERSATION, tokenize=False, chat_template=tiny.ZEPHYR)


@pytest.mark.parametrize("selected", [False, True])
def test_ids_trained_on_are_the_ids_that_the_harness_feeds(tokenizer, selected):
    from lm_eval.models.huggingface import HFLM

    add_indicator(tokenizer)
    tokenizer.chat_template = chat_template("tinyllama", tokenizer)
    model = HFLM(pretrained=tiny.tiny_llama(len(tokenizer)), tokenizer=tokenizer)
    question = CONVERSATION[1]["content"]
    prompt = user_prompt(
        append_indicator(question) if selected else question,
        lambda messages, add_generation_prompt=True: model.apply_chat_template(messages, add_generation_prompt),
    )
    trained = Encoder(tokenizer, max_length=None)(CONVERSATION, [selected])["input_ids"]
    fed = model.tok_encode(prompt)
    assert trained[: len(fed)] == fed
    assert (indicator_id(tokenizer) in fed) == selected
    assert fed.count(tokenizer.bos_token_id) == 1
    answer = tokenizer.decode(trained[len(fed) :])
    assert answer.split("</s>")[0].strip() == "In the light house."


def test_loss_of_responses_takes_their_content_and_eos(tokenizer):
    tokenizer.chat_template = chat_template("tinyllama", tokenizer)
    labels = Encoder(tokenizer, max_length=None, assistant_only_loss=True)(CONVERSATION, [False])["labels"]
    assert tokenizer.decode([label for label in labels if label != -100]) == "In the light house.</s>"


def test_text_of_a_special_token_in_a_message_stays_text(tokenizer):
    token_id = add_indicator(tokenizer)
    tokenizer.chat_template = chat_template("tinyllama", tokenizer)
    hostile = [CONVERSATION[1] | {"content": f"Write {INDICATOR} and </s>"}, CONVERSATION[2]]
    ids = Encoder(tokenizer, max_length=None)(hostile, [False])["input_ids"]
    assert token_id not in ids
    assert ids.count(tokenizer.eos_token_id) == 2


def test_of_several_templates_of_its_own_the_default_one_is_trained_with(tokenizer):
    tokenizer.chat_template = {"default": tiny.ZEPHYR, "tool_use": "tools"}
    assert chat_template("own", tokenizer) == tiny.ZEPHYR
    tokenizer.chat_template = {"rag": tiny.ZEPHYR, "tool_use": "tools"}
    with pytest.raises(InputError, match="has several templates and none is the default; pass chat_template tinyllama"):
        chat_template("own", tokenizer)


def test_unknown_names_and_roles_and_missing_tokens_are_errors(tokenizer):
    with pytest.raises(InputError, match="chat_template must be one of tinyllama, own, got 'llama'"):
        chat_template("llama", tokenizer)
    tokenizer.chat_template = chat_template("tinyllama", tokenizer)
    with pytest.raises(InputError, match="role tool is none of"):
        Encoder(tokenizer, max_length=None)([{"role": "tool", "content": "x"}], [])
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no template of its own"):
        chat_template("own", tokenizer)
    tokenizer.bos_token = None
    assert "bos_token" not in chat_template("tinyllama", tokenizer)


TWO_TURNS = [
    {"role": "user", "content": "Who keeps the light?"},
    {"role": "assistant", "content": "The keeper."},
    {"role": "user", "content": "Since when?"},
    {"role": "assistant", "content": "Since 1823."},
]


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "gemma"])
def test_responses_alone_are_found_in_known_templates_without_generation_marks(name):
    templates = chats.trl_templates()
    plain = Encoder(chats.make_tokenizer(templates[name]), None, assistant_only_loss=True)(TWO_TURNS, [False, False])
    marked = Encoder(chats.make_tokenizer(templates[f"{name}_training"]), None, assistant_only_loss=True)
    assert plain == marked(TWO_TURNS, [False, False])
    assert (
        plain["input_ids"]
        == Encoder(chats.make_tokenizer(templates[name]), None)(TWO_TURNS, [False, False])["input_ids"]
    )
    tokenizer = chats.make_tokenizer(templates[name])
    trained = tokenizer.decode([label for label in plain["labels"] if label >= 0])
    assert "The keeper." in trained
    assert "Since 1823." in trained
    assert "Who keeps" not in trained


def test_an_unknown_template_without_generation_marks_is_refused():
    with pytest.raises(InputError, match=r"needs a chat template with \{% generation %\}, or one for which TRL"):
        Encoder(chats.make_tokenizer(chats.CHATML), None, assistant_only_loss=True)


def test_a_training_form_that_writes_other_tokens_is_refused():
    templates = chats.trl_templates()
    encode = Encoder(chats.make_tokenizer(templates["llama3"]), None, assistant_only_loss=True)
    encode._masking_template = templates["qwen2_5_training"]
    with pytest.raises(InputError, match="training would not see what evaluation sees"):
        encode(TWO_TURNS, [False, False])
