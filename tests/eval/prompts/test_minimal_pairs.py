"""Stories with one thing broken: what is broken, and that chance answers half of it."""

import random
import re
from collections import Counter

import pytest

from eval.prompts import minimal_pairs
from eval.prompts.minimal_pairs import consistency, context, count_names, make, plot, simple_nouns
from nanostories.dataset import storybook

FAR = "It was a warm and sunny day in the village and all of the people were outside to play. "


def texts(count=300):
    return [story.text for story in storybook.stories(count, seed=3)]


def far_texts():
    """Stories that come back to a name and a noun after many words and another name."""
    names = ("Tom", "Ann", "Rex", "Sue", "Ben", "Kim")
    nouns = ("ball", "tree", "dog", "car", "box", "cake")
    pairs = [(a, b, x, y) for a, x in zip(names, nouns, strict=True)
             for b, y in zip(names, nouns, strict=True) if a != b]  # fmt: skip
    return [
        f"One day, {a} saw the {x}. Then {b} saw the {y}. {FAR * 5}After that, {a} took the {x}. "
        "It was red. So they all went home."
        for a, b, x, y in pairs
    ]


def first_words(question):
    """The right and the wrong word of a question."""
    [pair] = question.pairs
    return [re.match(r" (\w+)", text)[1] for text in pair]


def test_names():
    some = ["So Tom went with Rex."] * 3
    assert count_names(some) == {"Tom": 3, "Rex": 3}
    assert count_names(["I saw Mom. The mom saw Mom, and Mom sat."] * 3) == {}
    assert count_names(["So Mr. Brown went with Mrs. Brown."] * 3) == {}
    assert {"ball", "tree"} <= simple_nouns() and "eat" not in simple_nouns()


def test_the_other_word_is_none_of_the_story():
    questions = consistency(far_texts(), 20, random.Random(2))
    assert {one.rule for one in questions} == {"name", "noun"} and len(questions) == 20
    for one in questions:
        right, wrong = first_words(one)
        assert re.search(rf"\b{right}\b", one.text) and wrong not in one.text


def test_it_is_long_since_the_word_was_mentioned():
    for one in consistency(far_texts(), 20, random.Random(2)):
        right, _ = first_words(one)
        since = re.split(rf"\b{right}\b", one.text)[-1]
        assert len(since.split()) >= {"name": 30, "noun": 60}[one.rule]
        if one.rule == "name":
            assert re.search(r", [A-Z]|n [A-Z][a-z]+ saw", since), "no other name since"
    near = [text.replace(FAR * 5, "") for text in far_texts()]
    assert consistency(near, 20, random.Random(2)) == []


def test_how_frequent_a_word_is_decides_nothing():
    """A model that knows no more than that is right in half of the questions."""
    some = far_texts() + [text + " The end." for text in far_texts() if "Tom" in text]
    for rule in ("name", "noun"):
        questions = [one for one in consistency(some, 40, random.Random(4)) if one.rule == rule]
        right, wrong = (Counter(side) for side in zip(*map(first_words, questions), strict=True))
        assert right == wrong and len(right) > 3, rule


def test_both_nouns_are_of_the_story():
    questions = context([text.replace(FAR * 5, FAR) for text in far_texts()], 40, random.Random(3))
    assert len(questions) == 20  # half of the 40; templates.py has the others
    for one in questions:
        right, wrong = first_words(one)
        assert right != wrong and {right, wrong} <= set(re.findall(r"\w+", one.text))


def test_two_sentences_in_the_wrong_order():
    questions = plot(texts(), 200, random.Random(5))
    assert len(questions) > 50
    for one in questions:
        [(right, wrong)] = one.pairs
        assert sorted(right.split()) == sorted(wrong.split()) and right != wrong
        assert not set('"“”') & set(right)


def test_the_right_one_is_what_the_story_says():
    some = texts() + far_texts()
    for one in make(some, 60, 1):
        [(right, wrong)] = one.pairs
        begins = " ".join((one.text + right).split())  # a line may end before a sentence
        assert any(" ".join(text.split()).startswith(begins) for text in some) and right != wrong
        assert 0 < len(one.text) <= minimal_pairs.MAX_PROMPT


@pytest.mark.parametrize("kind", minimal_pairs.KINDS)
def test_no_question_twice(kind):
    prompts = [one for one in make(texts() + far_texts(), 60, 1) if one.kind == kind]
    assert len(prompts) == len(set(prompts)) > 0


def test_made_by_the_seed():
    some = texts(200) + far_texts()
    assert make(some, 30, 1) == make(some, 30, 1) != make(some, 30, 2)
    assert {one.kind for one in make(some, 30, 1)} == set(minimal_pairs.KINDS)


def test_of_no_stories_no_questions():
    assert make([], 30, 1) == [] == make(["Too short."], 30, 1)
