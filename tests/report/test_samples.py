import json

import pytest
from support.runs import cells, passages, sample, write_run

from ctxaware.errors import InputError
from ctxaware.report.samples import cluster, find_samples, newest_samples, read_run, read_task


def only(folder, task="squad_contain"):
    (file,) = find_samples(folder, task)
    return file


def test_sample_files_are_found_by_task_and_read(tmp_path):
    write_run(tmp_path, {"nih_ctx": [1.0], "nih_ctx_ind": [1.0], "squad_contain": [1.0]})
    assert [f.task for f in find_samples(tmp_path, "nih_ctx")] == ["nih_ctx", "nih_ctx_ind"]
    file = only(tmp_path)
    assert find_samples(file.path, "squad") == [file]
    assert [row["score"] for row in file.rows()] == [1.0]
    with pytest.raises(InputError, match="lm_eval writes with its options log_samples and output_path"):
        find_samples(tmp_path, "drop_contain")


def test_lines_end_in_a_line_feed_only(tmp_path):
    file = only(write_run(tmp_path, {"squad_contain": [1.0]}))
    text = json.dumps({**file.rows()[0], "doc": {"context": "One\u2028two"}}, ensure_ascii=False)
    file.path.write_text(text + "\n", encoding="utf-8")
    assert file.rows()[0]["doc"]["context"] == "One\u2028two"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "is empty"),
        (lambda text: text[:-30], "line 4: not whole JSON"),
        (lambda text: text + "[1]\n", "line 5: expected a JSON object, got list"),
        (lambda text: text + "[" * 100_000 + "\n", "line 5: not whole JSON"),
        (lambda text: text + '{"score": 1.0}\n', "doc_id None"),
        (lambda text: text.partition("\n")[2], r"has 3 documents, without 0 …; results_.*json counts 4"),
        (lambda text: text + text.partition("\n")[0] + "\n", "has document 0 twice"),
        (lambda text: text.replace('"doc_hash": "', '"doc_hash": "f', 1), "is not of the run that results_"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, damage, message):
    file = only(write_run(tmp_path, {"squad_contain": [0, 1, 0, 1]}))
    file.path.write_text(damage(file.path.read_text()))
    with pytest.raises(InputError, match=message):
        read_task(file)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = only(write_run(tmp_path, {"squad_contain": [1]}))
    file.path.write_bytes(file.path.read_bytes() + b"\xff\n")
    with pytest.raises(InputError, match="not UTF-8 at byte"):
        file.rows()


def test_samples_without_their_results_file_are_not_known_to_be_whole(tmp_path):
    file = only(write_run(tmp_path, {"squad_contain": [1]}))
    file.results_path.write_text('{"model_name"')
    with pytest.raises(InputError, match=r"results_2026.*JSON"):
        read_task(file)
    file.results_path.unlink()
    with pytest.raises(InputError, match="nothing says whether it is whole"):
        read_task(file)
    assert len(file.rows()) == 1  # a picture of it can be had
    write_run(tmp_path, {"squad_contain": [1]}, results={"n-samples": None})
    with pytest.raises(InputError, match="does not say how many documents squad_contain has"):
        read_task(file)


def test_the_newest_run_is_the_one_that_began_last_whatever_the_clock_on_the_wall_said(tmp_path):
    begun = {"2026-10-25T02-30-00.000001": 2.0, "2026-10-25T02-45-00.000001": 1.0}  # as summer time ends
    for date, second in begun.items():
        write_run(tmp_path, {"nih_ctx": [second / 2]}, date=date, results={"date": second})
    assert newest_samples(tmp_path)["nih_ctx"].date == "2026-10-25T02-30-00.000001"


def test_a_run_is_the_newest_of_each_task_of_one_model(tmp_path):
    write_run(tmp_path, {"nih_ctx": [0.0], "squad_contain": [0.0]}, date="2025-01-01T00-00-00.000")
    write_run(tmp_path, {"squad_contain": [1.0]})
    run = read_run(tmp_path)
    assert {task: list(each.scores().values()) for task, each in run.items()} == {"nih_ctx": [0], "squad_contain": [1]}
    assert read_run(tmp_path, ["nih_ctx"]).keys() == {"nih_ctx"}
    write_run(tmp_path, {"drop_contain": [1.0]}, model="another")
    with pytest.raises(InputError, match=r"several folders \(another, model\); pass one"):
        newest_samples(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_run(tmp_path / "nowhere")


def test_the_metric_is_the_score_or_the_only_one_or_the_one_asked_for(tmp_path):
    def task(rows, **more):
        return read_task(only(write_run(tmp_path / "x", {"t": rows}, **more), "t"))

    assert task([0.5, 1]).scores() == {0: 0.5, 1: 1.0}
    assert task([sample(0, True, metric="acc")]).scores() == {0: 1.0}
    two = [sample(n, 0.25, metrics=["acc", "acc_norm"], acc=0.5, acc_norm=1) for n in range(2)]
    assert task(two).scores("acc_norm") == {0: 1.0, 1: 1.0}
    with pytest.raises(InputError, match="t has no metric 'score'; it has acc, acc_norm"):
        task(two).scores()
    filtered = [sample(0, value, metric="exact_match", filter=name) for name, value in (("strict", 0), ("loose", 1))]
    assert task(filtered).scores("exact_match,loose") == {0: 1.0}
    with pytest.raises(InputError, match="it has exact_match,strict, exact_match,loose"):
        task(filtered).scores("exact_match")
    with pytest.raises(InputError, match="of score lower is better"):
        task([1], higher_is_better=None, results={"higher_is_better": {"t": {"score": False}}}).scores()


@pytest.mark.parametrize("score", [None, 1.5, -0.1, float("nan"), "1", [1, 1]])
def test_a_sample_without_a_score_from_0_to_1_is_named(tmp_path, score):
    with pytest.raises(InputError, match=r"document 1 has score .*expected a number from 0 to 1"):
        read_task(only(write_run(tmp_path, {"squad_contain": [0.5, score]}))).scores()


def test_samples_depend_on_each_other_by_cell_or_passage():
    grid, reading = cells([1, 1, 1, 1]), passages([1, 1, 1, 1], 2)
    assert [cluster(row)[0] for row in (grid[0], reading[0], sample(0, 1))] == ["cell", "passage", "question"]
    assert len({cluster(row) for row in grid}) == 4
    another_prompt = {**grid[0], "doc": {**grid[0]["doc"], "prompt_template": 2}}
    assert cluster(another_prompt) == cluster(grid[0])
    assert [len({cluster(row) for row in reading[:n]}) for n in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert cluster(sample(0, 1)) == cluster(sample(9, 0, doc=sample(0, 1)["doc"])) != cluster(sample(1, 1))
