"""select and layers on files that score wrote."""

import csv
import json

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.scores import CONVERSATIONS, write_scores

from ctxaware.data.conversations import read_conversations, write_conversations
from ctxaware.errors import InputError
from ctxaware.scores.layers import compare_layers
from ctxaware.scores.select import select
from ctxaware.scores.table import read_scores
from ctxaware.scores.threshold import above_threshold


@pytest.fixture
def data(tmp_path):
    write_conversations(tmp_path / "data", CONVERSATIONS)
    return tmp_path / "data"


def test_select_marks_the_data_and_tells_the_ratios(data, tmp_path):
    done = select(data, write_scores(tmp_path / "s.parquet"), tmp_path / "out", threshold=0.6, percent=None)
    marked = {c["id"]: c for c in read_conversations(tmp_path / "out")}
    assert list(marked) == [c["id"] for c in CONVERSATIONS]
    assert [m["content"] for m in marked["c1"]["messages"]] == ["user 1", "assistant 1", "user 1. [IND]", "assistant 1"]
    assert sum(m["content"].endswith("[IND]") for c in marked.values() for m in c["messages"]) == 3
    assert marked["c3"]["scores"] == [pytest.approx(0.1), None]
    told = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert told == done.statistics
    assert (told["instructions"], told["selected"], told["without_score"]) == (15, 3, 1)
    expected = {"0.5": 4 / 15, "0.6": 3 / 15, "0.7": 2 / 15, "0.8": 1 / 15}
    assert told["share_above"] == pytest.approx(expected)
    for name in ("scores.png", "instruction_lengths.png"):
        assert matplotlib.image.imread(tmp_path / "out" / name).std() > 0.01


def test_the_top_share_instead_of_a_threshold(data, tmp_path):
    done = select(data, write_scores(tmp_path / "s.parquet"), tmp_path / "out", threshold=None, percent=14)
    assert done.statistics["selected"] == 2  # of 14 scored turns
    assert done.statistics["threshold"] == pytest.approx(0.61)  # the highest that is not selected
    scores = read_scores(tmp_path / "s.parquet")[15].values
    assert above_threshold(scores, done.statistics["threshold"]).sum() == 2


def test_the_threshold_of_a_share_that_divides_equal_scores_is_none(data, tmp_path):
    done = select(data, write_scores(tmp_path / "s.parquet"), tmp_path / "out", threshold=None, percent=50)
    assert done.statistics["selected"] == 7
    assert done.statistics["threshold"] is None


def test_turns_out_of_their_order_are_refused(data, tmp_path):
    file = write_scores(tmp_path / "s.parquet")
    table = pq.read_table(file)
    pq.write_table(table.sort_by([("conversation_id", "ascending"), ("turn", "descending")]), file)
    with pytest.raises(InputError, match="turns out of their order"):
        select(data, file, tmp_path / "out", threshold=0.5, percent=None)


def test_a_selection_of_nothing_is_a_warning_on_standard_error(data, tmp_path, capsys):
    from ctxaware.commands.select import select as command

    scores = write_scores(tmp_path / "s.parquet")
    command(data, scores, tmp_path / "out", threshold=0.9)
    said = capsys.readouterr()
    assert said.err == (
        "warning: no instruction is selected of 14 that have a score; scores reach from 0.100 to 0.850, their median "
        "is 0.100; choose another --threshold or --top-percent\n"
    )
    command(data, scores, tmp_path / "out2", threshold=0.6)
    assert capsys.readouterr().err == ""


def test_instruction_lengths_are_of_each_instruction_alone(data, tmp_path):
    assert set(read_scores(write_scores(tmp_path / "s.parquet"))[15].instruction_tokens) == {10}


@pytest.mark.parametrize("change", ["other scores", "other data", "unequal turns", "another message"])
def test_scores_of_other_data_are_refused_and_nothing_is_written(data, tmp_path, change):
    scores = write_scores(tmp_path / "s.parquet", drop=("c4",) if change == "other scores" else ())
    if change == "other data":
        write_conversations(data, CONVERSATIONS[:-1])
    if change == "unequal turns":
        shorter = [*CONVERSATIONS[:-1], {**CONVERSATIONS[-1], "messages": CONVERSATIONS[-1]["messages"][:2]}]
        write_conversations(data, shorter)
    if change == "another message":
        other = {
            **CONVERSATIONS[4],
            "messages": [{"role": "user", "content": "user 4!"}, CONVERSATIONS[4]["messages"][1]],
        }
        write_conversations(data, [*CONVERSATIONS[:4], other, *CONVERSATIONS[5:]])
    reason = r"score all of|pass the data that was scored|messages of conversation 'c4' are not those that were scored"
    with pytest.raises(InputError, match=reason):
        select(data, scores, tmp_path / "out", threshold=0.6, percent=None)
    assert [f.name for f in (tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("through", ["the folder", "the file", "a link", "its scores"])
def test_a_selection_does_not_overwrite_what_it_reads(data, tmp_path, through):
    scores, given = write_scores(tmp_path / "s.parquet"), data
    out = {"a link": tmp_path / "link"}.get(through, data)
    if through == "a link":
        out.symlink_to(data)
    elif through == "the file":
        given = data / "conversations.parquet"
    elif through == "its scores":
        out = tmp_path / "out"
        out.mkdir()
        scores = scores.rename(out / "conversations.jsonl")
    before = {path: path.read_bytes() for path in (*data.iterdir(), scores)}
    with pytest.raises(InputError, match=r"writing to .* would overwrite .*, which is read; choose another output"):
        select(given, scores, out, threshold=0.6, percent=None)
    assert {path: path.read_bytes() for path in (*data.iterdir(), scores)} == before


def test_scores_of_several_layers_need_a_layer(data, tmp_path):
    scores = write_scores(tmp_path / "s.parquet", layers=(3, 15))
    with pytest.raises(InputError, match=r"layers \[3, 15\]; pass layer with one of them"):
        select(data, scores, tmp_path / "out", threshold=0.6, percent=None)
    with pytest.raises(InputError, match=r"not of 4"):
        select(data, scores, tmp_path / "out", threshold=0.6, percent=None, layer=4)
    assert select(data, scores, tmp_path / "out", threshold=0.6, percent=None, layer=15).statistics["selected"] == 3


def test_layers_are_compared_in_a_table_and_a_picture(tmp_path):
    done = compare_layers(write_scores(tmp_path / "s.parquet", layers=(3, 9, 15)), percent=20)
    assert done.layers == [3, 9, 15]
    np.testing.assert_allclose(done.matrix, [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    assert done.best == 3
    table = list(csv.reader((tmp_path / "s_disagreement.csv").read_text().splitlines()))
    assert table[0] == ["layer", "3", "9", "15", "mean"]
    assert table[3] == ["15", "1.0000", "1.0000", "0.0000", "1.0000"]
    assert matplotlib.image.imread(tmp_path / "s_disagreement.png").std() > 0.01


def test_a_table_of_layers_is_not_written_over_somebody_s(tmp_path):
    scores = write_scores(tmp_path / "s.parquet", layers=(3, 9))
    for _ in range(2):
        compare_layers(scores, percent=20)
    (tmp_path / "s_disagreement.csv").write_text("mine")
    with pytest.raises(InputError, match=r"s_disagreement\.csv is there and ctxaware did not write it"):
        compare_layers(scores, percent=20)


def test_one_layer_has_nothing_to_compare(tmp_path):
    with pytest.raises(InputError, match="score with layer all"):
        compare_layers(write_scores(tmp_path / "s.parquet"), percent=10)


def test_a_file_that_is_no_score_file_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="no score file"):
        read_scores(data / "conversations.parquet")
    scores = write_scores(tmp_path / "s.parquet")
    content = bytearray(scores.read_bytes())
    content[40] ^= 255
    scores.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_scores(scores)
    with pytest.raises(InputError, match="does not exist; make it with ctxaware score"):
        read_scores(tmp_path / "none.parquet")
