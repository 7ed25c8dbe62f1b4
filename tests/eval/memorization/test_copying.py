"""Planted copies, near copies and new texts are reported with the right numbers."""

import nltk
import numpy as np
import pytest
from story_data import made

from configs import UserError
from eval.memorization import copying, masking
from eval.memorization.copying import find_copies, log_frequencies, summarize
from eval.memorization.nearest_story import StoryIndex
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
    return StoryIndex(made(tmp_path_factory.mktemp("copying") / "data", stories), 1)


def report_on(index, text):
    (report,), totals = find_copies(index, [text])
    return report, totals


def test_a_planted_copy(index):
    """All of it is in story 120: precision 1, an exact copy of all words and tokens (bytes)."""
    text = PLANTED[20:]
    report, _ = report_on(index, text)
    n = len(words_and_marks(text))
    assert report.kind() == "exact" and report.nearest == (n - 1, n - 1, 120)
    assert (
        report.longest == (n, 0)
        and report.longest_tokens == (len(text), 0)
        and report.num_tokens == len(text)
    )
    assert all((report.occurrences[n] > 0).all() for n in copying.N)
    # Capitals and blanks do not make it another text; to the tokens they do.
    report, _ = report_on(index, text.upper().replace(" ", "\n\n"))
    assert report.kind() == "exact" and report.longest_tokens[0] < len(text)


def test_a_planted_near_copy(index):
    """Other names and things, Tom > Zarquon, ball > kite twice, park > garden: of 30 words and
    marks four are changed, the first of them in one bigram, the others in two: 29 - 7 = 22 stand
    there.
    """
    text = (
        "Zarquon had a red kite. He played with it in the garden all day. "
        "Then Lily came and they shared the kite, and both were happy."
    )
    report, _ = report_on(index, text)
    n = len(words_and_marks(text))
    assert n == 30 and report.nearest == (22, 29, 120)
    assert report.kind() == "template" and report.longest_masked == (n, 0)
    # "all day . then lily came and they shared the": the longest part without a change.
    assert report.longest == (10, 13)


def test_a_verb_is_no_noun(index):
    """With other verbs it is no template."""
    report, _ = report_on(index, PLANTED.replace("played", "ran"))
    assert report.kind() == "no_copy" and report.longest_masked == (22, 8)  # after "he played"


def test_a_planted_novelty(index):
    """No word of it is anywhere: every frequency is -10, the precision 0, nothing matches."""
    report, totals = report_on(index, "Quantum fluctuations permeate vacuum energies, evidently")
    assert report.kind() == "short" and report.longest[0] == 1  # the comma
    report, totals = report_on(index, "quantum fluctuations permeate vacuum energies")
    assert report.longest == (0, 0) and report.nearest.matched == 0
    for n in copying.N:
        assert (log_frequencies(report.occurrences[n], totals[n]) == -10).all()
        assert len(report.occurrences[n]) == 5 - n + 1
    result = summarize([report], totals)
    assert result["rouge_nearest"]["mean"] == 0 and result["copies"] == {
        "exact": 0,
        "template": 0,
        "no_copy": 0,
        "short": 1,
    }
    for row in result["ngrams"].values():
        assert row["new"]["mean"] == row["new_distinct"] == 1
        assert row["histogram"][0] == sum(row["histogram"]) > 0


def test_how_often_an_ngram_occurs(tmp_path):
    """Stories "a b a b" and "a b c", 7 words, 5 bigrams, 3 trigrams. "a b a" has a 3 times of 7, b
    3, ab 3 of 5, ba 1 of 5, aba 1 of 3, and no n-gram of 4. Never: none of "a b a", and of "a c"
    the bigram; so of both texts' bigrams, ab ba ac, 1 of 3.
    """
    index = StoryIndex(made(tmp_path / "data", ["a b a b", "a b c"]), 1)
    reports, totals = find_copies(index, ["a b a", "a c", ""])
    assert totals == {1: 7, 2: 5, 3: 3, 4: 1, 5: 0}
    counts = {n: reports[0].occurrences[n].tolist() for n in copying.N}
    assert counts == {1: [3, 3, 3], 2: [3, 1], 3: [1], 4: [], 5: []}
    assert log_frequencies(reports[0].occurrences[2], 5) == pytest.approx(np.log10([3 / 5, 1 / 5]))
    result = summarize(reports, totals)
    assert result["ngrams"]["2"]["new"]["mean"] == result["ngrams"]["2"]["new_distinct"] == 1 / 3
    assert result["ngrams"]["1"]["new"]["mean"] == 0 and result["ngrams"]["5"]["new"] is None
    assert result["empty"] == 1 and sum(result["copies"].values()) == 2
    # 3/5 and 1/5 are 10^-0.22 and 10^-0.70: the last bin and the one before.
    assert (
        result["ngrams"]["2"]["histogram"][-2:] == [1, 1]
        and result["ngrams"]["2"]["histogram"][0] == 1
    )


def test_matches_end_with_the_story(tmp_path):
    """ "a b c d" is no match where one story ends in "a b" and the next begins with "c d"."""
    index = StoryIndex(made(tmp_path / "data", ["x a b", "c d y"]), 1)
    report, _ = report_on(index, "a b c d")
    assert report.longest == (2, 0) and report.nearest == (1, 3, 0)
    assert report.longest_tokens == (3, 0)  # "a b"


def test_instructions_are_no_stories(tmp_path):
    prompts = ["Words: a b c d\nStory: "] * 2
    index = StoryIndex(made(tmp_path / "data", ["x y", "z"], prompts=prompts), 1)
    report, totals = report_on(index, "a b c d")
    assert report.longest == (0, 0) and totals[1] == 3 and report.longest_tokens[0] == 1  # a blank
    assert report_on(index, "x y")[0].longest_tokens == (3, 0)


def test_without_wordnet(index, monkeypatch, capsys):
    monkeypatch.setattr(nltk.data, "path", [])

    def nothing(word, counts=None):
        raise UserError("NLTK's WordNet cannot be read: python -m nltk.downloader wordnet")

    monkeypatch.setattr(masking, "is_masked", nothing)
    report, totals = report_on(index, PLANTED)
    assert report.longest_masked is None and report.kind() == "exact"
    assert summarize([report], totals)["longest_match"]["words_masked"] is None
    assert "templates are left out: NLTK's WordNet" in capsys.readouterr().out


def test_nouns(index):
    """Names by their capitals, nouns by WordNet; a new word in no dictionary is a name."""
    mask = masking.masker(index)
    known = {word for word in index.numbers if mask(word) == masking.MASK}
    assert {"tom", "lily", "ball", "park", "day"} <= known
    assert not known & {"he", "then", "played", "red", "happy", ".", "and", "came", "all"}
    assert masking.is_masked("sue", [10, 9]) and not masking.is_masked("sue", [10, 1])
    assert masking.is_masked("zarquon") and not masking.is_masked("zarquon", [10, 0])
    assert masking.is_masked("kite's") and not masking.is_masked("felt", [5, 0])
    assert (
        not masking.is_masked("i", [9, 9])
        and not masking.is_masked("!")
        and not (masking.is_masked("3"))
    )
