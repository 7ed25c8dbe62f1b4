"""Our own sentences: balanced, true, without a slip of English, and fit for children."""

import random
import re
from collections import Counter

import pytest

from eval.prompts import relations, templates
from nanostories.text import wordnet

QUESTIONS = templates.make(640, 1337)
WORDS = templates.read_table("templates.toml")["words"]


def differing(pair):
    """What stands in one of two texts in place of what in the other, a pair of tuples of words."""
    a, b = (text.split() for text in pair)
    first = next(i for i in range(len(a)) if a[i] != b[i])
    last = next(i for i in range(1, len(a) + 1) if a[-i] != b[-i])
    return tuple(a[first : len(a) - last + 1]), tuple(b[first : len(b) - last + 1])


@pytest.mark.parametrize("kind", templates.KINDS)
def test_enough_of_each_kind(kind):
    prompts = [one for one in QUESTIONS if one.kind == kind]
    assert sum(len(prompt.pairs) for prompt in prompts) >= {"grammar": 640, "context": 320}[kind]
    assert len(prompts) >= 150


def test_no_question_twice():
    texts = [one.text + "|".join(pair) for one in QUESTIONS for pair in one.pairs]
    assert len(QUESTIONS) == len(set(QUESTIONS)) and len(set(texts)) > 0.98 * len(texts)
    many = templates.of_kind(
        "grammar", 10_000, random.Random(1)
    )  # so many that some are drawn twice
    assert len(many) == len(set(many))
    assert sum(len(one.pairs) for one in many) >= 10_000


def test_what_is_right_once_is_wrong_as_often():
    """So a model that knows only which word is more usual is right in half of each prompt."""
    for prompt in QUESTIONS:
        choices = [differing(pair) for pair in prompt.pairs]
        right, wrong = (Counter(side) for side in zip(*choices, strict=True))
        assert right == wrong, prompt


def test_of_context_the_right_word_is_what_the_text_has_mentioned():
    for prompt in (one for one in QUESTIONS if one.kind == "context"):
        for pair in prompt.pairs:
            [(right,), (wrong,)] = differing(pair)
            before = (prompt.text + pair[0]).rpartition(right)[0]
            right, wrong = (re.sub(r"\W", "", word) for word in (right, wrong))
            mentioned = re.findall(r"\w+", before)
            assert right in mentioned and wrong not in mentioned, (prompt.rule, pair)


def test_verbs_agree():
    """Those of the right sentences, by rules of their own."""
    plural = re.compile(r"(\w+ and (her|his)? ?\w+|The \w+s|two .*s) (were|have)\b")
    for prompt in (one for one in QUESTIONS if one.kind == "grammar"):
        for right, wrong in prompt.pairs:
            last = (prompt.text + right).split(". ")[-1].replace('"', "")
            if re.search(r"\b(were|have)\b", last) and "and were" not in last:
                assert plural.search(last), last
            assert not plural.search((prompt.text + wrong).split(". ")[-1].replace('"', ""))


def test_sentences_are_english():
    for prompt in QUESTIONS:
        for right, _ in prompt.pairs:
            text = prompt.text + right
            assert not re.search(r"\b[Aa] [aeiou]|\ban [^aeiou]|[{}\[\]|<>+]|  |\d", text), text
            assert text[0] not in " " and text[-1] in '."'


def test_no_filler_has_a_word_in_question():
    lists = ("girl", "boy", "animal", "toy", "thing", "under", "place", "color")
    words = {form for name in lists for one in WORDS[name] for form in one.split("|")}
    for filler in WORDS["filler"]:
        assert not words & set(re.findall(r"\w+", filler)), filler


def test_words_are_fit_for_children(nltk_data):
    tables = QUESTIONS + relations.make(10**6, 1)
    texts = {prompt.text + end for prompt in tables for pair in prompt.pairs for end in pair}
    words = {word for text in texts for word in re.findall(r"[a-z]{2,}", text.lower())}
    words -= {name.lower() for name in WORDS["girl"] + WORDS["boy"]}
    assert len(words) > 400 and [word for word in words if not wordnet.is_child_safe(word)] == []


def test_made_by_the_seed():
    assert templates.make(40, 1) == templates.make(40, 1) != templates.make(40, 2)


def test_fill_draws_different_words_for_different_numbers():
    words = {"x": ["dog|dogs", "cat|cats"]}
    for seed in range(20):
        one, other = templates.fill("{x1} {x1+} {x2}", words, random.Random(seed)).split()[1:]
        assert {one, other} in ({"dogs", "cat"}, {"cats", "dog"})


def test_the_common_beginning_is_cut_before_a_word():
    lines = ["Now the dog [was|were] sad.", "Now the dogs [were|was] sad."]
    prompt = templates.as_prompt("grammar", lines, "one or two")
    assert prompt.text == "Now the"
    assert prompt.pairs[1] == (" dogs were sad.", " dogs was sad.")
