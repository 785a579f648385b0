import json

import datasets
import pytest
from support.shared_data import SHARED, needs_samples

from ctxaware.errors import InputError
from ctxaware.harness.metrics import contains_any, contains_substring
from ctxaware.harness.prompts import ULTRACHAT
from ctxaware.harness.reading import DATASETS, load_reading, prompt_template


@pytest.mark.parametrize(("name", "at_least", "passages"), [("squad", 60, 20), ("quac", 20, 20), ("drop", 40, 10)])
def test_builtin_samples_are_large_enough_and_answerable(name, at_least, passages):
    docs = load_reading(name, "builtin")
    assert len(docs) >= at_least
    assert len({d["context"] for d in docs}) >= passages
    assert len({d["id"] for d in docs}) == len(docs)
    for doc in docs:
        assert doc["answers"]
        assert all(answer.strip() for answer in doc["answers"])
        if name != "drop":  # DROP's numbers are counted, not quoted
            assert contains_any(doc["context"], doc["answers"], contains_substring)


def test_builtin_drop_has_numbers_dates_single_and_several_spans():
    answers = [d["answers"] for d in load_reading("drop", "builtin")]
    assert sum(len(a) > 1 for a in answers) >= 5
    assert sum(len(a) == 1 and a[0].replace(".", "").isdigit() for a in answers) >= 10
    assert any(a[0].split()[-1].isdigit() and len(a[0].split()) == 3 for a in answers)


def test_questions_called_impossible_are_left_out(tmp_path):
    qas = [
        {"id": "yes", "question": "Q?", "answers": [{"text": "a"}], "is_impossible": False},
        {"id": "no", "question": "Q?", "answers": [{"text": "a"}], "is_impossible": True},
        {"id": "empty", "question": "Q?", "answers": []},
    ]
    (tmp_path / "v2.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "a b", "qas": qas}]}]}))
    assert [doc["id"] for doc in load_reading("squad", str(tmp_path / "v2.json"))] == ["yes"]


@needs_samples
def test_real_squad_release_keeps_answerable_questions_only():
    path = SHARED / "squad_v2_dev_sample.json"
    release = json.loads(path.read_text())
    qas = [qa for a in release["data"] for p in a["paragraphs"] for qa in p["qas"]]
    docs = load_reading("squad", str(path))
    assert 0 < len(docs) == sum(not qa["is_impossible"] for qa in qas) < len(qas)
    by_id = {qa["id"]: qa for qa in qas}
    assert all(set(d["answers"]) == {a["text"] for a in by_id[d["id"]]["answers"]} for d in docs)


@needs_samples
def test_real_quac_release_of_the_early_form():
    path = SHARED / "quac_v0.2_sample.json"
    docs = load_reading("quac", str(path))
    dialogs = [(a["title"], d) for a in json.loads(path.read_text())["data"] for d in a["paragraphs"]]
    assert len(docs) == len(dialogs)
    for doc, (title, dialog) in zip(docs, dialogs, strict=True):
        first = dialog["qas"][0]
        assert doc["question"] == first["question"]
        assert doc["context"] == f"Title: {title}\n{dialog['context'].removesuffix('CANNOTANSWER').rstrip()}"
        assert set(doc["answers"]) == {a["text"] for a in first["answers"]}


@needs_samples
def test_real_drop_release_with_and_without_validated_answers():
    path = SHARED / "drop_dev_sample.json"
    docs = load_reading("drop", str(path))
    qas = [qa for p in json.loads(path.read_text()).values() for qa in p["qa_pairs"]]
    assert [d["id"] for d in docs] == [qa["query_id"] for qa in qas]
    for doc, qa in zip(docs, qas, strict=True):
        answer = qa["answer"]
        date = [answer["date"].get(p) for p in ("day", "month", "year") if answer.get("date", {}).get(p)]
        assert doc["answers"] == (answer["spans"] or ([answer["number"]] if answer["number"] else [" ".join(date)]))


QUAC_PASSAGE = "Title: Ann\nA singer. She sang."
HUB_ROWS = {
    "squad": [{"id": "1", "title": "T", "context": "C.", "question": "Q?", "answers": {"text": ["x", "x", "y"]}}],
    "quac": [
        {
            "dialogue_id": "1",
            "wikipedia_page_title": "Ann",
            "background": "A singer.",
            "context": "She sang. CANNOTANSWER",
            "questions": ["Q?", "R?"],
            "answers": {"texts": [["x", "y"], ["z"]], "answer_starts": [[0, 1], [2]]},
        }
    ],
    "drop": [
        {
            "query_id": "1",
            "passage": "C.",
            "question": "Q?",
            "answer": {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["x", "y"]},
        }
    ],
}


@pytest.mark.parametrize("name", DATASETS)
def test_hub_rows_are_read_and_asked_for_by_name_and_reference(monkeypatch, name):
    asked = {}

    def load_dataset(path, config, split, revision):
        asked.update(path=path, name=config, split=split, revision=revision)
        return HUB_ROWS[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (doc,) = load_reading(name)
    assert doc["answers"] == ["x", "y"]
    assert doc["question"] == "Q?"
    assert doc["context"] == (QUAC_PASSAGE if name == "quac" else "C.")
    assert {k: v for k, v in asked.items() if v is not None} == DATASETS[name].hub
    load_reading(name, data_revision="some-tag")
    assert asked["revision"] == "some-tag"


def test_other_hub_forms():
    quac = DATASETS["quac"].from_hub
    from ctxaware.harness.reading import Node

    row = HUB_ROWS["quac"][0] | {"answers": [{"texts": ["x"]}, {"texts": ["z"]}], "background": None}
    assert quac(Node(row, "row"))["answers"] == ["x"]
    drop = {"query_id": "1", "passage": "C.", "question": "Q?", "answers_spans": {"spans": ["5"], "types": ["number"]}}
    assert DATASETS["drop"].from_hub(Node(drop, "row"))["answers"] == ["5"]
    numbered = HUB_ROWS["drop"][0] | {"answer": {"number": "7", "date": None, "spans": []}}
    assert DATASETS["drop"].from_hub(Node(numbered, "row"))["answers"] == ["7"]


def test_hub_rows_in_a_jsonl_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in HUB_ROWS["squad"] * 2))
    assert len(load_reading("squad", str(path))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"title": "x", "parag', "not whole JSON: it breaks at line 1, column"),
        ("", "is empty"),
        ('{"other": 1}', r"not in the form of SQuAD.*x\.json: expected an object with 'data', got keys \['other'\]"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}',
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: expected.*'answers'",
        ),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": ["x"]}]}]}', r"qas\[0\]: expected an object"),
        (
            '{"data": [{"paragraphs": [{"context": "", "qas": [{"id": 1, "answers": [], "question": ""}]}]}]}',
            "no answerable",
        ),
        ('{"data": 3}', r"x\.json\.data: expected a list, got 3"),
        ('{"data": []}', "no answerable question"),
        (
            '{"data": [{"paragraphs": [{"context": 3, "qas": [{"id": 1, "question": "", "answers": []}]}]}]}',
            "expected text",
        ),
    ],
)
def test_a_bad_release_file_says_what_is_wrong_and_where(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_reading("squad", str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_hub_name_the_other_ways():
    with pytest.raises(InputError, match="pass hub, builtin, or the path of DROP"):
        load_reading("drop", "/no/such/file.json")
    with pytest.raises(InputError, match=r"source=builtin.*source=/path"):
        load_reading("squad")


def test_prompts_are_the_papers_to_the_character():
    fill = {"context": "C.", "question": "Q?"}
    passage = "C.\nAnswer the question according to the above passage: Q?"
    assert prompt_template("squad", "default").format(**fill) == passage
    assert prompt_template("drop", "default").format(**fill) == passage
    assert (
        prompt_template("quac", "default").format(**fill)
        == "C.\nAnswer the question with pieces from the the above passage: Q?"
    )
    for name in DATASETS:
        assert prompt_template(name, "ultrachat") == ULTRACHAT == "{context} {question}"
    with pytest.raises(InputError, match="default or ultrachat, got 'chat'"):
        prompt_template("squad", "chat")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('"5"', "expected an object with spans, number or date, got '5'"),
        ('{"spans": "Paris"}', "spans: expected a list, got 'Paris'"),
        ('{"date": "1999"}', "date: expected an object"),
        ('{"spans": [], "number": "", "date": {}}', "no answerable question"),
    ],
)
def test_a_bad_drop_answer_says_where(tmp_path, answer, message):
    path = tmp_path / "drop.json"
    path.write_text(
        f'{{"p": {{"passage": "C.", "qa_pairs": [{{"query_id": "1", "question": "Q?", "answer": {answer}}}]}}}}'
    )
    with pytest.raises(InputError, match=message):
        load_reading("drop", str(path))


def test_texts_with_odd_line_ends_stay_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = HUB_ROWS["squad"][0] | {"context": "One\u2028two\u0085three."}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert load_reading("squad", str(path))[0]["context"] == row["context"]


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"data": "caf\xe9"}')
    with pytest.raises(InputError, match="not UTF-8 at byte 13"):
        load_reading("squad", str(tmp_path / "x.json"))
