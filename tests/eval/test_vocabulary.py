"""python -m eval.vocabulary: entropy within synonyms, rare words, losses on both kinds of text."""

import json
import re
import sys

import numpy as np
import pytest
import tiny
from story_data import made
from tiny import settings_for

import prepare
from configs import UserError
from eval import vocabulary
from eval.vocabulary import (
    Settings,
    frequent_words,
    richness,
    synonym_entropy,
    word_sense,
    word_senses,
)
from nanostories.dataset import storybook

pytestmark = pytest.mark.usefixtures("nltk_data")


def test_entropy_by_hand():
    """The word "friend" has no synonym here: 0 bits. "big" is big twice and large twice: 1 bit a
    word. Six words in all, four of them big's: 4 / 6 of a bit.
    """
    texts = [[("big", "big"), ("big", "large"), ("friend", "friend")]] * 2
    result = synonym_entropy(texts, 0)
    assert result["mean"] == pytest.approx(4 / 6) and result["n"] == 2
    assert result["low"] == result["high"] == pytest.approx(4 / 6)  # the texts are alike
    assert synonym_entropy([[("a", "a")]], 0)["mean"] == 0 and synonym_entropy([[], []], 0) is None


def test_entropy_of_what_a_sample_does_not_show():
    """Of 40 words, equally frequent, a sample of 120 shows 5.1 bits: 5.3 is nearer to the truth."""
    rng = np.random.default_rng(0)
    texts = [[("x", str(rng.integers(40))) for _ in range(2)] for _ in range(60)]
    _, counts = np.unique([word for text in texts for _, word in text], return_counts=True)
    shown = -(counts / 120 * np.log2(counts / 120)).sum()
    result = synonym_entropy(texts, 0)
    assert shown < result["mean"] and abs(result["mean"] - np.log2(40)) < np.log2(40) - shown
    assert result["low"] < result["mean"] < result["high"]


def test_what_words_mean():
    """By their most usual sense: "big" and "large" the same, "find" and "see" not, though they can;
    "found" is "find", and what has no synonym counts nowhere.
    """
    assert word_sense("big", "a") == ("large.a.01", "big")
    assert word_sense("large", "a") == ("large.a.01", "large")
    assert word_sense("find", "v")[0] != word_sense("see", "v")[0]
    assert word_sense("found", "v") == word_sense("find", "v") and word_sense("xyzzy", "n") is None
    result = word_senses("The large dog found the big xyzzy.")
    assert [base for _, base in result] == ["large", "dog", "find", "big"]


def test_rare_words():
    """Those beyond the ones that make up 95 % of plain stories; what is no word at all is none."""
    counts = {"a": 90, "b": 5, "lily": 3, "d": 2}
    assert frequent_words(counts) == {"a", "b"}
    row = richness([["a lily elephant b", "a a"], ["thething b"]], counts, Settings())
    assert row["rare"]["mean"] == pytest.approx(2 / 8) and row["words"]["mean"] == 8 / 3
    assert row["non_words"]["mean"] == pytest.approx(1 / 8) and row["rare"]["n"] == 2


def test_intervals_are_over_beginnings():
    """Completions of one beginning are drawn together: they have no spread of their own."""
    samples = [["a elephant"] * 4, ["a a a"] * 4] * 3
    row = richness(samples, {"a": 1}, Settings())
    assert row["rare"]["n"] == 6 and row["rare"]["low"] < 0.1 < 0.3 < row["rare"]["high"]


def test_richer_text_has_more_of_everything():
    """Two synonyms by turns are richer than one, and nothing else about the texts differs."""
    one = [["The big dog saw a big dog. The big dog saw a big dog."]] * 6
    two = [["The big dog saw a large dog. The large dog saw a big dog."]] * 6
    plain, rich = (
        richness(samples, {"a": 1}, Settings(distinct_words=14)) for samples in (one, two)
    )
    assert plain["synonym_entropy"]["mean"] == 0 < rich["synonym_entropy"]["mean"]
    assert rich["mtld"]["mean"] > plain["mtld"]["mean"]
    assert rich["distinct_1"]["mean"] > plain["distinct_1"]["mean"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, nltk_data):
    """Two tiny runs, of stories with "big" and of the same with "large"."""
    folder = tmp_path_factory.mktemp("vocabulary")
    texts = [story.text for story in storybook.stories(60, seed=2)]
    for name, word in (("plain", "big"), ("syn", "large")):
        new = [text.replace(" the ", f" the {word} ") for text in texts]
        made(folder / name, new[:50], new[50:])
        settings = settings_for(str(folder / name), folder / f"run_{name}", max_iters=40)
        tiny.train(settings)
    return folder


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vocabulary.py", "--device=cpu", *map(str, words)])
        vocabulary.main()


def test_the_command(runs, capsys):
    """The losses are those that training saw; the table has a row for each measure."""
    (runs / "begin.txt").write_text("The <|endoftext|>One day")
    few = ("--num_samples=2", "--max_new_tokens=20", f"--prompts={runs / 'begin.txt'}")
    call(runs / "run_plain", runs / "run_syn", *few)
    results = json.loads((runs / "run_syn" / "eval" / "vocabulary.json").read_text())
    plain, syn = results["models"].values()
    for name, row in (("plain", plain), ("syn", syn)):
        lines = (runs / f"run_{name}" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        own = row["loss"][str(runs / name)]
        assert own["mean"] == pytest.approx(last["val_loss"], abs=1e-4)
        assert own["low"] < own["mean"] < own["high"] and row["loss"].keys() == syn["loss"].keys()
    out = capsys.readouterr().out
    for label in ("MTLD", "synonym entropy", "rare words", "distinct-1", "loss on"):
        assert label in out
    assert results["prompts"] == 2 and plain["judge"] == syn["judge"] == {}
    # Grades of a judge, where this checkpoint has some, stand beside.
    grade = {"mean": 3.0, "low": 2.5, "high": 3.5, "n": 2}
    path = runs / "run_syn" / "eval" / "judge-synonyms.json"
    path.write_text(json.dumps({"checkpoint": syn["checkpoint"], "grades": {"diversity": grade}}))
    other = path.parents[2] / "run_plain" / "eval" / path.name
    other.write_text(json.dumps({"checkpoint": syn["checkpoint"], "grades": {"plot": grade}}))
    call(runs / "run_plain", runs / "run_syn", *few)
    out = capsys.readouterr().out
    assert re.search(r"^diversity +- +3.00 \(2.50 to 3.50\)$", out, re.MULTILINE)
    assert "plot" not in out


def test_of_other_tokens_bits_a_byte_are_compared(runs, tmp_path, capsys):
    """Losses a token of different tokenizers do not compare."""
    texts = [story.text for story in storybook.stories(40, seed=5)]
    (tmp_path / "train.txt").write_text("<|endoftext|>".join(texts[:30]))
    (tmp_path / "val.txt").write_text("<|endoftext|>".join(texts[30:]))
    data = str(tmp_path / "bpe")
    prepare.prepare(
        prepare.Settings(
            source=str(tmp_path / "train.txt"), val_source=str(tmp_path / "val.txt"),
            tokenizer="bpe", vocab_size=300, out=data, workers=1,
        )
    )  # fmt: skip
    tiny.train(settings_for(data, tmp_path / "run", max_iters=5))
    (runs / "begin.txt").write_text("The <|endoftext|>One day")
    call(runs / "run_plain", tmp_path / "run", "--num_samples=1", "--max_new_tokens=9",
         f"--prompts={runs / 'begin.txt'}")  # fmt: skip
    results = json.loads((tmp_path / "run" / "eval" / "vocabulary.json").read_text())
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    own = results["models"][str(tmp_path / "run")]["loss"][data]["mean"]
    assert own == pytest.approx(json.loads(last)["val_bpb"], abs=1e-4)
    assert "bits per byte on" in capsys.readouterr().out


def test_what_it_refuses(runs):
    with pytest.raises(UserError, match=r"usage: python -m eval\.vocabulary"):
        call(runs / "run_plain")
    with pytest.raises(UserError, match="no run in 'nowhere'"):
        call(runs / "run_plain", "nowhere")
    with pytest.raises(UserError, match="a model is not compared with itself"):
        call(runs / "run_plain", f"{runs}/run_plain/")
