"""What stands beside the evaluations: each kind of result is found in a folder and shown, alone and together."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import sample, write_run
from support.scores import CONVERSATIONS, write_scores

from ctxaware.attention.roles import GROUPS
from ctxaware.data.conversations import write_conversations
from ctxaware.errors import InputError
from ctxaware.report.collect import collect
from ctxaware.report.content import make_report
from ctxaware.report.html import html, latex, markdown
from ctxaware.scores.select import select

INTERVAL = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8}


def section_of(anchor, *runs):
    report = make_report(collect(runs), "title", 0.02, 0.95, 5)
    assert not report.warnings
    for render in (html, markdown, latex):
        render(report)
    (section,) = (section for section in report.sections if section.anchor == anchor)
    return section


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path.parent


@pytest.fixture
def training(tmp_path):
    """A recipe's output folder with two probes, of which the second stopped the run."""
    configuration = {
        "model_name_or_path": "base",
        "base_weights": "sha256:0",
        "effective_batch_size": 64,
        "threshold": 0.7,
        "seed": 42,
    }
    folder = write_json(tmp_path / "tuned" / "run.json", {"configuration": configuration, "finished": True})
    questions = [{"task": task, "cluster": f"{i}"} for task in ("nih_ctx", "squad_contain") for i in range(4)]
    probes = [{"step": 0, "scores": [1.0] * 8}, {"step": 100, "scores": [0.0] * 4 + [1.0] * 4}]
    stopped = {"step": 100, "task": "nih_ctx", "change": -1.0, "max_drop": 0.02}
    write_json(folder / "watch.json", {"questions": questions, "probes": probes, "stopped": stopped})
    return folder


def test_a_training_run_shows_its_settings_its_probes_and_why_it_stopped(training):
    section = section_of("training", ("tuned", training))
    (table,) = section.tables
    assert dict(zip(table.columns, table.rows[0], strict=True))["threshold β"] == "0.7"
    assert section.paragraphs == [
        "tuned was stopped at step 100: nih_ctx changed by -1.000 since the first probe, a drop over 0.02 is shown."
    ]
    (picture,) = section.pictures
    assert "nih_ctx 1.00 at first, 0.00 at last; squad_contain 1.00 at first, 1.00 at last" in picture.alt


def test_the_probe_of_any_trainer_is_shown_without_a_recipe_s_run_file(training):
    (training / "run.json").unlink()
    section = section_of("training", ("mine", training))
    assert not section.tables
    assert len(section.pictures) == 1


def test_another_command_s_run_file_is_no_training_run(tmp_path, training):
    write_json(tmp_path / "other" / "run.json", {"configuration": {"model": "m"}})
    assert len(section_of("training", ("all", tmp_path)).tables[0].rows) == 1


def test_selections_and_scores_are_one_table_and_their_distributions(tmp_path):
    write_conversations(tmp_path / "data", CONVERSATIONS)
    scores = write_scores(tmp_path / "scores.parquet")
    select(tmp_path / "data", scores, tmp_path / "selected", 0.6, None)
    section = section_of("dependency", ("selected", tmp_path / "selected"), ("scores", scores))
    (table,) = section.tables
    assert table.rows == [("selected", 4 / 15, 3 / 15, 2 / 15, 1 / 15, 15)]
    assert [picture.caption for picture in section.pictures] == ["scores: scores", "scores: instruction lengths"]
    assert "3 are above" not in section.pictures[0].alt
    assert "21.4% are above 0.6" in section.pictures[0].alt  # 3 of the 14 that have a score
    assert "selected 3, median 10 tokens" in section.pictures[1].alt
    alone = section_of("dependency", ("scores", scores))
    assert alone.tables[0].rows == [("scores", *table.rows[0][1:])]


def test_two_files_of_one_name_are_an_error_and_none_hides_the_other(tmp_path):
    runs = [("scores", write_scores(tmp_path / folder / "scores.parquet")) for folder in ("a", "b")]
    with pytest.raises(InputError, match="two results are called 'scores'"):
        collect(runs)


def test_scores_of_several_layers_show_how_they_agree(tmp_path):
    section = section_of("dependency", ("layers", write_scores(tmp_path / "layers.parquet", layers=(14, 15, 16))))
    (picture,) = section.pictures
    assert "Disagreement between 3 layers on the top 10% of turns: layer 14 agrees best" in picture.alt
    assert not section.tables


def test_attention_shows_what_the_template_changes(tmp_path):
    rows = []
    for condition, user in (("plain", 0.8), ("template", 0.5)):
        for prompt in range(3):
            shares = {"user": user, "bos": 0.9 - user, "template": 0.1 if condition == "template" else 0.0}
            for group in GROUPS:
                row = {"model": "m", "condition": condition, "prompt": prompt, "context_length": 200}
                row |= {"depth_percent": 50.0 * prompt, "layer": 15, "head": 0, "group": group}
                rows.append(row | {"share": shares.get(group, 0.0)})
    (tmp_path / "out").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "out" / "attention.parquet")
    section = section_of("attention", ("out", tmp_path / "out"))
    (table,) = section.tables
    assert table.title == "out, m: attention of layer 15's retrieval head, 3 prompts"
    assert [row[0] for row in table.rows] == ["user", "BOS (the first token)"]
    assert [cell.mean for cell in table.rows[0][1:3]] == pytest.approx([0.8 / 0.9, 0.5 / 0.9])
    assert table.rows[0][3].startswith("-0.333")
    assert [picture.caption for picture in section.pictures] == ["out: allocation", "out: change"]
    assert "user -0.33" in section.pictures[1].alt


def test_heads_that_a_folder_has_are_named(tmp_path):
    ranking = [{"layer_idx": i, "head_idx": i + 1, "needle": 0.5} for i in range(7)]
    heads = [{"layer_idx": 0, "head_idx": 1, "agreement": 0.5, "user": 0.9}]
    content = {"model": "m", "n_prompts": 25, "ranking": ranking, "retrieval_heads": heads}
    section = section_of("attention", ("heads", write_json(tmp_path / "heads.json", content)))
    assert section.tables[0].rows[0][2:4] == (25, 0.5)
    assert section.tables[0].rows[0][4].endswith("layer 4 head 5")


def test_of_steering_the_reported_half_is_shown_and_never_the_choosing_one(tmp_path):
    scores = {"baseline": {"nih_ctx": INTERVAL}, "+ attention steering (α = 0.1)": {"nih_ctx": INTERVAL}}
    curve = {"0.1": INTERVAL, "1": {**INTERVAL, "mean": 0.4}}
    content = {"plan": {"model": "m"}, "alpha": 0.1, "curve": curve, "scores": scores, "differences": {"nih_ctx": {}}}
    folder = write_json(tmp_path / "steer" / "steer.json", content)
    for condition in ("baseline", "alpha-0.1"):
        write_run(folder / "choosing" / condition / "nih_ctx", {"nih_ctx": [sample(0, 1.0)]})
    section = section_of("steering", ("steer", folder))
    assert [row[1].mean for row in section.tables[0].rows] == [0.5, 0.5]
    assert "0.1 0.500, 1 0.400. Chosen: 0.1" in section.pictures[0].alt
    report = make_report(collect([("steer", folder)]), "title", 0.02, 0.95, 5)
    assert "scores" not in {section.anchor for section in report.sections}
    write_run(folder, {"squad_contain": [1.0]})  # of lm_eval, in the same folder
    write_run(folder / "whole", {"squad_contain": [1.0]}, model="other")
    assert [evaluation.model for evaluation in collect([("steer", folder)]).evaluations] == ["model", "other"]
    assert collect([("half", folder / "choosing" / "baseline")]).evaluations, "what is named is shown"
    (folder / "steer.json").rename(folder / "run.json")  # as if it had been killed
    killed = collect([("steer", folder)])
    assert [evaluation.model for evaluation in killed.evaluations] == ["model", "other"]
    assert killed.left_out == [f"{folder}: ctxaware steer is not done; give its command again"]


def test_ratings_stand_by_category_and_in_the_table_of_scores(tmp_path):
    pytest.importorskip("fastchat", reason="needs the extra mt-bench")
    from support.mt_bench import QUESTIONS, run_judge, write_answers, write_data
    from support.server import Say, Server

    data, out = tmp_path / "data", tmp_path / "mt"
    write_data(data)
    write_answers(out, "vanilla")
    server = Server()
    try:
        is_last = f"vanilla {QUESTIONS[-1]['question_id']} second"
        server.reply = lambda body: Say(text="none" if is_last in body["messages"][-1]["content"] else "[[7]]")
        run_judge(out, data, "judge", base_url=server.url, max_retries=0)
    finally:
        server.close()
    run = write_run(tmp_path / "run", {"nih_ctx_prompts": [sample(0, 1.0, {"context_length": 9, "depth_percent": 0})]})
    section = section_of("mt-bench", ("mt", out), ("vanilla", run))
    assert section.tables[0].rows[-2:] == [("extraction", "7.00 (1/2)"), ("all", "7.00 (7/8)")]
    assert any("missing after a failure" in text for text in section.paragraphs)
    (scores,) = section_of("scores", ("mt", out), ("vanilla", run)).tables
    assert scores.columns[-1] == "MT-Bench"
    assert scores.rows[0][-1] == 7.0
