"""
What a page is made of: sections of paragraphs, tables, figures and stories, as plain data.

    Section("losses", "Loss", [text("..."), figure(svg, "..."), table("...", head, rows)])

page.html renders them and escapes every text in them; only `figure` and `markup` are HTML.
"""

from dataclasses import dataclass, field

from markupsafe import Markup, escape

from eval import bootstrap


@dataclass
class Section:
    """A section of the page; name: of its anchor."""

    name: str
    title: str
    blocks: list = field(default_factory=list)


@dataclass
class Cell:
    """A cell of a table: its text, what it is sorted by, a class of its style, a line below."""

    text: str
    by: float | str | None = None
    look: str = ""
    below: str = ""


def text(words, look=""):
    """A paragraph."""
    return {"kind": "text", "text": words, "look": look}


def table(caption, head, rows, look=""):
    """
    A table that can be sorted. rows: lists of Cell, str, number, interval or None, which reads "not
    measured".
    """
    return {"kind": "table", "caption": caption, "head": head,
            "rows": [[cell(x) for x in row] for row in rows], "look": look}  # fmt: skip


def cell(value, digits=3):
    """The Cell of a value: see `table`."""
    if value is None:
        return Cell("not measured", None, "none")
    if isinstance(value, Cell):
        return value
    if isinstance(value, dict):
        mean, _, rest = bootstrap.format_interval(value, digits).partition(" ")
        return Cell(mean, value["mean"], below=rest.strip("()"))
    if isinstance(value, int):
        return Cell(f"{value:,}", value)
    if isinstance(value, float):
        return Cell(f"{value:.{digits}f}", value)
    return Cell(str(value), str(value))


def figure(svg, caption):
    """A figure; svg: of charts.py, or None, which reads "not measured"."""
    named = svg and svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return {"kind": "figure", "svg": named and Markup(named), "caption": caption}


def stories(title, beginning, columns):
    """Texts side by side. columns: (heading, text or HTML that is Markup, a line below) each."""
    return {"kind": "stories", "title": title, "beginning": beginning, "columns": columns}


def listing(items, look=""):
    """A list of texts."""
    return {"kind": "list", "items": items, "look": look}


def folded(title, lines):
    """Lines of code that are shown on request."""
    return {"kind": "folded", "title": title, "lines": lines}


def missing(what, command):
    """A paragraph for what no run has measured."""
    return text(f"Not measured in this study: {what}. It would be: {command}", "none")
