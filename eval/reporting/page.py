"""What the report is made of: sections of paragraphs, tables, figures and stories, as plain data.

    Section("losses", "Loss", [text("..."), figure(svg, "..."), table("...", head, rows)])

page.html renders them and escapes every text; only a figure's SVG and texts that are Markup are
inserted as HTML.
"""

from dataclasses import dataclass

from markupsafe import Markup, escape

from eval.bootstrap import format_interval


@dataclass
class Section:
    """A section of the page."""

    name: str  # its anchor
    title: str
    blocks: list


@dataclass
class Cell:
    """A cell of a table."""

    text: str
    sort_key: float | str | None = None  # None sorts last
    look: str = ""  # a CSS class
    below: str = ""  # a second line


def text(words, look=""):
    """A paragraph."""
    return {"kind": "text", "text": words, "look": look}


def missing(what, command):
    """A paragraph for what no run has measured."""
    return text(f"Not measured in this study: {what}. To measure it: {command}", "none")


def listing(items, look=""):
    """A list of texts."""
    return {"kind": "list", "items": items, "look": look}


def table(caption, head, rows, look=""):
    """A sortable table. rows: lists of values that `cell` takes."""
    rows = [[cell(value) for value in row] for row in rows]
    return {"kind": "table", "caption": caption, "head": head, "rows": rows, "look": look}


def cell(value, digits=3):
    """The Cell of a Cell, text, number, interval or None, which reads "not measured"."""
    match value:
        case Cell():
            return value
        case None:
            return Cell("not measured", look="none")
        case dict():
            mean, _, ends = format_interval(value, digits).partition(" ")
            return Cell(mean, value["mean"], below=ends.strip("()"))
        case int():
            return Cell(f"{value:,}", value)
        case float():
            return Cell(f"{value:.{digits}f}", value)
    return Cell(str(value), str(value))


def grade_pair(first, second):
    """A Cell of two published grades, sorted by the first."""
    return Cell(f"{first:.2f} / {second:.2f}", first)


def figure(svg, caption):
    """A figure. svg: from charts.py, or None, which reads "not measured"."""
    named = svg and svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return {"kind": "figure", "svg": named and Markup(named), "caption": caption}


def stories(title, beginning, columns):
    """Texts side by side. columns: (heading, text, which may be Markup, and a line below) each."""
    return {"kind": "stories", "title": title, "beginning": beginning, "columns": columns}


def folded(title, lines):
    """Lines of code that a click unfolds."""
    return {"kind": "folded", "title": title, "lines": lines}
