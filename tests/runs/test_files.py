import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from ctxaware.errors import InputError
from ctxaware.runs.files import read_json, sha256_of_json, whole_file, whole_folder, write_json, write_text


def test_a_file_is_replaced_whole_and_readable(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "é")
    write_text(tmp_path / "new" / "a.txt", "two")
    assert (tmp_path / "new" / "a.txt").read_text() == "two"
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").stat().st_mode & 0o444 == 0o444


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail():
        with whole_file(tmp_path / "a.txt") as unfinished:
            unfinished.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.txt", "old")]


def test_json_is_written_whole_or_not_at_all_and_read_back(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert read_json(path) == {"x": "é"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, None])
def test_what_is_no_json_object_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_hash_of_json_does_not_depend_on_the_order_of_keys():
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 2, "b": 1})


def fill(target, barrier):
    with whole_folder(target) as folder:
        (folder / "first").write_text("1")
        barrier.wait()
        (folder / "second").write_text("2")


def test_two_processes_at_a_time_leave_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=fill, args=(tmp_path / "model", barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert sorted(f.name for f in (tmp_path / "model").iterdir()) == ["first", "second"]


def test_a_kill_in_the_middle_leaves_no_half_folder(tmp_path):
    code = (
        "import sys, time, pathlib; from ctxaware.runs.files import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'first').write_text('1'); print('half', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model").exists()
    with whole_folder(tmp_path / "model") as folder:
        (folder / "first").write_text("1")
    assert (tmp_path / "model" / "first").read_text() == "1"
    assert time.time() - (tmp_path / "model").stat().st_mtime < 60
