import numpy as np
import pytest
from support.runs import passages, sample, write_run

from ctxaware.intervals import DIFFERENCE, UNIT, mean_interval, t_interval
from ctxaware.report.compare import pair
from ctxaware.report.samples import read_run
from ctxaware.report.seeds import by_seed, difference_table, score_table, table_9_over_seeds


@pytest.fixture
def run(tmp_path):
    """A run of 0/1 scores of questions, two a passage, by task."""
    number = iter(range(100))

    def write(more=None, **tasks):
        rows = {task: passages(scores, 2) for task, scores in tasks.items()}
        return read_run(write_run(tmp_path / str(next(number)), rows, **(more or {})))

    return write


PASSAGES = ["a", "a", "b", "b", "c", "c"]


def test_a_question_counts_once_with_its_mean_over_seeds(run):
    runs = {
        "vanilla, seed 1": run(squad_contain=[0, 0, 1, 0, 0, 0]),
        "vanilla, seed 2": run(squad_contain=[0, 1, 1, 0, 0, 0]),
        "β=0.6, seed 1, [IND] always": run(squad_contain=[1, 1, 1, 1, 0, 0]),
        "β=0.6, seed 2, [IND] always": run(squad_contain=[1, 1, 1, 0, 1, 0]),
    }
    table = score_table(runs, {"vanilla, seed 1": 3.0, "vanilla, seed 2": 4.0, "β=0.6, seed 1, [IND] always": 5.0})
    assert table.columns == ("model", "SQuAD", "MT-Bench", "seeds")
    assert table.rows[0] == ("vanilla", mean_interval([0, 0.5, 1, 0, 0, 0], PASSAGES, UNIT), 3.5, 2)
    assert table.rows[1][0] == "β=0.6, [IND] always"
    assert table.rows[1][2] is None, "a rating that one seed lacks is no average"
    of_beta = table_9_over_seeds(runs)
    assert (of_beta.columns[0], [row[1] for row in of_beta.rows]) == ("threshold β", [row[1] for row in table.rows])

    table = difference_table(runs)
    assert table.title == "Against vanilla"
    assert table.columns == ("model", "SQuAD", "average, over seeds")
    ((name, by_question, over_seeds),) = table.rows
    assert name == "β=0.6, [IND] always"
    assert by_question == mean_interval(np.array([2, 1, 0, 1, 1, 0]) / 2, PASSAGES, DIFFERENCE)
    expected = t_interval([3 / 6, 2 / 6])
    assert (over_seeds.mean, over_seeds.low, over_seeds.high) == (expected.mean, expected.low, expected.high)
    assert str(over_seeds).startswith("+0.417 [")


def test_one_seed_has_the_gates_own_difference_and_nothing_over_seeds(run):
    vanilla, tuned = run(squad_contain=[0, 0, 1, 0, 1, 1]), run(squad_contain=[1, 0, 0, 0, 1, 0])
    table = difference_table({"vanilla": vanilla, "+ Indicator": tuned})
    paired = pair(vanilla["squad_contain"], tuned["squad_contain"]).difference().interval()
    assert table.columns == ("model", "SQuAD")
    assert table.rows == [("+ Indicator", paired)]


def test_seeds_that_agree_to_the_digit_have_no_interval_without_width(run):
    runs = {f"{name}, seed {s}": run(t=scores) for s in (1, 2) for name, scores in (("a", [0, 1]), ("b", [1, 1]))}
    assert difference_table(runs).columns == ("model", "t")


def test_averages_count_each_task_alike_and_the_model_before_tuning_is_paired_with_each_seed(run):
    runs = {
        "vanilla, seed 1": run(squad_contain=[0, 0, 1, 1], quac_contain=[0, 0]),
        "vanilla, seed 2": run(squad_contain=[0, 0, 0, 0], quac_contain=[1, 1]),
        "before tuning": run(squad_contain=[1, 1, 1, 1], quac_contain=[1, 1]),
    }
    assert by_seed(runs).keys() == {"vanilla", "before tuning"}
    (row,) = difference_table(runs).rows
    assert [cell.mean for cell in row[1:]] == pytest.approx([0.75, 0.5, 0.625, 0.625])
    assert row[4].n == 2
    scores = score_table(runs)
    assert scores.columns == ("model", "SQuAD", "QuAC", "average", "seeds")
    assert scores.rows[0][3].mean == pytest.approx(0.375)
    assert [row[4] for row in scores.rows] == [2, 1]


def test_runs_that_differ_in_more_than_the_model_have_no_difference_and_the_note_says_why(run):
    other = {"configs": {"generation_kwargs": {"max_gen_toks": 7}}}
    table = difference_table({"vanilla": run(t=[0, 1]), "+ Indicator": run(other, t=[1, 1])})
    assert table.columns == ("model",)
    assert "max_gen_toks 50 against 7" in table.note


ALIKE = {"squad_contain": [0, 1, 1, 1]}


def as_samples(scores, **more):
    return {"squad_contain": [sample(n, score, **more) for n, score in enumerate(scores)]}


@pytest.mark.parametrize(
    ("tasks", "more", "says"),
    [
        (
            as_samples([0, 0, 0, 0], prompt="other"),
            {"results": {"chat_template": "{{ messages }}"}},
            "4 of 4 prompts differ (without against with chat template)",
        ),
        (ALIKE, {"configs": {"generation_kwargs": {"max_gen_toks": 7}}}, "max_gen_toks 50 against 7"),
        (ALIKE, {"versions": 2.0}, "task version 1.0 against 2.0"),
        ({"squad_contain": [0, 1]}, {}, "2 documents are only in the first run"),
        (as_samples([0, 1], doc={"question": "other"}), {}, "no document in common"),
        (as_samples([0, 1, 1, 1], metric="acc"), {}, "the first run has score,none, the second acc,none"),
    ],
)
def test_seeds_that_were_not_asked_alike_are_no_average_and_the_note_says_which(tmp_path, tasks, more, says):
    alike, other = (
        read_run(write_run(tmp_path / name, of, **results))
        for name, of, results in (("alike", ALIKE, {}), ("other", tasks, more))
    )
    runs = {
        "vanilla, seed 1": alike,
        "vanilla, seed 2": other,
        "a, seed 1": alike,
        "a, seed 2": other,
        "b, seed 1": alike,
        "b, seed 2": alike,
    }
    scores, differences = score_table(runs), difference_table(runs)
    assert [row[1] is None for row in scores.rows] == [True, True, False], "b was asked alike"
    for name in ("vanilla", "a"):
        assert f"{name}, SQuAD: not averaged over seeds, since " in scores.note
    assert says in scores.note
    assert differences.columns == ("model",), "each pair is alike, and seed 2 is not asked as seed 1"
    assert "a, SQuAD: not compared, since " in differences.note
    assert says in differences.note


def test_a_limit_that_all_seeds_have_is_no_reason_not_to_average(run):
    limited = {"n_samples": {"original": 78, "effective": 4}}
    table = score_table({f"vanilla, seed {seed}": run(limited, **ALIKE) for seed in (1, 2)})
    assert table.rows[0][1].mean == 0.75
