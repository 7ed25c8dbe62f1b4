"""Content words and synonyms, by NLTK and WordNet, and the marks of the judge's mode synonyms."""

import re
import sys
from importlib.resources import files
from pathlib import Path

import nltk
import pytest
from beside import beside
from better_profanity import profanity
from chat_server import ChatServer
from lemminflect import getAllInflections
from nltk.tag import PerceptronTagger

from configs import UserError
from eval import judge
from eval.teacher import WORDS
from nanostories.dataset import storybook
from nanostories.text import wordnet
from nanostories.text.wordnet import base_form, content_words, is_child_safe, synonyms

TEXT = "Lily was happy. She ran to the big park and quickly found a small dog."


pytestmark = pytest.mark.usefixtures("nltk_data")


def test_content_words():
    found = [(word.text, word.pos) for word in content_words(TEXT)]
    assert found == [("happy", "a"), ("ran", "v"), ("big", "a"), ("park", "n"), ("quickly", "r"),
                     ("found", "v"), ("small", "a"), ("dog", "n")]  # fmt: skip
    assert all(TEXT[word.start : word.stop] == word.text for word in content_words(TEXT))
    assert content_words("") == [] == content_words('The!\n\n"And" 3 …')


def test_words_are_whole():
    """No part of a token is one, whatever apostrophe or byte stands in it."""
    text = (
        "my_big_dog dog2 20cats donâ€™t don‘t can´t don`t na\udcefve cafe\u0301s didn’t wasn't "
        "café x-rays dogs"
    )
    assert [word.text for word in content_words(text)] == ["café", "x-rays", "dogs"]


def test_base_forms():
    """Of several the most frequent: "saw" is more often of "see" than what a carpenter does."""
    found = [base_form(word, "v") for word in ("saw", "found", "felt", "fell", "ran", "xyzzy")]
    assert found == ["see", "find", "feel", "fall", "run", "xyzzy"]
    assert base_form("men", "n") == "man" and base_form("Better", "a") == "good"
    assert "matte" not in synonyms("felt", "v") and "experience" in synonyms("felt", "v")


def test_the_tagger_is_nltks():
    """The same tags as NLTK's own code gives, odd tokens included."""
    own = PerceptronTagger()
    texts = [story.text for story in storybook.stories(30, seed=4)]
    odd = ["", "x-ray", "1999", "37", "İ", "’", "-", "e\u0301", "日本", "!" * 50]
    for words in [text.split() for text in texts] + [odd, odd[::-1], []]:
        assert wordnet.pos_tags(words) == [tag for _, tag in own.tag(words)]


def test_synonyms():
    assert synonyms("happy", "a") == ["felicitous", "glad"]
    assert "hound" in synonyms("dogs", "n") and "dog" not in synonyms("dogs", "n")
    assert synonyms("big", "a")[0] == "large" and synonyms("xyzzy", "n") == []
    assert not any("_" in word or "-" in word for word in synonyms("run", "v"))


def test_a_share_of_the_words_is_marked():
    """Of 8 content words 30 % are 2; without the marks the text is what it was."""
    text, lists = judge.mark_words(TEXT, 0)
    chosen = re.findall(r"<(\w+)>", text)
    assert len(chosen) == 2 and text.replace("<", "").replace(">", "") == TEXT
    assert [line.split(": ")[0] for line in lists.splitlines()] == chosen
    for line in lists.splitlines():
        word, words = line.split(": ")
        assert 1 <= len(words.split(", ")) <= 8 and word not in words.split(", ")
    assert judge.mark_words(TEXT, 0) == (text, lists)
    assert {judge.mark_words(TEXT, seed)[0] for seed in range(20)} != {text}
    assert judge.mark_words("Oh!", 0) == ("Oh!", "(none)")
    # What a story wraps itself is no mark.
    text, _ = judge.mark_words("She was <felicitous> and <jubilant>.", 0)
    assert text.count("<") == text.count(">") == 1 and "(" in text


def test_the_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(
        judge.harness,
        "completions",
        lambda _, texts, *rest: [[f"{i}. {TEXT}"] for i, _ in enumerate(texts)],
    )
    settings = judge.resolve(judge.Settings(mode="synonyms", judge="tiny", seed=3))
    items, num_prompts = judge.make_items([None], settings, tmp_path)
    assert num_prompts == len(items) == 15
    good = "Grammar: 8/10, Creativity: 7/10, Consistency: 6/10, Plot: 5/10, Diversity: {}/10"
    places = {item.fence: (i, item) for i, item in enumerate(items)}

    def teacher(body, number):
        (text,) = (message["content"] for message in body["messages"])
        i, item = places[re.search(r"\[(\w{16})\]", text)[1]]
        assert text.count("<") == text.count(">") == 2 + 2  # two words, and what the marks are
        assert item.other in text and item.text in text
        return f"{item.verdict_nonce} {good.format(i % 11)}"

    with ChatServer(teacher) as server:
        settings = judge.replace(settings, base_url=server.url)
        rubric, *_ = judge.MODES["synonyms"]
        graded = judge.grading.grade(settings, rubric, items, tmp_path / "replies.jsonl")
    assert [verdict["diversity"] for _, verdict in graded] == [i % 11 for i in range(15)]


def test_without_the_data_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    wordnet._tagger.cache_clear()
    wordnet.reader.cache_clear()
    for name in [name for name in sys.modules if name.startswith("nltk.corpus")]:
        monkeypatch.delitem(sys.modules, name)
    for ask in (lambda: content_words("a dog"), lambda: synonyms("weasel", "n")):
        with pytest.raises(UserError, match=r"python -m nltk\.downloader wordnet") as error:
            ask()
        assert "\n" not in str(error.value)
    wordnet._tagger.cache_clear()
    wordnet.reader.cache_clear()


# ---- words for children ------------------------------------------------------------------------


def lists_of_profanity():
    """The single words of better-profanity's list, lower case."""
    path = files("better_profanity") / "profanity_wordlist.txt"
    return {word for word in path.read_text("utf-8").lower().splitlines() if word.isalpha()}


def test_no_listed_word_is_safe_in_any_inflection():
    for word in lists_of_profanity():
        forms = {form for tags in getAllInflections(word).values() for form in tags}
        assert not any(map(is_child_safe, forms | {word})), word


@pytest.mark.parametrize(
    "word, safe",
    [
        ("crapper", False), ("jigaboo", False), ("ballock", False), ("bonk", False),
        ("wop", False), ("sluttish", False), ("bastards", False), ("pissing", False),
        ("tool", True), ("queen", True), ("boy", True), ("large", True), ("know", True),
        ("automobile", True),
    ],
)  # fmt: skip
def test_words_not_for_children(word, safe):
    assert is_child_safe(word) == safe


@pytest.mark.slow
def test_no_synonym_of_the_stories_words_is_profane():
    """Checked by the matcher of better-profanity, which is another program than ours."""
    profanity.load_censor_words()
    assert profanity.contains_profanity("he said fuck")
    stories = beside("data", "tinystories", "valid_v2.txt")
    text = stories.read_text(encoding="utf-8")[:400_000]
    words = {(word.text.lower(), word.pos) for word in content_words(text)}
    names = {name for word, pos in words for name in synonyms(word, pos)}
    assert len(words) > 3000 and len(names) > 5000
    assert [name for name in sorted(names) if profanity.contains_profanity(name)] == []


def test_a_capital_is_another_word():
    assert synonyms("er", "n") == [] != synonyms("doctor", "n")


def test_what_we_write_ourselves_is_for_children():
    simple = re.findall("[a-z]+", WORDS.read_text(encoding="utf-8"))
    grammar = Path(storybook.__file__).with_suffix(".txt").read_text(encoding="utf-8")
    lower = set(re.findall(r"(?<![A-Za-z'])[a-z]+", grammar.partition("----")[2]))
    assert [word for word in simple if not is_child_safe(word)] == []
    # A child's word, which WordNet has as slang.
    assert [word for word in lower if not is_child_safe(word)] == ["tummy"]
