"""python -m eval.diversity: its measures of models that copy and do not, its page, its refusals."""

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
from eval.diversity import ORIGINALS, UNSEEN, Settings, StoryPrompt, measure, split_story
from eval.memorization import page as diversity_page
from eval.memorization.nearest_story import StoryIndex
from nanostories.dataset import storybook
from nanostories.text.words import words_and_marks

pytestmark = pytest.mark.usefixtures("nltk_data")


HERE = Settings(distinct_words=60, seed=0)


def test_split_story():
    """Of ten words four are the beginning; no word is cut, and blanks around the cut are lost."""
    assert split_story("a b c d  e f g h i j \n", 0.4) == ("a b c d", "e f g h i j")
    assert split_story("a\n\nb c", 0.4) == ("a", "b c") and split_story(' "a" b', 0.5) == (
        ' "a"',
        "b",
    )
    assert split_story("", 0.4) == split_story("a", 0.4) == split_story("a b", 0.2) == ("", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(a StoryIndex of 60 stories, StoryPrompts of 12 of them, 12 other continuations)."""
    stories = [story.text for story in storybook.stories(72, seed=8)]
    index = StoryIndex(made(tmp_path_factory.mktemp("world") / "data", stories[:60]), 1)
    cut = [split_story(text, 0.4) for text in stories]
    prompts = [StoryPrompt(i, *(cut[i][0], *cut[i])) for i in range(12)]
    return index, prompts, [rest for _, rest in cut[60:]]


def test_a_perfectly_memorizing_model(world):
    """It repeats the originals: precision 1, exact copies, as similar to each other as those."""
    index, prompts, unseen = world
    generated = {("parrot", 1.0): [one.original for one in prompts]}
    results, reports, _ = measure(index, prompts, generated, unseen, HERE)
    row = results["parrot at 1"]
    assert (
        row["rouge_original"]["mean"] == row["rouge_nearest"]["mean"] == 1
        and row["copies"]["exact"] == 12
    )
    assert [report.longest[0] for report in reports["parrot at 1"]] == row["values"][
        "longest_match"
    ]
    assert row["nearest_is_original"] == 12
    assert (
        row["rouge_other"] == results[ORIGINALS]["rouge_other"] and row["rouge_other"]["mean"] < 1
    )
    assert row["self_bleu"] == results[ORIGINALS]["self_bleu"]
    assert all(row["ngrams"][n]["new"]["mean"] == 0 for n in "12345")
    assert row["rouge_score"]["original"]["clipped"]["mean"] == 1
    assert row["rouge_score"]["nearest"]["default"]["mean"] == 1
    # Of the same length, other stories have as much in common with these as their own rows say.
    assert row["rouge_nearest_unseen"]["mean"] == pytest.approx(
        results[UNSEEN]["rouge_nearest"]["mean"], abs=0.1
    )
    # Other stories of the same grammar have much, but not all, in common with these.
    assert (
        0.2 < results[UNSEEN]["rouge_nearest"]["mean"] < 1
        and "rouge_original" not in results[UNSEEN]
    )
    assert (
        "rouge_nearest" not in results[ORIGINALS]
        and UNSEEN not in measure(index, prompts, generated, [], HERE)[0]
    )


def test_an_all_new_text(world):
    """No n-gram of it occurs: precision 0, all new; repeated twelve times, F1 with another 1."""
    index, prompts, unseen = world
    new = "quantum fluctuations permeate vacuum energies evidently"
    results, *_ = measure(index, prompts, {("new", 0.5): [new] * 12}, unseen, HERE)
    row = results["new at 0.5"]
    assert (
        row["rouge_original"]["mean"] == row["rouge_nearest"]["mean"] == 0
        and row["copies"]["short"] == 12
    )
    for n in "12345":
        assert row["ngrams"][n]["new"]["mean"] == row["ngrams"][n]["new_distinct"] == 1
        assert (
            row["ngrams"][n]["histogram"][0]
            == 12 * (7 - int(n))
            == sum(row["ngrams"][n]["histogram"])
        )
    assert row["rouge_other"]["mean"] == 1 == row["rouge_score"]["other"]["default"]["mean"]
    assert row["self_bleu"]["mean"] == pytest.approx(1)
    assert row["mean_words"] == 6 and row["distinct"]["1"] == 6 / 60
    # Six words of a real story stand more easily in another than all of it does.
    assert row["rouge_nearest_unseen"]["mean"] > results[UNSEEN]["rouge_nearest"]["mean"] + 0.1
    assert results[ORIGINALS]["distinct"]["1"] > 0.3


def test_no_story_is_compared_with_itself(world):
    """Texts that share nothing: F1 with another is 0, not 1. The beginning is not scored."""
    index, prompts, unseen = world
    texts = [" ".join(f"w{i}x{j}" for j in range(5)) for i in range(12)]
    row = measure(index, prompts, {("m", 1.0): texts}, unseen, HERE)[0]["m at 1"]
    assert row["rouge_other"]["mean"] == 0 and row["values"]["rouge_other"] == [0.0] * 12
    assert row["values"]["rouge_original"] == [0.0] * 12
    # What repeats its beginning alone has what the rest happens to share with it, not all.
    texts = [one.beginning for one in prompts]
    row = measure(index, prompts, {("m", 1.0): texts}, unseen, HERE)[0]["m at 1"]
    assert row["rouge_original"]["mean"] < 0.6 and row["rouge_nearest"]["mean"] == 1


def test_empty_completions(world):
    """They count in nothing and are counted."""
    index, prompts, unseen = world
    texts = ["", "one", *(one.original for one in prompts[2:])]
    row = measure(index, prompts, {("m", 1.0): texts}, unseen, HERE)[0]["m at 1"]
    assert row["empty"] == 1 and sum(row["copies"].values()) == 11 and row["copies"]["short"] == 1
    assert (
        row["rouge_original"]["n"] == row["rouge_nearest"]["n"] == row["rouge_other"]["n"] == 10
        and row["rouge_original"]["mean"] == 1
    )
    assert row["values"]["rouge_original"][:2] == [None, None]
    results = measure(index, prompts, {("m", 1.0): [""] * 12}, unseen, HERE)[0]
    assert (
        results["m at 1"]["rouge_nearest"] is None
        and results["m at 1"]["longest_match"]["words"] is None
    )
    diversity.show(results)
    json.dumps(results, allow_nan=False)


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Two runs trained for three steps, one with Instruct records."""
    top = tmp_path_factory.mktemp("diversity")
    prepare.prepare(
        prepare.Settings(
            source="instruct:storybook", tokenizer="bpe", vocab_size=512, stories=80,
            val_fraction=0.2, out=str(top / "records"), workers=1,
        )
    )  # fmt: skip
    for name, where in (("plain", data), ("instruct", str(top / "records"))):
        settings = settings_for(where, top / name, max_iters=3, block_size=400, row_tokens=800)
        tiny.train(settings)
    return top


def main(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.diversity", *map(str, arguments)])
    diversity.main()
    return capsys.readouterr().out


FEW = ("--num_prompts=6", "--max_new_tokens=40", "--workers=1")


def test_the_command(runs, data, capsys, monkeypatch):
    printed = main(capsys, monkeypatch, runs / "plain", "--temperatures=1,0.5", *FEW)
    assert "\n6 beginnings of" in f"\n{printed}" and "unseen stories" in printed
    folder = runs / "plain" / "eval"
    results = json.loads((folder / "diversity.json").read_text())
    names = [f"{runs}/plain at {heat}" for heat in ("1", "0.5")]
    assert list(results["sets"]) == [*names, UNSEEN, ORIGINALS]
    assert results["models"].keys() == {str(runs / "plain")} and results["num_prompts"] == 6
    assert results["data"]["train_000.bin"] and results["temperatures"] == "1,0.5"
    row = results["sets"][names[0]]
    assert row["rouge_nearest"]["n"] == 6 and len(row["values"]["longest_match_tokens"]) == 6
    lines = [json.loads(line) for line in (folder / "diversity.jsonl").read_text().splitlines()]
    assert [(line["temperature"], line["rouge_nearest"]) for line in lines[:6]] == [
        (1.0, value) for value in row["values"]["rouge_nearest"]
    ]
    index = StoryIndex(diversity.Dataset(data, "train"))
    for line in lines:
        text = index.text(line["story"])
        assert text.startswith(line["beginning"]) and text.rstrip().endswith(line["original"])
        assert index.text(line["nearest_story"]) == line["nearest_text"]
        assert not line["completion"].startswith(line["beginning"])
        assert line["words"] == len(words_and_marks(line["completion"]))
        words = line["longest_match_text"].split()
        assert len(words) == line["longest_match"]
    assert (folder / "diversity.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "diversity.html").read_text()
    assert page.count("<h2>") == 6 and page.count("<div>") == 24 and "<mark>" in page
    # The same again is the same, and other stories with another seed.
    main(capsys, monkeypatch, runs / "plain", "--temperatures=1,0.5", *FEW)
    assert json.loads((folder / "diversity.json").read_text()) == results
    main(capsys, monkeypatch, runs / "plain", "--seed=2", "--temperatures=1", *FEW)
    assert (
        json.loads((folder / "diversity.json").read_text())["sets"][ORIGINALS]
        != results["sets"][ORIGINALS]
    )


def test_models_beside_and_instructions(runs, capsys, monkeypatch):
    """The stories of Instruct records; each model continues instruction and beginning."""
    options = ("--temperatures=0.8", *FEW)
    main(capsys, monkeypatch, runs / "instruct", f"--beside={runs / 'plain'}", *options)
    folder = runs / "instruct" / "eval"
    results = json.loads((folder / "diversity-beside-plain.json").read_text())
    assert list(results["models"]) == [str(runs / "instruct"), str(runs / "plain")]
    lines = (folder / "diversity-beside-plain.jsonl").read_text().splitlines()
    assert len(lines) == 12
    stories = [json.loads(line)["beginning"] for line in lines]
    assert not any("Story:" in text or "Words:" in text for text in stories)
    cached = [json.loads(path.read_text()) for path in folder.glob("completions-*.json")]
    assert all("Story:" in text for text in cached[0]["request"]["prompts"])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--temperatures=1,hot"], "temperatures are numbers with commas"),
        (["--temperatures=-1"], "temperature must be 0 or more"),
        (["--prompt_fraction=1"], "prompt_fraction must be between 0 and 1"),
        (["--num_prompts=1"], "num_prompts must be at least 2"),
        (["--dataset=nowhere"], "no data in 'nowhere'"),
        (["--top_p=0"], "top_p must be"),
        (["--temperatures=1,inf"], "temperature must be 0 or more, not inf"),
        (["--workers=-1"], "workers must be 0 or more"),
        (["--beside=nowhere"], "'nowhere'"),
    ],
)
def test_what_it_refuses(wrong, why, runs, capsys, monkeypatch):
    with pytest.raises(UserError, match=why):
        main(capsys, monkeypatch, runs / "plain", *wrong)


def test_an_index_that_cannot_be_written(data, tmp_path):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("inverted_index"))
    (tmp_path / "data" / "inverted_index").write_text("no folder")
    with pytest.raises(UserError, match="the index of the stories cannot be written"):
        StoryIndex(diversity.Dataset(tmp_path / "data", "train"), 1)


def test_other_data_than_a_model_was_trained_on(runs, capsys, monkeypatch):
    options = (f"--dataset={runs / 'records'}", "--temperatures=1", *FEW)
    assert "was trained on other data" in main(capsys, monkeypatch, runs / "plain", *options)
    results = json.loads((runs / "plain" / "eval" / "diversity.json").read_text())
    assert results["trained_on_dataset"] == {str(runs / "plain"): False}


# ---- the page ----------------------------------------------------------------------------------


def test_highlight():
    """Shared pairs in yellow, the longest match underlined, everything else as it is."""
    grams = {("the", "cat"), ("cat", "sat")}
    assert diversity_page.highlight("So the  cat sat & ran.", grams) == (
        "So <mark>the  cat sat</mark> &amp; ran."
    )
    assert diversity_page.highlight("the cat sat up", grams, (2, 4)) == (
        "<mark>the cat</mark> <mark><u>sat</u></mark> <u>up</u>"
    )
    assert diversity_page.highlight("", grams) == ""


def test_unseen_stories_are_those_of_val(data):
    index = StoryIndex(diversity.Dataset(data, "train"), 1)
    val = diversity.Dataset(data, "val")
    whole = [diversity.story_text(val, index.tokenizer, i) for i in range(val.stories)]
    rests = [split_story(text, 0.4)[1] for text in whole]
    unseen = diversity.unseen_continuations(index, Settings(num_prompts=20))
    assert len(unseen) == 20 == len(set(unseen)) and set(unseen) <= set(rests)
    assert diversity.unseen_continuations(index, Settings(num_prompts=val.stories + 1)) == []


def test_a_hostile_story_is_shown_as_text():
    text = "<script>alert('x')</script> İ & the <b>end</b>"
    out = diversity_page.highlight(text, {("the", "<")})
    assert "<script" not in out and "<b>" not in out
    plain = out
    for tag in ("<mark>", "</mark>", "<u>", "</u>"):
        plain = plain.replace(tag, "")
    assert unescape(plain) == text


def test_histograms_of_nothing(tmp_path):
    """One model without a word: the plots are drawn all the same."""
    new = {"new": None, "new_distinct": None, "histogram": [0] * 20}
    row = {"rouge_nearest": None, "rouge_original": None, "self_bleu": None,
           "distinct": {"3": None}, "ngrams": {n: new for n in "12345"},
           "values": {"rouge_original": [None], "rouge_other": [None]}}  # fmt: skip
    results = {"sets": {"m at 1": row}, "temperatures": "1", "models": {"m": {}}}
    diversity_page.plot(results, tmp_path / "a.png")
    assert np.frombuffer((tmp_path / "a.png").read_bytes()[:4], "S4")[0] == b"\x89PNG"
