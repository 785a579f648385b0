import numpy as np
import pytest
from support.mt_bench import QUESTIONS, run_answer, write_answers
from support.mt_bench import run_judge as judge
from support.server import Say

from ctxaware.errors import InputError
from ctxaware.mt_bench.summary import Results
from ctxaware.plots import CATEGORICAL


@pytest.fixture
def judged(tmp_path, data_dir, server):
    """A judged table of models; `rate` gives a rating, or a `Say`, of (model, question id, turn)."""
    out = tmp_path / "out"

    def run(models, rate):
        for model in models:
            write_answers(out, model)

        def reply(body):
            prompt = body["messages"][-1]["content"]
            model, i = next((m, q) for m in models for q in (1, 2, 3, 4) if f"{m} {q} first" in prompt)
            said = rate(model, i, 2 if f"{model} {i} second" in prompt else 1)
            return said if isinstance(said, Say) else Say(text=f"[[{said}]]")

        server.reply = reply
        judge(out, data_dir, "judge", base_url=server.url, max_retries=0)
        return out

    return run


def test_averages_say_what_they_are_averages_of(judged):
    out = judged(["m"], lambda m, i, turn: Say(text="none") if (i, turn) == (3, 2) else i + turn)
    results = Results(out)
    whole = results.cell("m")
    assert (whole.mean, whole.n_scored, whole.n_expected) == (np.mean([2, 3, 3, 4, 4, 5, 6]), 7, 8)
    second = results.cell("m", turn=2)
    assert (second.mean, second.n_scored, second.n_expected) == (np.mean([3, 4, 6]), 3, 4)
    stem = results.cell("m", category="stem")
    assert (stem.mean, stem.n_scored, stem.n_expected) == (4, 1, 2)
    missing = results.cell("m", turn=2, category="stem")
    assert (missing.mean, missing.n_scored, missing.n_expected) == (None, 0, 1)
    assert results.categories == [q["category"] for q in QUESTIONS]
    assert not results.complete
    assert any("missing after a failure: 1 no_rating" in line for line in results.flags())


def test_our_averages_are_fastchat_s(judged):
    out = judged(["m", "n"], lambda m, i, turn: (i * 3 + turn + (m == "n")) % 10 + 1)
    results = Results(out)
    printed = results.fastchat_summary().split("##########")
    for section, which in (("First turn", {"turn": 1}), ("Second turn", {"turn": 2}), ("Average", {})):
        text = printed[printed.index(f" {section} ") + 1]
        for model in ("m", "n"):
            line = next(line for line in text.splitlines() if line.startswith(f"{model} "))
            assert float(line.split()[-1]) == pytest.approx(results.cell(model, **which).mean, abs=1e-5)


def test_the_difference_is_paired_and_leaves_out_what_one_lacks(judged):
    def rate(model, i, turn):
        if (model, i, turn) == ("n", 3, 2):
            return Say(text=None)
        return i + (2 if model == "n" and i != 4 else 0)

    results = Results(judged(["m", "n"], rate))
    difference = results.difference("n", "m")
    assert difference.mean == pytest.approx(np.mean([2, 2, 2, 2, 2, 0, 0]))
    assert (difference.n_pairs, difference.n_expected) == (7, 8)
    assert difference.low <= difference.mean <= difference.high
    assert results.difference("m", "n").mean == -difference.mean
    assert results.difference("n", "m", category="math").mean == 2
    assert results.difference("n", "m", turn=2).n_pairs == 3


def test_one_question_has_no_interval(judged):
    results = Results(judged(["m", "n"], lambda m, i, turn: i + turn if m == "n" else i))
    difference = results.difference("n", "m", category="math")
    assert (difference.mean, difference.low, difference.high, difference.n_pairs) == (1.5, None, None, 2)


def test_flags_tell_what_a_reader_should_know(judged, server):
    out = judged(["m"], lambda m, i, turn: Say(text="[[7.5]]", model="other" if i == 1 else "judge"))
    flags = Results(out).flags()
    assert "m: 8 fractional" in flags
    assert "the endpoint judged with several models: judge, other" in flags
    assert "mt_bench/question.jsonl is not the released file" in flags


def test_a_limit_on_answers_is_flagged(judged, server, tmp_path, data_dir):
    server.reply = lambda body: Say(text="short", finish_reason="length")
    run_answer("served", "cut", data_dir, tmp_path / "out", base_url=server.url, max_new_tokens=16)
    flags = Results(judged(["cut"], lambda m, i, turn: 5)).flags()
    assert "cut: answers limited to 16 new tokens, FastChat's limit is 1024" in flags


def test_the_order_of_models_is_the_one_asked_for(judged):
    out = judged(["m", "n"], lambda *_: 5)
    assert Results(out, model_ids=["n", "m"]).models == ["n", "m"]
    assert Results(out, "judge", ["n"]).n_expected == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("other",), "no judgments yet"), ((None, ["x"]), "'x' is not judged"), (("a/b",), "no judgments yet")],
)
def test_what_was_not_judged_is_told(judged, arguments, says):
    out = judged(["m"], lambda *_: 5)
    with pytest.raises(InputError, match=says):
        Results(out, *arguments)


def test_several_judges_must_be_chosen_from(judged, data_dir, server):
    out = judged(["m"], lambda *_: 5)
    judge(out, data_dir, "org/other", base_url=server.url)
    with pytest.raises(InputError, match=r"judgments of judge, org/other; choose one judge"):
        Results(out)
    assert Results(out, "org/other").complete


def test_a_folder_without_judgments_is_told(tmp_path):
    with pytest.raises(InputError, match="no judgments"):
        Results(tmp_path)


def test_the_picture_has_a_bar_for_each_average_and_none_for_what_is_missing(judged, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars, texts = {}, []
    real_bar, real_text = Axes.bar, Axes.text

    def bar(self, x, height, *args, label, color, **kwargs):
        bars[label] = (list(height), color)
        return real_bar(self, x, height, *args, label=label, color=color, **kwargs)

    def text(self, x, y, string, **kwargs):
        texts.append(string)
        return real_text(self, x, y, string, **kwargs)

    monkeypatch.setattr(Axes, "bar", bar)
    monkeypatch.setattr(Axes, "text", text)
    out = judged(["m", "n"], lambda m, i, turn: Say(text="?") if (m, i) == ("n", 2) else i)
    Results(out).draw(tmp_path / "sub" / "bars.png")
    assert bars == {
        "m (8/8 scored)": ([1, 2, 3, 4, 2.5], CATEGORICAL[0]),
        "n (6/8 scored)": ([1, 0, 3, 4, pytest.approx(8 / 3)], CATEGORICAL[1]),
    }
    assert texts.count("none") == 1
    assert (tmp_path / "sub" / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_more_models_than_colours_is_told(judged, tmp_path):
    out = judged([f"m{i}" for i in range(len(CATEGORICAL) + 1)], lambda *_: 5)
    with pytest.raises(InputError, match="choose some of them"):
        Results(out).draw(tmp_path / "bars.png")


def test_ratings_of_other_answers_than_stand_there_are_not_shown(judged):
    out = judged(["a", "b"], lambda *_: 7)
    file = out / "model_answer" / "a.jsonl"
    text = file.read_text()
    file.write_text(text.replace("first", "other", 1))
    with pytest.raises(InputError, match=r"a\.jsonl holds other answers than those that judge_single\.jsonl rates"):
        Results(out)
    assert Results(out, model_ids=["b"]).complete
    file.unlink()
    assert Results(out).complete, "a summary needs no answers"
