import importlib

import pytest
from support.shared_data import SHARED, needs_samples

from ctxaware.errors import InputError
from ctxaware.mt_bench import fastchat as seams

NAMES = [(module, name) for module, names in seams.SEAMS.items() for name in names]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_seam_that_is_gone_is_told_by_its_name(module, name, monkeypatch):
    monkeypatch.delattr(importlib.import_module(module), name)
    with pytest.raises(InputError, match=f"no {module}.{name}"):
        seams.load_fastchat()


def test_fastchat_without_what_it_imports_is_told(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fastchat.llm_judge.common", None)
    with pytest.raises(InputError, match=r"ctxaware\[mt-bench\]"):
        seams.load_fastchat()


def a_match(fastchat, judge_model):
    prompt = {"name": "single-v1", "type": "single", "system_prompt": "You judge.", "output_format": "[[rating]]"}
    judges = fastchat.make_judge_single(
        judge_model,
        {
            name: {**prompt, "name": name, "prompt_template": "{question} {answer}"}
            for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
        },
    )
    assert judges.keys() == {"default", "math", "default-mt", "math-mt"}
    question = {"question_id": 1, "category": "writing", "turns": ["Q", "R"]}
    answers = {"m": {1: {"choices": [{"turns": ["A", "B"]}]}}}
    (match,) = fastchat.make_match_single([question], ["m"], answers, judges["default"])
    return match


def test_fastchat_s_judge_calls_what_we_put_in_its_place_with_its_own_settings(capsys):
    fastchat, seen = seams.load_fastchat(), []

    def chat(model, conv, temperature, max_tokens):
        seen.append((model, conv.to_openai_api_messages(), temperature, max_tokens))
        return "Rating: [[8]]"

    with seams.judging_through(chat, "any/judge"):
        row = fastchat.play_a_match_single(a_match(fastchat, "any/judge"), output_file=None)
    messages = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Q A"}]
    assert seen == [("any/judge", messages, 0, 2048)]
    assert (row["score"], row["turn"], row["model"], row["question_id"]) == (8, 1, "m", 1)
    assert row["judge"] == ("any/judge", "single-v1")
    assert capsys.readouterr().out == ""


def test_the_globals_are_restored_also_after_an_error():
    common = importlib.import_module("fastchat.llm_judge.common")
    before = dict(vars(common))

    def chat(*_, **__):
        raise RuntimeError("stop")

    fastchat = seams.load_fastchat()
    match = a_match(fastchat, "judge")
    with pytest.raises(RuntimeError, match="stop"), seams.judging_through(chat, "judge"):
        fastchat.play_a_match_single(match, output_file=None)
    assert vars(common) == before


@needs_samples
def test_the_released_files_hash_to_what_we_call_released():
    bench = seams.load_bench(seams.load_fastchat(), SHARED, for_judge=True)
    assert bench.sha256 == seams.RELEASED_SHA256
    assert (len(bench.questions), len(bench.references)) == (80, 30)
