import json

import pytest

pytest.importorskip("trl")

from ctxaware.errors import InputError
from ctxaware.runs.claim import RUN
from ctxaware.training.checkpoints import COMPLETE, _digests, claim_output, mark_finished, newest_complete


def checkpoint(out, step, complete=True):
    folder = out / f"checkpoint-{step}"
    (folder / "global").mkdir(parents=True)
    for name in ("model.safetensors", "global/optimizer.pt"):
        (folder / name).write_bytes(b"x" * step)
    if complete:
        (folder / COMPLETE).write_text(json.dumps(_digests(folder)))
    return folder


def test_the_newest_complete_checkpoint_is_found_and_newer_ones_are_named(tmp_path):
    assert newest_complete(tmp_path) == (None, [])
    good = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 4)
    without_marker = checkpoint(tmp_path, 10, complete=False)
    cut, missing = checkpoint(tmp_path, 11), checkpoint(tmp_path, 100)
    (cut / "global" / "optimizer.pt").write_bytes(b"x")
    (missing / "model.safetensors").unlink()
    flipped = checkpoint(tmp_path, 150)
    (flipped / "model.safetensors").write_bytes(b"x" * 149 + b"y")
    damaged = [checkpoint(tmp_path, 200 + i) for i in range(3)]
    for folder, content in zip(damaged, (b"", b'{"model', b"[]"), strict=True):
        (folder / COMPLETE).write_bytes(content)
    assert newest_complete(tmp_path) == (good, [*reversed(damaged), flipped, missing, cut, without_marker])


def test_a_folder_is_one_configurations(tmp_path):
    out = tmp_path / "run"
    assert claim_output(out, {"seed": 1, "a": (1, 2)}) is False
    assert claim_output(out, {"seed": 1, "a": (1, 2)}) is False
    (out / "_data").mkdir()
    (out / "scores.parquet").touch()
    assert claim_output(out, {"seed": 9}) is False, "nothing was trained yet"
    assert not (out / "_data").exists()
    assert not (out / "scores.parquet").exists()
    assert claim_output(out, {"seed": 1, "a": (1, 2)}) is False
    checkpoint(out, 1, complete=False)
    with pytest.raises(InputError, match=r"holds a run with seed 1 \(now 2\), b None \(now 3\); choose another"):
        claim_output(out, {"seed": 2, "a": [1, 2], "b": 3})
    mark_finished(out)
    assert claim_output(out, {"seed": 1, "a": [1, 2]}) is True
    for damaged in (b"", b"[1]", (out / RUN).read_bytes()[:20]):
        (out / RUN).write_bytes(damaged)
        with pytest.raises(InputError, match=r"run.json says how .*run was made, and can't be read"):
            claim_output(out, {"seed": 1, "a": [1, 2]})
    (out / RUN).unlink()
    (out / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not empty and holds no run"):
        claim_output(out, {})
