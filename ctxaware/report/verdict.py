"""The gate's answer in words: Markdown for people, JSON for programs, JUnit XML for CI servers."""

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ctxaware import __version__
from ctxaware.intervals import Difference
from ctxaware.report.conditions import condition_of
from ctxaware.report.gate import FAIL, INCONCLUSIVE, PASS, POWER, Gate, Judgment
from ctxaware.report.samples import TaskRun
from ctxaware.report.tables import Table, escape_markdown
from ctxaware.runs.claim import refuse_foreign_file
from ctxaware.runs.files import write_json, write_text

_MARKS = {"gate.md": "** (limit ", "gate.json": '"ctxaware"', "gate.xml": 'name="ctxaware gate"'}
_PLURALS = {"cell": "cells", "passage": "passages", "question": "questions", "cluster": "clusters"}


def sentence(judgment: Judgment, max_drop: float) -> str:
    """A verdict with its reason, in one line."""
    limit = f"{max_drop:g}"
    if judgment.verdict == FAIL:
        return f"a drop of more than {limit} is shown (p {_p(judgment.p_fail)})"
    if judgment.verdict == PASS:
        return f"a drop of more than {limit} is excluded (p {_p(judgment.p_pass)})"
    if judgment.n_to_decide is not None:
        enough = f"{_rounded_up(judgment.n_to_decide):,}"
        seen = "" if judgment.losses + judgment.gains else "no score differs, but "
        return f"{seen}{judgment.n} samples do not decide; about {enough} would, if the difference stays"
    if judgment.n_clusters == 1:
        return f"all samples are of one {judgment.cluster_kind}, which says nothing of others"
    return "no number of samples would decide: the difference is at the limit"


def table(gate: Gate) -> Table:
    """A row for each task, and for their mean."""
    rows = []
    for each in gate.judgments:
        n = str(each.n)
        if each.n_clusters != each.n:
            n += f" in {each.n_clusters} {_PLURALS[each.cluster_kind]}"
        rows.append(
            (
                each.name,
                each.before,
                each.after,
                Difference(each.difference, each.lower, each.upper, each.n),
                f"{each.losses} worse, {each.gains} better",
                None if each.mcnemar_p is None else _p(each.mcnemar_p).removeprefix("= "),
                each.detectable_drop,
                n,
                each.verdict,
            )
        )
    bounds = f"difference [{100 * gate.confidence:g}% bounds]"
    columns = ("task", "before", "after", bounds, "flips", "McNemar p", "detectable drop", "samples", "verdict")
    note = (
        f"Each bound holds with {100 * gate.confidence:g}% confidence by itself. Detectable: the smallest true drop "
        f"that this many samples would fail {100 * POWER:g} times in 100."
    )
    return Table("Gate", columns, rows, note)


def markdown(gate: Gate) -> str:
    """The verdict, its reasons, the table, and what was compared."""
    rows = table(gate)
    limit = f"limit {gate.max_drop:g}, confidence {100 * gate.confidence:g}%"
    lines = [f"**{gate.verdict}** ({limit})", ""]
    lines += [
        f"- {escape_markdown(each.name)}: {each.verdict}, {sentence(each, gate.max_drop)}" for each in gate.judgments
    ]
    lines += ["", rows.markdown(), "", rows.note, ""]
    lines += [f"- differs, and was allowed ({m.kind}): {escape_markdown(m.text)}" for m in gate.mismatches]
    for which, run in _described(gate):
        lines.append(f"- {which}: {escape_markdown(run)}")
    return "\n".join(lines) + "\n"


def _described(gate: Gate) -> list[tuple[str, str]]:
    """Each run once: model, condition, date and folder."""
    described: dict[tuple[str, str], None] = {}
    for both in gate.runs:
        for which, run in zip(("before", "after"), both, strict=True):
            of = condition_of(run)
            template = "with chat template" if of.template else "without chat template"
            said = ", ".join([of.model, template, *of.marks, *of.arguments, run.file.date])
            described[which, f"{said} ({run.file.path.parent})"] = None
    return sorted(described, key=lambda each: each[0] != "before")


def content(gate: Gate) -> dict[str, Any]:
    """The gate's answer as JSON values."""
    return {
        "verdict": gate.verdict,
        "exit_code": gate.exit_code,
        "max_drop": gate.max_drop,
        "confidence": gate.confidence,
        "metric": gate.metric,
        "power": POWER,
        "tasks": [{**dataclasses.asdict(each), "reason": sentence(each, gate.max_drop)} for each in gate.judgments],
        "allowed": [dataclasses.asdict(mismatch) for mismatch in gate.mismatches],
        "runs": [{"before": _provenance(before), "after": _provenance(after)} for before, after in gate.runs],
        "ctxaware": __version__,
    }


def _provenance(run: TaskRun) -> dict[str, Any]:
    return {
        "task": run.task,
        "version": run.of_task("versions"),
        "model": run.model,
        "samples": str(run.file.path),
        "task_hash": run.of_task("task_hashes"),
        "chat_template_sha": run.results.get("chat_template_sha"),
        "lm_eval_version": run.results.get("lm_eval_version"),
    }


def junit(gate: Gate) -> str:
    """A test case for each task and their mean; an inconclusive one is an error: no server takes it for passed."""
    counts = {
        name: str(sum(j.verdict == v for j in gate.judgments))
        for name, v in (("failures", FAIL), ("errors", INCONCLUSIVE))
    }
    suite = ElementTree.Element("testsuite", {"name": "ctxaware gate", "tests": str(len(gate.judgments)), **counts})
    for each in gate.judgments:
        case = ElementTree.SubElement(suite, "testcase", classname="ctxaware.gate", name=_xml(each.name))
        if each.verdict != PASS:
            kind = "failure" if each.verdict == FAIL else "error"
            message = sentence(each, gate.max_drop)
            problem = ElementTree.SubElement(case, kind, type=each.verdict, message=message)
            problem.text = f"before {each.before:.3f}, after {each.after:.3f}, difference {_signed(each)}"
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def save(gate: Gate, out: Path) -> list[Path]:
    """Write `gate.md`, `gate.json` and `gate.xml` into a folder, and return their paths.

    Raises:
        InputError: one of them is there and is not a gate's.
    """
    for name, mark in _MARKS.items():
        refuse_foreign_file(out / name, mark)
    write_text(out / "gate.md", markdown(gate))
    write_json(out / "gate.json", content(gate))
    write_text(out / "gate.xml", junit(gate))
    return [out / name for name in _MARKS]


def _signed(judgment: Judgment) -> str:
    return str(Difference(judgment.difference, judgment.lower, judgment.upper, judgment.n))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _rounded_up(n: int) -> int:
    """To two digits: more would be pretence."""
    step = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step


def _xml(text: str) -> str:
    """Without the characters that XML can't hold."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
