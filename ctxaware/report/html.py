"""A report as one offline HTML page, as Markdown, and its tables as LaTeX: one content, the same bytes each time."""

import re
from pathlib import Path
from typing import Any

from ctxaware import __version__
from ctxaware.report.flips import Flip
from ctxaware.report.page import Report
from ctxaware.report.tables import Table, cell_text

_MARKS = {".html": 'content="ctxaware', ".md": "Made by ctxaware", ".tex": "% needs \\usepackage{booktabs}"}
MOST_BYTES = 2_000_000  # of the page


def html(report: Report) -> str:
    """The page. Text from data is escaped: what a model wrote as markup stays text."""
    return _environment(escape=True).get_template("report.html.jinja").render(report=report, version=__version__)


def markdown(report: Report) -> str:
    """The same content as Markdown; in place of a picture stands what it shows in words."""
    text = _environment(escape=False).get_template("report.md.jinja").render(report=report, version=__version__)
    return re.sub(r"\n{3,}", "\n\n", text)


def latex(report: Report) -> str:
    """All tables, for a document that loads `booktabs`."""
    tables = [table.latex() for section in report.sections for table in section.tables]
    return "% needs \\usepackage{booktabs}\n\n" + "\n\n".join(tables) + "\n"


def _environment(escape: bool) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ctxaware.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell_text, "is_figure": _is_figure, "fenced": _fenced, "one_line": _one_line}
    environment.globals |= {"prompt_text": prompt_text, "table_text": Table.markdown}
    return environment


def _is_figure(cell: object) -> bool:
    """Whether a cell holds a number, which stands on the right."""
    return cell is not None and not isinstance(cell, str)


def prompt_text(flip: Flip) -> str:
    """A flip's prompt with its highlighted pieces between arrows."""
    return "".join(f"→{text}←" if marked else text for text, marked in flip.prompt)


def _fenced(text: str) -> str:
    """Text as a block of code, inside a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _one_line(text: str) -> str:
    """Text as one line of Markdown, which nothing in it can leave."""
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", " ".join(text.split()))


def write(report: Report, out: Path, with_latex: bool) -> list[Path]:
    """Write the page, the Markdown beside it and, if asked for, the LaTeX tables; returns their paths.

    Raises:
        InputError: a file of one of these names is there and is not a report's.
    """
    from ctxaware.runs.claim import refuse_foreign_file
    from ctxaware.runs.files import write_text

    texts = {out: html(report), out.with_suffix(".md"): markdown(report)}
    if with_latex:
        texts[out.with_suffix(".tex")] = latex(report)
    for path in texts:
        refuse_foreign_file(path, _MARKS[path.suffix])
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)
