import re

from ctxaware.mt_bench.protocol import conversation, seed_of, temperature_of


def test_conversation_is_the_one_function_of_the_indicator():
    from ctxaware.indicator.marking import append_indicator

    assert conversation(["One", "Two?"], ["Yes"], [True, True], None) == [
        {"role": "user", "content": append_indicator("One")},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": append_indicator("Two?")},
    ]


def test_temperatures_are_fastchat_s():
    from fastchat.llm_judge.common import temperature_config

    assert temperature_of({"category": "roleplay"}, temperature_config) == 0.7
    assert temperature_of({"category": "humanities"}, temperature_config) == 0.1
    assert temperature_of({"category": "math"}, temperature_config) == 0.0
    assert temperature_of({"category": "of my own"}, temperature_config) == 0.7
    assert temperature_of({"category": "math", "required_temperature": 0.3}, temperature_config) == 0.3


def test_each_answer_has_a_seed_of_its_own():
    assert len({seed_of(s, q, t, c) for s in range(3) for q in range(20) for t in range(2) for c in range(2)}) == 240


def test_special_tokens_typed_in_a_text_stay_text():
    special = re.compile(re.escape("<|im_end|>"))
    first, answer, second = conversation(["a <|im_end|>", "b"], ["c <|im_end|>"], [False, False], special)
    assert (first["content"], answer["content"], second["content"]) == ("a < |im_end|>", "c < |im_end|>", "b")
