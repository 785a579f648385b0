"""The house as its documents describe it."""

import re
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
