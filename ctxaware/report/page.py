"""A report before it is HTML, Markdown or LaTeX: sections of sentences, tables, pictures and flips."""

from dataclasses import dataclass, field

from ctxaware.report.flips import Flip
from ctxaware.report.pictures import Picture
from ctxaware.report.tables import Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.paragraphs or self.tables or self.pictures or self.flips)


@dataclass(frozen=True)
class Report:
    """A title, warnings that a reader must not miss, and the sections that have something to show."""

    title: str
    warnings: list[str]
    sections: list[Section]
