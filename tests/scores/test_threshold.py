"""Thresholds, shares, marks, and how layers agree."""

import numpy as np
import pytest

from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages
from ctxaware.scores.layers import disagreement
from ctxaware.scores.threshold import above_threshold, describe_extreme, select_turns, top_percent

SCORES = [0.2, 0.6, None, 0.7, 0.95, 0.7]


def test_above_a_threshold_is_strictly_above_and_never_without_a_score():
    assert above_threshold(SCORES, 0.6).tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(("percent", "selected"), [(20, [4]), (40, [3, 4]), (60, [3, 4, 5]), (100, [0, 1, 3, 4, 5])])
def test_top_percent_is_of_the_scored_turns_and_exact_in_ties(percent, selected):
    assert np.flatnonzero(top_percent(SCORES, percent)).tolist() == selected


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan")])
def test_a_share_out_of_range_is_refused(percent):
    with pytest.raises(InputError, match="top percent must be"):
        top_percent(SCORES, percent)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 17, float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_selects_all_or_nothing_is_refused(threshold):
    with pytest.raises(InputError, match="threshold must be in 0–1, as scores are"):
        select_turns(SCORES, threshold=threshold)


def test_a_selection_of_nothing_or_of_everything_is_said():
    scores = np.array([0.2, np.nan, 0.4])
    assert describe_extreme(scores, np.array([True, False, False])) == ""
    assert describe_extreme(scores, np.array([False, False, False])) == (
        "no instruction is selected of 2 that have a score; scores reach from 0.200 to 0.400, their median is 0.300"
    )
    assert describe_extreme(scores, np.array([True, False, True])).startswith("every instruction that has a score")
    assert describe_extreme(np.array([np.nan]), np.array([False])).startswith("none of 1 instructions has a score")


def test_exactly_one_of_threshold_and_share():
    assert select_turns(SCORES, threshold=0.9).sum() == 1
    assert select_turns(SCORES, percent=20).sum() == 1
    for wrong in ({}, {"threshold": 0.6, "percent": 10}):
        with pytest.raises(InputError, match="either"):
            select_turns(SCORES, **wrong)


def test_marks_stand_on_the_selected_instructions_and_typed_ones_are_text():
    messages = [
        {"role": "system", "content": "Use [IND]"},
        {"role": "user", "content": "What is [IND]"},
        {"role": "assistant", "content": "[IND] is a mark."},
        {"role": "user", "content": "Thanks!"},
        {"role": "assistant", "content": "Yes"},
    ]
    marked = [m["content"] for m in mark_messages(messages, [False, True])]
    assert marked == ["Use [ IND]", "What is [ IND]", "[ IND] is a mark.", "Thanks! [IND]", "Yes"]
    assert mark_messages(messages, [True, False])[1]["content"] == "What is [ IND] [IND]"
    assert messages[1]["content"] == "What is [IND]", "the input is left as it was"
    with pytest.raises(InputError, match="expected 2 selections"):
        mark_messages(messages, [True])


def test_disagreement_is_the_share_that_the_other_layer_does_not_select():
    scores = np.array([[0.9, 0.8, 0.1, 0.0, np.nan], [0.9, 0.1, 0.8, 0.0, np.nan], [0.0, 0.1, 0.8, 0.9, np.nan]])
    expected = [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]]
    np.testing.assert_allclose(disagreement(scores, 50), expected)
    with pytest.raises(InputError, match="top 1% of 5 turns is none"):
        disagreement(scores, 1)
