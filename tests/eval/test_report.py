"""The report: what is missing is marked, nothing is loaded, a hostile story stays a story."""

import json
import re
import sys
from html.parser import HTMLParser
from unittest.mock import MagicMock

import numpy as np
import pytest
import tiny
from markupsafe import Markup
from planted_study import GRID, KINDS, interval, run, study

from configs import UserError
from eval import report
from eval.memorization.copying import BINS
from eval.prompts import knowledge_prompts
from eval.reporting import charts, model_sections, scaling_law, story_sections, variants
from eval.reporting import results as study_results
from eval.reporting.claims import evaluate_claims
from eval.reporting.page import Cell, cell, labeled, render, templates
from eval.reporting.study_jobs import Size
from eval.reporting.study_state import digest
from eval.study_power import power_of

CHART = charts.chart
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">&amp; {{ 7 * 7 }} \ud800'


def accuracies(size):
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
    claims, law = evaluate_claims(planted), scaling_law.fit_twice(scaling_law.curves_of(planted))
    sections = report.make_sections(planted, claims, law, power_of(planted, claims))
    return render("The study", "subtitle", sections)


def block(name, *args):
    """A block of blocks.html as HTML."""
    return getattr(templates().get_template("blocks.html").module, name)(*args)


@pytest.fixture(scope="module", autouse=True)
def few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.bootstrap.ROUNDS", 40)
        patch.setattr("eval.reporting.scaling_law.ROUNDS", 4)
        yield


def on_nothing(*draws, **_):
    """Stands in for charts.chart, which takes its time: all is drawn, but on nothing."""
    for draw in draws:
        draw(MagicMock())
    return "<svg></svg>"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(charts, "chart", on_nothing)


@pytest.fixture(scope="module")
def page():
    """The page of a study with every kind of result, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "chart", on_nothing)
        return page_of(full())


def full():
    """A planted study with every kind of result in it."""
    planted = study(accuracies, lambda size: 5 - 0.2 * size.width**0.4)
    planted.settings["judge"] = HOSTILE
    for one in planted.runs:
        one.results |= results(one)
        one.results["fluency"] = fluency(0.5 - 0.001 * one.size.width + 0.01 * one.seed)
        one.results["fluency-steps"] = one.results["fluency"]
    planted.runs[0].env = {"torch": "9.9", "data": {}}
    planted.runs[0].recipe = {"batch_size": 2, "learning_rate": HOSTILE}
    planted.jobs.append({"name": HOSTILE, "command": ["train.py", HOSTILE], "status": "failed",
                           "output": "x", "run": ""})  # fmt: skip
    size = Size(64, 2, 4)
    for kind in ("rope", "untied", "v1", "v2", "once", "twice"):
        for seed in (1, 2):
            planted.runs.append(run(size, seed, accuracies(size), 2.9, kind))
            planted.runs[-1].recipe |= {"n_embd": 72}
            planted.runs[-1].results["fluency"] = fluency(0.1 * seed)
    of_kind = {"instruct": instruct(), "syn": vocabulary(), "reward": rewarded(),
               "naive": rewarded(), "ood": held_out(), "table1": {}}  # fmt: skip
    for kind, found in of_kind.items():
        more = run(size, 1, {}, kind=kind)
        more.results = found
        more.steps = [{"step": n, "reward": 0.1 * n, "kl": n, "loss": n} for n in range(9)]
        planted.runs.append(more)
    larger = run(Size(128, 2, 4), 1, {}, kind="instruct")
    larger.results = instruct()
    planted.runs.append(larger)
    baseline = run(size, 1, accuracies(size), kind="baseline")
    baseline.name, baseline.size = "gpt2-xl", None
    baseline.curve = []
    baseline.results |= results(baseline)
    planted.runs.append(baseline)
    return planted


def results(one):
    """What the evaluations of a plain run measure."""
    rows = [{"kind": kind, "prompt": HOSTILE, "completion": HOSTILE, "margins": [1.0],
             "verdict": "success"} for kind in ("context", "reasoning", "facts")]  # fmt: skip
    scores = {kind: {"accuracy": interval(0.5)} for kind in ("context", "reasoning", "facts")}
    grades = {grade: interval(6.0) for grade in ("creativity", "grammar", "consistency", "plot")}
    neurons = {"mean_coherence": interval(0.5), "mean_coherence_random_weights": interval(0.3),
               "readable": interval(0.9), "readable_random_weights": interval(0.8),
               "coherence_held_out": [[0.1, 0.5], [0.2, 0.6]]}  # fmt: skip
    shown = [{"layer": 0, "neuron": 3, "coherence_held_out": 0.9,
              "examples": [{"tokens": ["a ", HOSTILE, " c"], "peak": 1}]}]  # fmt: skip
    texts = {
        "rouge_original": interval(0.1),
        "rouge_other": interval(0.1),
        "rouge_nearest": interval(0.3),
        "mtld": interval(50.0),
        "rouge_nearest_unseen": interval(0.3),
        "self_bleu": interval(0.3),
        "copies": {"exact": 0},
        "values": {"rouge_original": [0.1], "rouge_other": [0.2, None], "rouge_nearest": [0.3]},
        "ngrams": {k: {"new": interval(0.2), "histogram": [1] * (len(BINS) - 1)} for k in "1234"},
    }
    story = {"name": "the snowman", "beginning": HOSTILE, "completion": HOSTILE,
            "rouge_nearest": 0.2, "nearest_story": 3,
            "nearest_text": f"They made a snowman. {HOSTILE}"}  # fmt: skip
    copy = {"rouge_nearest": 0.4, "beginning": HOSTILE, "original": f"The original. {HOSTILE}",
            "completion": HOSTILE, "nearest_text": HOSTILE}  # fmt: skip
    slides = [rows[0] | {"prompt": one.text, "kind": one.kind, "margins": [2.0, -2.0]}
              for one in knowledge_prompts.paper("slides")]  # fmt: skip
    text = {"tokens": ["Once", " upon", HOSTILE], "pos": None}
    return {
        "side_by_side": {"stories": [story]},
        "judge-slides": {"models": [{"completions": slides, "scores": {"all": scores["facts"]}}]},
        "copies": [copy],
        "patterns": [np.full((4, 3, 3), 0.3)],
        "judge-prompts": {"models": [{"completions": rows, "scores": scores}]},
        "judge-paper": {"judge": {"model": HOSTILE}, "grades": grades,
                        "age_groups": {"A": 1, "C": 3}},
        "judge-report": {"grades": grades},
        "grades": [{"number": [i, 0], "verdict": dict.fromkeys(grades, 5.0 + i % 3)}
                   for i in range(9)],
        "interpret": {"heads": [{"kind": "distance", "layer": 0, "head": 1}], "neurons": neurons,
                      "model": {"n_layer": 4, "n_head": 4, "n_embd": 64}, "text": text,
                      "shown_neurons": shown},
        "diversity": {"sets": {f"{one.out_dir} at 1": texts, "original continuations": {
            "rouge_other": interval(0.1), "mtld": interval(9.0), "self_bleu": interval(0.2),
            "values": {"rouge_other": [0.2]}}}},
    }  # fmt: skip


def fluency(relative):
    """What eval.fluency finds of a model whose referee's nats per byte are `relative`."""
    row = dict.fromkeys(variants.FLUENCY, interval(0.1)) | {"relative": interval(relative)}
    sets = {"real stories": row, "temperature 0.8": row, "temperature 1.0": row}
    steps = {str(n): row | {"relative": interval(relative + 1 / n)} for n in (1, 2, 4)}
    return {"sets": sets, "stories": 20, "checkpoints": steps}


def instruct():
    joint = {side: interval(0.3) for side in ("model", "shuffled", "true")}
    return {"instruct": {"checks": {"joint": joint}},
            "judge-instruct": {"grades": {"consistency": interval(5.0)}}}  # fmt: skip


def vocabulary():
    keys = (
        "mtld",
        "synonym_entropy",
        "rare",
        "non_words",
        "distinct_1",
        "distinct_2",
        "distinct_3",
    )
    row = dict.fromkeys(keys, interval(0.4)) | {"loss": {"data/x": interval(3.0)}, "judge": {}}
    return {"vocabulary": {"models": {"a": row, "b": row}}}


def rewarded():
    keys = ("about", "mentions", "reward", "repetition", "perplexity", "words", "ended")
    row = dict.fromkeys(keys, interval(0.4)) | {"verdicts": {"good": 1, "okay": 2, "bad": 3}}
    story = {"model": "reward", "start": "Once", "text": HOSTILE, "verdict": "okay"}
    return {
        "reward": {"word": HOSTILE, "models": {"reference": row, "reward": row}},
        "reward_stories": [story, story | {"model": "instruct", "text": "An instructed one."}],
    }


def held_out():
    """What eval.instruct finds of two models, one of which never saw words and summary together."""
    checks = {name: {"model": interval(0.3)} for name in ("joint", "met, words+summary")}
    gaps = dict.fromkeys(checks, interval(-0.07))
    line = {"prompt": f"Words: a\nSummary: {HOSTILE}\nStory: ", "story": "Of both."}
    result = {"checks": checks, "beside": {"checks": checks, "difference": gaps}}
    return {"instruct": result, "instructed": [line]}


def test_a_hostile_story_is_shown_as_it_is(page):
    """All of it is text; the only script is the page's, and nothing is loaded."""
    reader = Reader(page)
    assert reader.tags.count("script") == 1 and "img" not in reader.tags and not reader.loads
    words = "".join(reader.texts)
    assert "<script>alert(1)</script>" in words and "{{ 7 * 7 }}" in words and "49" not in HOSTILE
    assert "default-src 'none'" in page and "http-equiv" in page


def test_with_half_of_it_missing(page, quick):
    """Every section is there, what no run has measured is marked, and nothing else is."""
    planted = full()
    for one in planted.runs[::2]:
        one.results = {}
    for one in planted.runs[::3]:
        one.curve = one.train_curve = []
    less = page_of(planted)
    names = re.findall('<h2 id="(.*?)">', page)
    assert re.findall('<h2 id="(.*?)">', less) == names == re.findall('href="#(.*?)">', less)
    assert len(set(names)) == 23 and "not measured" in less
    assert 0 < less.count("<h4>") < page.count("<h4>")


@pytest.mark.parametrize("name", [
    "skills", "side_by_side", "judge-prompts", "judge-paper", "grades", "interpret", "diversity",
    "instruct", "vocabulary", "reward", "judge-slides", "copies", "patterns", "instructed",
    "reward_stories",
])  # fmt: skip
def test_with_one_of_them_missing(name, quick):
    """Of all runs, or of the first seeds alone."""
    for some in (slice(None), slice(0, None, 3)):
        planted = full()
        for one in planted.runs[some]:
            one.results.pop(name, None)
        assert "not measured" in page_of(planted)


@pytest.mark.parametrize(
    "kind", ["", "syn", "instruct", "reward", "baseline", "naive", "ood", "table1"]
)
def test_with_one_kind_of_run_missing(kind, quick):
    planted = full()
    planted.runs = [one for one in planted.runs if one.kind != kind]
    page_of(planted)
    planted = full()
    planted.runs = [one for one in planted.runs if one.kind != kind or one.seed > 1]
    page_of(planted)
    for one in planted.runs:
        one.curve = one.train_curve = one.steps = []
    page_of(planted)


def test_of_a_kind_no_question_could_be_made(quick):
    """Stories without any name make no question about consistency."""
    planted = full()
    for one in planted.runs:
        for table_ in (one.results.get("skills") or {"correct": {}, "skills": {}}).values():
            if isinstance(table_, dict):
                table_.pop("consistency", None)
    page_of(planted)


def test_with_nothing_at_all(quick):
    page = page_of(study(accuracies, seeds=0))
    assert page.count("not measured") > 26 and "not decided" in page  # all of the paper's table
    assert "No model of the grid" in page


def test_published_numbers_stand_beside_ours(page, quick):
    for text_ in ("9.34 / 0.92", "5.93 / 6.10", "2.94 / 0.00", "a factor of 500", "70 words"):
        assert text_ in page, text_
    rows = {
        row[0]: [cell(value).text for value in row] for row in model_sections.grid(full())["paper"]
    }
    row = rows["128-2"]
    assert row[1] == "1.920" and row[7].startswith("3.")  # the paper's loss, and ours
    assert rows["1024-12"][7:9] == ["not measured"] * 2


def test_a_failed_job_is_shown(page):
    assert "failed: </script>" in "".join(Reader(page).texts)


@pytest.mark.slow
def test_with_figures():
    """They take the page's colors, say what they show, and load nothing."""
    page = page_of(full())
    assert page.count("<svg") > 6 and "currentColor" in page and "var(--line)" in page
    assert page.count('<svg role="img" aria-label="') == page.count("<svg")
    assert "#123456" not in page and "<metadata" not in page and not Reader(page).loads
    for address in re.findall(r"https?://[^\"' <]*", page):
        assert address.startswith("http://www.w3.org/"), address  # names of SVG's vocabularies


def test_the_same_study_makes_the_same_page(page, quick):
    assert page_of(full()) == page
    draw = charts.draw_lines({"a": [(1, 2), (3, 4)], "b": [(1, 3)]})
    assert CHART(draw, xlabel="x") == CHART(draw, xlabel="x")


def test_cells():
    assert cell(None).text == "not measured" and cell(None).sort_key is None
    assert cell(interval(0.5)) == Cell("0.500", 0.5, below="0.490 to 0.510")
    assert cell({"good": 12, "bad": 3}).text == "12, 3"  # counts
    assert cell(1234).text == "1,234" and cell(0.5).text == "0.500" and cell("x").sort_key == "x"


def test_tables_can_be_sorted():
    page = block("table", "a", ["model", "loss"], [["x", 3.0], ["y", None]])
    assert '<button type="button">loss</button>' in page
    assert 'data-sort-key="3.0"' in page and page.count("data-sort-key=") == 3


def test_stories_are_escaped_but_for_what_is_marked():
    page = block("stories", "t", "<b>", [("m", "<i>words</i>", "<u>"), ("", Markup("<mark>x"), "")])
    assert "&lt;i&gt;words" in page and "<i>words" not in page and "&lt;u&gt;" in page
    assert "&lt;b&gt;" in page and "<b>" not in page and "<mark>x" in page


def test_the_command(tmp_path, monkeypatch, capsys):
    """On a folder with a study in which nothing is done yet."""
    settings = {
        "models": "64-2-4",
        "baselines": "",
        "dataset": "nowhere",
        "hold_out": "words+summary",
        "judge": "",
        "source": "x",
    }
    (tmp_path / "study.json").write_text(json.dumps({"settings": settings, "jobs": []}))
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    report.main()
    result = json.loads((tmp_path / "report.json").read_text())
    expected = evaluate_claims(study(accuracies, seeds=0))
    assert len(result["claims"]) == len(expected) and result["scaling"] is None
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "not measured" in capsys.readouterr().out


def test_the_numbers_of_the_page_are_in_a_file(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(report, "read_study", lambda folder: full())
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    report.main()
    result = json.loads((tmp_path / "report.json").read_text())
    of_study = variants.architectures(full())["rows"] + variants.corpora(full())["rows"]
    rows = result["architectures"] + result["corpora"]
    assert [row["kind"] for row in rows] == [row["run"][0].kind for row in of_study] != []
    assert [row["plot"] for row in rows] == [row["values"]["plot"] for row in of_study]
    assert len(result["width_and_depth"]["rows"]) == 9
    assert [row["verdict"] for row in result["claims"]] == [
        claim.verdict for claim in evaluate_claims(full())
    ]


def test_no_study(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no study in"):
        study_results.read_study(tmp_path)
    for text_, why in (("{", "damaged"), ("{}", "not a study of this version")):
        (tmp_path / "study.json").write_text(text_)
        with pytest.raises(UserError, match=why):
            study_results.read_study(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py"])
    with pytest.raises(UserError, match="usage"):
        report.main()


def test_only_what_is_done_is_read(tmp_path, monkeypatch):
    """Neither what an older command has left nor what has been changed since is a result."""
    proof = tmp_path / "64-2-4-s1" / "eval" / "skills.json"
    proof.parent.mkdir(parents=True)
    proof.write_text('{"correct": {}}')

    def planted_run(folder):
        one = run(GRID[2], 1, {})
        one.out_dir = str(tmp_path / "64-2-4-s1")
        return one

    monkeypatch.setattr(study_results, "read_run", planted_run)
    row = {
        "name": "train",
        "output": "t",
        "run": "r",
        "status": "done",
        "command": [],
        "sha256": "",
    }
    one = row | {"name": "skills", "output": str(proof), "run": "", "sha256": digest(proof)}
    settings = {"models": "64-2-4", "baselines": "", "dataset": "nowhere"}
    for change, expected in (({}, {"correct": {}}), ({"status": "failed"}, None),
                             ({"sha256": "other"}, None)):  # fmt: skip
        study_ = {"settings": settings, "jobs": [row, one | change]}
        (tmp_path / "study.json").write_text(json.dumps(study_))
        study_read = study_results.read_study(tmp_path)
        assert len(study_read.runs) == 1 and study_read.runs[0].results["skills"] == expected


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_run_is_read_back(data, tmp_path, positions):
    out = tmp_path / "32-2-2-s1"
    tiny.train(tiny.settings_for(data, out, max_iters=2, positions=positions))
    run = study_results.read_run(str(out))
    learned = 128 * 32 * (positions == "learned")
    assert run.parameters - run.matmul_parameters == learned and run.name == "32-2-2"
    assert len(run.curve) == 1 and run.tokens == run.train_curve[-1][0]


def test_a_run_that_is_gone_has_not_been_measured(tmp_path):
    assert study_results.read_run(str(tmp_path / "64-2-4-s1")) is None


def test_in_a_browser(page, browser, tmp_path):
    """Tables sort by what a cell is worth, what is unknown last; hostile stories do nothing."""
    (tmp_path / "report.html").write_text(
        page.encode("utf-8", "replace").decode(), encoding="utf-8"
    )
    browser.get(f"file://{tmp_path}/report.html")
    tables = browser.find_elements("css selector", "table")
    [grid] = [x for x in tables if "GPT-4's grades as" in x.get_attribute("aria-label")]

    def column(i):
        rows = grid.find_elements("css selector", "tbody tr")
        return [row.find_elements("css selector", "th, td")[i].text for row in rows]

    buttons = grid.find_elements("css selector", "thead button")
    buttons[1].click()
    losses = column(1)
    assert losses[:2] == ["1.180", "1.180"] and losses[25:] == ["2.380"] + ["not printed"] * 5
    buttons[1].click()
    assert column(1)[0] == "2.380" and column(1)[-1] == "not printed"
    buttons[0].click()
    assert column(0)[:3] == ["64-2", "64-4", "64-8"]
    assert browser.get_log("browser") == [] and browser.title == "The study"


def test_the_nearest_story_is_one_that_the_model_has_read(page):
    """Not a baseline's, which has read others."""
    assert "training story nearest to that of 256-2-4" in page and "that of gpt2-xl" not in page


def test_our_largest_model_need_not_be_the_last_one(quick):
    planted = full()
    planted.settings["models"] = ", ".join(reversed(planted.settings["models"].split(", ")))
    assert str(planted.grid[-1].size) == "32-2-2"
    models = {nearest["model"] for *_, nearest in story_sections.stories(planted)["beginnings"]}
    assert models == {"256-2-4"}
    assert story_sections.diversity(planted)["nearest"][0] == "256-2-4"


def test_the_caption_of_a_figure_is_escaped():
    caption = 'a "b"><script>'
    for shown in (labeled("<svg></svg>", caption), block("figure", "<svg></svg>", caption)):
        assert "<script>" not in shown and "&#34;b&#34;&gt;" in shown and "<svg" in shown


# ---- what the page says ------------------------------------------------------------------------


def texts(page):
    return " ".join(" ".join(Reader(page).texts).split())


def test_the_scale_of_the_verdicts(page, quick):
    """In the first sentence, in words: sizes, seeds, tokens, stories; no glob."""
    planted = full()
    planted.settings["source"] = "tinystories/train_*.txt"
    words = report.scale_of(planted)
    assert words == (
        "8 models, 24,576 to 1,572,864 parameters without embeddings (width 32 to 256, 1 to 4 "
        "layers), 3 training seeds each, 2.0 million training tokens a run, of 9 stories of "
        "TinyStories"
    )
    shown = texts(page_of(planted))
    assert shown.count(words) == 2 and "train_*" not in shown
    assert report.scale_of(study(accuracies, seeds=0)) == ""


def test_verdicts_claim_no_more_than_they_saw(page):
    """In words and shades that neither praise nor blame."""
    [table] = re.findall(r'aria-label="The claims of the paper.*?</table>', page, re.DOTALL)
    assert set(re.findall(r">(seen at[^<]*|the opp[^<]*|not [dm][^<]*)</td>", table)) == {
        "seen at this scale", "the opposite is seen", "not decided", "not measured"}  # fmt: skip
    assert "success" not in table and "failure" not in table
    for old in ("does not hold", "cannot tell", "holds:"):
        assert old not in texts(page)


def test_labels_are_plain_words_with_units(page):
    shown = texts(page)
    for old in ("relative score", " / relative", "synonym_entropy", "non_words"):
        assert old not in shown, old
    for label in ("lexical diversity (MTLD), words", "(entropy), bits per word", "words per story",
                  "stories about the word, fraction"):  # fmt: skip
        assert label in shown
    for old in ("mtld", "about", "mentions", "words"):
        assert f'data-sort-key="{old}"' not in page
    [row] = re.findall(r'data-sort-key="words per story".*?</tr>', page)
    assert row.count(">0 <small>") == 3  # of a number of words no decimals


def test_a_pair_is_colored_by_its_probabilities_and_a_text_by_what_it_says(quick):
    """log p(right) - log p(wrong) = 1 is 73 : 27; the verdict of all pairs colors nothing."""
    prompt = "Jack was hungry, so he went looking for"
    row = {"kind": "facts", "prompt": prompt, "margins": [1.0, -1.0], "verdict": "success"}
    planted = study(accuracies, seeds=1)
    said = ("some Food for him.", "a foodless hat.", "something to eat!")
    for one, completion in zip(planted.runs, said, strict=False):
        table = {"completions": [row | {"completion": completion}], "scores": {"all": {}}}
        one.results["judge-slides"] = {"models": [table]}
    page = page_of(planted)
    assert page.count('<span class="pair success">a 73 : 27 %</span>') == 3
    assert page.count('<span class="pair failure">b 27 : 73 %</span>') == 3
    assert '<span class="generated success">some Food for him.</span>' in page
    assert '<span class="generated">a foodless hat.</span>' in page
    assert '<span class="generated success">something to eat!</span>' in page
    assert "a: food | a hat" in page and "b: something to eat | something to wear" in page


def test_the_shape_whose_heads_are_counted_stands_beside_the_papers(page):
    assert "has 4 layers of 4 heads each, width 64." in texts(page)
    assert "one layer of 16 heads, width 1,024" in texts(page)


def test_what_the_seeds_have(page):
    """The report's naive method and its tables 1 and 7, held-out instructions, the slides' prompts,
    a head of each kind, the original continuation, the size of the data.
    """
    shown = texts(page)
    for words in (
        "with a KL penalty", "without (naive)", "the student report's table 7",
        "An instructed one.", "words and summary, which it never saw together", "Of both.",
        "-0.070", "original continuation", "The original. ", "Instructions followed completely",
        "run once on the same stories", "Lily wanted to get either a cat or a dog",
        "what a head of each kind attends to", "bert-base-uncased (estimated)", "22,500,000",
    ):  # fmt: skip
        assert words in shown, words


@pytest.mark.parametrize("steps, words", [
    (1000, "Of its 1,000 steps here 1,000 are warm-up: the learning rate reaches its value only"),
    (400, "Of its 400 steps here 400 are warm-up: the learning rate"),
    (5000, "Of its 5,000 steps here 1,000 are warm-up."),
])  # fmt: skip
def test_how_much_of_the_students_recipe_is_warm_up(quick, steps, words):
    planted = full()
    [table_1] = planted.of_kind("table1")
    table_1.recipe |= {"max_iters": steps, "warmup_iters": 1000}
    assert words in texts(page_of(planted))


def test_measures_that_grew_in_few_steps_are_named(quick):
    planted = full()
    for rows, named in (((0.6, 0.5, 0.5, 0.7), True), ((0.5, 0.6, 0.7, 0.7), False)):
        along = [{"step": n, "tokens": n, "skills": {"plot": {"accuracy": interval(x)}},
                  "correct": {"plot": [x] * 9}} for n, x in enumerate(rows)]  # fmt: skip
        for one in planted.grid:
            one.results["skills"]["checkpoints"] = along
            one.results["judge-paper"] = None
        words = "Better in fewer than half of the steps between checkpoints: plot (1 of 3)"
        assert (words in texts(page_of(planted))) == named


def test_settings_that_differ_between_widths_have_all_their_values(quick):
    planted = full()
    for one in planted.grid:
        one.recipe |= {"muon_lr_scale": 64 / one.size.width, "beta1": 0.9}
    shown = page_of(planted)
    scales = "2.0 (width 32), 1.0 (width 64), 0.5 (width 128), 0.25 (width 256)"
    for name, value in (("muon_lr_scale", scales), ("beta1", "0.9")):
        [row] = re.findall(rf'data-sort-key="{name}".*?</tr>', shown)
        assert f">{value}<" in row


@pytest.mark.parametrize("tokens, words", [
    (6_000_000, "33 % of the training stories, each once."),
    (800_000, "each training story 2.5 times."),
])  # fmt: skip
def test_how_much_a_run_reads(quick, tokens, words):
    planted = full()
    planted.grid[0].recipe["dataset"] = "data/planted"
    planted.data["data/planted"]["splits"]["train"]["tokens"] = tokens
    assert f"A run of the grid reads {words}" in texts(page_of(planted))


def test_questions_are_answered_by_numbers_or_open(quick):
    rows = story_sections.questions(full(), evaluate_claims(full()), None)["answers"]
    found = {question: (answer, claims) for question, answer, claims in rows}
    assert len(found) == len(rows) > 20 and all(question.endswith("?") for question in found)
    copies = next(answer for question, (answer, _) in found.items() if "n-grams" in question)
    assert "Exact copies among the completions of a model: 0." in copies and "0.20 (0.19" in copies
    [law] = [answer for question, (answer, _) in found.items() if "scaling laws" in question]
    assert law == ""  # nothing was fitted
    planted = full()
    for one in planted.runs:
        one.results.pop("diversity", None)
    assert "Open." in page_of(planted)
    rows = story_sections.questions(planted, evaluate_claims(planted), None)["answers"]
    assert [answer for question, answer, _ in rows if "n-grams" in question] == [""]


def test_a_fit_that_misses_says_so(quick):
    planted = study(accuracies, lambda size: 5 - 0.2 * size.width**0.4)
    claims, law = evaluate_claims(planted), scaling_law.fit_twice(scaling_law.curves_of(planted))
    for misses in (False, True):
        changed = law | {"misfit": 0.031, "misses": misses}
        page = render("", "", report.make_sections(planted, claims, changed, {}))
        assert ("misses the envelope by up to 3 % of the loss" in texts(page)) == misses
        assert "Without the curves of the smallest model" in texts(page)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_over_the_edge(page, browser, tmp_path, width):
    """Wide tables scroll in boxes of their own; at 1,280 px ours need not."""
    wide = page.replace("<svg", '<svg viewBox="0 0 374 223" ')
    (tmp_path / "report.html").write_text(wide.encode("utf-8", "replace").decode(), "utf-8")
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(f"file://{tmp_path}/report.html")
    over = browser.execute_script("""
        const right = e => e.getBoundingClientRect().right, head = e => e.outerHTML.slice(0, 200)
        const all = selector => [...document.querySelectorAll(selector)]
        const inside = all("body *").filter(e => !e.closest(".wide table"))
        return [inside.filter(e => right(e) > innerWidth).map(head),
                all(".wide, figure").filter(e => e.scrollWidth > e.clientWidth).map(head),
                getComputedStyle(document.querySelector("nav ol")).columnGap]""")
    assert over[0] == []
    assert width == 390 or over[1] == [], over[1]
    assert not [html for html in over[1] if html.startswith("<figure")]
    assert over[2] == "48px"  # no entry runs into the number of the next column
