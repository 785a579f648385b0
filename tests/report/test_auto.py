"""`ctxaware auto evaluate` on a tiny model: five kinds of prompts in three ways, figures by hand, and what is kept."""

import json
import sys

import pytest
from support.auto import save_indicator, save_model, tokenizer_with_indicator

from ctxaware.errors import InputError
from ctxaware.harness import auto_prompts as auto_prompts_module
from ctxaware.harness.auto_prompts import ALONE, IRRELEVANT, KINDS, MT_BENCH, NEEDLES, READING, auto_prompts
from ctxaware.harness.settings import NeedleSettings
from ctxaware.intervals import DIFFERENCE, mean_interval
from ctxaware.report import auto as report_auto
from ctxaware.report.auto import FILE, AutoRun, evaluate

NEEDLE = NeedleSettings(max_context_length=450, num_context_lengths=1, num_depths=2, source="builtin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = tokenizer_with_indicator()
    folder = save_model(tmp_path_factory.mktemp("model"), tokenizer)
    save_indicator(folder, tokenizer)
    return folder


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question_id": 81 + i, "category": c, "turns": [f"Say {c}!", "Again"]}
        for i, c in enumerate(["writing", "extraction"])
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "question.jsonl"


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch):
    monkeypatch.setattr(auto_prompts_module, "NEEDLE_TOKENS", 4)
    monkeypatch.setattr(auto_prompts_module, "READING_TOKENS", 4)


def run_of(folder, out, questions, **changes):
    settings = {"limit": 4, "max_new_tokens": 5, "batch_size": "2", "device": "cpu", **changes}
    return AutoRun(str(folder), out, {}, NEEDLE, "builtin", questions, **settings)


def rows_of(out, mode, kind):
    text = (out / "answers" / f"{mode}-{KINDS.index(kind)}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()][:-1]


def test_prompts_are_those_of_the_tasks_and_variations_of_them(questions):
    prompts = auto_prompts(tokenizer_with_indicator(), NEEDLE, "builtin", questions, 30, 5)
    by_kind = {kind: [prompt for prompt in prompts if prompt.kind == kind] for kind in KINDS}
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        **{NEEDLES: 2, READING: 30, ALONE: 30, IRRELEVANT: 30, MT_BENCH: 2}
    }
    for own, alone, other in zip(by_kind[READING], by_kind[ALONE], by_kind[IRRELEVANT], strict=True):
        assert own.text.endswith(f"according to the above passage: {alone.text}")
        assert other.text.endswith(f"according to the above passage: {alone.text}")
        assert own.cluster in own.text
        assert own.cluster not in other.text
    assert by_kind[NEEDLES][0].score("eat a sandwich and sit in Dolores Park on a sunny day") == 1
    assert [prompt.text for prompt in by_kind[MT_BENCH]] == ["Say writing!", "Say extraction!"]


def test_each_way_of_marking_is_answered_and_the_figures_are_of_the_answers(folder, tmp_path, questions):
    result = evaluate(run_of(folder, tmp_path / "out", questions))
    out = tmp_path / "out"
    assert [figures["kind"] for figures in result["kinds"]] == list(KINDS)
    assert json.loads((out / FILE).read_text()) == json.loads(json.dumps(result))
    for figures in result["kinds"]:
        never, always, auto = (rows_of(out, mode, figures["kind"]) for mode in ("never", "always", "auto"))
        assert figures["n"] == len(auto) == (2 if figures["kind"] in (NEEDLES, MT_BENCH) else 4)
        assert [row["answer"] for row in never] != [row["answer"] for row in always]
        for n, a, row in zip(never, always, auto, strict=True):
            assert row["answer"] == (a if row["indicator"] else n)["answer"]
            assert row["indicator"] == (row["indicator_probability"] > 0.5)
        same = [float(n["answer"] == row["answer"]) for n, row in zip(never, auto, strict=True)]
        assert figures["identical_to_never"]["mean"] == pytest.approx(sum(same) / len(same))
        if figures["kind"] != MT_BENCH:
            gains = [row["score"] - n["score"] for n, row in zip(never, auto, strict=True)]
            gain = mean_interval(gains, [row["cluster"] for row in auto], DIFFERENCE)
            assert figures["gain_of_auto"] == {"mean": gain.mean, "low": gain.low, "high": gain.high, "n": gain.n}
    assert result["kinds"][-1]["identical_to_never_but_extraction"]["n"] == 1
    assert result["tokens"]["auto"]["computed"] < 1.2 * result["tokens"]["never"]["computed"]
    text = (out / "auto_evaluation.md").read_text()
    assert text.count("\n| ") == 2 + len(KINDS)
    assert "with an irrelevant passage" in text


def test_the_share_of_the_gain_is_told_where_there_is_one():
    def rows(scores):
        row = {"cluster": "c", "category": "", "indicator": True, "indicator_probability": 0.9}
        return [{**row, "answer": str(s), "score": s, "cluster": str(i)} for i, s in enumerate(scores)] + [{}]

    of = {"never": rows([0.0, 0.5, 0.0, 0.0]), "always": rows([1.0, 1.0, 0.5, 0.0]), "auto": rows([1.0, 0.5, 0.5, 0.0])}
    assert report_auto._kind(READING, of)["share_of_gain"] == pytest.approx(0.375 / 0.5)
    assert report_auto._kind(ALONE, of)["share_of_gain"] is None
    assert report_auto._kind(READING, {**of, "always": of["never"]})["share_of_gain"] is None


def test_an_interrupted_evaluation_goes_on_and_another_is_refused(folder, tmp_path, questions, monkeypatch):
    answered, real = [], report_auto._answer

    def killed(lm, prompts, path):
        answered.append(path.name)
        if len(answered) == 4:
            raise KeyboardInterrupt
        real(lm, prompts, path)

    monkeypatch.setattr(report_auto, "_answer", killed)
    run = run_of(folder, tmp_path / "out", questions, limit=2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    result = evaluate(run)
    assert len(answered) == 4 + 12  # of 15, three were there
    assert evaluate(run) == result
    assert len(answered) == 16
    with pytest.raises(InputError, match=r"holds a run with .*prompts"):
        evaluate(run_of(folder, tmp_path / "out", questions, limit=3))


def test_answers_get_new_scores_where_others_are_right_now(folder, tmp_path, questions, monkeypatch):
    run = run_of(folder, tmp_path / "out", questions, limit=2)
    evaluate(run)
    for name in ("score_reading", "score_needle"):  # as other golds and keywords score
        monkeypatch.setattr(auto_prompts_module, name, lambda doc, answers: {"score": 0.25})
    kinds = {figures["kind"]: figures for figures in evaluate(run)["kinds"]}
    assert {kinds[kind]["scores"]["never"]["mean"] for kind in (NEEDLES, READING, ALONE)} == {0.25}
    assert {row["score"] for row in rows_of(run.out, "auto", READING)} == {0.25}


def test_the_command_prints_the_table(folder, tmp_path, capsys, monkeypatch):
    from ctxaware.commands.app import main

    words = ["auto", "evaluate", "--model", folder, "--out", tmp_path / "out", "--source", "builtin", "--limit", 2]
    words += [
        "--grid",
        "1x1",
        "--max-context-length",
        450,
        "--model-args",
        "indicator_threshold=1.0",
    ]
    monkeypatch.setattr(sys, "argv", ["ctxaware", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert "threshold 1.000" in said
    assert "| needles | 1 | 0.000 " in said
    assert "Prompt tokens computed: " in said


def test_what_can_not_be_asked_is_one_line(folder, tmp_path, questions):
    with pytest.raises(InputError, match="indicator can't stand among the model's arguments"):
        evaluate(AutoRun(str(folder), tmp_path / "out", {"indicator": "never"}, NEEDLE, "builtin", None))
    questions.write_text('{"question_id": 1}\n')
    with pytest.raises(InputError, match=r"is not MT-Bench's question.jsonl \("):
        evaluate(run_of(folder, tmp_path / "out", questions))


def test_a_report_shows_the_table(folder, tmp_path, questions):
    from ctxaware.report.collect import collect
    from ctxaware.report.content import make_report
    from ctxaware.report.html import markdown

    result = evaluate(run_of(folder, tmp_path / "out", questions, limit=2))
    report = make_report(collect([("mine", tmp_path / "out")]), "t", 0.02, 0.95, 3, {})
    (section,) = (section for section in report.sections if section.anchor == "auto")
    assert section.tables[0].rows == report_auto.table(result).rows
    assert "mine: [IND] where the model says so" in markdown(report).replace("\\", "")
