import json
import subprocess
import sys

import pytest

from ctxaware.errors import InputError
from ctxaware.mt_bench.store import (
    Layout,
    append_row,
    check_model_id,
    claimed_rows,
    manifest_path,
    read_keyed,
    read_rows,
)


def by_id(row):
    return (row["id"],)


def test_a_file_cut_at_any_byte_keeps_its_whole_rows_and_takes_the_missing_ones_again(tmp_path):
    rows = [{"id": i, "text": "naïve\n" * i} for i in range(3)]
    path = tmp_path / "rows.jsonl"
    with claimed_rows(path, by_id, {"a": 1}) as log:
        for row in rows:
            log.append(row)
    content = path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for n_bytes in range(len(content) + 1):
        path.write_bytes(content[:n_bytes])
        with claimed_rows(path, by_id, {"a": 1}) as log:
            assert len(log.rows) == sum(n_bytes >= end for end in ends)  # also without its newline
            assert path.read_bytes() == content[:n_bytes]  # looked at, not touched
            for row in rows:
                if by_id(row) not in log.rows:
                    log.append(row)
        assert path.read_bytes().rstrip(b"\n") == content.rstrip(b"\n")


def test_a_row_is_on_the_disk_when_append_returns(tmp_path):
    path = tmp_path / "rows.jsonl"
    with claimed_rows(path, by_id, {}) as log:
        log.append({"id": 1})
        assert read_rows(path) == [{"id": 1}]


def test_zeros_that_a_power_cut_leaves_are_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 1}\n' + b"\0" * 100)
    assert read_rows(path) == [{"id": 1}]
    append_row(path, {"id": 2})
    assert path.read_bytes() == b'{"id": 1}\n{"id": 2}\n'


@pytest.mark.parametrize("content", ['{"id": 1}\nnot json\n{"id": 2}\n', '{"id": 1}\nnot json', '{"id": 1}\n[2]\n'])
def test_a_line_that_is_no_row_is_an_error_that_names_it_and_changes_nothing(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    with claimed_rows(path, by_id, {}):
        pass
    path.write_text(content)
    with pytest.raises(InputError, match="line 2"), claimed_rows(path, by_id, {}):
        pass
    assert path.read_text() == content


def test_the_same_key_twice_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "n": 1}\n{"id": 1, "n": 2}\n')
    with pytest.raises(InputError, match="two rows"):
        read_keyed(path, by_id)
    assert read_keyed(path, by_id, last_counts=True) == {(1,): {"id": 1, "n": 2}}


def test_a_second_process_is_refused_while_the_first_writes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ctxaware.mt_bench.store import claimed_rows\n"
        "try:\n    claimed_rows(Path(sys.argv[1]), lambda r: r, {}).__enter__()\n"
        "except ValueError as error:\n    print(error)"
    )
    path = tmp_path / "rows.jsonl"
    with claimed_rows(path, by_id, {}):
        result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "another process is writing" in result.stdout


@pytest.mark.parametrize("bad", ["a/b", "../a", "a[1]", "", ".hidden", "a b", "a*", "a\\b", "a" * 300])
def test_a_model_id_that_is_no_plain_name_is_refused_with_one_that_is(bad):
    with pytest.raises(InputError, match="model_id"):
        check_model_id(bad)


def test_a_judge_with_a_slash_gets_a_file_of_its_own(tmp_path):
    layout = Layout(tmp_path)
    assert layout.judgments("org/judge-70b").name == "org__judge-70b_single.jsonl"
    assert layout.judgments("gpt-4").name == "gpt-4_single.jsonl"


def configured(path, configuration):
    """The configuration that the manifest holds after a claim."""
    with claimed_rows(path, by_id, configuration, grows=("answers",)):
        return json.loads(manifest_path(path).read_text())["configuration"]


def test_a_manifest_names_the_setting_that_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    configured(path, {"a": {"b": 1}, "answers": {"m.1": "x"}})
    append_row(path, {"id": 1})
    for configuration, says in [
        ({"a": {"b": 2}, "answers": {"m.1": "x"}}, r"a\.b 1 \(now 2\)"),
        ({"a": {"b": 1}, "answers": {"m.1": "y"}}, r"answers\.m\.1"),
        ({"a": {"b": 1}, "c": 3, "answers": {"m.1": "x"}}, r"c None \(now 3\)"),
    ]:
        with pytest.raises(InputError, match=says):
            configured(path, configuration)


def test_a_manifest_takes_another_model_and_keeps_the_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    configured(path, {"answers": {"m": "x"}})
    append_row(path, {"id": 1})
    assert configured(path, {"answers": {"n": "y"}}) == {"answers": {"m": "x", "n": "y"}}


def test_settings_may_change_while_there_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    configured(path, {"a": 1})
    assert configured(path, {"a": 2}) == {"a": 2, "answers": {}}


def test_a_run_adds_itself_to_the_manifest(tmp_path):
    path = tmp_path / "rows.jsonl"
    for started in (1, 2):
        with claimed_rows(path, by_id, {"a": 1}) as log:
            log.note(questions=started)
            log.note_run(started=started)
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest == {"configuration": {"a": 1}, "questions": 2, "runs": [{"started": 1}, {"started": 2}]}
