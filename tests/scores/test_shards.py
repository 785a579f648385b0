"""Runs as a user starts them: killed, repeated, refused, with a full disk, and in two processes."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from support.chats import CHATML, make_tokenizer, sharp_llama

from ctxaware.data.conversations import write_conversations
from ctxaware.errors import InputError
from ctxaware.scores import run as score_run
from ctxaware.scores import shards
from ctxaware.scores.run import ScoreRun, score_file

N_CONVERSATIONS = 4 * shards.SHARD_SIZE + 7


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and five shards of conversations."""
    folder = tmp_path_factory.mktemp("score")
    tokenizer = make_tokenizer(CHATML)
    sharp_llama(n_layers=3, vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    text = ["the lake is here ", "Where is it? ", "the light house ", "It is there. "]
    write_conversations(
        folder / "data",
        (
            {
                "id": f"c{i}",
                "messages": [
                    {"role": ("user", "assistant")[m % 2], "content": text[(i + m) % 4] * (1 + (7 * i + 3 * m) % 11)}
                    for m in range(2 + 2 * (i % 3))
                ],
            }
            for i in range(N_CONVERSATIONS)
        ),
    )
    return folder


def run(place, out, **changes):
    options = {"layer": "1", "max_length": 300, "batch_tokens": 2000, "device": "cpu"} | changes
    return ScoreRun(data=place / "data", model=str(place / "model"), out=out, **options)


def command(place, out, *more):
    arguments = [
        "score",
        place / "data",
        "--model",
        place / "model",
        "--out",
        out,
        "--layer",
        "1",
        "--max-length",
        "300",
    ]
    return [*map(str, [*arguments, "--batch-tokens", "2000", "--device", "cpu", *more])]


ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
}


@pytest.fixture(scope="module")
def undisturbed(place):
    out = place / "undisturbed.parquet"
    assert score_file(run(place, out)) == {}
    return out


def test_the_file_has_the_columns_and_says_how_it_was_made(place, undisturbed):
    table = pq.read_table(undisturbed)
    assert table.column_names == [
        "conversation_id",
        "turn",
        "score",
        "response_tokens",
        "user_tokens",
        "messages_sha256",
    ]
    assert table["conversation_id"].to_pylist()[:4] == ["c0", "c1", "c1", "c2"]
    assert table["turn"].to_pylist()[:7] == [0, 0, 1, 0, 1, 2, 0]
    assert all(0 < s < 1 for s in table["score"].to_pylist() if s is not None)
    told = shards.read_metadata(undisturbed)["manifest"]
    assert told["layers"] == [1]
    assert told["dtype"] == "float32"
    assert told["n_conversations"] == N_CONVERSATIONS
    assert set(told["versions"]) == {"ctxaware", "torch", "transformers", "tokenizers"}
    assert not shards.parts_folder(undisturbed).exists()


def test_several_layers_add_a_column(place, tmp_path):
    out = tmp_path / "scores.parquet"
    score_file(run(place, out, layer="all", limit=2))
    table = pq.read_table(out)
    assert table["layer"].to_pylist() == [0, 1, 2] * 3
    assert table["turn"].to_pylist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_a_finished_run_is_not_repeated_and_other_arguments_are_refused(place, undisturbed, monkeypatch):
    before = undisturbed.read_bytes()
    monkeypatch.setattr(shards, "write_shards", lambda *_: pytest.fail("scored again"))
    score_file(run(place, undisturbed))
    with pytest.raises(InputError, match=r"was made with layers \[1\] \(now \[2\]\); choose another output"):
        score_file(run(place, undisturbed, layer="2"))
    with pytest.raises(InputError, match="max_length 300"):
        score_file(run(place, undisturbed, max_length=299))
    with pytest.raises(InputError, match="n_conversations"):
        score_file(run(place, undisturbed, limit=5))
    assert undisturbed.read_bytes() == before


def test_a_file_of_somebody_else_is_not_overwritten(place, tmp_path):
    out = tmp_path / "precious.parquet"
    out.write_text("not ours")
    with pytest.raises(InputError, match="no score file"):
        score_file(run(place, out))
    assert out.read_text() == "not ours"


def test_stopped_after_any_shard_the_result_is_the_same_and_no_shard_is_done_twice(
    place, undisturbed, tmp_path, monkeypatch
):
    out, scored, write_tables = tmp_path / "scores.parquet", [], shards._write_tables

    def stop_after_two(path, *args):
        write_tables(path, *args)
        scored.append(path.name)
        if len(scored) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(shards, "_write_tables", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        score_file(run(place, out))
    with pytest.raises(InputError, match=r"scores.parquet.parts holds a run with layers \[1\] \(now \[0, 1\]\)"):
        score_file(run(place, out, layer="0,1"))
    score_file(run(place, out))
    assert out.read_bytes() == undisturbed.read_bytes()
    assert scored == [f"shard-{k:06d}.parquet" for k in range(5)] + ["scores.parquet"]


@pytest.mark.parametrize("damage", ["flipped", "cut off", "of another run"])
def test_a_damaged_shard_is_scored_again(place, tmp_path, damage):
    out, whole = tmp_path / "scores.parquet", tmp_path / "whole.parquet"
    short = run(place, out, limit=3)
    score_file(run(place, whole, limit=3))
    with shards.claimed(out, score_run._manifest(short, torch.device("cpu")), PartialState(cpu=True)):
        pass
    shard = shards.parts_folder(out) / "shard-000000.parquet"
    content = bytearray(whole.read_bytes())
    if damage == "flipped":
        content[30] ^= 255  # inside the first page, which the metadata at the end do not cover
    elif damage == "of another run":
        score_file(run(place, tmp_path / "other.parquet", limit=3, layer="2"))
        content = (tmp_path / "other.parquet").read_bytes()
    shard.write_bytes(content[:400] if damage == "cut off" else content)
    score_file(short)
    assert out.read_bytes() == whole.read_bytes()


def test_a_lock_file_that_is_a_link_does_not_empty_its_target(place, tmp_path):
    (tmp_path / "thesis.tex").write_text("three years")
    (tmp_path / "scores.parquet.parts").mkdir()
    (tmp_path / "scores.parquet.parts" / "lock").symlink_to(tmp_path / "thesis.tex")
    with contextlib.suppress(InputError):
        score_file(run(place, tmp_path / "scores.parquet", limit=3))
    assert (tmp_path / "thesis.tex").read_text() == "three years"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"configuration": {"layers"'])
def test_a_damaged_manifest_is_one_line(place, tmp_path, content):
    parts = tmp_path / "scores.parquet.parts"
    parts.mkdir()
    (parts / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run.json says how .*parts was made, and can't be read .*; restore it"):
        score_file(run(place, tmp_path / "scores.parquet", limit=3))


def test_changed_data_or_weights_under_the_same_name_are_refused(place, undisturbed, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(place / "model", copy)
    out = tmp_path / "scores.parquet"
    score_file(ScoreRun(place / "data", str(copy), out, "1", 300, 2000, device="cpu", limit=3))
    sharp_llama(n_layers=3, vocab_size=len(make_tokenizer(CHATML)), seed=1).save_pretrained(copy)
    with pytest.raises(InputError, match="revision"):
        score_file(ScoreRun(place / "data", str(copy), out, "1", 300, 2000, device="cpu", limit=3))


def test_two_runs_at_once_do_not_write_into_each_other(place, tmp_path):
    out = tmp_path / "scores.parquet"
    manifest = shards.Manifest("d", "", 1, "m", None, "", [1], 1, 1, "", "", {})
    state = PartialState(cpu=True)
    with shards.claimed(out, manifest, state) as todo:
        assert todo == [0]
        with pytest.raises(InputError, match="another process is writing"), shards.claimed(out, manifest, state):
            pass


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_gives_the_same_file(place, undisturbed, tmp_path):
    out = tmp_path / "scores.parquet"
    parts, kills, at_kill = shards.parts_folder(out), 0, {}
    for n_shards in (1, 3):  # kill -9 once so many shards are whole, at whatever the process does then
        process = subprocess.Popen(
            [sys.executable, "-m", "ctxaware", *command(place, out)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(parts.glob("shard-*"))) < n_shards:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        for path, mtime in at_kill.items():
            assert path.stat().st_mtime_ns == mtime, "a finished shard was written again"
        at_kill = {path: path.stat().st_mtime_ns for path in parts.glob("shard-*")}
        assert not out.exists()
    assert kills == 2
    score_file(run(place, out))  # the same run, here
    assert out.read_bytes() == undisturbed.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]


@pytest.mark.slow
def test_two_processes_write_the_same_file_as_one(place, undisturbed, tmp_path):
    out, config = tmp_path / "scores.parquet", tmp_path / "two.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--multi_gpu"]
    launch += [
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "support.count_processes",
        str(tmp_path / "ranks"),
    ]
    done = subprocess.run([*launch, *command(place, out)], env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    ranks = json.loads((tmp_path / "ranks-0").read_text()), json.loads((tmp_path / "ranks-1").read_text())
    assert [r["num_processes"] for r in ranks] == [2, 2], "accelerate started another number of processes"
    assert [r["shards"] for r in ranks] == [3, 2]
    assert out.read_bytes() == undisturbed.read_bytes()
    assert done.stdout.count("scores.parquet:") == 1, "only one process says what was done"


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(place, undisturbed, tmp_path):
    out = tmp_path / "scores.parquet"

    def small_files():  # the system refuses larger ones, as a full disk would
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    arguments = [sys.executable, "-m", "ctxaware", *command(place, out)]
    done = subprocess.run(
        arguments, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=small_files, timeout=120
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: can't write")
    assert "Traceback" not in done.stderr
    assert not out.exists()
    score_file(run(place, out))
    assert out.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "3"}, r"layer_idx must be in 0–2 for this model, got 3; pass layer 1, a middle layer"),
        ({"layer": "middle"}, "numbers with commas, or all, got 'middle'"),
        ({"max_length": 5000}, "longer than this model's window of 4096"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "nonsense"}, "device must be one like cpu"),
        ({"device": "meta"}, "device 'meta' can't be used here"),
        ({"device": "mps"}, "device 'mps' can't be used here"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(place, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        score_file(run(place, tmp_path / "out" / "scores.parquet", **changes))
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_one_line(place, tmp_path):
    with pytest.raises(InputError, match=r"can't load model .*pass a hub name or the path"):
        score_file(
            ScoreRun(place / "data", str(tmp_path / "none"), tmp_path / "s.parquet", "1", 300, 2000, device="cpu")
        )


def test_a_template_that_rejects_everything_is_an_error(place, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(place / "model", copy)
    (copy / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(InputError, match=r"no conversation could be scored; the first: .*never"):
        score_file(ScoreRun(place / "data", str(copy), tmp_path / "s.parquet", "1", 300, 2000, device="cpu", limit=3))
