"""Copies, near copies and new stories, planted among others and found with the right numbers."""

import nltk
import numpy as np
import pytest
from story_data import made

from configs import UserError
from eval.memorization import copying, masking
from eval.memorization.copying import copies, log_shares, summary
from eval.memorization.nearest_story import Index
from nanostories.dataset import storybook
from nanostories.text.words import words_and_marks

PLANTED = (
    "Tom had a red ball. He played with it in the park all day. "
    "Then Lily came and they shared the ball, and both were happy."
)


pytestmark = pytest.mark.usefixtures("nltk_data")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """200 stories, among them the planted one as number 120."""
    stories = [story.text for story in storybook.stories(199, seed=3)]
    stories.insert(120, PLANTED)
    return Index(made(tmp_path_factory.mktemp("copying") / "data", stories), 1)


def one(index, text):
    (found,), totals = copies(index, [text])
    return found, totals


def test_a_planted_copy(index):
    """All of it stands in story 120: h = 1, an exact copy of all its words and tokens (bytes)."""
    text = PLANTED[20:]
    found, _ = one(index, text)
    n = len(words_and_marks(text))
    assert found.level() == "exact" and found.closest == (n - 1, n - 1, 120)
    assert found.run == (n, 0) and found.tokens == (len(text), 0) and found.length == len(text)
    assert all((found.counts[k] > 0).all() for k in copying.K)
    # Capitals and blanks do not make it another text; to the tokens they do.
    found, _ = one(index, text.upper().replace(" ", "\n\n"))
    assert found.level() == "exact" and found.tokens[0] < len(text)


def test_a_planted_near_copy(index):
    """
    Other names and things, Tom > Zarquon, ball > kite twice, park > garden: of 30 words and marks
    four are changed, the first of them in one bigram, the others in two: 29 - 7 = 22 stand there.
    """
    text = (
        "Zarquon had a red kite. He played with it in the garden all day. "
        "Then Lily came and they shared the kite, and both were happy."
    )
    found, _ = one(index, text)
    n = len(words_and_marks(text))
    assert n == 30 and found.closest == (22, 29, 120)
    assert found.level() == "template" and found.masked == (n, 0)
    # "all day . then lily came and they shared the": the longest part without a change.
    assert found.run == (10, 13)


def test_a_verb_is_no_noun(index):
    """Told of other doings it is no template."""
    found, _ = one(index, PLANTED.replace("played", "ran"))
    assert found.level() == "rest" and found.masked == (22, 8)  # after "he played"


def test_a_planted_novelty(index):
    """No word of it is anywhere: all g are -10, h is 0, nothing in a row."""
    found, totals = one(index, "Quantum fluctuations permeate vacuum energies, evidently")
    assert found.level() == "short" and found.run[0] == 1  # the comma
    found, totals = one(index, "quantum fluctuations permeate vacuum energies")
    assert found.run == (0, 0) and found.closest.hits == 0
    for k in copying.K:
        assert (log_shares(found.counts[k], totals[k]) == -10).all()
        assert len(found.counts[k]) == 5 - k + 1
    result = summary([found], totals)
    assert result["h"]["mean"] == 0 and result["levels"] == {
        "exact": 0,
        "template": 0,
        "rest": 0,
        "short": 1,
    }
    for row in result["g"].values():
        assert row["never"]["mean"] == row["never_different"] == 1
        assert row["histogram"][0] == sum(row["histogram"]) > 0


def test_how_often_a_kgram_occurs(tmp_path):
    """
    Stories "a b a b" and "a b c", 7 words, 5 bigrams, 3 trigrams. "a b a" has a 3 times of 7, b 3,
    ab 3 of 5, ba 1 of 5, aba 1 of 3, and no k-gram of 4. Never: none of "a b a", and of "a c" the
    bigram; so of both texts' bigrams, ab ba ac, 1 of 3.
    """
    index = Index(made(tmp_path / "data", ["a b a b", "a b c"]), 1)
    found, totals = copies(index, ["a b a", "a c", ""])
    assert totals == {1: 7, 2: 5, 3: 3, 4: 1, 5: 0}
    counts = {k: found[0].counts[k].tolist() for k in copying.K}
    assert counts == {1: [3, 3, 3], 2: [3, 1], 3: [1], 4: [], 5: []}
    assert log_shares(found[0].counts[2], 5) == pytest.approx(np.log10([3 / 5, 1 / 5]))
    result = summary(found, totals)
    assert result["g"]["2"]["never"]["mean"] == result["g"]["2"]["never_different"] == 1 / 3
    assert result["g"]["1"]["never"]["mean"] == 0 and result["g"]["5"]["never"] is None
    assert result["empty"] == 1 and sum(result["levels"].values()) == 2
    # 3/5 and 1/5 are 10^-0.22 and 10^-0.70: the last bin and the one before.
    assert result["g"]["2"]["histogram"][-2:] == [1, 1] and result["g"]["2"]["histogram"][0] == 1


def test_runs_end_with_the_story(tmp_path):
    """ "a b c d" is no run where one story ends in "a b" and the next begins with "c d"."""
    index = Index(made(tmp_path / "data", ["x a b", "c d y"]), 1)
    found, _ = one(index, "a b c d")
    assert found.run == (2, 0) and found.closest == (1, 3, 0)
    assert found.tokens == (3, 0)  # "a b"


def test_instructions_are_no_stories(tmp_path):
    prompts = ["Words: a b c d\nStory: "] * 2
    index = Index(made(tmp_path / "data", ["x y", "z"], prompts=prompts), 1)
    found, totals = one(index, "a b c d")
    assert found.run == (0, 0) and totals[1] == 3 and found.tokens[0] == 1  # a blank
    assert one(index, "x y")[0].tokens == (3, 0)


def test_without_wordnet(index, monkeypatch, capsys):
    monkeypatch.setattr(nltk.data, "path", [])

    def nothing(word, tally=None):
        raise UserError("NLTK's WordNet cannot be read: python -m nltk.downloader wordnet")

    monkeypatch.setattr(masking, "is_noun", nothing)
    found, totals = one(index, PLANTED)
    assert found.masked is None and found.level() == "exact"
    assert summary([found], totals)["run"]["words_masked"] is None
    assert "templates are not looked for: NLTK's WordNet" in capsys.readouterr().out


def test_nouns(index):
    """Names by their capitals, nouns by WordNet; a new word in no dictionary is a name."""
    masked = masking.nouns(index)
    known = {word for word, number in index.numbers.items() if masked[number]}
    assert {"tom", "lily", "ball", "park", "day"} <= known
    assert not known & {"he", "then", "played", "red", "happy", ".", "and", "came", "all"}
    assert masking.is_noun("sue", [10, 9]) and not masking.is_noun("sue", [10, 1])
    assert masking.is_noun("zarquon") and not masking.is_noun("zarquon", [10, 0])
    assert masking.is_noun("kite's") and not masking.is_noun("felt", [5, 0])
    assert (
        not masking.is_noun("i", [9, 9]) and not masking.is_noun("!") and not (masking.is_noun("3"))
    )
