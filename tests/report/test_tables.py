import pytest
from support.runs import cells, passages, sample, write_run

from ctxaware.intervals import Difference, Interval
from ctxaware.report.samples import read_run
from ctxaware.report.tables import (
    Spread,
    Table,
    mean_score,
    spread_over_prompts,
    table_1,
    table_3,
    table_4,
    table_7,
    table_9,
)


@pytest.fixture
def run(tmp_path):
    """A run of rows by task, in a folder of its own."""
    number = iter(range(100))
    return lambda **tasks: read_run(write_run(tmp_path / str(next(number)), tasks))


def four_prompts(recalls):
    docs = [{**row["doc"], "prompt_template": n} for n in range(1, 5) for row in cells([0] * (len(recalls) // 4))]
    return [sample(n, recall, doc) for n, (recall, doc) in enumerate(zip(recalls, docs, strict=True))]


def test_table_4_has_a_row_for_each_run_and_a_column_for_each_task(run):
    table = table_4(
        {
            "vanilla": run(squad_contain=passages([1, 0, 0, 0], 2), nih_ctx=cells([0.5, 1.0])),
            "+ Indicator": run(squad_contain_ind=passages([1, 1, 1, 0], 2), nih_ctx_ind=cells([1.0, 1.0])),
            "half": run(nih_ctx=cells([0.0, 0.0]), arc=[1, 0]),
        },
        {"vanilla": 3.725},
    )
    assert table.columns == ("model", "NIH", "SQuAD", "arc", "MT-Bench")  # no run has all tasks: no average
    means = [[getattr(cell, "mean", cell) for cell in row] for row in table.rows]
    assert means == [
        ["vanilla", 0.75, 0.25, None, 3.725],
        ["+ Indicator", 1, 0.75, None, None],
        ["half", 0, None, 0.5, None],
    ]
    whole = table_4({"a": run(squad_contain=passages([1, 0, 0, 0], 2), nih_ctx=cells([0.5, 1.0]))})
    assert whole.columns == ("model", "NIH", "SQuAD", "average")
    assert whole.rows[0][3].mean == pytest.approx(0.5)
    assert table_9({"0.6": run(squad_contain=[1, 0])}).columns == ("threshold β", "SQuAD")


def test_intervals_are_by_cluster(run):
    scores = [1] * 20 + [0] * 20
    apart, together = (mean_score(run(t=rows)["t"]).interval() for rows in (scores, passages(scores, 10)))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_table_7_has_the_spread_over_prompts_where_there_are_several(run):
    several = run(nih_ctx_prompts=four_prompts([1, 1, 0.5, 1, 1, 0, 1, 1]))["nih_ctx_prompts"]
    spread = spread_over_prompts(several)
    assert (spread.mean, spread.sd, spread.n_prompts) == (pytest.approx(0.8125), pytest.approx(0.2394, abs=1e-4), 4)
    one = run(nih_ctx=cells([1.0, 0.5]))["nih_ctx"]
    assert spread_over_prompts(one) is None
    table = table_7({"m": {"without template": several, "with template": one}, "base": {"without template": one}})
    assert str(table.rows[0][1]) == "0.812 ± 0.239"
    assert isinstance(table.rows[0][2], Interval)
    assert table.rows[1][2] is None


def test_table_1_has_a_row_for_each_task_and_model(run):
    baseline, steered = run(nih_ctx=cells([0.5]), quac_contain=[1]), run(nih_ctx=cells([1.0]))
    table = table_1({"m": {"baseline": baseline, "+ steering": steered}, "n": {"baseline": steered}})
    assert table.columns == ("task", "model", "baseline", "+ steering")
    assert [row[:2] for row in table.rows] == [("NIH", "m"), ("NIH", "n"), ("QuAC", "m")]
    assert [getattr(cell, "mean", None) for cell in table.rows[2][2:]] == [1.0, None]


def test_table_3_has_a_column_for_each_threshold():
    of_data = {"share_above": {"0.5": 0.106, "0.6": 0.059}, "instructions": 1064}
    table = table_3({"ShareGPT": of_data, "other": {"share_above": {"0.5": 0.2, "0.10": 0.9}, "instructions": 7}})
    assert table.columns == ("data", "> 0.10", "> 0.5", "> 0.6", "instructions")
    assert table.rows == [("ShareGPT", None, 0.106, 0.059, 1064), ("other", 0.9, 0.2, None, 7)]


TABLE = Table(
    "50% & more",
    ("name", "score", "difference", "over prompts", "share", "n"),
    [
        ("<b>a_b|c</b>", Interval(0.5, 0.4, 0.6, 9), Difference(-0.1, -0.2, 0.0, 9), Spread(0.5, 0.1, 4), 0.25, 9),
        ("_x_ \\ 1 < 2\n", None, None, None, None, None),
    ],
)


def test_text_from_data_stays_text():
    lines = TABLE.markdown().split("\n")
    assert lines[2] == (
        r"| \<b>a_b\|c\</b> | 0.500 [0.400, 0.600] | -0.100 [-0.200, +0.000] | 0.500 ± 0.100 | 0.250 | 9 |"
    )
    assert lines[3] == r"| \_x\_ \\ 1 < 2 |  |  |  |  |  |"
    latex = TABLE.latex()
    assert r"\caption{50\% \& more}" in latex
    assert r"\textless{}b\textgreater{}a\_b|c\textless{}/b\textgreater{} & 0.500 [0.400, 0.600]" in latex
    assert r"\_x\_ \textbackslash{} 1 \textless{} 2" in latex
    assert latex.count(r"\\") == 3
    assert "{}[IND] &" in Table("t", ("a", "b"), [("[IND]", 1)]).latex()  # a bracket after a line end is its argument


def test_a_data_frame_has_bounds_in_columns_of_their_own():
    frame = TABLE.frame()
    assert list(frame.columns) == [
        *("name", "score", "score low", "score high", "difference", "difference low", "difference high"),
        *("over prompts", "over prompts sd", "share", "n"),
    ]
    assert frame["difference low"][0] == -0.2
    assert frame["score"].isna().tolist() == [False, True]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="each row needs 2 cells"):
        Table("t", ("a", "b"), [("x",)])
