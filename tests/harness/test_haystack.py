import json
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest

from ctxaware.errors import InputError
from ctxaware.harness.haystack import ESSAYS, load_haystack
from ctxaware.harness.needles import NEEDLES
from ctxaware.harness.paths import CORPORA


def test_the_builtin_haystack_is_long_varied_and_free_of_the_needles():
    files = sorted((CORPORA / "haystack").glob("*.txt"))
    words = re.findall(r"[a-z']+", load_haystack("builtin").lower())
    assert len(files) == 12
    assert len(words) > 12_000
    assert not set(words) & {keyword for needle in NEEDLES.values() for keyword in needle.keywords}
    sentences = Counter(re.split(r"(?<=\.)\s+", load_haystack("builtin")))
    assert max(sentences.values()) == 1


def test_files_of_a_folder_are_joined_in_sorted_order(tmp_path):
    (tmp_path / "b.txt").write_text("Second.\n")
    (tmp_path / "a.txt").write_text("First.")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("Third.")
    assert load_haystack(str(tmp_path)) == "First. Second. Third."


def test_one_text_file_or_jsonl(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "One."}) + "\n\n" + json.dumps({"text": "Two."}) + "\n")
    assert load_haystack(str(tmp_path / "a.txt")) == "Text."
    assert load_haystack(str(tmp_path / "a.jsonl")) == "One. Two."


def test_the_hub_is_asked_for_the_essays_at_the_revision(monkeypatch):
    asked = {}

    def load_dataset(path, name, split, revision):
        asked.update(path=path, split=split, revision=revision)
        return datasets.Dataset.from_dict({"text": ["An essay.", "Another."]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_haystack("hub", "some-tag") == "An essay. Another."
    assert asked == {**ESSAYS, "revision": "some-tag"}


def test_without_the_hub_the_error_names_the_other_ways():
    with pytest.raises(InputError, match=r"haystack=builtin.*haystack=/path") as error:
        load_haystack("hub")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"   ", "holds no text"),
        ("x.txt", b"caf\xe9 latin", "not UTF-8 at byte 3"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b"}', "line 2: expected a JSON object"),
        ("x.json", b"{}", "expected a folder of .txt files"),
        ("missing.txt", None, "does not exist"),
    ],
)
def test_bad_files_are_one_line_errors(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_haystack(str(tmp_path / name))


def test_a_folder_without_text_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"has no \.txt file"):
        load_haystack(str(tmp_path))


def test_a_folder_that_goes_away_meanwhile_is_one_line(tmp_path, monkeypatch):
    def gone(self, pattern):
        raise FileNotFoundError(2, "No such file or directory", str(tmp_path / "part"))

    monkeypatch.setattr(Path, "glob", gone)
    with pytest.raises(InputError, match=r"haystack folder .* can't be read: .*part: No such file or directory"):
        load_haystack(str(tmp_path))
