"""`ctxaware steer`: α is chosen on one half and reported on the other, and an interrupted run goes on."""

import json
import shutil

import pytest
from support import tiny
from support.runs import cells as grid_samples
from support.runs import passages, write_run
from typer.testing import CliRunner

from ctxaware.commands.app import app, main
from ctxaware.errors import InputError
from ctxaware.report import steer
from ctxaware.report.evaluation import read_run
from ctxaware.report.steer import BASELINE, CHOOSING, PLAIN, REPORTED, Condition, Plan
from ctxaware.runs.claim import describe_difference

SETTINGS = {"num_context_lengths": 2, "num_depths": 2, "max_context_length": 500, "needle": "sf", "source": "builtin"}


def plan(model="m", alphas=(0.1, 0.5), tasks=("nih_ctx",), heads="all", **settings):
    return Plan(str(model), tasks, alphas, heads, {**SETTINGS, **settings}, device="cpu")


@pytest.mark.parametrize(("n_lengths", "n_depths"), [(20, 20), (3, 4), (1, 2), (5, 1)])
def test_the_halves_share_no_cell_and_each_has_every_length_and_depth(n_lengths, n_depths):
    the_plan = plan(num_context_lengths=n_lengths, num_depths=n_depths)
    halves = [the_plan.half(half) for half in (CHOOSING, REPORTED)]
    assert sorted(halves[0] + halves[1]) == list(range(n_lengths * n_depths))
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    for half in halves:
        if n_lengths > 1 and n_depths > 1:
            assert {i // n_depths for i in half} == set(range(n_lengths))
            assert {i % n_depths for i in half} == set(range(n_depths))


class Scripted(steer._Runner):
    """Gives scores of our choice; remembers what was asked for."""

    def __init__(self, the_plan, out, scores):
        super().__init__(the_plan, out)
        self.scores, self.asked = scores, []

    def run(self, condition, task, half=None):
        self.asked.append((condition, task, half))
        values = self.scores[condition, half]
        folder = self.out / f"{half}-{condition.name}-{task}"
        rows = passages(values, 2) if half is None else grid_samples(values)
        return read_run(write_run(folder, {task: rows}), task)


def scripted(tmp_path, by_alpha, reported, reading=None, tasks=("nih_ctx",)):
    the_plan = plan(alphas=tuple(a for a in by_alpha if a < 1), tasks=tasks)
    scores = {(Condition(alpha), CHOOSING): values for alpha, values in by_alpha.items()}
    scores |= {(condition, REPORTED): values for condition, values in reported.items()}
    scores |= {(condition, None): values for condition, values in (reading or {}).items()}
    runner = Scripted(the_plan, tmp_path, scores)
    return steer._run(the_plan, runner), runner, the_plan


def test_the_best_alpha_of_one_half_is_reported_on_the_other(tmp_path):
    result, runner, the_plan = scripted(
        tmp_path,
        {0.1: [0.2] * 8, 0.3: [0.9] * 8, 0.5: [0.4] * 8, 1.0: [0.3] * 8},
        {BASELINE: [0.5] * 40, Condition(0.3): [0.6] * 40, PLAIN: [0.9] * 40},
        {BASELINE: [1.0, 1.0, 0.0, 1.0], Condition(0.3): [1.0, 0.0, 0.0, 0.0]},
        ("drop_contain", "nih_ctx"),
    )
    assert result.alpha == 0.3
    assert {alpha: interval.mean for alpha, interval in result.curve.items()} == pytest.approx(
        {0.1: 0.2, 0.3: 0.9, 0.5: 0.4, 1.0: 0.3}
    )
    differences = {task: {t: i.mean for t, i in of.items()} for task, of in result.differences.items()}
    steered = "+ attention steering (α = 0.3)"
    assert differences["nih_ctx"] == pytest.approx({steered: 0.1, "without template": 0.4})
    assert differences["drop_contain"] == pytest.approx({steered: -0.5})
    assert result.restored == pytest.approx(0.25)
    assert {c for c, _, half in runner.asked if half == REPORTED} == {BASELINE, Condition(0.3), PLAIN}
    text = steer.save(result, the_plan, tmp_path)
    assert "| NIH | m | 0.500" in text
    assert "25% brought back" in text
    saved = json.loads((tmp_path / "steer.json").read_text())
    assert saved["alpha"] == 0.3
    assert saved["scores"]["without template"]["nih_ctx"]["mean"] == pytest.approx(0.9)
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_of_equal_alphas_the_least_steering_is_chosen(tmp_path):
    reported = {BASELINE: [0.5] * 4, Condition(0.5): [0.5] * 4, PLAIN: [0.5] * 4}
    result, *_ = scripted(tmp_path, {0.1: [1.0, 0.0], 0.5: [0.0, 1.0], 0.3: [1.0, 0.0], 1.0: [1.0, 1.0]}, reported)
    assert result.alpha == 0.5
    assert result.restored is None, "what the template costs is not certain"


def test_the_embedded_template_runs_from_end_to_end_and_repeats_nothing(tmp_path, model_folder, monkeypatch):
    the_plan = plan(model_folder)
    first = steer.run(the_plan, tmp_path / "out")
    for title, of in first.runs.items():
        rows = of["nih_ctx"].rows
        assert len(rows) == 2
        cells = {(row["doc"]["context_length"], row["doc"]["depth_percent"]) for row in rows}
        assert cells == {(200, 100.0), (300, 0.0)}, title
    answers = {title: [row["resps"] for row in of["nih_ctx"].rows] for title, of in first.runs.items()}
    assert len({str(each) for each in answers.values()}) == 3, "three conditions answer differently"
    info = first.runs["baseline"]["nih_ctx"].results["config"]
    assert info["steering"] is None

    loads = []
    monkeypatch.setattr(steer._Runner, "lm", property(lambda self: loads.append(1)))
    again = steer.run(the_plan, tmp_path / "out")
    assert not loads
    assert again.curve == first.curve
    with pytest.raises(InputError, match=r"holds a run with alphas \[0.1, 0.5\] \(now \[0.1\]\)"):
        steer.run(plan(model_folder, alphas=(0.1,)), tmp_path / "out")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "out" / REPORTED / "plain")
    assert steer.run(the_plan, tmp_path / "out").differences == first.differences


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": (0.1, 1.5)}, "alpha must be a number above 0 and up to 1"),
        ({"alphas": (0.1, 1.0)}, "α = 1 is no steering"),
        ({"alphas": ()}, "no α to choose from"),
        ({"alphas": (0.3, 0.3000001)}, "two α are the same to six digits"),
        ({"tasks": ("drop_contain",)}, "must have one of nih_ctx, nih_ctx_prefix"),
        ({"tasks": ("nih_ctx", "nih_ctx_prefix")}, "must have one of nih_ctx, nih_ctx_prefix"),
        ({"tasks": ("nih_ctx", "hellaswag")}, "got hellaswag"),
        ({"num_context_lengths": 1, "num_depths": 1}, "two cells or more"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        plan(**changes)


def test_a_model_without_template_is_refused_before_it_is_loaded(tmp_path):
    folder = tiny.save_model(tmp_path / "base", tiny.byte_level_tokenizer(None))
    with pytest.raises(InputError, match="has no chat template, so no user message to steer to"):
        steer.run(plan(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_heads_file_is_refused_in_one_line_by_the_command(tmp_path, model_folder, monkeypatch, capsys):
    arguments = [
        "--instruct",
        str(model_folder),
        "--source",
        "builtin",
        "--grid",
        "2x2",
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--max-context-length", "500", "--tasks", "nih_ctx", "--heads", str(tmp_path / "none.json")]
    monkeypatch.setattr("sys.argv", ["ctxaware", "steer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: heads must be all, or a file")


def test_alphas_that_are_no_numbers_are_refused_by_the_command():
    result = CliRunner().invoke(app, ["steer", "--instruct", "m", "--alphas", "0.1;0.3"])
    assert "alphas must be numbers with commas between" in str(result.exception)


def test_a_needle_file_that_was_changed_is_another_run(model_folder, tmp_path):
    needle = tmp_path / "needle.yaml"
    needle.write_text(
        "needle: The best thing in Rome is to eat figs.\nquestion: What is best?\nkeywords: [eat, figs]\n"
    )
    the_plan = plan(model_folder, needle=str(needle))
    before = the_plan.configuration()
    needle.write_text(needle.read_text().replace("[eat, figs]", "[best, Rome]"))
    assert describe_difference(before, the_plan.configuration()).startswith("contents.needle ")
    haystack = tmp_path / "texts"
    (haystack / "part").mkdir(parents=True)
    (haystack / "part" / "a.txt").write_text("Once.")
    the_plan = plan(model_folder, haystack=str(haystack))
    before = the_plan.configuration()
    (haystack / "part" / "a.txt").write_text("Twice.")
    assert describe_difference(before, the_plan.configuration()).startswith("contents.haystack ")
