"""An output is one run's: what differs is said, a second process is kept out, a damaged manifest is one line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxaware.errors import InputError
from ctxaware.runs.claim import (
    RUN,
    as_json,
    claim,
    describe_difference,
    locked,
    locked_by_all,
    read_manifest,
    write_manifest,
)

OUT = Path("out")  # as a user knows it


def test_the_same_run_goes_on_and_another_is_refused_with_what_differs(tmp_path):
    file = tmp_path / "out" / RUN
    first = claim(file, {"seed": 1, "layers": (1, 2), "model": {"name": "m", "dtype": "auto"}}, tmp_path / "out")
    written = file.read_bytes()
    same = claim(file, {"model": {"dtype": "auto", "name": "m"}, "layers": [1, 2], "seed": 1}, tmp_path / "out")
    assert same == first == {"configuration": {"layers": [1, 2], "model": {"dtype": "auto", "name": "m"}, "seed": 1}}
    differing = {"layers": [1, 2], "model": {"name": "m", "dtype": "float32"}, "seed": 2, "extra": "x" * 100}
    with pytest.raises(InputError) as refusal:
        claim(file, differing, tmp_path / "out")
    assert str(refusal.value) == (
        f"{tmp_path}/out holds a run with model.dtype auto (now float32), seed 1 (now 2), extra None (now {'x' * 57}"
        "...); choose another output, or remove this one"
    )
    assert file.read_bytes() == written


def test_equal_manifests_are_equal_files(tmp_path):
    write_manifest(tmp_path / "a", {"configuration": {"b": (1,), "a": {"d": 1, "c": 2}}})
    write_manifest(tmp_path / "b", {"configuration": {"a": {"c": 2, "d": 1}, "b": [1]}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_half_characters_of_a_path_are_kept(tmp_path):
    configuration = {"data": "chats-\udcff.jsonl", "note": "é"}
    claim(tmp_path / RUN, configuration, tmp_path)
    assert claim(tmp_path / RUN, configuration, tmp_path)["configuration"] == configuration


def test_what_a_run_notes_in_its_manifest_is_kept(tmp_path):
    file = tmp_path / RUN
    claim(file, {"seed": 1, "models": {"base": "b"}}, tmp_path)
    write_manifest(file, read_manifest(file, tmp_path) | {"finished": True})
    grown = claim(file, {"seed": 1, "models": {"instruct": "i"}}, tmp_path, grows=["models"])
    assert grown["finished"] is True
    assert grown["configuration"]["models"] == {"base": "b", "instruct": "i"}
    assert read_manifest(file, tmp_path) == grown
    with pytest.raises(InputError, match=r"with models.base b \(now c\)"):
        claim(file, {"seed": 1, "models": {"base": "c"}}, tmp_path, grows=["models"])
    with pytest.raises(InputError, match=r"with models.base b \(now None\)"):
        claim(file, {"seed": 1, "models": {"instruct": "i"}}, tmp_path)
    write_manifest(file, {"configuration": {"seed": 1, "models": ["b"]}})
    with pytest.raises(InputError, match=r"with models \['b'\] \(now None\)"):
        claim(file, {"seed": 1, "models": {"instruct": "i"}}, tmp_path, grows=["models"])
    write_manifest(file, {"configuration": {"seed": 1, "models": {"base": "b"}}})
    with pytest.raises(InputError, match=r"with models.base b \(now None\)"):
        claim(file, {"seed": 1, "models": {"instruct": "i"}}, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b'{"configuration": {"seed": 1', b"[]", b"7", b"null", b"{}", b'{"configuration": []}'),
        *(b"\xff\xfe\x00", b"[" * 100_000),
    ],
    ids=["empty", "brace", "cut off", "list", "number", "null", "object", "list inside", "no text", "nested"],
)
def test_a_damaged_manifest_is_one_line_and_stays_as_it_is(tmp_path, content):
    file = tmp_path / RUN
    file.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        claim(file, {"seed": 1}, tmp_path)
    assert str(refusal.value).startswith(f"{file} says how {tmp_path} was made, and can't be read (")
    assert "remove" in str(refusal.value)
    assert file.read_bytes() == content


def test_a_folder_in_the_manifests_place_is_one_line(tmp_path):
    (tmp_path / RUN).mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        claim(tmp_path / RUN, {"seed": 1}, tmp_path)


VALUES = st.recursive(
    st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", max_size=2), inner, min_size=1, max_size=3),
    max_leaves=6,
)
CONFIGURATIONS = st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, max_size=4)


@given(CONFIGURATIONS, CONFIGURATIONS)
def test_no_difference_is_said_of_equal_configurations_alone(one, other):
    assert describe_difference(one, one) == ""
    assert (describe_difference(one, other) == "") == (as_json(one) == as_json(other))
    assert describe_difference({"a": 1}, {"a": "1"}) == "a 1 (now 1)"
    assert describe_difference(one, {**one, "new": None}) == "", "a setting that did not exist is one not given"


@given(st.binary(max_size=200) | CONFIGURATIONS.map(lambda c: json.dumps({"configuration": c}).encode()[:-1]))
def test_any_bytes_are_a_manifest_or_an_input_error(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    with contextlib.suppress(InputError):
        assert isinstance(read_manifest(file, file)["configuration"], dict)


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path):
    lock, out = tmp_path / "out" / "lock", tmp_path / "out"
    refused = pytest.raises(InputError, match=r"another process is writing .*out; wait for it")
    with locked(lock, out), refused, locked(lock, out):
        pytest.fail("two hold one lock")
    with locked(lock, out):
        pass


def test_a_run_is_kept_out_while_any_process_of_another_lives(tmp_path):
    main, rank_1 = (
        SimpleNamespace(is_main_process=index == 0, process_index=index, num_processes=1) for index in (0, 1)
    )
    refused = pytest.raises(InputError, match="another process is writing out")
    with locked_by_all(tmp_path, OUT, main):
        with locked_by_all(tmp_path, OUT, rank_1):  # of the same run
            pass
        with pytest.raises(InputError, match="another process is writing out"), locked_by_all(tmp_path, OUT, main):
            pytest.fail("two runs hold one output")
    with locked_by_all(tmp_path, OUT, rank_1), refused, locked_by_all(tmp_path, OUT, main):
        pytest.fail("a process of a killed run lives on")
    with locked_by_all(tmp_path, OUT, main):
        pass


def test_a_lock_is_freed_by_kill_9(tmp_path):
    code = (
        "import sys, time, pathlib; from ctxaware.runs.claim import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), pathlib.Path('out')):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process is writing"), locked(tmp_path / "lock", OUT):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "lock", OUT):
        pass


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_file_that_is_a_link_to_somebody_elses_file_does_not_empty_it(tmp_path, link):
    (tmp_path / "thesis.tex").write_text("three years")
    link(tmp_path / "thesis.tex", tmp_path / "lock")
    refused = pytest.raises(InputError, match=r"can't lock out with .*lock: it is (a link|not empty).*; remove that")
    with refused, locked(tmp_path / "lock", OUT):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "three years"


def test_a_place_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(InputError, match=r"can't lock out with .*; remove that, or choose another")
    with refused, locked(tmp_path / "file" / "lock", OUT):
        pass


def test_what_a_killed_run_left_half_written_is_gone_once_the_output_is_held(tmp_path):
    ours = [tmp_path / "out" / "deep" / ".b.json.x1.unfinished", tmp_path / ".out.x2.unfinished"]
    others = [tmp_path / ".other.x3.unfinished", tmp_path / "out" / "b.json", tmp_path / "out" / "x.unfinished"]
    for file in (*ours, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with locked(tmp_path / "lock", tmp_path / "out"):
        assert not any(file.exists() for file in ours)
        refused = pytest.raises(InputError, match="another process is writing")
        ours[0].touch()
        with refused, locked(tmp_path / "lock", tmp_path / "out"):
            pass
        assert ours[0].exists(), "it may be the other process's"
    assert all(file.exists() for file in others)
