"""The house as its documents describe it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {str(p.relative_to(ROOT)) for p in (ROOT / "ctxaware").rglob("*.py") if p.name != "__init__.py"}


def test_every_module_has_one_line_in_the_architecture_page():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"^\| `(ctxaware/[\w/.]+\.py)` \|", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(MODULES)


def test_no_module_is_longer_than_a_person_reads_at_once():
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in MODULES}
    assert {name: n for name, n in lengths.items() if n > 310} == {}


def test_every_command_has_a_file_of_its_own():
    from typer.main import get_command

    from ctxaware.commands.app import app

    commands = {name.replace("-", "_") for name in get_command(app).commands}
    files = {Path(name).stem for name in MODULES if name.startswith("ctxaware/commands/")}
    assert commands == files - {"app", "options"}


def test_the_readme_fits_on_a_page_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not link.startswith(("http:", "https:")):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_a_library_names_no_flag_of_a_command_line():
    """Flags stand in `commands/`; elsewhere `InputError` names settings, and the command spells them."""
    flagged = [
        f"{name}:{line}: {text}"
        for name in sorted(MODULES)
        if not name.startswith("ctxaware/commands/")
        for line, text in _texts((ROOT / name).read_text())
        if re.search(r"(?<![\w-])--[a-z]", text)
        and not re.fullmatch(
            r"--[\w-]+=?", text
        )  # the recipes' parser looks for it, or it is a word of an experiment's command
        and "pip install --" not in text
    ]
    assert flagged == []


def _texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of each string of a module, docstrings aside."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
