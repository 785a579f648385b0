import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxaware.errors import InputError
from ctxaware.mt_bench.rows import answer_key, failure_key, judgment_key
from ctxaware.mt_bench.store import read_keyed

ROWS = {
    answer_key: {"question_id": 1, "choices": [{"index": 0, "turns": ["a", "b"], "finish_reasons": ["stop", None]}]},
    judgment_key: {
        **{"question_id": "q", "model": "m", "judge": ["j", "single-v1"], "turn": 1, "score": 7, "flags": []},
        **{"user_prompt": "u", "judgment": "[[7]]"},
    },
    failure_key: {"question_id": 1, "model": "m", "turn": 2, "kind": "timeout"},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("key", ROWS)
def test_a_row_of_ours_has_a_key(key):
    assert hash(key(ROWS[key])) is not None


@pytest.mark.parametrize("key", ROWS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_row_with_anything_in_any_place_has_a_key_or_a_reason(key, data):
    row = dict(ROWS[key])
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    reason = None
    try:
        assert hash(key(row)) is not None
    except ValueError as error:
        reason = str(error)
    assert reason is None or reason.startswith("its ")


@pytest.mark.parametrize("key", ROWS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_file_that_is_cut_or_flipped_anywhere_is_read_or_refused_in_one_line(tmp_path_factory, key, data):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    content = bytearray(2 * (json.dumps(ROWS[key]).encode() + b"\n"))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(at, len(content)))])
    refusal = ""
    try:
        read_keyed(path, key, last_counts=True)
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
