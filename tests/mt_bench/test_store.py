import json
import subprocess
import sys

import pytest

from ctxaware.errors import InputError
from ctxaware.mt_bench.store import (
    Layout,
    RowLog,
    append_failure,
    check_model_id,
    manifest_path,
    match_manifest,
    read_rows,
    write_json,
)


def by_id(row):
    return (row["id"],)


def test_a_file_cut_at_any_byte_keeps_its_whole_rows_and_takes_the_missing_ones_again(tmp_path):
    rows = [{"id": i, "text": "naïve\n" * i} for i in range(3)]
    whole = tmp_path / "whole.jsonl"
    with RowLog(whole, by_id) as log:
        for row in rows:
            log.append(row)
    content = whole.read_bytes()
    for n_bytes in range(len(content) + 1):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:n_bytes])
        with RowLog(torn, by_id) as log:
            assert len(log.rows) == content[:n_bytes].count(b"\n")
            for row in rows:
                if by_id(row) not in log.rows:
                    log.append(row)
        assert torn.read_bytes() == content


def test_a_row_is_on_the_disk_when_append_returns(tmp_path):
    with RowLog(tmp_path / "rows.jsonl", by_id) as log:
        log.append({"id": 1})
        assert read_rows(tmp_path / "rows.jsonl") == [{"id": 1}]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it_and_changes_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\nnot json\n{"id": 2}\n')
    with pytest.raises(InputError, match="line 2"), RowLog(path, by_id):
        pass
    assert path.read_text() == '{"id": 1}\nnot json\n{"id": 2}\n'


def test_the_same_key_twice_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{"id": 1}\n')
    with pytest.raises(InputError, match="two rows"), RowLog(path, by_id):
        pass


def test_a_second_process_is_refused_while_the_first_writes(tmp_path):
    code = (
        "import sys; from ctxaware.mt_bench.store import RowLog\n"
        "try:\n    RowLog(__import__('pathlib').Path(sys.argv[1]), lambda r: r).__enter__()\n"
        "except ValueError as error:\n    print(error)"
    )
    path = tmp_path / "rows.jsonl"
    with RowLog(path, by_id):
        result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "another process is writing" in result.stdout


def test_failures_are_kept_also_after_a_torn_line(tmp_path):
    path = tmp_path / "failures" / "x.jsonl"
    append_failure(path, {"id": 1})
    path.write_bytes(path.read_bytes() + b'{"id": 2, "te')
    append_failure(path, {"id": 3})
    assert path.read_bytes().splitlines() == [b'{"id": 1}', b'{"id": 2, "te', b'{"id": 3}']


def test_json_is_written_beside_and_moved(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}


@pytest.mark.parametrize("bad", ["a/b", "../a", "a[1]", "", ".hidden", "a b", "a*", "a\\b"])
def test_a_model_id_that_is_no_plain_name_is_refused_with_one_that_is(bad):
    with pytest.raises(InputError, match="--model-id"):
        check_model_id(bad)


def test_a_judge_with_a_slash_gets_a_file_of_its_own(tmp_path):
    layout = Layout(tmp_path)
    assert layout.judgments("org/judge-70b").name == "org__judge-70b_single.jsonl"
    assert layout.judgments("gpt-4").name == "gpt-4_single.jsonl"


def test_a_manifest_names_the_setting_that_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json(manifest_path(path), match_manifest(path, {"a": {"b": 1}, "answers": {"m.1": "x"}}, has_rows=False))
    with pytest.raises(InputError, match=r"a\.b = 1, now it is 2"):
        match_manifest(path, {"a": {"b": 2}, "answers": {"m.1": "x"}}, has_rows=True)
    with pytest.raises(InputError, match=r"answers\.m\.1"):
        match_manifest(path, {"a": {"b": 1}, "answers": {"m.1": "y"}}, has_rows=True)
    with pytest.raises(InputError, match=r"c = None, now it is 3"):
        match_manifest(path, {"a": {"b": 1}, "c": 3, "answers": {"m.1": "x"}}, has_rows=True)


def test_a_manifest_takes_another_model_and_keeps_the_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json(manifest_path(path), match_manifest(path, {"answers": {"m": "x"}}, has_rows=False))
    assert match_manifest(path, {"answers": {"n": "y"}}, has_rows=True)["settings"] == {"answers": {"m": "x", "n": "y"}}


def test_settings_may_change_while_there_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json(manifest_path(path), match_manifest(path, {"a": 1}, has_rows=False))
    assert match_manifest(path, {"a": 2}, has_rows=False)["settings"] == {"a": 2}


def test_rows_without_a_manifest_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no rows\.manifest\.json"):
        match_manifest(tmp_path / "rows.jsonl", {}, has_rows=True)
