import json
import logging
import re

import pytest
from support import tiny

from ctxaware.errors import InputError
from ctxaware.harness.grid import GridBuilder, _warn_once, build_grid, grid_context_lengths, grid_depths
from ctxaware.harness.haystack import load_haystack
from ctxaware.harness.needles import NEEDLES, load_needle
from ctxaware.harness.prompts import PROMPT_TEMPLATES

SF = NEEDLES["sf"]


@pytest.fixture(scope="module")
def haystack():
    return load_haystack("builtin")


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["sf", "pizza"])
def test_every_cell_has_exactly_the_tokens_it_says(tokenizer, haystack, name):
    lengths, depths = grid_context_lengths(200, 1600, 7, 200), grid_depths(9)
    docs = list(build_grid(tokenizer, haystack, NEEDLES[name], lengths, depths))
    assert [(d["context_length"], d["depth_percent"]) for d in docs] == [(x, y) for x in lengths for y in depths]
    for doc in docs:
        assert count(tokenizer, doc["context"]) == doc["context_length"]
        assert doc["context"].count(NEEDLES[name].needle) == 1


@pytest.mark.parametrize(
    "haystack",
    ["One. Two 3.5 more. " * 200, "no full stop " * 300, "é—“ß”. 漢字。 x.\n\nNew. " * 150, "漢字が続く。" * 300],
)
def test_odd_haystacks_have_true_counts_too(tokenizer, haystack):
    docs = list(build_grid(tokenizer, haystack, SF, [100, 333, 600], [0, 10, 50, 99, 100]))
    assert {count(tokenizer, d["context"]) - d["context_length"] for d in docs} == {0}
    wanted = [100] * 5 + [333] * 5 + [600] * 5
    assert all(0 <= w - d["context_length"] <= 2 for d, w in zip(docs, wanted, strict=True))


def test_the_needle_goes_in_after_the_last_full_stop_at_or_before_its_depth(tokenizer, haystack):
    builder = GridBuilder(tokenizer, haystack, SF, 800)
    for depth in (10, 37.5, 60, 95):
        context = builder.cell(800, depth)["context"]
        before, after = context.split(f" {SF.needle}")
        assert before.endswith(".")
        assert (before + after) == haystack[: len(before + after)]  # the haystack is otherwise untouched
        position = count(tokenizer, before) / (800 - count(tokenizer, " " + SF.needle)) * 100
        assert position <= depth + 0.5
        next_stop = re.search(r"\.(?=\s|$)", after).end()
        assert count(tokenizer, before + after[:next_stop]) / 800 * 100 > depth - 4  # no later full stop would do


def test_a_decimal_point_is_no_full_stop(tokenizer):
    context = GridBuilder(tokenizer, "It began here. Then 3.5 and 4.5 and 5.5 " * 50, SF, 200).cell(200, 45)["context"]
    assert context.split(f" {SF.needle}")[0].endswith("here.")


def test_the_ends_open_and_close_the_text(tokenizer, haystack):
    builder = GridBuilder(tokenizer, haystack, SF, 300)
    assert builder.cell(300, 0)["context"].startswith(f"{SF.needle} {haystack[:20]}")
    assert builder.cell(300, 100)["context"].endswith(f" {SF.needle}")


def test_a_short_haystack_is_repeated_and_says_so_once(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="lm_eval.ctxaware"):
        _warn_once.cache_clear()
        docs = list(build_grid(tokenizer, "A short text. It ends.", SF, [200, 500], [0, 50, 100]))
    assert [count(tokenizer, d["context"]) for d in docs] == [200] * 3 + [500] * 3
    assert sum("repeated" in r.message for r in caplog.records) == 1


def test_grid_positions_are_uniform():
    assert grid_context_lengths(200, 4000, 20, 200)[:2] + grid_context_lengths(200, 4000, 20, 200)[-1:] == [
        200,
        389,
        3800,
    ]
    assert len(grid_context_lengths(200, 4000, 20, 200)) == len(grid_depths(20)) == 20
    assert grid_depths(5) == [0, 25, 50, 75, 100]
    assert grid_context_lengths(200, 4000, 1, 200) == [3800]
    assert grid_depths(1) == [50]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_context_lengths(200, 4000, 0, 200), "zero cells"),
        (lambda: grid_depths(0), "zero cells"),
        (lambda: grid_context_lengths(200, 300, 5, 200), "max_context_length 300 less reserve 200"),
        (lambda: load_needle("mars"), "neither sf nor pizza"),
        (lambda: GridBuilder(tiny.byte_level_tokenizer(), " \n", SF, 100), "holds no text"),
        (
            lambda: GridBuilder(tiny.byte_level_tokenizer(), "Some text.", SF, 99).cell(99, 101),
            "must be in 0-100, got 101",
        ),
        (lambda: GridBuilder(tiny.byte_level_tokenizer(), "Some text.", SF, 99).cell(9, 0), "can't hold the needle"),
    ],
)
def test_bad_grids_are_one_line_errors(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_needle_of_ones_own(tmp_path, suffix):
    path = tmp_path / f"needle{suffix}"
    path.write_text(
        json.dumps({"needle": "The code is 7-alpha.", "question": "What is the code?", "keywords": [7, "ALPHA"]})
    )
    assert load_needle(str(path)).keywords == ("7", "ALPHA")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"needle": "The code is red.", "question": "?", "keywords": ["blue"]}, r"\['blue'\] do not occur"),
        ({"needle": "The code is red.", "question": "?", "keywords": []}, "must not be empty"),
        ({"needle": "The code is red!", "question": "?", "keywords": ["!"]}, "do not occur as words"),
        ({"needle": "The code is red."}, "expected needle, question and keywords"),
        (["a list"], "expected needle, question and keywords"),
        ({"needle": "The code is red.", "question": "?", "keywords": ["red"], "prefix": "a"}, "unknown: prefix"),
    ],
)
def test_a_bad_needle_file_is_an_error(tmp_path, content, message):
    path = tmp_path / "needle.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_needle(str(path))


def test_the_response_prefix_gives_nothing_away():
    assert SF.response_prefix == "The best thing to do in San Francisco is"
    for needle in NEEDLES.values():
        assert not set(needle.response_prefix.lower().split()) & set(needle.keywords)
    assert sorted(PROMPT_TEMPLATES) == [1, 2, 3, 4]
