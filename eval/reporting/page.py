"""The report's page: plain data in, HTML out.

    html = render("A study", "of eight models", {"losses": {"validation": svg, ...}, ...})

page.html is the frame with the list of sections, sections.html the words and tables of each, a
macro that takes its data, and blocks.html how tables, figures and stories look. All texts are
escaped but those that are Markup.
"""

import functools
import shlex
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from eval import published
from eval.bootstrap import format_interval


@dataclass
class Cell:
    """A cell of a table."""

    text: str
    sort_key: float | str | None = None  # None sorts last
    look: str = ""  # a CSS class
    below: str = ""  # a second line


def cell(value, digits=3):
    """The Cell of a Cell, text, number, interval, counts or None, which reads "not measured"."""
    match value:
        case Cell():
            return value
        case None:
            return Cell("not measured", look="none")
        case {"mean": mean}:
            shown, _, ends = format_interval(value, digits).partition(" ")
            return Cell(shown, mean, below=ends.strip("()"))
        case dict():
            return cell(", ".join(map(str, value.values())))
        case int():
            return Cell(f"{value:,}", value)
        case float():
            return Cell(f"{value:.{digits}f}", value)
    return Cell(str(value), str(value))


def grade_pair(first, second):
    """A Cell of two published grades, sorted by the first."""
    return Cell(f"{first:.2f} / {second:.2f}", first)


def quote(interval, digits=2):
    """An interval as text; UndefinedError where there is none."""
    if not interval or interval["low"] is None:
        raise jinja2.UndefinedError("not measured")
    return format_interval(interval, digits)


def labeled(svg, caption):
    """An SVG of charts.py as Markup, with its caption for a screen reader."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1))


def digest(text):
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


@functools.cache
def templates():
    """The jinja2 environment of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), extensions=["jinja2.ext.do"],
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"cell": cell, "labeled": labeled, "thousands": "{:,}".format,
                            "shell": shlex.join, "digest": digest, "quote": quote}  # fmt: skip
    environment.globals |= {"Cell": Cell, "grade_pair": grade_pair, "published": published}
    return environment


def render(title, subtitle, sections):
    """The page, a str. sections: {name: the arguments of its macro in sections.html}."""
    page = templates().get_template("page.html")
    return page.render(title=title, subtitle=subtitle, data=sections)
