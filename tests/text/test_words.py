"""Words and their inflections."""

import pytest

from nanostories.text.words import (
    STOP_WORDS,
    contains_word,
    lemmas,
    split_words,
    unique_content_words,
)


def test_tokens():
    text = "Ben's x-rays broke. “Don’t!” said Café’s owner, 3 times... it’s o'clock"
    assert split_words(text) == [
        "ben", "x-rays", "broke", "don't", "said", "café", "owner", "times", "it", "o'clock",
    ]  # fmt: skip
    assert split_words("... 12 _ - '") == []


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("decorate", "they decorated the tree", True),
        ("car", "be careful with the scar", False),
        ("car", "the cars", True),
        ("car", "the car's wheel", True),
        ("war", "a warm wardrobe", False),
        ("run", "he ran", True),
        ("be", "they were", True),
        ("good", "it was better", True),
        ("child", "the children", True),
        ("x-ray", "two x-rays", True),
        ("ice cream", "some ice creams", True),
        ("ice cream", "the cream of ice", False),
        ("decorated", "she decorates", True),  # an inflected word, in another inflection
        ("saw", "he sees", False),  # a saw is a word of its own
        ("Kite", "a KITE", True),
        ("flytrap", "flytraps everywhere", True),  # in no dictionary
        ("happy", "happily", False),  # another word, if of the same family
        ("don't", "I don’t know", True),
        ("", "anything", False),
    ],
)
def test_contains_word(word, text, expected):
    assert contains_word(word, split_words(text)) is expected


def test_lemmas_and_content():
    assert lemmas("broke") == {"broke", "break"} and lemmas("left") >= {"left", "leave"}
    assert unique_content_words("Tom and the dog ran to the park, and Tom ran home.") == [
        "tom", "dog", "ran", "park", "home",
    ]  # fmt: skip
    assert {"the", "and", "was", "don't"} <= STOP_WORDS and not {"kite", "sad"} & STOP_WORDS
