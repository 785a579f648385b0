"""The report: whatever is there on one page, escaped, the same bytes each time, readable in a browser."""

import base64
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from support.runs import cells, sample, write_lines, write_run
from typer.testing import CliRunner

from ctxaware.commands.app import app
from ctxaware.commands.report import MADE_BY
from ctxaware.errors import InputError
from ctxaware.report.collect import collect
from ctxaware.report.content import make_report
from ctxaware.report.html import MOST_BYTES, html, latex, markdown

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\n```\n# not a heading\n| a |"


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.ids = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*runs, max_drop=0.02, n_flips=5):
    return make_report(collect(runs), "Use of the context", max_drop, 0.95, n_flips, MADE_BY)


def needles(recalls, needle="The needle is here."):
    """A grid whose prompts hold their needle in much text."""
    rows = cells(recalls)
    for row in rows:
        row["doc"]["needle"] = needle
        row["target"] = needle
        prompt = f"Read this. {'hay ' * 400}{needle}{' stack' * 400} What is it?"
        row["arguments"] = {"gen_args_0": {"arg_0": prompt, "arg_1": {}}}
        row["resps"] = [[f"recall {row['score']}"]]
    return [
        sample(row["doc_id"], row["score"], row["doc"], **{k: row[k] for k in ("arguments", "resps")}) for row in rows
    ]


@pytest.fixture
def two(tmp_path):
    """A run and a worse one."""
    reading = [
        sample(n, float(n < 12), {"context": f"p{n}", "question": f"q{n}", "answers": ["gold"]}) for n in range(16)
    ]
    worse = [sample(n, 0.0, row["doc"], resps=[[EVIL]]) for n, row in enumerate(reading)]
    before = write_run(tmp_path / "before", {"squad_contain": reading, "nih_ctx": needles([1.0] * 9)})
    after = write_run(tmp_path / "after", {"squad_contain": worse, "nih_ctx": needles([1.0] * 6 + [0.0] * 3)})
    return ("before", before), ("after", after)


def test_scores_verdicts_heatmaps_and_flips_stand_on_the_page(two):
    report = page_of(*two)
    sections = {section.anchor: section for section in report.sections}
    assert list(sections) == ["scores", "compared", "needles", "provenance", "missing"]
    (scores,) = sections["scores"].tables
    assert [row[0] for row in scores.rows] == ["before", "after"]
    assert [cell.mean for cell in scores.rows[0][1:3]] == [1.0, 0.75]
    (verdicts,) = sections["compared"].tables
    assert {row[0]: row[-1] for row in verdicts.rows} == {
        "nih_ctx": "inconclusive",
        "squad_contain": "fail",
        "mean of tasks": "fail",
    }
    assert [picture.caption for picture in sections["needles"].pictures] == ["before: nih_ctx", "after: nih_ctx"]
    assert "mean 0.667 over 9 tests" in sections["needles"].pictures[1].alt
    assert "600 tokens 0.00" in sections["needles"].pictures[1].alt
    assert [flip.task for flip in sections["compared"].flips] == ["nih_ctx"] * 3 + ["squad_contain"] * 5
    missing = " ".join(sections["missing"].paragraphs)
    assert "MT-Bench: ctxaware mt-bench answer, then judge" in missing
    assert "needle heatmaps" not in missing


def test_what_a_model_says_stays_text(two):
    page = html(page_of(*two))
    read = Page(page)
    assert EVIL in read.text
    assert not read.all("script")
    assert not [attributes for _, attributes in read.tags if any(name.startswith("on") for name in attributes)]
    assert all(attributes["src"].startswith("data:image/svg+xml;base64,") for attributes in read.all("img"))
    text = markdown(page_of(*two))
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.S | re.M)
    assert "script" not in outside
    assert "not a heading" not in outside


def test_names_from_data_are_escaped_too(tmp_path):
    name = "<b>bold</b> & 50% of_it"
    folder = write_run(tmp_path / "run", {"nih_ctx": needles([1.0])}, results={"model_name": "<i>model</i>"})
    report = page_of((name, folder))
    read = Page(html(report))
    assert name in read.text
    assert not read.all("b") + read.all("i")
    assert r"\<b\>bold\</b\>" in markdown(report)
    assert r"\& 50\% of\_it" in latex(report)


def test_the_needle_is_highlighted_and_the_hay_cut(two):
    (flip, *_) = page_of(*two).sections[1].flips
    assert [text for text, marked in flip.prompt if marked] == ["The needle is here."]
    assert sum(len(text) for text, _ in flip.prompt) < 1500
    assert "characters …]" in "".join(text for text, _ in flip.prompt)
    assert flip.answers == ("recall 1.0", "recall 0.0")
    assert "<mark>The needle is here.</mark>" in html(page_of(*two))


def test_the_same_results_are_the_same_bytes(two):
    first, second = page_of(*two), page_of(*two)
    for render in (html, markdown, latex):
        assert render(first) == render(second)


def test_the_page_can_be_read_without_seeing_it_and_without_a_mouse(two):
    read = Page(html(page_of(*two)))
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), "a heading level is left out"
    assert len(read.ids) == len(set(read.ids))
    referred = [a["aria-labelledby"] for _, a in read.tags if "aria-labelledby" in a]
    referred += [a["href"].removeprefix("#") for a in read.all("a")]
    assert set(referred) <= set(read.ids)
    assert all(len(image["alt"]) > 40 for image in read.all("img"))
    assert {cell["scope"] for cell in read.all("th")} == {"col", "row"}
    assert len(read.all("caption")) == len(read.all("table")) > 0
    scrolls = [a for _, a in read.tags if a.get("class") == "scroll" and "role" in a]
    assert all(a["tabindex"] == "0" for a in scrolls)
    assert read.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in read.text
    assert "@media print" in read.text


def test_large_runs_stay_under_the_limit(tmp_path):
    """Four full grids, 20 MB of prompts and answers."""
    runs = []
    for k in range(4):
        rows = [
            sample(
                n,
                float(k == 0),
                {"context_length": 200 * (n // 20 + 1), "depth_percent": 5.0 * (n % 20), "needle": "needle"},
                resps=[["word " * 1200]],
                arguments={"gen_args_0": {"arg_0": "hay " * 800 + "needle" + " hay" * 800}},
            )
            for n in range(400)
        ]
        runs.append((f"run {k}", write_run(tmp_path / str(k), {"nih_ctx": rows})))
    assert len(html(page_of(*runs)).encode()) < MOST_BYTES


def test_conditions_of_one_folder_are_told_apart(tmp_path):
    folder = tmp_path / "gap"
    for template in (False, True):
        chat = {"chat_template": "{{ messages }}"} if template else {}
        for task in ("nih_ctx", "nih_ctx_prefix", "nih_ctx_ind"):
            write_run(folder / f"{template}" / task, {task: needles([1.0, 0.5])}, results=chat)
    report = page_of(("gap", folder))
    sections = {section.anchor: section for section in report.sections}
    names = [row[0] for row in sections["scores"].tables[0].rows]
    assert names == [
        "gap, without template",
        "gap, [IND] always, without template",
        "gap, with template",
        "gap, [IND] always, with template",
    ]
    (table,) = sections["template"].tables
    assert table.columns == (
        "model",
        "without template, prefix",
        "without template, no prefix",
        "with template, prefix",
        "with template, no prefix",
    )
    assert [row[0] for row in table.rows] == ["gap", "gap, [IND] always"]
    assert [row[1] is None for row in table.rows] == [False, True]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("steer_heads", ("all", "retrieval")),
        ("revision", ("a", "b")),
        ("tokenizer", ("x", "y")),
        ("dtype", (None, "y")),
    ],
)
def test_runs_of_one_model_with_other_arguments_are_not_one(tmp_path, argument, values):
    for n, value in enumerate(values):
        given = {"pretrained": "m", "steer_alpha": 0.3, "batch_size": n, **({argument: value} if value else {})}
        write_run(tmp_path / str(n), {"nih_ctx": needles([1.0, n])}, results={"config": {"model_args": given}})
    names = [evaluation.name for evaluation in collect([("run", tmp_path)]).evaluations]
    told = [f"run, steered, α = 0.3{f', {argument}={value}' if value else ''}" for value in values]
    assert names == told


def test_runs_that_do_not_compare_get_no_verdict(tmp_path):
    before = write_run(tmp_path / "before", {"nih_ctx": needles([1.0] * 30)})
    after = write_run(tmp_path / "after", {"nih_ctx": needles([0.0] * 20)})
    (table,) = page_of(("before", before), ("after", after)).sections[1].tables
    assert table.rows[0][-1] is None
    assert "10 documents are only in the first run" in table.note
    other = write_run(tmp_path / "other", {"nih_ctx": needles([1.0] * 4, "Another needle.")})
    (section,) = (s for s in page_of(("before", before), ("other", other)).sections if s.anchor == "compared")
    assert not section.tables
    (told,) = section.paragraphs[1:]
    assert told.startswith(
        "other, nih_ctx: not compared with “before”: nih_ctx: the two runs have no document in common"
    )


def test_two_metrics_in_one_column_are_named_and_not_compared(tmp_path):
    runs = [
        (metric, write_run(tmp_path / metric, {"t": [sample(n, 1.0, metric=metric) for n in range(4)]}))
        for metric in ("acc", "contain")
    ]
    sections = {section.anchor: section for section in page_of(*runs).sections}
    assert "t is not one metric, so its figures do not compare: acc,none of acc; contain,none of contain." in (
        sections["scores"].tables[0].note
    )
    assert not sections["compared"].tables
    assert "the first run has acc,none, the second contain,none" in sections["compared"].paragraphs[1]


def test_runs_named_beta_make_table_9(tmp_path):
    runs = [(f"beta={b}", write_run(tmp_path / b, {"squad_contain": [float(b)] * 4})) for b in ("0.7", "0.5", "0.6")]
    (section,) = (s for s in page_of(*runs).sections if s.anchor == "ablation")
    assert [row[0] for row in section.tables[0].rows] == ["beta=0.5", "beta=0.6", "beta=0.7"]


def test_runs_of_several_seeds_are_shown_as_one_too(tmp_path):
    runs = []
    for seed in (1, 2):
        for name, scores in (("vanilla", [0, 0, 1]), ("β=0.5", [1, 0, 1]), ("β=0.6", [1, seed - 1, 1])):
            runs.append((f"{name}, seed {seed}", write_run(tmp_path / f"{name}{seed}", {"squad_contain": scores})))
    sections = {section.anchor: section for section in page_of(*runs).sections}
    scores, differences = sections["seeds"].tables
    assert [(row[0], row[1].mean) for row in scores.rows] == [
        *(("vanilla", pytest.approx(1 / 3)), ("β=0.5", pytest.approx(2 / 3)), ("β=0.6", pytest.approx(5 / 6)))
    ]
    assert [row[0] for row in differences.rows] == ["β=0.5", "β=0.6"]
    (ablation,) = sections["ablation"].tables
    assert (ablation.columns[0], [row[0] for row in ablation.rows]) == ("threshold β", ["β=0.5", "β=0.6"])
    assert "seeds" not in {section.anchor for section in page_of(*runs[:3]).sections}


def test_what_can_not_be_read_is_named_at_the_top(tmp_path, two):
    broken = write_run(tmp_path / "broken", {"nih_ctx": [1.0, 0.0], "mmlu": [sample(0, 7.5)]})
    (file,) = broken.rglob("samples_nih_ctx*")
    file.write_text(file.read_text()[:-20])
    (tmp_path / "broken" / "run.json").write_text("{")
    bare = write_run(tmp_path / "bare", {"nih_ctx": [1.0]})
    next(bare.rglob("samples*")).unlink()
    report = page_of(*two, ("broken", broken), ("bare", bare))
    assert len(report.warnings) == 4
    told = " ".join(report.warnings)
    for part in (
        "samples_nih_ctx",
        "score 7.5, expected a number from 0 to 1",
        "run.json",
        "run lm_eval with log_samples",
    ):
        assert part in told
    assert "Left out of this report" in html(report)
    assert [row[0] for row in report.sections[0].tables[0].rows] == ["before", "after"]


@pytest.mark.parametrize("name", [".__tuned", ".tuned", "checkpoint-40", "_data"])
def test_results_are_shown_whatever_their_model_is_called(tmp_path, name):
    """lm_eval names the folder after the model: ./tuned becomes .__tuned."""
    folder = write_run(tmp_path / "run", {"squad_contain": [1.0]}, model=name)
    assert [evaluation.model for evaluation in collect([("run", folder)]).evaluations] == [name]
    write_run(folder, {"squad_contain": [0.0]}, model="another")
    found = collect([("run", folder)])
    assert {evaluation.model for evaluation in found.evaluations} == {name, "another"}
    assert not found.left_out


def test_results_inside_a_checkpoint_are_shown_and_those_inside_a_hidden_or_unfinished_folder_are_not(tmp_path):
    folder = write_run(tmp_path / "run", {"squad_contain": [1.0]})
    checkpoint = folder / "checkpoint-40"
    write_run(checkpoint / "evaluated", {"squad_contain": [1.0]}, model="checkpoint-40")
    for name in ("trainer_state.json", "complete.json", "model.safetensors"):
        (checkpoint / name).write_text("{}")
    write_run(folder / ".trash" / "old", {"squad_contain": [1.0]})
    write_run(folder, {"squad_contain": [1.0]}, model=".squad_contain.x.unfinished")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "results_2026-01-02T03-04-05.678-checkpoint.json").write_text("{}")
    found = collect([("run", folder)])
    assert {evaluation.model for evaluation in found.evaluations} == {"model", "checkpoint-40"}
    assert found.left_out == [
        f"{folder / '.trash'}: a hidden folder with results of lm_eval; pass it by itself to show them"
    ]


def test_a_run_without_samples_is_named_beside_another_s_samples(tmp_path):
    folder = write_run(tmp_path / "run", {"squad_contain": [1.0]})
    later = folder / "model" / "results_2026-03-01T00-00-00.0.json"
    later.write_text("{}")
    assert collect([("run", folder)]).left_out == [f"{later}: no samples beside it; run lm_eval with log_samples"]


def test_an_older_run_of_a_task_is_passed_over_and_named(tmp_path):
    folder = write_run(tmp_path / "run", {"squad_contain": [1.0]}, date="2026-02-01T00-00-00.0")
    write_run(tmp_path / "run", {"squad_contain": [0.0]}, date="2026-01-01T00-00-00.0")
    report = page_of(("run", folder))
    assert report.sections[0].tables[0].rows[0][1].mean == 1.0
    assert len(report.warnings) == 1
    assert "2026-02-01T00-00-00.0 is shown" in report.warnings[0]


def test_mistakes_are_named(tmp_path, two):
    empty = tmp_path / "empty"
    empty.mkdir()
    for runs, told in (
        ([("x", tmp_path / "none")], "does not exist"),
        ([("x", empty)], "holds nothing that a report shows"),
        ([("x", two[0][1]), ("x", two[1][1])], "two evaluations are called 'x'"),
    ):
        with pytest.raises(InputError, match=told):
            page_of(*runs)


def test_markdown_that_no_report_wrote_stays(two, tmp_path):
    mine = tmp_path / "README.md"
    mine.write_text("mine")
    (run, *_) = two
    done = CliRunner().invoke(app, ["report", f"{run[0]}={run[1]}", "--out", str(tmp_path / "README.html")])
    assert isinstance(done.exception, InputError)
    assert "is there and ctxaware did not write it" in str(done.exception)
    assert [path.name for path in tmp_path.glob("README.*")] == ["README.md"]
    assert mine.read_text() == "mine"


def test_the_command_writes_page_markdown_and_latex(two, tmp_path):
    out = tmp_path / "out" / "page.html"
    runs = [f"{name}={folder}" for name, folder in two]
    done = CliRunner().invoke(app, ["report", *runs, "--out", str(out), "--latex", "--title", "A & B"])
    assert done.exit_code == 0, done.output
    assert "<title>A &amp; B</title>" in out.read_text()
    assert out.with_suffix(".md").read_text().startswith("# A & B")
    assert out.with_suffix(".tex").read_text().count(r"\begin{tabular}") == 3
    assert {p.name for p in out.parent.iterdir()} == {"page.html", "page.md", "page.tex"}
    folder = tmp_path / "a=b"
    shutil.copytree(two[0][1], folder)
    assert CliRunner().invoke(app, ["report", str(folder), "--out", str(out)]).exit_code == 0
    assert "a=b" in out.read_text()
    for wrong in (["--out", "page.pdf"], ["--max-drop", "2"], ["--confidence", "0.2"]):
        error = CliRunner().invoke(app, ["report", *runs, *wrong]).exception
        assert isinstance(error, InputError)


def chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(chromium() is None, reason="needs Chromium, such as Debian's package chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_opens_it_without_a_word_and_nothing_is_wider_than_the_screen(two, tmp_path, width):
    probe = (  # ours, in a frame around the page: the page itself has no script
        "<iframe id=f src=page.html style='width:{w}px;height:900px;border:0'></iframe><script>"
        "onload = () => {{ const d = document.getElementById('f').contentDocument;"
        "document.title = JSON.stringify({{fits: d.documentElement.scrollWidth <= d.documentElement.clientWidth,"
        "broken: [...d.images].filter(i => !i.naturalWidth).length, n: d.images.length}}) }}</script>"
    )
    (tmp_path / "page.html").write_text(html(page_of(*two)))
    (tmp_path / "frame.html").write_text(f"<!doctype html><meta charset=utf-8>{probe.format(w=width)}")
    command = [
        *(chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"),
        *("--allow-file-access-from-files", "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}"),
    ]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert seen == {"fits": True, "broken": 0, "n": 2}
    assert "CONSOLE" not in done.stderr
    subprocess.run(
        [*command, "--print-to-pdf=" + str(tmp_path / "page.pdf"), f"file://{tmp_path}/page.html"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_take_the_theme(two):
    picture = page_of(*two).sections[2].pictures[0]
    svg = base64.b64decode(picture.data_uri.partition(",")[2]).decode()
    assert "prefers-color-scheme:dark" in svg
    assert "stroke: #000000" not in svg
    assert "<svg" in svg[:10]


def test_lines_that_are_torn_do_not_stop_the_others(tmp_path, two):
    (file,) = two[1][1].rglob("samples_nih_ctx*")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_lines(file, rows[:-1])
    report = page_of(*two)
    assert "has 8 documents" in report.warnings[0]
    assert [row[1] is None for row in report.sections[0].tables[0].rows] == [False, True]
