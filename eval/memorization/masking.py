"""Masks names and nouns, so that a story retold with other names and things counts as the same.

    masked = masked_words(index)     # bool (words + 1,), by the index's word numbers
    is_masked("kite")                # True

A word is masked wherever it occurs. It is a noun if WordNet counts it most often as one, and a name
if most of its occurrences inside a sentence are capitalized. Function words, indefinite pronouns
and a few adverbs that WordNet has only as nouns are never masked.
"""

import numpy as np

from nanostories.text import wordnet
from nanostories.text.words import STOP_WORDS, dictionary_lemmas

_OTHERS = """
    something anything nothing everything someone anyone everyone somebody anybody everybody nobody
    inside outside home today tomorrow yesterday right hello hi goodbye bye wow
"""
_NEVER = STOP_WORDS | frozenset(_OTHERS.split())
MASK = "<noun>"  # no word: words_and_marks would cut it up


def is_masked(word, counts=None):
    """Whether a word is masked.

    counts: its occurrences inside a sentence of the training stories, and those capitalized; None
    of a word that they do not have: if it is in no dictionary either, it is taken for a name.
    """
    base = word.removesuffix("'s")
    if base in _NEVER or not base[:1].isalpha():
        return False
    if counts is None and not dictionary_lemmas(base):
        return True
    mid_sentence, capitalized = counts or (0, 0)
    return 2 * capitalized > mid_sentence or wordnet.most_frequent_pos(base) == "n"


def masked_words(index):
    """Which words of a StoryIndex are masked: bool (words + 1,), by their numbers."""
    counts = np.zeros((len(index.numbers) + 1, 3), np.int64)
    for segment, local in zip(index.segments, index.local, strict=True):
        known = np.flatnonzero(local)
        counts[known] += segment.word_counts[local[known]]
    rows = zip(index.numbers, counts[1:, 1:].tolist(), strict=True)
    return np.array([False, *(is_masked(word, row) for word, row in rows)])
