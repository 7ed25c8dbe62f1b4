"""Stories with one thing broken: what is broken, and that chance answers half of it."""

import random
import re
from collections import Counter

import pytest

from eval.prompts import minimal_pairs
from eval.prompts.minimal_pairs import broken, consistency, count_names, grammar, make, plot
from nanostories.dataset import storybook

STORY = (
    "One day, a boy named Tom went out with his dog Rex. They were happy, and he was proud of Rex. "
    "He saw a tall tree and found an old ball. Tom wanted to play with him. He could throw it far "
    "away. Rex ran for it. Then Tom said that Rex was good. It was late. She played with them, and "
    "then they went home, because they wanted to eat. They have a big dinner at home."
)


def texts(count=300):
    return [story.text for story in storybook.stories(count, seed=3)]


@pytest.mark.parametrize("rule, word, other", [
    ("singular", "was", "were"), ("plural", "have", "has"), ("a", "a", "an"), ("an", "an", "a"),
    ("base", "throw", "threw"), ("past", "played", "play"), ("object", "him", "he"),
    ("subject", "they", "them"),
])  # fmt: skip
def test_each_rule_of_grammar(rule, word, other):
    questions = [one for one in grammar([STORY] * 99, 999, random.Random(0)) if one.rule == rule]
    pairs = {pair for one in questions for pair in one.prompt.pairs}
    assert any(right.split()[0].strip(".") == word for right, _ in pairs)
    assert broken(rule, word) == other
    for one in questions:
        [(right, wrong)] = one.prompt.pairs
        assert (one.prompt.text + right) in STORY and (one.prompt.text + wrong) not in STORY


@pytest.mark.parametrize("word", ["put", "happy", "quickly", "xyzzy", "left"])
def test_no_form_that_may_be_right(word):
    """A past that looks like the base form, another kind of word, a past, no word at all."""
    assert broken("base", word) is None


def test_what_may_be_a_wish_is_not_asked_about():
    """ "As if it were" is as right as "as if it was"."""
    text = "Tom looked as if he was sad. " * 9 + "They were late."
    rules = [one.rule for one in grammar([text] * 9, 99, random.Random(0))]
    assert rules == []


def test_all_but_one_word_stays():
    for one in grammar(texts(), 99, random.Random(1)):
        [(right, wrong)] = one.prompt.pairs
        assert right.split()[1:] == wrong.split()[1:]


def test_of_each_rule_as_many():
    rules = [one.rule for one in grammar([STORY] * 60, 80, random.Random(0))]
    assert {rules.count(rule) for rule in set(rules)} == {10} and len(set(rules)) == 8


def test_which_form_is_usual_or_short_decides_nothing():
    """Readers who always take one form of two, or the shorter one, are right half the time."""
    some = grammar(texts(2000), 9999, random.Random(0))
    rules = Counter(one.rule for one in some)
    for one, other in (("singular", "plural"), ("a", "an"), ("base", "past"),
                       ("object", "subject")):  # fmt: skip
        assert rules[one] == rules[other], (one, rules)
    lengths = [[len(text.split()[0]) for text in one.prompt.pairs[0]] for one in some]
    shorter = [0.5 if a == b else a < b for a, b in lengths]
    assert 0.4 < sum(shorter) / len(shorter) < 0.6


def test_names():
    some = [STORY, STORY.replace("Tom", "Ann"), "I saw Mom. The mom saw Mom, and Mom sat."]
    assert count_names([STORY] * 3) == {"Rex": 9} or "Rex" in count_names(some)
    assert "Mom" not in count_names(some * 3)


def test_the_other_name_is_none_of_the_story():
    questions = consistency(texts(), 200, random.Random(2))
    assert len(questions) > 100
    for one in questions:
        [(right, wrong)] = one.prompt.pairs
        names = [re.match(r" (\w+)", text)[1] for text in (right, wrong)]
        assert names[0] in one.prompt.text and names[1] not in one.prompt.text + right


def test_how_often_a_name_is_told_of_decides_nothing():
    """A reader who knows no more than that is right half the time."""
    some = texts(3000)
    counts, right, total = count_names(some), 0.0, 0
    for one in consistency(some, 2000, random.Random(4)):
        [pair] = one.prompt.pairs
        usual = [counts[re.match(r" (\w+)", text)[1]] for text in pair]
        right += 0.5 if usual[0] == usual[1] else usual[0] > usual[1]
        total += 1
    assert total > 1000 and 0.46 < right / total < 0.54


def test_two_sentences_in_the_wrong_order():
    questions = plot(texts(), 200, random.Random(5))
    assert len(questions) > 50
    for one in questions:
        [(right, wrong)] = one.prompt.pairs
        assert sorted(right.split()) == sorted(wrong.split()) and right != wrong
        assert '"' not in right


def test_made_by_the_seed():
    some = texts(200)
    assert make(some, 30, 1) == make(some, 30, 1) != make(some, 30, 2)
    assert {one.prompt.kind for one in make(some, 30, 1)} == set(minimal_pairs.KINDS)
    assert all(len(one.prompt.text) < minimal_pairs.MAX_LENGTH for one in make(some, 30, 1))


def test_of_no_stories_no_questions():
    assert make([], 30, 1) == [] == make(["Too short."], 30, 1)
