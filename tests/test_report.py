"""The report: what is missing is marked, nothing is loaded, a hostile story stays a story."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from planted_study import GRID, KINDS, interval, run, study

from configs import UserError
from eval import gather, report, report_models
from eval.blocks import Cell, Section, cell, stories, table, text
from eval.claims import claims
from eval.plan import Size

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">&amp; {{ 7 * 7 }} \ud800'


def shares(size):
    return {kind: 0.6 + 0.002 * size.width**0.5 * size.layers for kind in KINDS}


class Reader(HTMLParser):
    """The tags and texts of a page, and the attributes that load something."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.loads, self.open, self.texts = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            local = (value or "").startswith("#")
            if name in ("src", "srcset", "action", "data") or (
                name in ("href", "xlink:href") and not local
            ):
                self.loads.append((tag, name, value))
            assert not name.startswith("on"), (tag, name)

    def handle_data(self, data):
        self.texts.append(data)


def page_of(planted):
    sections, _, _ = report.report(planted)
    return report.render("The study", "facts", sections)


@pytest.fixture(scope="module")
def page():
    """Of a study with every kind of result in it."""
    return page_of(full())


def full():
    """A planted study with every kind of result in it."""
    planted = study(shares, lambda size: 5 - 0.2 * size.width**0.4)
    for one in planted.runs:
        one.found["side_by_side"] = {"stories": [
            {"name": "the snowman", "beginning": HOSTILE, "completion": HOSTILE, "h": 0.2,
             "closest": 3, "closest_text": f"They made a snowman. {HOSTILE}"}]}  # fmt: skip
        rows = [{"kind": kind, "prompt": HOSTILE, "completion": HOSTILE, "margins": [1.0],
                 "verdict": "success"} for kind in ("context", "reasoning", "facts")]  # fmt: skip
        scores = {kind: {"right": interval(0.5)} for kind in ("context", "reasoning", "facts")}
        one.found["judge-prompts"] = {"models": [{"rows": rows, "scores": scores}]}
    planted.pieces.append({"name": HOSTILE, "command": ["train.py", HOSTILE], "status": "failed",
                           "proof": "x", "run": ""})  # fmt: skip
    planted.runs[0].env = {"torch": "9.9", "data": {}}
    more = run(Size(64, 2, 4), 1, {}, kind="instruct")
    joint = {side: interval(0.3) for side in ("model", "shuffled", "true")}
    more.found["instruct"] = {"checks": {"joint": joint}}
    planted.runs.append(more)
    return planted


def test_a_hostile_story_is_shown_as_it_is(page):
    """All of it is text; the only script is the page's, and nothing is loaded."""
    reader = Reader(page)
    assert reader.tags.count("script") == 1 and "img" not in reader.tags and not reader.loads
    told = "".join(reader.texts)
    assert "<script>alert(1)</script>" in told and "{{ 7 * 7 }}" in told and "49" not in HOSTILE
    assert "default-src 'none'" in page and "http-equiv" in page
    for where in ("http://", "https://"):
        for found in re.findall(rf"{where}[^\"' <]*", page):
            assert found.startswith("http://www.w3.org/"), found  # names of SVG's vocabularies


def test_with_half_of_it_missing(page):
    """Every section is there, what no run has measured is marked, and nothing else is."""
    planted = full()
    for one in planted.runs[::2]:
        one.found = {}
    for one in planted.runs[::3]:
        one.curve = one.train_curve = []
    less = page_of(planted)
    names = re.findall('<h2 id="(.*?)">', page)
    assert re.findall('<h2 id="(.*?)">', less) == names == re.findall('href="#(.*?)">', less)
    assert len(set(names)) == 17 and "not measured" in less
    assert 0 < less.count("<h4>") < page.count("<h4>")


def test_with_nothing_at_all():
    page = page_of(study(shares, seeds=0))
    assert page.count("not measured") > 26 and "cannot tell" in page  # all of the paper's table
    assert "No model of the grid" in page


def test_published_numbers_stand_beside_ours(page):
    for text_ in ("9.34 / 0.92", "5.93 / 6.10", "2.94 / 0.00", "a factor of 500", "70 words"):
        assert text_ in page, text_
    blocks = report_models.grid(full()).blocks
    tables = [block for block in blocks if block["kind"] == "table"]
    [row] = [row for row in tables[1]["rows"] if row[0].text == "128-2"]
    assert row[1].text == "1.920" and row[7].text.startswith("3.")  # the paper's loss, and ours
    [row] = [row for row in tables[1]["rows"] if row[0].text == "1024-12"]
    assert row[7].text == "not measured" == row[8].text


def test_a_failed_piece_is_shown(page):
    assert "failed: </script>" in "".join(Reader(page).texts)


def test_figures_take_the_pages_colours(page):
    assert page.count("<svg") > 6 and "currentColor" in page and "var(--line)" in page
    assert "#123456" not in page and "<metadata" not in page


def test_the_same_study_makes_the_same_page(page):
    assert page_of(full()) == page


def test_cells():
    assert cell(None).text == "not measured" and cell(None).by is None
    assert cell(interval(0.5)) == Cell("0.500", 0.5, below="0.490 to 0.510")
    assert cell(1234).text == "1,234" and cell(0.5).text == "0.500" and cell("x").by == "x"


def test_tables_can_be_sorted():
    block = table("a", ["model", "loss"], [["x", 3.0], ["y", None]])
    page = report.render("t", "f", [Section("s", "S", [block, text("words")])])
    assert '<button type="button">loss</button>' in page
    assert 'data-by="3.0"' in page and page.count("data-by=") == 3


def test_stories_are_escaped_but_for_what_is_marked():
    block = stories("t", "<b>", [("m", "<i>told</i>", "<u>")])
    page = report.render("t", "f", [Section("s", "S", [block])])
    assert "&lt;i&gt;told" in page and "<i>told" not in page and "&lt;u&gt;" in page


def test_the_command(tmp_path, monkeypatch, capsys):
    """On a folder with a study in which nothing is done yet."""
    settings = {"models": "64-2-4", "rivals": "", "dataset": "nowhere", "judge": "", "source": "x"}
    (tmp_path / "study.json").write_text(json.dumps({"settings": settings, "pieces": []}))
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    report.main()
    found = json.loads((tmp_path / "report.json").read_text())
    assert len(found["claims"]) == len(claims(study(shares, seeds=0))) and found["scaling"] is None
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "cannot tell" in capsys.readouterr().out


def test_no_study(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no study in"):
        gather.read(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        gather.read(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py"])
    with pytest.raises(UserError, match="usage"):
        report.main()


def test_only_what_is_done_is_read(tmp_path, monkeypatch):
    """A file that an older command has left is no result."""
    eval_ = tmp_path / "64-2-4-s1" / "eval"
    eval_.mkdir(parents=True)
    (eval_ / "skills.json").write_text("{}")
    monkeypatch.setattr(gather, "run_in", lambda folder: run(GRID[2], 1, {}))
    row = {"name": "train", "proof": "t", "run": "r", "status": "done", "command": []}
    one = {"name": "skills", "proof": "out/planted/64-2-4-s1/eval/skills.json", "run": "",
           "status": "failed", "command": []}  # fmt: skip
    settings = {"models": "64-2-4", "rivals": "", "dataset": "nowhere"}
    (tmp_path / "study.json").write_text(json.dumps({"settings": settings, "pieces": [row, one]}))
    found = gather.read(tmp_path)
    assert len(found.runs) == 1 and found.runs[0].found["skills"] is None
