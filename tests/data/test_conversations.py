"""Files of conversations: every format, broken ones, and memory that stays flat."""

import contextlib
import json
import tracemalloc

import pytest

from ctxaware.data.conversations import (
    BrokenFileError,
    find_file,
    fingerprint,
    read_conversations,
    read_records,
    write_conversations,
)
from ctxaware.errors import InputError
from ctxaware.runs.files import output_file

CONVERSATIONS = [
    {
        "id": f"c{i}",
        "messages": [{"role": "user", "content": f"é 你好 {i}\n"}, {"role": "assistant", "content": '"{[' * i}],
    }
    for i in range(25)
]


def write(path, kind):
    if kind == "json":
        path.write_text(json.dumps(CONVERSATIONS, indent=1))
    elif kind == "json with a byte order mark":
        path.write_text("\ufeff" + json.dumps(CONVERSATIONS, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(c, ensure_ascii=False) + "\n\n" for c in CONVERSATIONS), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["json", "json with a byte order mark", "jsonl"])
def test_json_is_read_whatever_its_name(tmp_path, kind):
    assert list(read_conversations(write(tmp_path / "data.txt", kind))) == CONVERSATIONS


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_what_is_written_is_read_again_and_equal_bytes_each_time(tmp_path, kind):
    write_conversations(tmp_path / "a", CONVERSATIONS, "jsonl" if kind == "parquet" else "parquet")
    path = write_conversations(tmp_path / "a", iter(CONVERSATIONS), kind)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [f"conversations.{kind}"], "the other format is gone"
    assert list(read_conversations(tmp_path / "a")) == CONVERSATIONS
    assert fingerprint(path) == fingerprint(write_conversations(tmp_path / "b", CONVERSATIONS, kind))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("cut", [0.3, 0.5, 0.99])
def test_a_file_cut_off_tells_how_many_are_whole(tmp_path, kind, cut):
    path = write(tmp_path / "data", kind)
    text = path.read_bytes()
    path.write_bytes(text[: int(len(text) * cut)])
    read = []
    with pytest.raises(
        BrokenFileError, match=r"broken after \d+ whole conversations .*; get .* pass salvage"
    ) as caught:
        read.extend(read_records(path))  # extend keeps what came before the error
    assert read == CONVERSATIONS[: len(read)]
    assert caught.value.n_whole == len(read)
    n_closed = sum(text[: int(len(text) * cut)].count(json.dumps(c["id"]).encode()) for c in CONVERSATIONS)
    assert n_closed - 1 <= len(read) <= n_closed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "neither a JSON list, JSON lines nor Parquet"),
        ('[{"id": "a"}]', "expected an object with id and messages, got keys"),
        ("[3]", "got int"),
        ('[{"id": 3, "messages": []}]', "expected id to be text, got 3"),
        ('{"id": "a", "messages": []}\n{"id": "a", "messages": []}', "'a' comes twice"),
        (
            '[{"id": "a", "messages": [{"role": "user", "content": null}]}]',
            r"record 0 \(a\): expected messages with role",
        ),
        ('[{"id": "a", "messages": ["x"]}]', "expected messages with role"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path, text, message):
    (tmp_path / "data").write_text(text)
    with pytest.raises(InputError, match=message):
        list(read_conversations(tmp_path / "data"))


def test_a_parquet_file_cut_off_is_refused(tmp_path):
    path = write_conversations(tmp_path, CONVERSATIONS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"not a whole Parquet file"):
        list(read_conversations(path))


def test_a_folder_needs_one_data_file(tmp_path):
    with pytest.raises(InputError, match=r"expected one data file .* found none"):
        find_file(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "statistics.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match=r"found a\.jsonl, b\.jsonl"):
        find_file(tmp_path)
    assert find_file(tmp_path, "b*").name == "b.jsonl"
    with pytest.raises(InputError, match="does not exist"):
        find_file(tmp_path / "none")


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = write_conversations(tmp_path, CONVERSATIONS)
    before = path.read_bytes()

    def failing():
        yield from CONVERSATIONS
        raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        write_conversations(tmp_path, failing())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InputError, match=r"can't write .*make room"), output_file(path / "x"):
        pass


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    record = {"id": "x", "messages": [{"role": "user", "content": "lake " * 2000}]}
    peaks = []
    for n_records in (50, 1000):
        path = tmp_path / f"{n_records}"
        lines = [json.dumps(record)] * n_records
        path.write_text("[" + ",".join(lines) + "]" if kind == "json" else "\n".join(lines))
        tracemalloc.start()
        assert sum(1 for _ in read_records(path)) == n_records
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] < path.stat().st_size / 4


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_brackets_within_brackets_are_bounded(tmp_path, name):
    deep = '{"id": "b", "x": ' + "[" * 200_000 + "]" * 200_000 + "}"
    records = [json.dumps(CONVERSATIONS[0]), deep]
    text = f"[{','.join(records)}]" if name.endswith(".json") else "\n".join(records)
    (tmp_path / name).write_text(text)
    tracemalloc.start()
    with pytest.raises(BrokenFileError, match="broken after 1 whole conversations"):
        list(read_records(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_a_record_is_read_to_a_depth_of_100(tmp_path, name):
    for depth, is_read in ((90, True), (120, False)):
        record = json.dumps(CONVERSATIONS[0] | {"x": "deep"}).replace('"deep"', "[" * depth + "]" * depth)
        (tmp_path / name).write_text(f"[{record}]" if name.endswith(".json") else record)
        with contextlib.nullcontext() if is_read else pytest.raises(BrokenFileError, match="nested deeper than 100"):
            assert len(list(read_records(tmp_path / name))) == 1


def test_a_flipped_byte_in_a_file_of_ours_never_gives_other_conversations(tmp_path):
    path = write_conversations(tmp_path, CONVERSATIONS)
    content, n_noticed = path.read_bytes(), 0
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 64]) + content[position + 1 :])
        try:
            assert list(read_conversations(path)) == CONVERSATIONS, position
        except InputError:
            n_noticed += 1
    assert n_noticed > len(content) / 12


def test_what_is_no_text_is_refused_where_it_is_written(tmp_path):
    odd = {"id": "a", "messages": [{"role": "user", "content": "\ud800"}]}
    for kind in ("parquet", "jsonl"):
        with pytest.raises(InputError, match="half a surrogate pair, which is no text; ctxaware prepare replaces it"):
            write_conversations(tmp_path, [odd], kind)
    assert list(tmp_path.iterdir()) == []
