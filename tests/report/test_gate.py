import importlib.util
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from support.runs import cells, passages, sample, write_lines, write_run
from typer.testing import CliRunner

from ctxaware.commands.app import app
from ctxaware.errors import InputError
from ctxaware.intervals import DIFFERENCE, BoundedMean
from ctxaware.noninferiority import holm
from ctxaware.report.gate import FAIL, INCONCLUSIVE, MEAN, PASS, RunsDiffer, gate
from ctxaware.report.samples import find_samples
from ctxaware.report.verdict import content, junit, markdown

ROOT = Path(__file__).parents[2]


def flips(n, worse, better):
    """0/1 scores of two runs with so many flips."""
    before = [1] * worse + [0] * better + [1] * (n - worse - better)
    return before, [0] * worse + [1] * better + before[worse + better :]


@pytest.fixture
def runs(tmp_path):
    """Two result folders, of rows by task; a second call writes them anew."""

    def write(before, after, **more):
        for folder in ("before", "after"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        return write_run(tmp_path / "before", before, **more), write_run(tmp_path / "after", after, **more)

    return write


def one(runs, before, after, **arguments):
    answer = gate(*runs({"t": before}, {"t": after}), **arguments)
    (judgment,) = answer.judgments
    return answer, judgment


def test_a_drop_that_is_shown_fails(runs):
    answer, judgment = one(runs, *flips(400, 40, 8))
    assert (answer.verdict, answer.exit_code) == (FAIL, 1)
    assert (judgment.losses, judgment.gains, judgment.n) == (40, 8, 400)
    assert judgment.difference == pytest.approx(-0.08)
    assert judgment.lower < -0.08 < judgment.upper < -0.02
    assert judgment.n_to_decide is None


def test_a_drop_that_is_excluded_passes(runs):
    same = flips(400, 0, 0)[0]
    assert one(runs, same, same)[0].exit_code == 0
    answer, judgment = one(runs, *flips(1000, 12, 12))
    assert answer.verdict == PASS
    assert -0.02 < judgment.lower < judgment.difference == 0
    assert one(runs, *flips(400, 8, 40), max_drop=0)[0].verdict == PASS  # better is no drop


def test_nine_needles_do_not_decide_even_where_they_agree(runs):
    rows = cells([1.0] * 9)
    answer, judgment = one(runs, rows, rows)
    assert (answer.verdict, answer.exit_code) == (INCONCLUSIVE, 3)
    assert (judgment.n, judgment.n_clusters, judgment.cluster_kind) == (9, 9, "cell")
    assert judgment.lower < -0.2
    assert 100 < judgment.n_to_decide < 200
    assert one(runs, rows, cells([1.0] * 7 + [0.5] * 2))[0].verdict == INCONCLUSIVE


def test_what_would_decide_decides(runs):
    """The promised number of samples does so about four times in five; the smallest detectable drop fails as often."""
    _, judgment = one(runs, *flips(100, 9, 3))
    assert judgment.verdict == INCONCLUSIVE
    rng, n = np.random.default_rng(0), judgment.n_to_decide
    drop = judgment.detectable_drop
    decided, detected = 0, 0
    for _ in range(200):
        worse, better, _ = rng.multinomial(n, [0.09, 0.03, 0.88])
        decided += one_p(n, worse, better) < 0.05
        worse, better, _ = rng.multinomial(100, [0.03 + drop, 0.03, 0.94 - drop])
        detected += one_p(100, worse, better) < 0.05
    assert 0.7 < decided / 200 < 0.9
    assert 0.65 < detected / 200 < 0.95


def one_p(n, worse, better):
    return BoundedMean([-1] * worse + [1] * better + [0] * (n - worse - better), None, DIFFERENCE).p_below(-0.02)


def test_at_the_limit_no_number_of_samples_decides(runs):
    answer, judgment = one(runs, *flips(100, 6, 4))
    assert judgment.n_to_decide is None
    assert "the difference is at the limit" in markdown(answer)


def test_questions_of_one_passage_are_no_evidence_of_others(runs):
    before, after = flips(60, 20, 0)
    assert one(runs, before, after)[0].verdict == FAIL
    assert one(runs, passages(before, 20), passages(after, 20))[0].verdict == INCONCLUSIVE  # all in one of three
    answer, judgment = one(runs, passages(before, 60), passages(after, 60))
    assert (judgment.lower, judgment.upper, judgment.detectable_drop) == (-1, 1, None)
    assert "all samples are of one passage" in markdown(answer)


def test_three_flips_of_400_are_no_proof(runs):
    answer, judgment = one(runs, *flips(400, 3, 0), max_drop=0)
    assert judgment.p_fail == pytest.approx(1 / 8)  # McNemar's exact test, one-sided
    assert answer.verdict == INCONCLUSIVE
    assert one(runs, *flips(400, 5, 0), max_drop=0)[0].verdict == FAIL  # 1 / 32


def test_several_tasks_are_adjusted_for_their_number(runs):
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    slight, same = flips(400, 14, 5), flips(400, 0, 0)
    before = {"slight": slight[0], **{f"t{n}": same[0] for n in range(3)}}
    after = {"slight": slight[1], **{f"t{n}": same[1] for n in range(3)}}
    folders = runs(before, after)
    assert gate(*folders, tasks=[("slight", "slight")], max_drop=0).verdict == FAIL
    together = gate(*folders, max_drop=0)
    alone, *_, mean = together.judgments
    assert [j.name for j in together.judgments] == ["slight", "t0", "t1", "t2", MEAN]
    assert alone.verdict == INCONCLUSIVE
    assert mean.difference == pytest.approx(-9 / 400 / 4)
    assert mean.n == 1600


def test_several_tasks_cost_power_to_fail_but_none_to_pass(runs):
    rows = cells([1.0] * 9)
    folders = runs({"a": rows, "b": rows}, {"a": rows, "b": rows})
    (alone,) = gate(*folders, tasks=[("a", "a")]).judgments
    one_of_two, _, mean = gate(*folders).judgments
    assert one_of_two.n_to_decide == alone.n_to_decide
    assert one_of_two.detectable_drop > alone.detectable_drop
    assert (mean.n, mean.n_clusters) == (18, 9)  # the same cells in both tasks
    assert mean.lower == pytest.approx(alone.lower)


def test_it_passes_only_where_every_task_does(runs):
    same, few = flips(400, 0, 0)[0], [1] * 9
    answer = gate(*runs({"many": same, "few": few}, {"many": same, "few": few}))
    assert {j.name: j.verdict for j in answer.judgments}["many"] == PASS
    assert answer.verdict == INCONCLUSIVE
    worse = flips(400, 60, 0)
    answer = gate(*runs({"many": same, "worse": worse[0]}, {"many": same, "worse": worse[1]}))
    assert {j.name: j.verdict for j in answer.judgments}["many"] == PASS
    assert answer.verdict == FAIL


def test_runs_that_do_not_compare_are_refused_unless_allowed(runs):
    before, after = flips(400, 0, 0)
    other_prompts = [sample(n, score, prompt="other") for n, score in enumerate(after[:390])]
    folders = runs({"t": before}, {"t": other_prompts, "new": after})
    with pytest.raises(
        RunsDiffer, match=r"before has no samples of new; t: 10 documents are only in the first"
    ) as error:
        gate(*folders)
    assert error.value.kinds == ["missing", "prompts"]
    with pytest.raises(RunsDiffer, match="390 of 390 prompts differ") as error:
        gate(*folders, allow=["missing"])
    assert error.value.kinds == ["prompts"]
    answer = gate(*folders, allow=["missing", "prompts"])
    assert answer.verdict == PASS
    assert [m.kind for m in answer.mismatches] == ["missing", "missing", "prompts"]
    assert "differs, and was allowed (prompts): t: 390 of 390" in markdown(answer)
    with pytest.raises(RunsDiffer, match="before has no samples of nowhere"):
        gate(*folders, tasks=[("nowhere", "t")], allow=["missing"])


def test_a_task_can_be_compared_with_its_variant(runs):
    before, after = flips(400, 60, 0)
    folders = runs({"t": before}, {"t_ind": [sample(n, s, prompt="[IND]") for n, s in enumerate(after)]})
    (judgment,) = gate(*folders, tasks=[("t", "t_ind")], allow=["prompts"]).judgments
    assert (judgment.name, judgment.verdict) == ("t → t_ind", FAIL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drop": -0.1}, "at least 0 and under 1, got -0.1"),
        ({"max_drop": float("nan")}, "got nan"),
        ({"confidence": 1.0}, "over 0.5 and at most 0.9999, got 1.0"),
        ({"confidence": float("nan")}, "got nan"),
        ({"allow": ["everything"]}, "one of missing, prompts, versions, limit, generation, got everything"),
        ({"metric": "acc"}, "t has no metric 'acc'; it has score"),
    ],
)
def test_arguments_out_of_range_are_refused(runs, arguments, message):
    with pytest.raises(InputError, match=message):
        gate(*runs({"t": [1, 0]}, {"t": [1, 0]}), **arguments)


def call(*arguments):
    return CliRunner().invoke(app, ["gate", *map(str, arguments)])


def test_the_command_prints_writes_and_exits(runs, tmp_path):
    before, after = flips(400, 40, 8)
    result = call(*runs({"t": before}, {"t": after}), "--out", tmp_path / "verdict")
    assert result.exit_code == 1
    assert result.stdout.startswith(
        "**fail** (limit 0.02, confidence 95%)\n\n- t: fail, a drop of more than 0.02 is shown"
    )
    assert "| t | 0.980 | 0.900 | -0.080 [-0." in result.stdout
    assert (tmp_path / "verdict" / "gate.md").read_text() == result.stdout
    values = json.loads((tmp_path / "verdict" / "gate.json").read_text())
    assert (values["verdict"], values["exit_code"], values["tasks"][0]["losses"]) == ("fail", 1, 40)
    assert values["runs"][0]["before"]["samples"].endswith(".jsonl")
    suite = ElementTree.parse(tmp_path / "verdict" / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    assert call(tmp_path / "before", tmp_path / "before").exit_code == 0
    assert call(tmp_path / "before", tmp_path / "after", "--max-drop", "0.2").exit_code == 0
    assert call(tmp_path / "before", tmp_path / "after", "--max-drop", "0.08").exit_code == 3


def test_an_inconclusive_test_case_is_an_error_for_a_ci_server(runs):
    answer, _ = one(runs, [1] * 9, [1] * 9)
    (case,) = ElementTree.fromstring(junit(answer))
    assert (case.get("name"), case[0].tag, case[0].get("type")) == ("t", "error", "inconclusive")
    assert "no score differs, but 9 samples do not decide; about 140 would" in case[0].get("message")


def test_mistakes_are_one_line_that_names_what_to_pass(runs):
    folders = runs({"t": [1, 0]}, {"t": [sample(n, 1, prompt="x") for n in range(3)]})
    error = call(*folders, "--allow", "versions").exception
    assert isinstance(error, InputError)
    assert str(error).endswith("run both alike, or pass --allow missing,prompts,versions")
    for arguments, message in (
        (("--tasks", "t,,u"), "--tasks must be names with commas"),
        (("--tasks", "=t"), "--tasks takes TASK or BEFORE=AFTER, got '=t'"),
        (("--allow", ""), "--allow must be names"),
    ):
        assert message in str(call(*folders, *arguments).exception)


def test_names_from_files_stay_text(runs):
    name = "<script>|`x`"
    rows = [sample(n, 1) for n in range(2)]
    answer = gate(*runs({"t": rows}, {"t": rows}, results={"model_name": name, "chat_template": "x"}))
    assert r"\<script>\|\`x\`" in markdown(answer)
    assert json.loads(json.dumps(content(answer)))["runs"][0]["before"]["model"] == name


def test_the_answer_is_the_same_each_time(runs):
    rng = np.random.default_rng(0)
    scores = [cells((np.round(rng.random(60) * 7) / 7).tolist()) for _ in range(2)]
    folders = runs({"t": scores[0]}, {"t": scores[1]})
    assert markdown(gate(*folders)) == markdown(gate(*folders))
    assert json.dumps(content(gate(*folders))) == json.dumps(content(gate(*folders)))


def test_a_torn_file_stops_the_gate(runs):
    folders = runs({"t": [1, 0, 1]}, {"t": [1, 0, 1]})
    (file,) = find_samples(folders[1])
    write_lines(file.path, file.rows()[:2])
    with pytest.raises(InputError, match=r"after.*has 2 documents, without 2 …; results_.* counts 3"):
        gate(*folders)


def test_torch_is_not_loaded(runs):
    before, after = flips(400, 40, 8)
    folders = runs({"t": before}, {"t": after})
    code = (
        "import sys; from ctxaware.commands.app import app\n"
        "try: app(['gate', *sys.argv[1:]])\n"
        "except SystemExit as end: assert end.code == 1, end.code\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, *folders], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("benchmark_of_the_gate", ROOT / "benchmarks" / "gate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SIMULATED = ("400 questions", "400 questions of 40 passages, correlation 0.05")


@pytest.mark.parametrize("name", SIMULATED)
def test_of_1000_pairs_without_a_drop_at_most_5_percent_fail(simulation, name):
    fails, _ = simulation.verdicts(design(simulation, f"no drop, {name}"), 1000)
    assert fails <= 0.05


@pytest.mark.parametrize("name", SIMULATED)
def test_a_drop_of_5_points_fails_in_at_least_90_percent(simulation, name):
    fails, _ = simulation.verdicts(design(simulation, f"5 points, {name}"), 500)
    assert fails >= 0.9


@pytest.mark.parametrize("name", ["losses only", "9 questions"])
def test_a_drop_at_the_limit_seldom_passes(simulation, name):
    _, passes = simulation.verdicts(design(simulation, f"2 points, limit 2 points, {name}"), 400)
    assert passes <= 0.07


def design(simulation, name):
    (of_name,) = (each for each in simulation.DESIGNS if each.name == name)
    return of_name


def test_files_of_any_content_give_a_verdict_or_one_line(tmp_path):
    """Values of a good run, one or two at a time, replaced by others."""
    rng = np.random.default_rng(0)
    values = [None, True, -1, 0, 1, 7, 0.5, float("nan"), 1e999, "", "x", "\ud800", [], [1], {}, {"t": 1}, {"t": {}}]
    good = write_run(tmp_path / "good", {"t": passages([1, 0, 1, 1], 2)})
    bad = write_run(tmp_path / "bad", {"t": passages([1, 0, 1, 1], 2)})
    (file,) = find_samples(bad)
    rows, results, n_verdicts, n_refused = file.rows(), file.results(), 0, 0
    for _ in range(400):
        new_rows, new_results = json.loads(json.dumps(rows)), json.loads(json.dumps(results))
        for _ in range(rng.integers(1, 3)):
            place = [*new_rows, new_results][rng.integers(5)]
            while True:
                key = list(place)[rng.integers(len(place))]
                if not (isinstance(place[key], dict) and place[key] and rng.random() < 0.7):
                    break
                place = place[key]
            place[key] = values[rng.integers(len(values))]
        write_lines(file.path, new_rows)
        file.results_path.write_text(json.dumps(new_results))
        try:
            markdown(gate(good, bad, allow=["missing", "prompts", "versions", "limit", "generation"])).encode()
            n_verdicts += 1
        except InputError:
            n_refused += 1
    assert min(n_verdicts, n_refused) > 40


def test_a_place_that_can_not_be_written_is_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = call(*runs({"t": [1, 0]}, {"t": [1, 0]}), "--out", tmp_path / "file").exception
    assert isinstance(error, InputError)
    assert "can't write" in str(error)
    assert (tmp_path / "file").read_text() == "mine"
