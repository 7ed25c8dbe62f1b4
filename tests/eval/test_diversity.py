"""python -m eval.diversity: what it says of models that copy or do not, and what it refuses."""

import json
import shutil
import sys
from html import unescape

import numpy as np
import pytest
import tiny
from story_data import made
from tiny import settings_for

import prepare
from configs import UserError
from eval import diversity
from eval.diversity import ORIGINALS, UNSEEN, Beginning, Settings, cut_at, measure
from eval.memorization import page as diversity_page
from eval.memorization.nearest_story import Index
from nanostories.dataset import storybook
from nanostories.text.words import words_and_marks

pytestmark = pytest.mark.usefixtures("nltk_data")


HERE = Settings(distinct_words=60, seed=0)


def test_cut_at():
    """Of ten words four are the beginning; no word is cut, and blanks around the cut are lost."""
    assert cut_at("a b c d  e f g h i j \n", 0.4) == ("a b c d", "e f g h i j")
    assert cut_at("a\n\nb c", 0.4) == ("a", "b c") and cut_at(' "a" b', 0.5) == (' "a"', "b")
    assert cut_at("", 0.4) == cut_at("a", 0.4) == cut_at("a b", 0.2) == ("", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(an Index of 60 stories, the Beginnings of 12 of them, 12 other stories)."""
    stories = [story.text for story in storybook.stories(72, seed=8)]
    index = Index(made(tmp_path_factory.mktemp("world") / "data", stories[:60]), 1)
    cut = [cut_at(text, 0.4) for text in stories]
    found = [Beginning(i, *(cut[i][0], *cut[i])) for i in range(12)]
    return index, found, [rest for _, rest in cut[60:]]


def test_a_perfectly_memorising_model(world):
    """It tells the originals: s = h = 1, all are exact copies, r is the originals' own."""
    index, found, others = world
    told = {("parrot", 1.0): [one.rest for one in found]}
    results, copied, _ = measure(index, found, told, others, HERE)
    row = results["parrot at 1"]
    assert row["s"]["mean"] == row["h"]["mean"] == 1 and row["levels"]["exact"] == 12
    assert [copy.run[0] for copy in copied["parrot at 1"]] == row["values"]["run"]
    assert row["closest_is_the_original"] == 12
    assert row["r"] == results[ORIGINALS]["r"] and row["r"]["mean"] < 1
    assert row["self_bleu"] == results[ORIGINALS]["self_bleu"]
    assert all(row["g"][k]["never"]["mean"] == 0 for k in "12345")
    assert row["rouge_score"]["s"]["clipped"]["mean"] == 1
    assert row["rouge_score"]["h"]["default"]["mean"] == 1
    # Of the same length, other stories have as much in common with these as their own rows say.
    assert row["h_of_unseen_as_long"]["mean"] == pytest.approx(
        results[UNSEEN]["h"]["mean"], abs=0.1
    )
    # Other stories of the same grammar have much, but not all, in common with these.
    assert 0.2 < results[UNSEEN]["h"]["mean"] < 1 and "s" not in results[UNSEEN]
    assert "h" not in results[ORIGINALS] and UNSEEN not in measure(index, found, told, [], HERE)[0]


def test_an_all_new_text(world):
    """No k-gram of it occurs: s = h = 0 and g = -10 throughout; and said twelve times, r = 1."""
    index, found, others = world
    new = "quantum fluctuations permeate vacuum energies evidently"
    results, *_ = measure(index, found, {("new", 0.5): [new] * 12}, others, HERE)
    row = results["new at 0.5"]
    assert row["s"]["mean"] == row["h"]["mean"] == 0 and row["levels"]["short"] == 12
    for k in "12345":
        assert row["g"][k]["never"]["mean"] == row["g"][k]["never_different"] == 1
        assert row["g"][k]["histogram"][0] == 12 * (7 - int(k)) == sum(row["g"][k]["histogram"])
    assert row["r"]["mean"] == 1 == row["rouge_score"]["r"]["default"]["mean"]
    assert row["self_bleu"]["mean"] == pytest.approx(1)
    assert row["words"] == 6 and row["distinct"]["1"] == 6 / 60
    # Six words of a real story stand more easily in another than all of it does.
    assert row["h_of_unseen_as_long"]["mean"] > results[UNSEEN]["h"]["mean"] + 0.1
    assert results[ORIGINALS]["distinct"]["1"] > 0.3


def test_no_story_is_compared_with_itself(world):
    """Twelve that share nothing: r is 0 for each, not 1. The beginning is not scored with it."""
    index, found, others = world
    texts = [" ".join(f"w{i}x{j}" for j in range(5)) for i in range(12)]
    row = measure(index, found, {("m", 1.0): texts}, others, HERE)[0]["m at 1"]
    assert row["r"]["mean"] == 0 and row["values"]["r"] == [0.0] * 12
    assert row["values"]["s"] == [0.0] * 12
    # What repeats its beginning alone has what the rest happens to share with it, not all.
    texts = [one.text for one in found]
    row = measure(index, found, {("m", 1.0): texts}, others, HERE)[0]["m at 1"]
    assert row["s"]["mean"] < 0.6 and row["h"]["mean"] == 1


def test_empty_completions(world):
    """They count in nothing and are counted."""
    index, found, others = world
    texts = ["", "one", *(one.rest for one in found[2:])]
    row = measure(index, found, {("m", 1.0): texts}, others, HERE)[0]["m at 1"]
    assert row["empty"] == 1 and sum(row["levels"].values()) == 11 and row["levels"]["short"] == 1
    assert row["s"]["n"] == row["h"]["n"] == row["r"]["n"] == 10 and row["s"]["mean"] == 1
    assert row["values"]["s"][:2] == [None, None]
    results = measure(index, found, {("m", 1.0): [""] * 12}, others, HERE)[0]
    assert results["m at 1"]["h"] is None and results["m at 1"]["run"]["words"] is None
    diversity.show(results)
    json.dumps(results, allow_nan=False)


# ----------------------------------------------------------------------------------------------
# the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Two runs that have learnt next to nothing, one with Instruct records."""
    top = tmp_path_factory.mktemp("diversity")
    prepare.prepare(
        prepare.Settings(
            source="instruct:storybook", tokenizer="bpe", vocab_size=512, stories=80,
            val_fraction=0.2, out=str(top / "records"), workers=1,
        )
    )  # fmt: skip
    for name, where in (("plain", data), ("told", str(top / "records"))):
        settings = settings_for(where, top / name, max_iters=3, block_size=400, row_tokens=800)
        tiny.train(settings)
    return top


def main(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.diversity", *map(str, arguments)])
    diversity.main()
    return capsys.readouterr().out


HOW = ("--prompts=6", "--max_new_tokens=40", "--workers=1")


def test_the_command(runs, data, capsys, monkeypatch):
    told = main(capsys, monkeypatch, runs / "plain", "--temperatures=1,0.5", *HOW)
    assert "\n6 beginnings of" in f"\n{told}" and "unseen stories" in told
    folder = runs / "plain" / "eval"
    found = json.loads((folder / "diversity.json").read_text())
    names = [f"{runs}/plain at {heat}" for heat in ("1", "0.5")]
    assert list(found["sets"]) == [*names, UNSEEN, ORIGINALS]
    assert found["models"].keys() == {str(runs / "plain")} and found["prompts"] == 6
    assert found["data"]["train_000.bin"] and found["temperatures"] == "1,0.5"
    row = found["sets"][names[0]]
    assert row["h"]["n"] == 6 and len(row["values"]["run_tokens"]) == 6
    lines = [json.loads(line) for line in (folder / "diversity.jsonl").read_text().splitlines()]
    assert [(line["temperature"], line["h"]) for line in lines[:6]] == [
        (1.0, value) for value in row["values"]["h"]
    ]
    index = Index(diversity.Dataset(data, "train"))
    for line in lines:
        text = index.text(line["story"])
        assert text.startswith(line["beginning"]) and text.rstrip().endswith(line["original"])
        assert index.text(line["closest"]) == line["closest_text"]
        assert not line["completion"].startswith(line["beginning"])
        assert line["words"] == len(words_and_marks(line["completion"]))
        words = line["copied"].split()
        assert len(words) == line["run"]
    assert (folder / "diversity.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "diversity.html").read_text()
    assert page.count("<h2>") == 6 and page.count("<div>") == 24 and "<mark>" in page
    # The same again is the same, and other stories with another seed.
    main(capsys, monkeypatch, runs / "plain", "--temperatures=1,0.5", *HOW)
    assert json.loads((folder / "diversity.json").read_text()) == found
    main(capsys, monkeypatch, runs / "plain", "--seed=2", "--temperatures=1", *HOW)
    assert (
        json.loads((folder / "diversity.json").read_text())["sets"][ORIGINALS]
        != (found["sets"][ORIGINALS])
    )


def test_models_beside_and_instructions(runs, capsys, monkeypatch):
    """The stories of Instruct records; each model goes on from instruction and beginning."""
    how = ("--temperatures=0.8", *HOW)
    main(capsys, monkeypatch, runs / "told", f"--beside={runs / 'plain'}", *how)
    folder = runs / "told" / "eval"
    found = json.loads((folder / "diversity-beside-plain.json").read_text())
    assert list(found["models"]) == [str(runs / "told"), str(runs / "plain")]
    lines = (folder / "diversity-beside-plain.jsonl").read_text().splitlines()
    assert len(lines) == 12
    stories = [json.loads(line)["beginning"] for line in lines]
    assert not any("Story:" in text or "Words:" in text for text in stories)
    asked = [json.loads(path.read_text()) for path in folder.glob("completions-*.json")]
    assert all("Story:" in text for text in asked[0]["request"]["prompts"])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--temperatures=1,hot"], "temperatures are numbers with commas"),
        (["--temperatures=-1"], "temperature must be 0 or more"),
        (["--cut=1"], "cut must be between 0 and 1"),
        (["--prompts=1"], "prompts must be at least 2"),
        (["--dataset=nowhere"], "no data in 'nowhere'"),
        (["--top_p=0"], "top_p must be"),
        (["--temperatures=1,inf"], "temperatures are numbers with commas"),
        (["--workers=-1"], "workers not negative"),
        (["--beside=nowhere"], "'nowhere'"),
    ],
)
def test_what_it_refuses(wrong, why, runs, capsys, monkeypatch):
    with pytest.raises(UserError, match=why):
        main(capsys, monkeypatch, runs / "plain", *wrong)


def test_an_index_that_cannot_be_written(data, tmp_path):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("overlap"))
    (tmp_path / "data" / "overlap").write_text("no folder")
    with pytest.raises(UserError, match="the index of the stories cannot be written"):
        Index(diversity.Dataset(tmp_path / "data", "train"), 1)


def test_other_data_than_a_model_was_trained_on(runs, capsys, monkeypatch):
    how = (f"--dataset={runs / 'records'}", "--temperatures=1", *HOW)
    assert "was trained on other data" in main(capsys, monkeypatch, runs / "plain", *how)
    found = json.loads((runs / "plain" / "eval" / "diversity.json").read_text())
    assert found["trained_on_it"] == {str(runs / "plain"): False}


# ----------------------------------------------------------------------------------------------
# the page


def test_marked():
    """Shared pairs in yellow, the longest run underlined, everything else as it is."""
    grams = {("the", "cat"), ("cat", "sat")}
    assert diversity_page.marked("So the  cat sat & ran.", grams) == (
        "So <mark>the  cat sat</mark> &amp; ran."
    )
    assert diversity_page.marked("the cat sat up", grams, (2, 4)) == (
        "<mark>the cat</mark> <mark><u>sat</u></mark> <u>up</u>"
    )
    assert diversity_page.marked("", grams) == ""


def test_unseen_stories_are_those_of_val(data):
    index = Index(diversity.Dataset(data, "train"), 1)
    val = diversity.Dataset(data, "val")
    whole = [diversity.text_of(val, index.tokenizer, i) for i in range(val.stories)]
    rests = [cut_at(text, 0.4)[1] for text in whole]
    found = diversity.unseen(index, Settings(prompts=20))
    assert len(found) == 20 == len(set(found)) and set(found) <= set(rests)
    assert diversity.unseen(index, Settings(prompts=val.stories + 1)) == []


def test_a_hostile_story_is_shown_as_text():
    text = "<script>alert('x')</script> İ & the <b>end</b>"
    out = diversity_page.marked(text, {("the", "<")})
    assert "<script" not in out and "<b>" not in out
    plain = out
    for tag in ("<mark>", "</mark>", "<u>", "</u>"):
        plain = plain.replace(tag, "")
    assert unescape(plain) == text


def test_histograms_of_nothing(tmp_path):
    """One model without a word: the picture still comes."""
    interval = None
    never = {"never": None, "never_different": None, "histogram": [0] * 20}
    row = {"h": interval, "s": None, "self_bleu": None, "distinct": {"3": None},
           "g": {k: never for k in "12345"}, "values": {"s": [None], "r": [None]}}  # fmt: skip
    results = {"sets": {"m at 1": row}, "temperatures": "1", "models": {"m": {}}}
    diversity_page.plot(results, tmp_path / "a.png")
    assert np.frombuffer((tmp_path / "a.png").read_bytes()[:4], "S4")[0] == b"\x89PNG"
