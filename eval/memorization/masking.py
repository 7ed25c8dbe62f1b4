"""
Names and nouns masked, so that a story told again of somebody else, with other things, is the same.

    masked = nouns(index)            # bool (words + 1,), by the index's numbers
    is_noun("kite")                  # True

A word is masked wherever it stands: a noun is a word that WordNet counts most often as one, a name
one that has a capital letter in most places inside a sentence. Function words, indefinite pronouns
and a few adverbs that WordNet knows as nouns only are neither.
"""

import numpy as np

from nanostories.text import wordnet
from nanostories.text.words import STOP_WORDS, dictionary_lemmas

_OTHERS = """
    something anything nothing everything someone anyone everyone somebody anybody everybody nobody
    inside outside home today tomorrow yesterday right hello hi goodbye bye wow
"""
_NEITHER = STOP_WORDS | frozenset(_OTHERS.split())
MASK = "<noun>"  # no word: words_and_marks would cut it up


def is_noun(word, tally=None):
    """
    Whether a word is masked. tally: how often the training stories have it inside a sentence and,
    of these, with a capital letter; None of a word that they do not have: in no dictionary either,
    it is taken for a name.
    """
    base = word.removesuffix("'s")
    if base in _NEITHER or not base[:1].isalpha():
        return False
    if tally is None and not dictionary_lemmas(base):
        return True
    inside, capital = tally or (0, 0)
    return 2 * capital > inside or wordnet.most_frequent_pos(base) == "n"


def nouns(index):
    """For each word of an overlap.Index whether it is masked, bool (words + 1,)."""
    tally = np.zeros((len(index.numbers) + 1, 3), np.int64)
    for segment, local in zip(index.segments, index.local, strict=True):
        have = np.flatnonzero(local)
        tally[have] += segment.tally[local[have]]
    rows = zip(index.numbers, tally[1:, 1:].tolist(), strict=True)
    return np.array([False, *(is_noun(word, row) for word, row in rows)])
