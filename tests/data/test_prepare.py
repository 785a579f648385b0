"""prepare, on each data set as it is really released."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.chats import CHATML, make_tokenizer
from support.shared_data import SHARED, needs_samples

from ctxaware.data.conversations import read_conversations
from ctxaware.data.prepare import PrepareRun, prepare_dataset
from ctxaware.errors import InputError

SHAREGPT = [
    {"id": "a_0", "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
    {
        "id": "a_1",
        "conversations": [
            {"from": "gpt", "value": "…"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ],
    },
    {"id": "a_1", "conversations": [{"from": "human", "value": "Why?"}, {"from": "bing", "value": "So."}]},
    {"id": "b", "conversations": []},
]
REAL = SHARED / "sharegpt_sample.json"


def test_sharegpt_json_with_statistics(tmp_path):
    source = tmp_path / "sg.json"
    source.write_text(json.dumps(SHAREGPT))
    make_tokenizer(CHATML).save_pretrained(tmp_path / "tokenizer")
    told = prepare_dataset(PrepareRun(str(source), "sharegpt", tmp_path / "out", tokenizer=str(tmp_path / "tokenizer")))
    conversations = list(read_conversations(tmp_path / "out"))
    assert [c["id"] for c in conversations] == ["a_0", "a_1", "a_1#2"]
    assert json.loads((tmp_path / "out" / "statistics.json").read_text()) == told
    assert (told["records"], told["conversations"], told["instructions"]) == (4, 3, 3)
    counted = {k: n for k, n in told["removed_or_repaired"].items() if n}
    assert counted == {"leading_assistant_turns": 1, "ids_made_unique": 1, "empty_conversations": 1}
    tokenizer = make_tokenizer(CHATML)
    n_tokens = [len(tokenizer.apply_chat_template(c["messages"], return_dict=True)["input_ids"]) for c in conversations]
    assert told["mean_tokens"] == sum(n_tokens) / 3


def test_ultrachat_parquet_in_the_folder_of_its_release(tmp_path):
    for split in ("train_sft", "test_sft", "train_gen"):
        messages = [
            [{"content": f"q {split} {i}", "role": "user"}, {"content": "a", "role": "assistant"}] for i in range(3)
        ]
        table = pa.table({"prompt": ["q"] * 3, "prompt_id": list("xyz"), "messages": messages})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001-f7dfac4afe5b93f4.parquet")
    told = prepare_dataset(PrepareRun(str(tmp_path), "ultrachat", tmp_path / "out", kind="jsonl"))
    assert told["conversations"] == 3
    first = json.loads((tmp_path / "out" / "conversations.jsonl").read_text().splitlines()[0])
    assert first["id"] == "x"
    assert first["messages"][0] == {"role": "user", "content": "q train_sft 0"}


def test_wizardlm_json(tmp_path):
    records = [{"instruction": "Sort", "output": "Sorted."}, {"instruction": "x", "output": "I cannot provide that."}]
    (tmp_path / "alpaca_evol_instruct_70k.json").write_text(json.dumps(records))
    told = prepare_dataset(PrepareRun(str(tmp_path), "wizardlm", tmp_path / "out"))
    assert told["conversations"] == 1
    assert told["removed_or_repaired"]["refusals"] == 1


def test_a_file_cut_off_is_refused_or_salvaged(tmp_path):
    source = tmp_path / "sg.json"
    text = json.dumps(SHAREGPT)
    source.write_text(text[: text.index('"b"') + 2])
    with pytest.raises(InputError, match="broken after 3 whole conversations"):
        prepare_dataset(PrepareRun(str(source), "sharegpt", tmp_path / "out"))
    assert [f.name for f in (tmp_path / "out").iterdir()] == []
    told = prepare_dataset(PrepareRun(str(source), "sharegpt", tmp_path / "out", salvage=True))
    assert (told["conversations"], told["broken_after"]) == (3, 3)


def test_the_hub_is_asked_by_name_and_revision(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, name, split, revision):
        asked.append((path, split, revision))
        return datasets.Dataset.from_list(
            [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    prepare_dataset(PrepareRun("hub", "ultrachat", tmp_path / "a", revision="abc"))
    prepare_dataset(PrepareRun("me/mine", "messages", tmp_path / "b"))
    assert asked == [("HuggingFaceH4/ultrachat_200k", "train_sft", "abc"), ("me/mine", "train", None)]


@pytest.mark.parametrize(
    ("source", "dataset", "message"),
    [
        ("missing.json", "sharegpt", "missing.json does not exist; expected a file, a folder, a hub name"),
        ("hub", "messages", "has no hub name of its own"),
        ("hub", "sharegtp", "dataset must be one of sharegpt, ultrachat, wizardlm, messages, got 'sharegtp'"),
        ("nobody/nothing-here", "messages", "can't load nobody/nothing-here .* pass the path of a downloaded file"),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path, source, dataset, message):
    with pytest.raises(InputError, match=message):
        prepare_dataset(PrepareRun(source, dataset, tmp_path / "out"))


def test_nothing_left_is_an_error_and_leaves_no_file(tmp_path):
    (tmp_path / "empty.json").write_text(json.dumps(SHAREGPT[3:]))
    with pytest.raises(InputError, match="no conversation is left of the 1 records"):
        prepare_dataset(PrepareRun(str(tmp_path / "empty.json"), "sharegpt", tmp_path / "out"))
    assert [f.name for f in (tmp_path / "out").iterdir()] == []


@needs_samples
def test_the_real_sample(tmp_path):
    told = prepare_dataset(PrepareRun(str(REAL), "sharegpt", tmp_path / "out"))
    assert (told["records"], told["conversations"]) == (400, 391)
    assert told["removed_or_repaired"]["leading_assistant_turns"] == 139
    for conversation in read_conversations(tmp_path / "out"):
        assert [m["role"] for m in conversation["messages"]][:2] == ["user", "assistant"]


@pytest.mark.parametrize(
    "through", ["the folder", "the file", "a link to the folder", "a link to the file", "a hard link"]
)
def test_a_folder_is_not_prepared_onto_itself(tmp_path, through):
    folder, link = tmp_path / "data", tmp_path / "link"
    folder.mkdir()
    source = folder / "conversations.jsonl"
    content = json.dumps(
        {"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    )
    source.write_text(content)
    out, given = folder, {"the folder": folder, "the file": source}.get(through, link)
    if through == "a link to the folder":
        link.symlink_to(folder)
    elif through == "a link to the file":
        link.with_suffix(".jsonl").symlink_to(source)
        given = link.with_suffix(".jsonl")
    elif through == "a hard link":
        given = tmp_path / "hard.jsonl"
        os.link(source, given)
    with pytest.raises(InputError, match=r"writing to .*data would overwrite .*, which is read; choose another output"):
        prepare_dataset(PrepareRun(str(given), "messages", out))
    assert source.read_text() == content
    assert [path.name for path in folder.iterdir()] == ["conversations.jsonl"]
    assert prepare_dataset(PrepareRun(str(given), "messages", tmp_path / "out"))["conversations"] == 1
