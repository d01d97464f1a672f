"""One HTML page that stands alone: pictures embedded, nothing fetched, readable offline; no script but an insert's."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """Rows under column names; None is shown as a dash, floats with three decimals."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG or GIF with the words that a reader without it gets; small ones stand side by side."""

    content: bytes
    alt: str
    caption: str = ""
    small: bool = False

    @property
    def source(self) -> str:
        """The picture as a data address."""
        kind = "gif" if self.content.startswith(b"GIF8") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, paragraphs, key figures, a table, pictures and commands."""

    heading: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default=(), repr=False)
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Insert:
    """Markup with style and scripts of our own, put into a page below its title as it is.

    Attributes:
        body: HTML, complete and escaped.
        style: CSS.
        scripts: JavaScript, in order; the page's policy lets these run by their hashes, and nothing else.
    """

    body: str
    style: str = ""
    scripts: Sequence[str] = field(default=(), repr=False)

    @property
    def policy(self) -> str:
        """The sources of scripts as of Content Security Policy, level 3."""
        hashes = [hashlib.sha256(script.encode()).digest() for script in self.scripts]
        words = [f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in hashes]
        return f"script-src {' '.join(words)}; " if words else ""


def render_page(title: str, sections: Sequence[Section], lead: str = "", insert: Insert | None = None) -> str:
    """Return the page as text. All content is escaped: it may hold case ids, and no paths or names of patients."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    environment.tests["number"] = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, sections=sections, insert=insert or Insert("")
    )


def write_page(
    path: str | Path, title: str, sections: Sequence[Section], lead: str = "", insert: Insert | None = None
) -> None:
    """Write the page, whole or not at all.

    Raises:
        UsageError: the place cannot be written to.
    """
    write_text(path, render_page(title, sections, lead, insert))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
