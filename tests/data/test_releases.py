"""Cleaning: what goes, what stays, and that each is counted."""

from collections import Counter

import pytest

from ctxaware.data.cleaning import COUNTS, html_to_markdown, is_html, normalise
from ctxaware.data.refusals import is_refusal
from ctxaware.data.releases import clean
from ctxaware.errors import InputError

USER, REPLY = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}


def told(messages, **kwargs):
    counts = Counter()
    clean_messages = normalise(messages, counts, **kwargs)
    assert set(counts) <= set(COUNTS)
    return [(m["role"], m["content"]) for m in clean_messages], {k: n for k, n in counts.items() if n}


def test_a_sound_conversation_passes_unchanged():
    messages = [{"role": "system", "content": " Be brief.\n"}, USER, REPLY, USER, REPLY]
    assert normalise(messages, counts := Counter()) == messages
    assert not +counts


@pytest.mark.parametrize("role", ["human", "user"])
@pytest.mark.parametrize("reply", ["gpt", "chatgpt", "bing", "bard", "assistant", "GPT"])
def test_the_roles_of_sharegpt(role, reply):
    shown, counts = told(
        [{"from": "system", "value": "s"}, {"from": role, "value": "q"}, {"from": reply, "value": "a"}]
    )
    assert shown == [("system", "s"), ("user", "q"), ("assistant", "a")]
    assert not counts


@pytest.mark.parametrize(
    ("messages", "kept", "counted"),
    [
        ([REPLY, REPLY, USER, REPLY], 2, {"leading_assistant_turns": 2}),
        ([{"role": "system", "content": "s"}, REPLY, USER, REPLY], 3, {"leading_assistant_turns": 1}),
        ([USER, {"role": "tool", "content": "x"}, REPLY], 2, {"unknown_roles": 1}),
        ([USER, {"content": "x"}, REPLY], 2, {"unknown_roles": 1}),
        ([USER, "text", REPLY], 2, {"unknown_roles": 1}),
        (
            [USER, REPLY, USER, {"role": "assistant", "content": None}],
            2,
            {"null_messages": 1, "unanswered_instructions": 1},
        ),
        (
            [USER, REPLY, USER, {"role": "assistant", "content": 3}],
            2,
            {"null_messages": 1, "unanswered_instructions": 1},
        ),
        ([USER, REPLY, {"role": "user", "content": " \n"}, REPLY, USER, REPLY], 2, {"empty_messages": 1}),
        ([{"role": "system", "content": ""}, USER, REPLY], 2, {"empty_messages": 1}),
        ([USER, REPLY, USER, USER, REPLY], 2, {"out_of_order_roles": 1, "unanswered_instructions": 1}),
        ([USER, REPLY, REPLY, USER, REPLY], 2, {"out_of_order_roles": 1}),
        ([USER, REPLY, {"role": "system", "content": "s"}, USER, REPLY], 4, {"misplaced_system_messages": 1}),
        ([USER, REPLY, USER], 2, {"unanswered_instructions": 1}),
        ([USER, {"role": "assistant", "content": "half \ud83d"}], 2, {"invalid_characters": 1}),
        ([REPLY], 0, {"leading_assistant_turns": 1}),
        ([{"role": "system", "content": "s"}], 0, {}),
        ([], 0, {}),
        (None, 0, {}),
    ],
)
def test_each_repair_and_its_count(messages, kept, counted):
    shown, counts = told(messages)
    assert len(shown) == kept
    assert counts == counted
    assert all(text.encode() for _, text in shown)


REFUSING = (
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, but as an AI language model, I cannot provide medical advice.",
    "As an AI language model, I don't have personal opinions.",
    "As a language model, I do not have access to your files.",
    "As an AI, it is not appropriate for me to comment on that.",
    "I cannot provide that information.",
    "I can't help with that.",
    "Unfortunately, I am unable to browse the internet.",
    "I apologize, but I will not generate such content.",
    "Sorry, I cannot fulfill this request.",
    "I am unable to create images.",
    "It is not appropriate to provide instructions for that.",
    '"I\'m sorry, but I cannot write that."',
)
MENTIONING = (
    "The phrase 'As an AI language model, I cannot' is common in such data.",
    "He wrote: \"I'm sorry, but I can't help you.\" Then he left.",
    "I'm sorry to hear that. Here is what you can do: first, call the bank.",
    "I'm sorry, but the code has a mistake in line 3. Here is the corrected version.",
    "I apologize for the confusion. The answer is 5.",
    "I can't attend the party tonight.",
    "As an AI engineer, you will need to know statistics. You cannot skip it.",
    "As an aide to the senator, I do not have a vote.",
    "Sure! Dear John, unfortunately I can't provide the goods you ordered.",
    "Unfortunately, the lake is closed in winter.",
    "It is not possible to divide by zero.",
    "You cannot provide two arguments here.",
)


@pytest.mark.parametrize("response", REFUSING)
def test_a_refusal_goes(response):
    assert is_refusal(response)
    shown, counts = told([USER, {"role": "assistant", "content": response}, USER, REPLY], remove_refusals=True)
    assert len(shown) == 2
    assert counts == {"refusals": 1}


@pytest.mark.parametrize("response", MENTIONING)
def test_a_text_that_merely_mentions_one_stays(response):
    assert not is_refusal(response)


def test_refusals_stay_where_they_are_not_asked_to_go():
    assert len(told([USER, {"role": "assistant", "content": REFUSING[0]}])[0]) == 2


EXPORTED = (
    '<div class="markdown prose"><p>Use <code>a_b</code>:</p><pre><div class="bg-black"><div><span>python</span>'
    '<button>Copy code</button></div><div><code class="hljs">def f():\n    return a_b * 2 &lt; 3\n'
    "</code></div></div></pre>"
    "<ul><li>one</li><li>two</li></ul></div>"
)


def test_html_as_sharegpt_exported_it_becomes_markdown():
    markdown = html_to_markdown(EXPORTED)
    assert "```python\ndef f():\n    return a_b * 2 < 3\n```" in markdown
    assert "* one\n* two" in markdown
    assert "<" not in markdown.replace("2 < 3", "")
    assert "Copy code" not in markdown
    assert html_to_markdown("<p>2 / 3</p><p>Yes.</p>") == "Yes."


def test_only_exported_conversations_are_converted():
    shown, counts = told([USER, {"role": "assistant", "content": EXPORTED}])
    assert counts == {"html_cleaned": 1}
    assert shown[1][1] == html_to_markdown(EXPORTED)
    pasted = {"role": "user", "content": "<div>\n  <p>Why is this not centred?</p>\n</div>"}
    assert told([pasted, REPLY]) == ([("user", pasted["content"]), ("assistant", "Here.")], {})


@pytest.mark.parametrize(
    "markdown",
    [
        "Use `<div>`:\n```html\n<div>x</div>\n```",
        "1. Open <https://example.org/>\n2. Wait",
        "| a | b |\n|---|---|\n| x<br>y | z |",
        "```\n<p>code</p>\n```",
        "a_b and *c* with    spaces\n\n\n\nand `<b>` lines",
        "An `ArrayList<Person>` holds persons. <p>",
    ],
)
def test_markdown_that_shows_tags_stays_as_it_is(markdown):
    assert not is_html(markdown)
    assert told([USER, {"role": "assistant", "content": markdown}])[0][1][1] == markdown


def cleaned(records, dataset="messages"):
    counts = Counter()
    return list(clean(records, dataset, counts)), {k: n for k, n in counts.items() if n}


def test_duplicates_go_by_content_and_ids_stay_unique():
    other = [USER, {"role": "assistant", "content": "There."}]
    records = [
        {"id": i, "messages": m} for i, m in [("a", [USER, REPLY]), ("b", [USER, REPLY]), ("a", other), (None, [])]
    ]
    conversations, counts = cleaned(records)
    assert [c["id"] for c in conversations] == ["a", "a#2"]
    assert counts == {"duplicates": 1, "ids_made_unique": 1, "empty_conversations": 1}


def test_records_without_ids_are_named_by_their_place():
    records = [{"messages": [USER, {"role": "assistant", "content": text}]} for text in "xyz"]
    assert [c["id"] for c in cleaned(records)[0]] == ["messages-0", "messages-1", "messages-2"]
    assert cleaned([{**records[0], "prompt_id": "abc"}], "ultrachat")[0][0]["id"] == "abc"


def test_wizardlm_is_instruction_and_output():
    records = [{"instruction": "Sort", "input": "3 1", "output": "1 3"}, {"instruction": "Hack", "output": REFUSING[0]}]
    conversations, counts = cleaned(records, "wizardlm")
    assert conversations == [
        {
            "id": "wizardlm-0",
            "messages": [{"role": "user", "content": "Sort\n3 1"}, {"role": "assistant", "content": "1 3"}],
        }
    ]
    assert counts == {"refusals": 1, "empty_conversations": 1}


@pytest.mark.parametrize("dataset", ["sharegpt", "ultrachat", "messages", "wizardlm"])
def test_records_of_another_shape_are_refused(dataset):
    with pytest.raises(InputError, match=rf"expected records of {dataset} .*got \['question'\]; pass another dataset"):
        cleaned([{"question": "?"}], dataset)


def test_wizardlm_fields_that_are_no_text_and_half_surrogates_are_counted_or_replaced():
    odd = [{"instruction": ["Sort"], "output": "1"}, {"instruction": "Sort", "input": 3, "output": "1"}]
    good = {"id": "a\ud800", "instruction": "Sort \ud83d", "output": "1"}
    conversations, counts = cleaned([*odd, good], "wizardlm")
    assert [c["id"] for c in conversations] == ["a\ufffd"]
    assert conversations[0]["messages"][0]["content"] == "Sort \ufffd"
    assert counts == {"null_messages": 2, "empty_conversations": 2, "invalid_characters": 1}
