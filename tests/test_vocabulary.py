"""python -m eval.vocabulary: entropy within synonyms, rare words, losses on both kinds of text."""

import json
import sys

import numpy as np
import pytest
from story_data import made
from tiny import settings_for

import storybook
import train
from configs import UserError
from eval import vocabulary
from eval.vocabulary import Meanings, Settings, entropy, richness

pytestmark = pytest.mark.usefixtures("nltk_data")


def test_entropy_by_hand():
    """
    "friend" is always so: 0 bits. "big" is big twice and large twice: 1 bit a word. Six words in
    all, four of them big's: 4 / 6 of a bit.
    """
    texts = [[("big", "big"), ("big", "large"), ("friend", "friend")]] * 2
    found = entropy(texts, 0)
    assert found["mean"] == pytest.approx(4 / 6) and found["n"] == 2
    assert found["low"] == found["high"] == pytest.approx(4 / 6)  # the texts are alike
    assert entropy([[("a", "a")]], 0)["mean"] == 0 and entropy([[], []], 0) is None


def test_entropy_of_what_a_sample_does_not_show():
    """Of 40 words, equally frequent, a sample of 120 shows 5.1 bits: 5.3 is nearer to the truth."""
    rng = np.random.default_rng(0)
    texts = [[("x", str(rng.integers(40))) for _ in range(2)] for _ in range(60)]
    _, counts = np.unique([word for text in texts for _, word in text], return_counts=True)
    shown = -(counts / 120 * np.log2(counts / 120)).sum()
    found = entropy(texts, 0)
    assert shown < found["mean"] and abs(found["mean"] - np.log2(40)) < np.log2(40) - shown
    assert found["low"] < found["mean"] < found["high"]


def test_what_words_stand_for():
    """The most frequent of itself and its synonyms, in plain stories; a base form; or itself."""
    meanings = Meanings({"friend": 50, "big": 40, "large": 2, "dog": 30, "go": 60})
    assert meanings.of("protagonist", "n") == meanings.of("friends", "n") == "friend"
    assert meanings.of("large", "a") == "big" and meanings.of("xyzzy", "n") == "xyzzy"
    assert meanings.pairs("The large dog saw the big dogs.") == [
        ("big", "large"), ("dog", "dog"), meanings.pairs("saw")[0] if meanings.pairs("saw") else
        (meanings.of("saw", "v"), "see"), ("big", "big"), ("dog", "dog"),
    ]  # fmt: skip


def test_rare_words():
    """Those beyond the ones that make up 95 % of plain stories."""
    meanings = Meanings({"a": 90, "b": 5, "c": 3, "d": 2})
    assert meanings.usual == {"a", "b"}
    row = richness(["a b c x", "a a"], meanings, Settings())
    assert row["rare"]["mean"] == pytest.approx(2 / 6) and row["words"]["mean"] == 3


def test_richer_text_has_more_of_everything():
    """Two synonyms by turns are richer than one, and nothing else about the texts differs."""
    meanings = Meanings({"big": 9, "large": 1, "dog": 9, "the": 50, "saw": 9, "a": 30})
    one = ["The big dog saw a big dog. The big dog saw a big dog."] * 6
    two = ["The big dog saw a large dog. The large dog saw a big dog."] * 6
    plain, rich = (richness(texts, meanings, Settings(distinct_words=20)) for texts in (one, two))
    assert plain["synonym_entropy"]["mean"] == 0 < rich["synonym_entropy"]["mean"]
    assert rich["mtld"]["mean"] > plain["mtld"]["mean"]
    assert rich["distinct_1"] > plain["distinct_1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, nltk_data):
    """Two tiny runs, of stories with "big" and of the same with "large"."""
    folder = tmp_path_factory.mktemp("vocabulary")
    texts = [story.text for story in storybook.stories(60, seed=2)]
    for name, word in (("plain", "big"), ("syn", "large")):
        new = [text.replace(" the ", f" the {word} ") for text in texts]
        made(folder / name, new[:50], new[50:])
        settings = settings_for(str(folder / name), folder / f"run_{name}", max_iters=40)
        train.Trainer(settings).run()
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
        assert own["bits_per_byte"] == pytest.approx(last["val_bpb"], abs=1e-4)
        assert own["low"] <= own["mean"] <= own["high"] and row["loss"].keys() == syn["loss"].keys()
    out = capsys.readouterr().out
    for label in ("MTLD", "synonym entropy", "rare words", "distinct-1", "loss on"):
        assert label in out
    assert results["prompts"] == 2 and plain["judge"] == syn["judge"] == {}
    # Grades of a judge, where there are some, stand beside.
    grade = {"mean": 3.0, "low": 2.5, "high": 3.5, "n": 2}
    for name in ("plain", "syn"):
        path = runs / f"run_{name}" / "eval" / "judge-synonyms.json"
        path.write_text(json.dumps({"grades": {"diversity": grade}}))
    call(runs / "run_plain", runs / "run_syn", *few)
    assert "diversity" in capsys.readouterr().out


def test_what_it_refuses(runs):
    with pytest.raises(UserError, match=r"usage: python -m eval\.vocabulary"):
        call(runs / "run_plain")
    with pytest.raises(UserError, match="no run in 'nowhere'"):
        call(runs / "run_plain", "nowhere")
